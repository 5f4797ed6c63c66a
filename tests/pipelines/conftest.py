"""A real Prefect server on loopback, and small real DVC repositories."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

import pipelines

ROOT = Path(pipelines.__file__).parents[1]
SCRIPT = """
import os, sys
from pathlib import Path
name, *sources = sys.argv[1:]
trap = Path(f"trap-{name}")
if trap.exists():
    trouble = trap.read_text()
    trap.unlink()
    print(trouble, flush=True)
    raise SystemExit(int(trouble.split()[-1]))
print(f"{name} writes; flow run {os.environ.get('PREFECT__FLOW_RUN_ID')}", flush=True)
Path(f"{name}.txt").write_text(name + "".join(Path(source).read_text() for source in sources))
"""
PIPELINE = """
stages:
  prepare: {cmd: exec python stage.py prepare, params: [dataset.scenes.seed], outs: [prepare.txt]}
  extract: {cmd: exec python stage.py extract prepare.txt, deps: [prepare.txt], outs: [extract.txt]}
  tokenize: {cmd: exec python stage.py tokenize prepare.txt, deps: [prepare.txt], outs: [tokenize.txt]}
  train:
    cmd: exec python stage.py train extract.txt tokenize.txt
    deps: [extract.txt, tokenize.txt]
    params: [train.epochs]
    outs: [train.txt]
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def server_environment(tmp_path_factory, prefect_home):
    """Environment of the server and of everything that talks to it."""
    home = prefect_home(tmp_path_factory.mktemp("prefect"))
    own = ("PREFECT", "MLFLOW", "DVC", "SHELL")  # without SHELL, as in a container, dvc runs stages through /bin/sh
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return kept | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # As in `make prefect`: a server that is started again still knows which runs may go on.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # a worker asks for runs every 10 s otherwise
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "true",  # else every dvc starts another process that wants to report
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CAMP_TRACKING": "off",
    }


@pytest.fixture(scope="package")
def server(server_environment):
    """(start, stop, signal) of a Prefect server that keeps its address and its database."""
    url = server_environment["PREFECT_API_URL"]
    port = url.split(":")[2].removesuffix("/api")
    running = []

    def start():
        with (Path(server_environment["PREFECT_HOME"]) / "server.log").open("ab") as log:
            command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
            running.append(subprocess.Popen(command, env=server_environment, stdout=log, stderr=log))
        wait_for(lambda: answers(f"{url}/health"), 180)

    def stop(seconds=60):
        end(running.pop(), seconds)

    def send(number):
        running[-1].send_signal(number)

    yield start, stop, send
    while running:
        stop()


@pytest.fixture(scope="package")
def prefect_server(server_environment, server):
    """The address of a running Prefect server; in this process too, flows talk to it.

    It ends after the last test of this folder: idle, it costs a core 3 to 4 %.
    """
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    url = server_environment["PREFECT_API_URL"]
    server[0]()
    with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: Path(server_environment["PREFECT_HOME"])}):
        yield url
        APILogWorker.drain_all(timeout=20)  # what is still to be sent, before nobody answers


@pytest.fixture
def restart_server(prefect_server, server):
    """Kills the server outright and starts it again."""
    start, stop, _ = server

    def restart():
        stop(seconds=0)
        start()

    return restart


def end(process, seconds=60):
    """Ask a process to end; after these seconds, kill it, and whatever of its children is left.

    They get the time to end by themselves: a DVC that is killed while it writes its list of locks leaves half of it.
    """
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    if seconds:
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    process.kill()
    process.wait()
    for child in psutil.wait_procs(family, seconds)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def command_of(process):
    """The command line of a process; none once it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.5)
    return value


@pytest.fixture(name="wait_for")
def wait_for_fixture():
    """wait_for(condition, seconds): the condition's value once it is true."""
    return wait_for


@pytest.fixture(name="end")
def end_fixture():
    """end(process): ends it and leaves nothing that it started."""
    return end


@pytest.fixture(scope="session")
def template(tmp_path_factory, server_environment):
    """A committed DVC repository of four quick stages that has not run."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "stage.py").write_text(SCRIPT)
    (folder / "dvc.yaml").write_text(PIPELINE)
    shutil.copy(ROOT / "params.yaml", folder)
    environment = server_environment | {"GIT_CONFIG_GLOBAL": "/dev/null"}
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    commands = (
        [*git, "init", "-q", "-b", "main"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        [*git, "add", "-A"],
        [*git, "commit", "-q", "-m", "begin"],
    )
    for command in commands:
        subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder


@pytest.fixture
def enter(monkeypatch, server_environment):
    """enter(folder): the test works in it, with the server's environment."""

    def into(folder):
        monkeypatch.chdir(folder)
        for name in ("PATH", "PYTHONPATH", "CAMP_TRACKING", "DVC_NO_ANALYTICS"):
            monkeypatch.setenv(name, server_environment[name])

    return into


@pytest.fixture
def repository(template, tmp_path, enter):
    """A copy of the template, entered."""
    folder = tmp_path / "repository"
    shutil.copytree(template, folder)
    enter(folder)
    return folder
