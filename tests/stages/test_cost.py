"""What a stage took is recorded where it ended well, and told in tables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.summary import cost_cells, costs_markdown
from stages.cost import Cost, cost_of, resident_bytes

SCRIPT = """
import sys, time
from stages.entry import stage_main
from stages.errors import InputError
def main():
    held = bytearray({held})
    held[::4096] = b"x" * len(held[::4096])  # memory that is not written is not resident
    time.sleep(0.6)
    if {fails}:
        raise InputError("captions.csv: is empty")
stage_main(main)
"""


def run(
    folder: Path, fails: bool = False, held: int = 200_000_000, **environment: str
) -> subprocess.CompletedProcess[str]:
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / "stage.py").write_text(SCRIPT.format(fails=fails, held=held))
    values = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")} | environment
    return subprocess.run(
        [sys.executable, "stage.py"], cwd=folder, env=values, check=False, capture_output=True, text=True
    )


def test_time_and_memory_of_a_stage_are_recorded_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(tmp_path, DVC_STAGE="train")
    monkeypatch.chdir(tmp_path)
    cost = cost_of("train")
    assert done.returncode == 0 and cost is not None
    assert 0.6 < cost.seconds < 60 and 200e6 < cost.peak_bytes < 4e9
    run(tmp_path, held=0, DVC_STAGE="small")
    small = cost_of("small")
    # Not what this process has in memory, which starts it.
    assert small is not None and 150e6 < cost.peak_bytes - small.peak_bytes < 250e6
    assert f"train: {cost.time}, {cost.memory} of memory at most" in done.stdout
    run(tmp_path, DVC_STAGE="train", DVC_EXP_NAME="study-s0")
    assert cost_of("train", "study-s0") not in (None, cost)
    assert cost_of("train") == cost


def test_memory_that_the_kernel_does_not_tell_is_taken_from_getrusage() -> None:
    assert 1e6 < resident_bytes("VmNowhere") < 1e12


def test_a_stage_does_not_fail_where_nothing_can_be_recorded(tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "costs").write_text("a file")
    done = run(tmp_path, DVC_STAGE="train")
    assert done.returncode == 0 and "of memory at most" in done.stdout


@pytest.mark.parametrize("settings", [{"fails": True, "DVC_STAGE": "train"}, {}, {"DVC_STAGE": "train", "RANK": "1"}])
def test_what_failed_or_is_no_stage_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings) -> None:
    assert "of memory" not in run(tmp_path, **settings).stdout
    monkeypatch.chdir(tmp_path)
    assert cost_of("train") is None


def test_a_table_has_the_mean_time_and_the_largest_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cost_cells([Cost(61.0, 2_000_000_000), Cost(181.2, 1_500_000_000)]) == {"time": "2:01", "memory": "2,000 MB"}
    assert cost_cells([Cost(61.0, 1), None]) == cost_cells([]) == {"time": "", "memory": ""}
    monkeypatch.chdir(tmp_path)
    assert costs_markdown(["extract_regions"], {"full model": ["study-s0"]}, 2) == ""
    (tmp_path / ".work" / "costs" / "study-s0").mkdir(parents=True)
    (tmp_path / ".work" / "costs" / "study-s0" / "train.json").write_text('{"seconds": 90, "peak_bytes": 5000000}')
    assert "| train | full model | 1:30 | 5 MB |" in costs_markdown(
        ["extract_regions"], {"full model": ["study-s0"]}, 2
    )


def test_whoever_asks_the_system_for_a_peak_knows_its_unit(repository: Path) -> None:
    """macOS answers in bytes, Linux in KiB."""
    for folder in ("camp_model", "stages", "search", "pipelines", "benchmarks", "tests"):
        for file in (repository / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert "RUSAGE_UNIT" in text or ".ru" + "_maxrss" not in text, file
