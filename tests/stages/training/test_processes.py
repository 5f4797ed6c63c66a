"""Several processes train as one does."""

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest
import torch

from stages.errors import InputError
from stages.params.train import TrainParams
from stages.training.processes import RENDEZVOUS_FILE, Processes, in_processes, launch


def test_two_processes_train_as_one_does_and_survive_being_killed(make_job, params, listening, tmp_path):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("colour0 1 2 3 4 5 6 7 8\n")
    settings = {"epochs": 6, "batch_size": 8, "checkpoint_steps": 1, "random_negative_steps": 4}
    settings["word_vectors"] = str(vectors)
    one, two, killed = (
        # 32 captions: batches of 8 that both numbers of processes divide evenly.
        make_job(name, params(processes=processes, **settings), images=16)
        for name, processes in (("one", 1), ("two", 2), ("killed", 2))
    )
    one.train_here()
    printed = two.finish()
    assert [printed.count(line) for line in ("vectors for 1 of 16 words", "epoch 1:")] == [1, 1], "one alone reports"
    losses = [[float(row.split(",")[1]) for row in job.result()[0].splitlines()[1:]] for job in (one, two)]
    assert len(losses[0]) == 24 and losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-5)

    process = killed.start()
    killed.wait_for_step(10, process)
    ranks = {
        child.environ().get("RANK"): child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "stages.train" in child.cmdline()
    }
    for rank in ranks.values():
        rank.suspend()  # or it might come to its last step while it is looked at
    assert len(ranks) == 2 and listening(process.pid) <= {"127.0.0.1", "::1"}
    ranks["1"].kill()
    ranks["0"].resume()
    printed = process.communicate(timeout=200)[0]
    assert process.returncode == 128 + signal.SIGKILL, "a flow tries again what was killed"
    assert "ChildFailedError" not in printed
    assert not any(rank.is_running() and rank.status() != "zombie" for rank in ranks.values())

    process = killed.start()
    killed.wait_for_step(killed.wait_for_step(10, process) + 2, process)  # it goes on, so it hears the signal
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=200)[0]
    assert process.returncode == 128 + signal.SIGTERM and "Connection closed by peer" not in printed
    assert "Traceback" not in printed

    assert "continuing after step" in killed.finish()
    assert killed.result() == two.result()


def test_batches_that_two_processes_do_not_divide_evenly_train_as_with_one(make_job, params):
    """50 captions in batches of 8 are one batch of 8 and six of 7; every loss that is a mean over pairs takes part."""
    settings = {
        "epochs": 2, "batch_size": 8, "mining_batch": 5, "joint_weight": 0.5, "curriculum_steps": 6, "micro_batch": 3,
    }  # fmt: skip
    one, two = (
        make_job(name, params(processes=processes, **settings), images=25)
        for name, processes in (("one", 1), ("two", 2))
    )
    one.train_here()
    two.finish()
    losses = [[float(row.split(",")[1]) for row in job.result()[0].splitlines()[1:]] for job in (one, two)]
    assert len(losses[0]) == 14 and losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-5)


def test_a_killed_launcher_leaves_no_process_and_the_next_one_resumes(make_job, params):
    """They would train on beside the next launcher's processes, and remove the state when they end."""
    job = make_job("killed", params(processes=2, epochs=20, batch_size=8, checkpoint_steps=1), images=16)
    process = job.start()
    job.wait_for_step(5, process)
    ranks = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "stages.train" in child.cmdline()
    ]
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert len(ranks) == 2 and not alive and not (job.folder / "models").exists()
    assert "continuing after step" in job.finish()


class OneOfNine(Processes):
    """The first of nine processes, of which no other was started."""

    def any(self, flag, device):
        return flag


def test_fewer_captions_than_processes_are_an_error(make_data, params, run_train):
    with pytest.raises(InputError, match=r"train\.processes: 9 in all, but .*train\.parquet holds 8 captions"):
        run_train(params(batch_size=9), make_data(images=4), processes=OneOfNine(0, 9))


def test_wrong_params_end_several_processes_as_they_end_one(make_job, params):
    """With exit code 2, after which a flow does not try again."""
    process = make_job("wrong", params(processes=2, batch_size=8, freeze=("nothing",))).start()
    printed = process.communicate(timeout=200)[0]
    assert process.returncode == 2, printed
    assert printed.count("error: train.freeze: no parameter begins with 'nothing'") == 1, "not by each process"
    assert "Traceback" not in printed


FULL_DISK = """
import resource
from stages.entry import InputError, stage_main
def run():
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    raise InputError("wrong")
stage_main(run)
"""


def test_an_error_that_a_full_disk_keeps_from_torchrun_is_printed(tmp_path):
    """A torn file would be an error of torchrun's own: a traceback, and exit code 1."""
    left = tmp_path / "error.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TORCHELASTIC_ERROR_FILE": str(left)}
    command = [sys.executable, "-c", FULL_DISK]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, left.exists()) == (2, "error: wrong\n", False)


