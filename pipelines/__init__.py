"""Prefect flows that run the stages of dvc.yaml anywhere."""
