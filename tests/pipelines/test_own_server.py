"""The Prefect server that a flow brings along ends with the flow, however that ends."""

import signal
import subprocess
import sys

import psutil
import pytest

from pipelines.own_server import SERVER
from tests.pipelines.conftest import command_of, wait_for


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_flow_that_is_killed_leaves_no_server(number, repository, server_environment, prefect_home, tmp_path):
    environment = server_environment | {"PREFECT_HOME": str(prefect_home(tmp_path / "prefect"))}
    del environment["PREFECT_API_URL"]
    with (tmp_path / "said.txt").open("w") as said:
        flow = subprocess.Popen([sys.executable, "-m", "pipelines.refresh"], env=environment, stdout=said, stderr=said,
                                start_new_session=True)  # fmt: skip
    family = psutil.Process(flow.pid)
    (server,) = wait_for(lambda: [child for child in family.children() if SERVER in command_of(child)], 120)
    others = [child for child in family.children() if child != server]
    flow.send_signal(number)
    flow.wait(60)
    _, left = psutil.wait_procs([server, *others], 20)
    for process in left:
        process.kill()
    assert left == []