AVERAGE = """
import sys, torch, torch.distributed as dist
from stages.training.processes import Processes
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
both, second, nowhere = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
loss = (both * (rank + 1)).sum() + (second.sum() if rank else 0)
loss.backward()
mean = Processes(rank, 2).average_gradients([both, second, nowhere], loss)
torch.optim.AdamW([both, second, nowhere], lr=0.1, weight_decay=0.5).step()
print(mean.item(), both.grad.tolist(), second.grad.tolist(), nowhere.grad, nowhere.tolist())
"""


def test_gradients_are_averaged_and_a_parameter_that_no_process_used_does_not_decay(tmp_path, repository):
    command = [sys.executable, "-c", AVERAGE]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], cwd=repository, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].strip() for process in started]
    # Losses 2 and 4 + 2; the second parameter has a gradient of 1 on one process alone.
    assert printed == ["4.0 [1.5, 1.5] [0.5, 0.5] None [1.0, 1.0]"] * 2


@pytest.mark.parametrize(("name", "own"), [("cuda", "cuda:3"), ("cuda:1", "cuda:1")])
def test_a_gpu_that_is_named_is_taken_on_several_machines_too(name, own, monkeypatch):
    for function, answer in {"is_available": True, "device_count": 4, "set_device": None}.items():
        monkeypatch.setattr(torch.cuda, function, lambda *_, answer=answer: answer)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "1")
    before = signal.getsignal(signal.SIGTERM)
    try:
        with in_processes(TrainParams(device=name, machines=2), "stages.train") as (device, *_):
            assert device == torch.device(own)
    finally:
        signal.signal(signal.SIGTERM, before)


def machines(*jobs):
    """The stage on as many machines that meet on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free.getsockname()[1])}
    return [job.start(PET_NODE_RANK=str(rank), **meeting) for rank, job in enumerate(jobs)]


def ended(processes):
    printed = [process.communicate(timeout=200)[0] for process in processes]
    return [process.returncode for process in processes], printed


def test_two_machines_train_as_one_does_over_a_folder_that_they_share(make_job, params):
    settings = {"epochs": 6, "batch_size": 8, "checkpoint_steps": 1, "mining_batch": 3}
    one = make_job("one", params(**settings), images=16)
    two = make_job("two", params(machines=2, **settings), images=16)
    one.train_here()
    started = machines(two, two)
    two.wait_for_step(6, started[0])
    for process in started:  # torchrun ends what it has started
        process.send_signal(signal.SIGTERM)
    codes, _ = ended(started)
    assert all(codes)

    apart = make_job("apart", params(machines=2, **settings), images=16)
    codes, printed = ended(machines(two, apart))
    assert all(codes) and ".work/train: is not the same on all machines" in printed[0]
    assert not (apart.folder / "models").exists()

    codes, printed = ended(machines(two, two))
    assert codes == [0, 0], printed
    assert "continuing after step" in printed[0]
    losses = [[float(row.split(",")[1]) for row in job.result()[0].splitlines()[1:]] for job in (one, two)]
    assert len(losses[0]) == 24 and losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-5)


def test_wrong_numbers_of_processes_are_named(monkeypatch):
    cpu = torch.device("cpu")
    with pytest.raises(InputError, match=r"train\.batch_size: 9 does not divide"):
        launch(TrainParams.from_dict({"batch_size": 9, "processes": 2}), cpu, "stages.train")
    with pytest.raises(InputError, match=r"train\.batch_size: 8 does not divide .* 2, on train\.machines, 3"):
        launch(TrainParams.from_dict({"batch_size": 8, "processes": 2, "machines": 3}), cpu, "stages.train")
    monkeypatch.setenv("PET_NODE_RANK", "0")
    with pytest.raises(InputError, match=r"train\.machines: 2, but PET_MASTER_ADDR, PET_MASTER_PORT is not set"):
        launch(TrainParams(batch_size=8, machines=2), cpu, "stages.train")
    with pytest.raises(InputError, match=r"train\.processes: 2, but there are 1 mps devices"):
        launch(TrainParams(batch_size=8, processes=2), torch.device("mps"), "stages.train")


JOIN = """
import torch
from stages.training.processes import Processes
processes = Processes.join(torch.device("cpu"))
value = torch.tensor([float(processes.rank + 1)])
processes.sum_(value)
print(value.item())
processes.leave()
"""


def test_processes_meet_below_any_name(tmp_path):
    folder = tmp_path / "a#b?c%20d"
    folder.mkdir()
    own = {"WORLD_SIZE": "2", RENDEZVOUS_FILE: str(folder / "meeting"), "PYTHONPATH": os.pathsep.join(sys.path)}
    environments = [os.environ | own | {"RANK": str(rank)} for rank in (0, 1)]
    command = [sys.executable, "-c", JOIN]
    running = [subprocess.Popen(command, env=each, stdout=subprocess.PIPE, text=True) for each in environments]
    assert [process.communicate(timeout=120)[0] for process in running] == ["3.0\n", "3.0\n"]
