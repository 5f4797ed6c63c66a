"""A real MLflow server: its own pages with three runs, in a real browser, and what happens when it freezes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import stages
from stages.errors import InputError
from stages.tracking import track
from stages.tracking.__main__ import become_server
from stages.tracking.__main__ import main as commands
from stages.tracking.delivery import sync

REPORT = "fetch(document.querySelector('iframe').src).then(answer => answer.text())"
DRAWN = " && document.querySelector('{}')"
NAMES = ("gate scalar", "gate elementwise", "gate none")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of `python -m stages.tracking ui` on a store with three runs, and their MLflow ids."""
    root = tmp_path_factory.mktemp("store")
    (root / ".dvc").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "DVC"))}
    environment["PYTHONPATH"] = str(Path(stages.__file__).parents[1])
    with (root / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.tracking", "ui", "--port", str(port)],
            cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while not answers(f"{address}/health"):
            assert time.monotonic() < until, (root / "server.log").read_text()
            time.sleep(0.5)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            patch.setenv("MLFLOW_TRACKING_URI", address)
            patch.delenv("CAMP_TRACKING", raising=False)
            patch.setattr("stages.tracking.WAIT", 60.0)
            for number, name in enumerate(NAMES):
                train(root, number, name)
        body = json.dumps({"experiment_ids": ["1"], "order_by": ["attributes.start_time"]}).encode()
        request = urllib.request.Request(
            f"{address}/api/2.0/mlflow/runs/search", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            runs = [run["info"]["run_id"] for run in json.load(answer)["runs"]]
        assert len(runs) == 3
        yield address, runs, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def train(root, number, name):
    with track("train", {"model": {"gate": name.split()[1]}, "train": {"seed": 0}}, name=name) as run:
        for step in range(40):
            run.log_metrics({"train/loss": (4 + number) / (step + 1)}, step=step)
        for epoch in range(1, 6):
            run.log_metrics({"val/rsum": 500 - 60 * number - 200 / epoch}, step=epoch)
        run.log_metrics({"test/rsum": 490 - 60 * number, "test/gate_auc": 0.9, "test/foils_all_true_first": 80.0})
        report = root / "index.html"
        report.write_text(f"<h1>Retrieval report of {name}</h1>")
        run.log_artifact(report, "report")


def show(page, url, condition):
    """Open a page of MLflow and wait until a script's condition holds."""
    # High enough for every chart: MLflow draws one only when it comes into view.
    size = {"width": 1500, "height": 3000, "deviceScaleFactor": 1}
    page.call("Emulation.setDeviceMetricsOverride", mobile=False, **size)
    page.call("Page.navigate", url="about:blank")
    page.call("Page.navigate", url=url)
    until = time.monotonic() + 90
    while not page.run(f"!!(document.body && ({condition}))"):
        assert time.monotonic() < until, page.run("document.body.innerText")
        time.sleep(0.3)


def says(*texts):
    return " && ".join(f"document.body.innerText.includes({json.dumps(text)})" for text in texts)


@pytest.mark.timeout(300)
def test_a_server_that_runs_already_is_only_named(server, tmp_path, monkeypatch, capsys):
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server[0])
    for option in (["--host", "127.0.0.1"], ["--port", "5000"]):
        with pytest.raises(InputError, match="--host, --port: http://.* runs already"):
            commands(["ui", *option])
    commands(["ui"])
    assert capsys.readouterr().out == f"MLflow: {server[0]}/#/experiments/1/runs?viewStateShareKey=camp\n"


def test_a_port_that_another_program_has_is_an_error(tmp_path, monkeypatch):
    """MLflow ends with exit code 0 there, long after its address was printed. On macOS, AirPlay has port 5000."""
    monkeypatch.setattr(os, "execv", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        expected = rf"--port {port}: cannot be listened on \(Address already in use\); .* port that is free"
        with pytest.raises(InputError, match=expected):
            become_server(tmp_path, "/", "127.0.0.1", port)


@pytest.mark.timeout(300)
def test_a_password_is_not_shown_by_a_delivery_that_goes_well(server, tmp_path, monkeypatch, capfd):
    """MLflow's client prints the address of a run that ends, with all that is in it."""
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server[0].replace("//", "//person:pa55-w0rd@"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "secrets")
    monkeypatch.setattr("stages.tracking._deliver", lambda *_: None)
    with track("report", {"model": {"gate": "none"}}, name="secret"):
        pass
    assert sync(tmp_path) == (1, [])
    shown = capfd.readouterr()
    assert "pa55-w0rd" not in shown.out + shown.err
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"pa55-w0rd" in path.read_bytes()] == []


def test_mlflow_shows_and_compares_the_runs(server, page):
    address, runs, _ = server
    show(page, f"{address}/#/experiments/1/runs", says(*NAMES))

    # The view that `make ui` links to: its columns, and its charts in their order.
    view = f"{address}/#/experiments/1/runs?viewStateShareKey=camp"
    show(page, view, says(*NAMES, "Metrics", "best/val_rsum"))
    show(page, f"{view}&compareRunsMode=CHART", says("Training\n(2)", "train/loss") + DRAWN.format("svg .trace"))
    titles = ("Retrieval\n(2)", "Training\n(2)", "Gates\n(1)", "One word changed\n(1)")
    places = page.run(f"{json.dumps(titles)}.map(title => document.body.innerText.indexOf(title))")
    assert -1 not in places and places == sorted(places)

    chosen = f"runs={json.dumps(runs)}&experiments={json.dumps(['1'])}".replace('"', "%22")
    show(
        page,
        f"{address}/#/compare-runs?{chosen}",
        says(*NAMES, "model.gate", "elementwise", "train/loss", "val/rsum") + DRAWN.format("svg.main-svg"),
    )

    # The chart view draws a curve for each metric, grouped by the part of its name before the slash.
    show(
        page,
        f"{address}/#/experiments/1/runs/{runs[0]}/model-metrics",
        says("train", "val", "train/loss", "val/rsum") + DRAWN.format("svg.main-svg .trace"),
    )

    show(
        page,
        f"{address}/#/experiments/1/runs/{runs[0]}/artifacts/report/index.html",
        "document.querySelector('iframe')?.src.startsWith('blob:')",
    )
    assert page.run(REPORT) == "<h1>Retrieval report of gate scalar</h1>"


def test_the_server_is_seen_on_this_machine_alone(server, listening):
    assert listening(server[2]) == {"127.0.0.1"}


@pytest.mark.timeout(300)
def test_a_server_frozen_in_the_middle_gets_the_rest_later(server, tmp_path, monkeypatch, capsys):
    address, _, group = server
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "frozen")
    monkeypatch.delenv("CAMP_TRACKING", raising=False)

    def points():
        from mlflow import MlflowClient

        client = MlflowClient(address)
        experiment = client.get_experiment_by_name("frozen")
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        return [(run.info.status, len(client.get_metric_history(run.info.run_id, "train/loss"))) for run in found]

    with track("train", {}) as run:
        run.log_metrics({"train/loss": 2.0}, step=0)
        until = time.monotonic() + 60
        while points() != [("RUNNING", 1)]:
            assert time.monotonic() < until, points()
            time.sleep(0.5)
        os.killpg(group, signal.SIGSTOP)
        run.log_metrics({"train/loss": 1.0}, step=1)
        begun = time.monotonic()
    assert time.monotonic() - begun < 28
    assert "Nothing is lost" in capsys.readouterr().err
    os.killpg(group, signal.SIGCONT)
    until = time.monotonic() + 60
    while points() != [("FINISHED", 2)]:
        assert time.monotonic() < until, points()
        with contextlib.suppress(InputError):  # the first delivery may still be at it
            commands(["sync"])
