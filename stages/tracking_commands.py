"""What a person asks of the tracking: `python -m stages.tracking ui | sync`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.params import InputError
from stages.tracking_delivery import sync
from stages.tracking_spool import main_root
from stages.tracking_store import store_uri


def serve(root: Path, host: str, port: int) -> None:
    """Become an MLflow server on the store of `root`."""
    (root / "mlartifacts").mkdir(exist_ok=True)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Without its job runner the server is two processes instead of ten.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    print(f"MLflow on http://{host}:{port} (Ctrl-C ends it)", flush=True)
    store = ["--backend-store-uri", store_uri(root), "--default-artifact-root", (root / "mlartifacts").as_uri()]
    where = ["--host", host, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", "--no-serve-artifacts", *store, *where])


def deliver(root: Path) -> None:
    """Deliver the spool and say what came of it.

    Raises:
        InputError: something could not be delivered.
    """
    delivered, problems = sync(root)
    print(f"{delivered} {'run' if delivered == 1 else 'runs'} delivered, {len(problems)} left in .tracking/spool")
    if problems:
        raise InputError("; ".join(problems))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.tracking", description="MLflow, from this repository.")
    commands = parser.add_subparsers(dest="command", required=True)
    ui = commands.add_parser("ui", help="open the store in a browser")
    ui.add_argument("--host", default="127.0.0.1")
    ui.add_argument("--port", type=int, default=5000)
    commands.add_parser("sync", help="deliver what the server did not take when it happened")
    given = parser.parse_args(arguments)
    root = main_root()
    if given.command == "ui":
        serve(root, given.host, given.port)
    else:
        deliver(root)
