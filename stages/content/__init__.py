"""Hashes of the content of paths."""
