"""Changes of what computes regions that leave every feature as it was."""

HARMLESS: dict[str, str] = {}
"""Digest of the code and versions that compute now -> the digest of those that computed the same features before; both
stand under `computed_by` in data/detector/detector.json, and train_detector prints the line to add here."""
