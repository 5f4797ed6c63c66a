"""Peak memory of every stage with 60 and with 600 scenes, and the longest time between two words of it.

Each stage runs as `dvc repro` starts it, in a process of its own; its peak is that of the process and of what it has
started, whichever is largest, as the system counts it: pages of mapped files included.
"""

import itertools
import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from stages.cost import RUSAGE_UNIT

ROOT = Path(__file__).parents[1]
IMAGES = (60, 600)
STEADY = 48 << 20
"""Bytes that two runs of a stage may differ by whatever the images: what libraries set aside when they first work."""
PER_IMAGE = {
    "named_files": 0, "prepare_dataset": 8 << 10, "train_detector": 0, "extract_regions": 8 << 10,
    "tokenize_captions": 16 << 10, "train": 32 << 10, "index": 32 << 10, "evaluate": 32 << 10, "report": 32 << 10,
}  # fmt: skip
"""Stage -> bytes that its peak may grow by with each image: the regions of scenes, 18 kB, and captions among them."""
SETTINGS = {
    "detector": {"train": {"steps": 10, "batch_size": 4}}, "regions": {"shard_size": 16, "batch_size": 4},
    "model": {"dim": 16, "word_dim": 8}, "train": {"epochs": 1, "batch_size": 16},
    "evaluate": {"gate_pairs": 50, "foils": 100}, "report": {"queries": 2},
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One run of a stage."""

    peak: int
    """Bytes."""
    first: float
    """Seconds to its first word: Python imports libraries until then."""
    silent: float
    """Seconds, the longest, from one word to the next."""


def workspace(folder: Path, images: int) -> Path:
    """A copy of the repository in `folder`, with params for `images` scenes in which nothing has run."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if not name.startswith(("metrics/", "plots/", "tests/", "pretrained/")) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    tenth = images // 10
    scenes = {"train": images - 2 * tenth, "val": tenth, "test": tenth}
    params["dataset"]["scenes"] |= scenes
    for section, values in SETTINGS.items():
        for name, value in values.items():
            old = params[section].get(name)
            params[section][name] = old | value if isinstance(old, dict) else value
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return folder


def run(stage: str, folder: Path) -> Measured:
    """Run one stage in a workspace.

    Raises:
        RuntimeError: it failed; the message is the end of its output.
    """
    command = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["cmd"]
    environment = os.environ | {
        "PYTHONPATH": str(folder), "CAMP_TRACKING": "off", "OMP_NUM_THREADS": "1", "DVC_STAGE": stage,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    begun = time.monotonic()
    words, output = [], b""
    with subprocess.Popen(
        ["/bin/sh", "-c", command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                selector.select()
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                words.append(time.monotonic())
                output += chunk
                if not chunk:
                    break
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{stage} ended with {process.returncode}:\n{output.decode()[-3000:]}")
    silent = max((late - early for early, late in itertools.pairwise(words)), default=0.0)
    return Measured(usage.ru_maxrss * RUSAGE_UNIT, words[0] - begun, silent)


def measure(folder: Path, images: int) -> dict[str, Measured]:
    """Every stage, in the order of dvc.yaml, with so many images."""
    copy = workspace(folder, images)
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    stages = re.findall(r"^  (\w+):$", (copy / "dvc.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    return {stage: run(stage, copy) for stage in stages}


def main() -> None:
    few, many = (f"with {images}" for images in IMAGES)
    columns = f"{'MB ' + few:>12} {many:>10} {'kB an image':>12} {'first word s':>13} {'silent s':>9}"
    print(f"{'stage':18} {columns}")
    with tempfile.TemporaryDirectory() as temporary:
        runs = [measure(Path(temporary) / str(images), images) for images in IMAGES]
    for stage, small in runs[0].items():
        large = runs[1][stage]
        growth = max(0, large.peak - small.peak) / (IMAGES[1] - IMAGES[0]) / 1e3
        numbers = f"{growth:12.1f} {large.first:13.1f} {large.silent:9.1f}"
        print(f"{stage:18} {small.peak / 1e6:12.0f} {large.peak / 1e6:10.0f} {numbers}", flush=True)


if __name__ == "__main__":
    main()
