"""What the flow `reproduce` costs over plain `dvc repro`: with a server of its own, with a running one, per stage.

Both are commands started anew, on a DAG as long as the project's whose stages do nothing; each is the fastest of
`REPEATS` runs that took turns.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
REPEATS = 2
LONGER = 3
"""The longer DAG has this many times the stages: what the two differ by is the cost of a stage."""
PLAIN = (sys.executable, "-m", "dvc", "repro", "--quiet")
FLOW = (sys.executable, "-m", "pipelines.reproduce")


def workspace(folder: Path, stages: int, environment: Mapping[str, str]) -> Path:
    """A DVC repository of a chain of stages that copy a word, run once."""
    folder.mkdir()
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (folder / "0.txt").write_text("word")
    chain = {
        f"stage{i}": {"cmd": f"cp {i}.txt {i + 1}.txt", "deps": [f"{i}.txt"], "outs": [f"{i + 1}.txt"]}
        for i in range(stages)
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": chain}))
    commands: tuple[tuple[str, ...], ...] = (
        ("git", "init", "--quiet"), (sys.executable, "-m", "dvc", "init", "--quiet"), PLAIN,
    )  # fmt: skip
    for command in commands:
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder


def seconds(command: tuple[str, ...], folder: Path, environment: Mapping[str, str]) -> float:
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - begun


def start_server(environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A Prefect server on loopback at the environment's PREFECT_API_URL, once it answers."""
    url = environment["PREFECT_API_URL"]
    port = url.split(":")[2].removesuffix("/api")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    with log.open("wb") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    until = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return server
        except OSError:
            if server.poll() is not None or time.monotonic() > until:
                server.kill()
                sys.exit(f"error: the Prefect server did not start: {log.read_text()[-2000:]}")
            time.sleep(0.5)


def fastest(*runs: tuple[tuple[str, ...], Path], environment: Mapping[str, str], changed: bool) -> list[float]:
    """Seconds of the fastest of `REPEATS` runs of each command in its workspace, in turns.

    Args:
        changed: whether every stage of the workspace is made stale first.
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(REPEATS):
        for (command, folder), mine in zip(runs, times, strict=True):
            if changed:
                (folder / "0.txt").write_text(f"word {time.time_ns()}")  # which no run cache knows
            mine.append(seconds(command, folder, environment))
    return [min(mine) for mine in times]


def main() -> None:
    stages = len(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW", "DVC"))}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        alone = kept | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(root / "alone"), "CAMP_TRACKING": "off"}
        alone |= {"DVC_NO_ANALYTICS": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        short = workspace(root / "short", stages, alone)
        long = workspace(root / "long", stages * LONGER, alone)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        served = alone | {"PREFECT_HOME": str(root / "served"), "PREFECT_API_URL": url}

        seconds(FLOW, short, alone)  # the first one makes the server's database
        plain, ephemeral = fastest((PLAIN, short), (FLOW, short), environment=alone, changed=False)
        print(f"up to date, {stages} stages: dvc repro {plain:.1f} s; limits in brackets")
        print(f"  reproduce with a server of its own: {ephemeral - plain:+.1f} s (15)")
        server = start_server(served, root / "server.log")
        try:
            seconds(FLOW, short, served)
            for name, changed in (("up to date", False), ("every stage run", True)):
                pairs = ((PLAIN, short), (FLOW, short), (PLAIN, long), (FLOW, long))
                numbers = fastest(*pairs, environment=served, changed=changed)
                over, over_long = numbers[1] - numbers[0], numbers[3] - numbers[2]
                limit = "" if changed else " (6)"
                print(f"{name}, a running server: {over:+.1f} s{limit}, of {numbers[1]:.1f} s")
                print(f"  each stage more: {(over_long - over) / (stages * (LONGER - 1)):+.2f} s (1.5)")
        finally:
            server.terminate()
            server.wait(timeout=60)


if __name__ == "__main__":
    main()
