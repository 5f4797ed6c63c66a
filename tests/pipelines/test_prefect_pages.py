"""Prefect's own pages, from a real server with a finished `reproduce`, in a real browser."""

import importlib.util
import shutil
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from pipelines.reproduce import reproduce


@pytest.fixture
def tab(chromium, tmp_path):
    """A tab of a headless Chromium, as the tests of the stages have it."""
    path = Path(__file__).parents[1] / "stages" / "conftest.py"
    spec = importlib.util.spec_from_file_location("stages_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tab = module.Page(chromium, tmp_path / "profile")
    yield tab
    tab.close()
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)


def show(tab, url, *texts):
    tab.call("Page.navigate", url="about:blank")
    tab.call("Page.navigate", url=url)
    until = time.monotonic() + 60
    while not all(text in tab.run("document.body?.innerText ?? ''") for text in texts):
        assert time.monotonic() < until, tab.run("document.body.innerText")
        time.sleep(0.3)


@pytest.mark.timeout(240)
def test_a_finished_run_its_graph_and_its_artifact(prefect_server, repository, tab):
    Path("metrics").mkdir()
    Path("metrics/retrieval.json").write_text('{"test": {"i2t_r1": 51.25, "t2i_r1": 40.5, "rsum": 421.75}}')
    state = reproduce(return_state=True)
    address = prefect_server.removesuffix("/api")
    run = f"{address}/runs/flow-run/{state.state_details.flow_run_id}"
    show(tab, run, "reproduce", "Completed", "4 Task runs")
    tab.wait("document.querySelectorAll('canvas').length > 0")  # the graph is drawn on one
    with get_client(sync_client=True) as client:
        wanted = {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}
        artifacts = {
            item["key"]: item["id"] for item in client.request("POST", "/artifacts/filter", json=wanted).json()
        }
    assert artifacts.keys() == {"reproduce", "recall"}
    page = f"{address}/artifacts/artifact/{artifacts['reproduce']}"
    show(tab, page, "Retrieval", "image to text", "51.25", "421.75", "Against main")
