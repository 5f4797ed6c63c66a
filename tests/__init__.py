"""The tests; packages, so that fixtures of `tests/pipelines` can end with its last test."""
