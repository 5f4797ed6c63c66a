"""What happens to an extraction that is killed, raced, or shared out over processes."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from camp_model.regions import write_shard
from stages import extract_regions as stage
from stages.entry import lock_outputs
from stages.extraction import shard_run
from stages.extraction.filling import extract_missing, load
from stages.extraction.shard_folder import is_complete, missing_shards


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.communicate()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.parametrize("shards", [1, 4])
def test_a_killed_run_resumes_to_the_same_bytes(workplace, reference: dict[str, bytes], shards: int) -> None:
    child = workplace.start()
    wait_for(lambda: len(list(workplace.folder.glob("*.arrow"))) >= shards)
    kill(child)
    assert not (workplace.out / "manifest.parquet").exists(), "the run was killed in the middle"
    # What a kill in the middle of writing leaves behind, in each of its forms.
    workplace.out.mkdir(exist_ok=True)
    (workplace.out / ".torn.arrow.0123.tmp").write_bytes(b"half")
    (workplace.folder / ".torn.arrow.0123.tmp").write_bytes(b"half")
    torn = max(workplace.plan().shards, key=lambda s: not is_complete(s, workplace.folder))
    for folder in (workplace.folder, workplace.out):
        (folder / torn.file_name).write_bytes(reference[torn.file_name][:5000])
    before = workplace.shards(workplace.folder)
    workplace.run()
    assert workplace.files() == reference
    again = workplace.shards()
    kept = [name for name in before if name != torn.file_name]
    assert kept and all(again[name][0] == before[name][0] for name in kept), "a whole shard was extracted twice"


def test_a_shard_with_a_changed_byte_is_extracted_again(workplace, reference: dict[str, bytes]) -> None:
    workplace.run()
    shard = workplace.plan().shards[1]
    for folder in (workplace.folder, workplace.out):
        content = bytearray(reference[shard.file_name])
        content[len(content) // 2] ^= 1  # among the features
        (folder / shard.file_name).unlink()
        (folder / shard.file_name).write_bytes(content)
    assert [missing.key for missing in missing_shards(workplace.plan().shards, workplace.folder)] == [shard.key]
    workplace.run()
    assert workplace.files() == reference


def test_two_processes_race_to_the_same_end(workplace, reference: dict[str, bytes]) -> None:
    children = [workplace.start() for _ in range(2)]
    for child in children:
        out, error = child.communicate(timeout=120)
        assert child.returncode == 0, error
        assert "40 images" in out
    assert workplace.files() == reference


def test_parts_are_filled_in_by_several_processes(workplace, reference: dict[str, bytes]) -> None:
    children = [workplace.start("--shards", part, "--device", "cpu") for part in ("1/2", "2/2")]
    for child in children:
        _, error = child.communicate(timeout=120)
        assert child.returncode == 0, error
    assert not (workplace.out / "manifest.parquet").exists()
    before = workplace.shards(workplace.folder)
    workplace.run()
    assert workplace.shards() == before
    assert workplace.files() == reference


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shards", "1/1", "--device", "gpu"), "--device: gpu is not available here; expected auto or one of cpu"),
        (("--shards", "1/1", "--device", "cuda:99"), "--device: cuda:99 is not available here; expected auto or"),
        (("--device", "cpu"), "--device: only with --shards; regions.device of params.yaml is the whole stage's"),
    ],
)
def test_a_device_that_is_not_here_or_has_no_use_is_an_error_of_one_line(
    workplace, arguments: tuple[str, ...], message: str
) -> None:
    child = workplace.start(*arguments)
    _, error = child.communicate(timeout=120)
    assert child.returncode == 2
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not workplace.folder.exists()


def test_several_devices_each_get_a_process(
    workplace, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a stage that DVC runs: its outputs are held, and what the processes are to do is in no params.yaml.
    monkeypatch.chdir(workplace.root)
    monkeypatch.setenv("DVC_STAGE", "extract_regions")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(stage, "devices", lambda _: ["cpu", "cpu"])
    with lock_outputs("extract_regions"):
        workplace.run()
    assert workplace.files() == reference


def test_chosen_shards_alone_are_extracted(workplace) -> None:
    plan, folder = workplace.plan(), workplace.folder
    chosen = plan.shards[2]
    assert extract_missing(plan.of([chosen]), folder) == [chosen.key]
    assert missing_shards(plan.shards, folder) == [shard for shard in plan.shards if shard is not chosen]
    with pytest.raises(RuntimeError, match="all shards must be extracted"):
        stage.finish_store(plan, folder, workplace.out)


class Counting:
    """The plan's detector, which counts the images that it looks at and dies after some."""

    def __init__(self, plan, last: int | None = None) -> None:
        self._detector = load(plan, "cpu")
        self.looked_at, self._last = 0, last

    def __getattr__(self, name: str) -> object:
        return getattr(self._detector, name)

    def forward(self, batch, given=None):
        if self._last is not None and self.looked_at >= self._last:
            raise Killed
        self.looked_at += len(batch)
        return self._detector.forward(batch, given)


class Killed(Exception):
    """Stands for the end of a process."""


def test_a_kill_within_a_shard_loses_what_came_after_the_last_partial_file_alone(
    workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One shard of many images, in groups of three padded sizes; a partial file as often as there is a result.
    monkeypatch.setattr(shard_run, "PARTIAL_SECONDS", 0.0)
    plan = workplace.plan(shard_size=80, geometry=True)
    shard = max(plan.shards, key=lambda shard: len(shard.images))
    plan = plan.of([shard])
    assert len(shard.images) >= 20
    whole = workplace.root / "whole"
    extract_missing(plan, whole, loading=lambda plan, _: Counting(plan))
    assert [path.name for path in whole.iterdir()] == [shard.file_name], "partial files go when the shard is whole"

    with pytest.raises(Killed):
        extract_missing(plan, workplace.folder, loading=lambda plan, _: Counting(plan, 9))
    assert not (workplace.folder / shard.file_name).exists()
    detectors = []
    extract_missing(plan, workplace.folder, loading=lambda plan, _: detectors.append(Counting(plan)) or detectors[0])
    assert detectors[0].looked_at == len(shard.images) - 9
    assert (workplace.folder / shard.file_name).read_bytes() == (whole / shard.file_name).read_bytes()
    assert [path.name for path in workplace.folder.iterdir()] == [shard.file_name]


def test_a_run_killed_within_a_shard_resumes_to_the_same_bytes(workplace) -> None:
    quick = "import stages.extraction.shard_run as run; run.PARTIAL_SECONDS = 0.0"
    child = workplace.start(before=quick, shard_size=80, batch_size=1)
    wait_for(lambda: len(list(workplace.folder.glob("*.partial"))) >= 3)
    kill(child)
    torn = next(workplace.folder.glob("*.partial"))
    torn.write_bytes(torn.read_bytes()[:100])
    workplace.run(shard_size=80, batch_size=1)
    resumed = workplace.files()
    for folder in (workplace.out, workplace.folder):
        shutil.rmtree(folder)
    workplace.run(shard_size=80, batch_size=1)
    assert workplace.files() == resumed


def test_results_that_come_quickly_write_no_partial_files(workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(shard_run, "write_shard", lambda path, *rest: written.append(path) or write_shard(path, *rest))
    workplace.run()
    assert {path.suffix for path in written} == {".arrow"}
