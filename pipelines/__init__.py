"""Prefect flows that run the stages of dvc.yaml anywhere."""

import os
from pathlib import Path

try:
    Path.home()
except RuntimeError:  # a container's user without a name: Prefect and others keep their files here then
    os.environ["HOME"] = str(Path(".work/home").resolve())
# Read by Prefect when it is first imported: no calls home unless a person wants them.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# The server that a flow brings along where none runs takes longer than Prefect waits when the machine is busy.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
