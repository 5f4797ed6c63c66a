"""`python -m stages.tracking.delivery ROOT KEY` runs beside a run and carries its spool to MLflow."""

import os
import sys
import time
from pathlib import Path

from stages.tracking.spool import SPOOL, pending, started, writer_alive
from stages.tracking.store import Delivery, store_uri


def bound_waiting(seconds: int) -> None:
    """One call to a server takes about twice `seconds` at most (by default MLflow would try for four minutes)."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(seconds)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "1"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


def _recorded_uri(folder: Path) -> str:
    """The MLFLOW_TRACKING_URI that the run was started with; empty for the local store."""
    return str((started(folder) or {}).get("uri") or "")


def deliver_beside(root: Path, key: str) -> int:
    """Deliver one run while it is being written, and what earlier runs left; 0 once it is wholly delivered."""
    bound_waiting(3)
    os.nice(10)  # the run comes first
    given = os.environ.get("MLFLOW_TRACKING_URI", "")  # MLflow sets it, once it is used
    folder = root / SPOOL / key
    delivery: Delivery | None = None
    pause = 1.0
    others_tried = False
    while True:
        alive = writer_alive(folder)
        try:
            delivery = delivery or Delivery(root, store_uri(root))
            if delivery.deliver(folder):
                return 0
            if not alive:
                return 1  # another process is at it, or what is left needs `sync`
            pause = 1.0
            if alive and not others_tried:
                others_tried = True
                _deliver_others(delivery, folder, given)
        except Exception as error:
            print(f"{time.strftime('%F %T')} {key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if not alive:
                return 1
            pause = min(pause * 2, 60)
        resume_at = time.monotonic() + pause
        while time.monotonic() < resume_at and writer_alive(folder):
            time.sleep(0.3)


def _deliver_others(delivery: Delivery, own: Path, given: str) -> None:
    for folder in pending(delivery.root):
        if folder != own and not writer_alive(folder) and _recorded_uri(folder) == given:
            delivery.deliver(folder)


def sync(root: Path) -> tuple[int, list[str]]:
    """Deliver everything in the spool: the number of runs delivered, and a line for each that was not.

    A run goes to MLFLOW_TRACKING_URI where that is set, else to the server it was started with.
    """
    bound_waiting(30)
    delivered, problems = 0, []
    given = os.environ.get("MLFLOW_TRACKING_URI")  # MLflow sets it, once it is used
    local = store_uri(root)
    deliveries: dict[str, Delivery] = {}
    for folder in pending(root):
        uri = given or _recorded_uri(folder) or local
        try:
            delivery = deliveries.get(uri) or Delivery(root, uri)
            deliveries[uri] = delivery
            if delivery.deliver(folder):
                delivered += 1
            else:
                problems.append(f"{folder.name}: is still being written or delivered by another process")
        except Exception as error:
            problems.append(f"{folder.name}: {uri} did not take it: {type(error).__name__}: {error}")
    return delivered, problems


if __name__ == "__main__":
    raise SystemExit(deliver_beside(Path(sys.argv[1]), sys.argv[2]))
