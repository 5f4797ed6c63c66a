"""Several processes train as one does."""

import signal

import psutil
import pytest
import torch

from stages.params import InputError, TrainParams
from stages.training.processes import launch


def test_two_processes_train_as_one_does_and_survive_being_killed(make_job, params):
    settings = {"epochs": 6, "batch_size": 8, "checkpoint_steps": 1, "random_negative_steps": 4}
    one, two, killed = (
        # 32 captions: batches of 8 that both numbers of processes divide evenly.
        make_job(name, params(processes=processes, **settings), images=16)
        for name, processes in (("one", 1), ("two", 2), ("killed", 2))
    )
    one.finish()
    assert two.finish().count("epoch 1:") == 1, "one process alone reports"
    losses = [[float(row.split(",")[1]) for row in job.result()[0].splitlines()[1:]] for job in (one, two)]
    assert len(losses[0]) == 24 and losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-5)

    process = killed.start()
    killed.wait_for_step(10, process)
    ranks = {
        child.environ().get("RANK"): child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "stages.train" in child.cmdline()
    }
    ranks["1"].kill()
    process.communicate(timeout=200)
    assert process.returncode not in (0, None)
    assert not any(rank.is_running() and rank.status() != "zombie" for rank in ranks.values())

    process = killed.start()
    killed.wait_for_step(14, process)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=200)[0]
    assert process.returncode not in (0, None) and "Connection closed by peer" not in printed

    assert "going on after step" in killed.finish()
    assert killed.result() == two.result()


def test_wrong_numbers_of_processes_are_named():
    cpu = torch.device("cpu")
    with pytest.raises(InputError, match=r"train\.batch_size: 9 does not divide"):
        launch(TrainParams(batch_size=9, processes=2), cpu, "stages.train")
    with pytest.raises(InputError, match=r"train\.processes: 2, but there are 1 mps devices"):
        launch(TrainParams(batch_size=8, processes=2), torch.device("mps"), "stages.train")
