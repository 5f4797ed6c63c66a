"""CAMP: cross-modal adaptive message passing for text-image retrieval (Wang et al., ICCV 2019)."""
