"""Where the stages compute and in which numbers; the flags of CUDA can be read and set without one."""

import os
import subprocess
import sys

import pytest
import torch

from stages import usable_cores
from stages.device import Precision, choose_device
from stages.errors import InputError

CPU = torch.device("cpu")
OPERATORS = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


@pytest.fixture(autouse=True)
def _flags():
    before = [operator.fp32_precision for operator in OPERATORS]
    yield
    for operator, value in zip(OPERATORS, before, strict=True):
        operator.fp32_precision = value


def flags():
    return [operator.fp32_precision for operator in OPERATORS]


def test_fp32_is_float32_in_matrix_products_convolutions_and_grus():
    for operator in OPERATORS:
        operator.fp32_precision = "tf32"
    Precision("fp32", CPU)
    assert flags() == ["ieee"] * 3
    Precision("tf32", CPU)
    assert flags() == ["tf32"] * 3
    for name in ("bf16", "fp32"):  # what autocast leaves in float32 stays exact
        Precision(name, CPU)
        assert flags() == ["ieee"] * 3


def test_autocast_is_of_the_precision():
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("tf32", torch.float32)):
        with Precision(name, CPU).autocast():
            assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    with pytest.raises(InputError, match=r"evaluate\.precision: fp16 needs a CUDA device, not cpu"):
        Precision("fp16", CPU, "evaluate.precision")


def test_one_of_several_gpus_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    for name in ("cuda:2", "cuda:01", "cuda:x", "gpu"):
        with pytest.raises(InputError, match=rf"evaluate\.device: {name} is not available here; .*cuda:0 to cuda:1"):
            choose_device(name, "evaluate.device")


SET = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in SET}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ["PASSIVE", "1000"]),
        ({"OMP_WAIT_POLICY": "passive"}, ["passive", "1000"]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", None]),
        ({"GOMP_SPINCOUNT": "0"}, ["PASSIVE", "0"]),
    ],
)
def test_threads_spin_briefly_unless_the_environment_says_otherwise(said, expected):
    command = [sys.executable, "-c", f"import stages, os; print([os.environ.get(name) for name in {SET}])"]
    run = subprocess.run(command, env=_without_settings() | said, capture_output=True, text=True, check=True)
    assert run.stdout == f"{expected}\n"


@pytest.mark.parametrize("module", ["stages.train", "stages.extract_regions", "search", "pipelines.reproduce"])
def test_how_threads_wait_is_set_before_torch_reads_it(module):
    """OpenMP's library reads it when it is loaded, with torch: later settings are not seen."""
    command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    run = subprocess.run(command, env=_without_settings(), capture_output=True, text=True, check=True)
    imported = [line.split("|")[-1].strip() for line in run.stderr.splitlines() if line.startswith("import time:")]
    assert "stages" in imported
    assert "torch" not in imported or imported.index("stages") < imported.index("torch._C")


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("20000 100000", 1),
        ("99999999 1000", None),
        ("max 100000", None),
        ("", None),
    ],
)
def test_a_quota_limits_the_cores_that_are_used(limit, cores, tmp_path):
    everything = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == everything
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert usable_cores(tmp_path) == (everything if cores is None else min(cores, everything))


QUOTA = """
import os, pathlib
own = pathlib.Path.read_text
pathlib.Path.read_text = lambda path, **how: "100000 100000" if path.name == "cpu.max" else own(path, **how)
import stages, torch
print(os.cpu_count(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"])
"""


@pytest.mark.skipif((os.cpu_count() or 1) == 1, reason="a quota of one core is no limit on one")
@pytest.mark.parametrize(("said", "threads"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)])
def test_torch_takes_as_many_threads_as_the_quota_allows_unless_somebody_chose(said, threads):
    # A library that another test imports may have set that of MKL, which counts more for torch.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", QUOTA]
    run = subprocess.run(command, env=environment | said, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(os.cpu_count()), str(threads), str(threads)]
