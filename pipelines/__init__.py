"""Prefect flows that run the stages of dvc.yaml anywhere."""

import os

# Read by Prefect when it is first imported: no calls home unless a person wants them.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# The server that a flow brings along where none runs takes longer than Prefect waits when the machine is busy.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
