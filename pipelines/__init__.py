"""Prefect flows that run the stages of dvc.yaml anywhere."""

import os
from pathlib import Path

import stages  # noqa: F401  # Ctrl-C, while the rest is imported, prints no traceback

try:
    Path.home()
except RuntimeError:  # a container user without a name: Prefect and other tools then store their files here
    os.environ["HOME"] = str(Path(".work/home").resolve())
# Prefect reads these when it is first imported: no telemetry unless the user enables it.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# If no server runs, a flow starts a temporary one; on a busy machine this takes longer than Prefect waits by default.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
