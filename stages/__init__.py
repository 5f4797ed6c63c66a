"""The stages of dvc.yaml: each module is one stage, a function of (params, input paths, output paths)."""
