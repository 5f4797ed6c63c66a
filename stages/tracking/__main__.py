"""The commands of `python -m stages.tracking`."""

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.entry import stage_main
from stages.errors import InputError, shown, without_password
from stages.tracking.comparison import compare_models
from stages.tracking.delivery import in_one_line, limit_request_time, sync
from stages.tracking.model import promote
from stages.tracking.restore import find_commit, find_run, restore
from stages.tracking.store import (
    ARTIFACTS,
    connect,
    experiment_name,
    open_experiment,
    set_view,
    store_uri,
)
from stages.tracking.view import KEY
from stages.workspace import main_root


def become_server(root: Path, page: str, host: str, port: int) -> None:
    """Replace this process by an MLflow server on the store of `root`; the address of `page` is printed.

    Raises:
        InputError: `host` and `port` cannot be listened on; MLflow would end without an error's exit code.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(
            f"--host {shown(host)} --port {port}: cannot be listened on ({error.strerror}); expected a port that is "
            "free, as in python -m stages.tracking ui --port 5001 (on macOS, AirPlay has port 5000)"
        ) from None
    (root / ARTIFACTS).mkdir(exist_ok=True)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Without its job runner the server is two processes instead of ten.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    print(f"MLflow starts (Ctrl-C ends it), in a moment at http://{host}:{port}{page}", flush=True)
    os.environ["MLFLOW_BACKEND_STORE_URI"] = store_uri(root)  # other users can see the arguments of a process
    store = ["--default-artifact-root", (root / ARTIFACTS).as_uri()]
    where = ["--host", host, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", "--no-serve-artifacts", *store, *where])


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a port, a whole number from 1 to 65535")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.tracking", description="MLflow, from this repository.")
    commands = parser.add_subparsers(dest="command", required=True)
    ui = commands.add_parser("ui", help="open the store in a browser")
    ui.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    ui.add_argument("--port", type=_port, help="(default: 5000)")
    commands.add_parser("sync", help="deliver events that the server has not received yet")
    find = commands.add_parser("find", help="list the runs that trained a commit's model, or started at the commit")
    find.add_argument("commit", help="a git revision: a hash, a branch, HEAD~1")
    back = commands.add_parser("restore", help="restore a run's code, params, data and model into a new folder")
    which = "a run's name, MLflow id or camp.run tag, or its model's sha256; the beginning is enough, except of a name"
    back.add_argument("run", help=which)
    back.add_argument("--into", type=Path, help="default: .work/restored/<run>")
    commands.add_parser("promote", help="make a run's model the champion").add_argument("run", help=which)
    two = commands.add_parser("compare", help="compare the recalls of two models, with intervals")
    ranks = "or a folder like data/evaluation; several seeds of one model: RUN,RUN,RUN"
    two.add_argument("model", metavar="RUN", help=f"{which}; {ranks}")
    two.add_argument("other", metavar="OTHER", help="the same, of the model to compare it with")
    two.add_argument("--split", default="test", help="(default: %(default)s)")
    chosen, root = parser.parse_args(arguments), main_root()
    if chosen.command == "sync":
        delivered, problems = sync(root)
        print(f"{delivered} {'run' if delivered == 1 else 'runs'} delivered, {len(problems)} left in .tracking/spool")
        if problems:
            raise InputError("; ".join(problems))
        return
    limit_request_time(10)
    try:
        _run_command(chosen, root)
    except Exception as error:  # OSError: from a file store or `requests`; ImportError: from a database driver
        names = {kind.__name__ for kind in type(error).__mro__}  # importing MLflow's own takes a second
        if not isinstance(error, OSError | ImportError) and "MlflowException" not in names:
            raise
        raise InputError(f"{without_password(store_uri(root))}: {in_one_line(error)}") from None


def _run_command(chosen: argparse.Namespace, root: Path) -> None:
    client = connect(root, store_uri(root))  # for the server too: it must not create the tables while a run begins
    match chosen.command:
        case "ui":
            server = store_uri(root)
            is_running = server.startswith(("http://", "https://"))
            if is_running and (chosen.host or chosen.port):
                raise InputError(f"--host, --port: {without_password(server)} runs already; expected neither option")
            experiment = open_experiment(client, root, experiment_name()).experiment_id
            set_view(client, experiment)
            page = f"/#/experiments/{experiment}/runs?viewStateShareKey={KEY}"
            if is_running:
                print(f"MLflow: {without_password(server).rstrip('/')}{page}")
                return
            become_server(root, page, chosen.host or "127.0.0.1", chosen.port or 5000)
        case "find":
            runs = find_commit(client, root, chosen.commit)
            for run in runs:
                number = f"  val/rsum {run.data.metrics['val/rsum']:.1f}" if "val/rsum" in run.data.metrics else ""
                kind = run.data.tags.get("camp.kind", "")
                print(f"{run.info.run_id}  {kind:8}  {run.info.status:8}  {run.info.run_name}{number}")
            if not runs:
                raise InputError(f"{chosen.commit}: no run was started from it or trained the model in its dvc.lock")
        case "restore":
            run = find_run(client, chosen.run)
            into = chosen.into or root / ".work" / "restored" / run.info.run_id
            print(f"{into}: {', '.join(restore(client, root, run, into.resolve()))}")
        case "promote":
            run = find_run(client, chosen.run)
            print(f"champion is now version {promote(client, run.info.run_id)}, of {run.info.run_name}")
        case "compare":
            print(compare_models(client, chosen.model, chosen.other, chosen.split))


if __name__ == "__main__":
    stage_main(main, arguments=True)
