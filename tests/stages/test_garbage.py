"""What is loaded is exempted from garbage collection once, garbage of later is collected; freed memory is kept, and
large tensors are in large pages."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import gc, weakref
from stages.garbage import exempt_from_collection, garbage_collection_paused

class Cycle:
    def __init__(self):
        self.itself = self

said = []
with garbage_collection_paused():
    said.append(gc.isenabled())
    import email.mime.text
said += [gc.isenabled(), gc.get_freeze_count() > 1000]
cycle = weakref.ref(Cycle())
exempt_from_collection()
with garbage_collection_paused():
    pass
gc.collect()
said.append(cycle() is None)
gc.disable()
with garbage_collection_paused():
    pass
said.append(gc.isenabled())
print(*said)
"""


@pytest.mark.parametrize("start", ["", "from stages.entry import stage_main\nstage_main(lambda: None)\n"])
def test_what_is_loaded_is_exempted_once(start, tmp_path, repository):
    done = subprocess.run(
        [sys.executable, "-c", start + CODE], cwd=tmp_path, env={"PYTHONPATH": str(repository)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "True", "True", "True", "False"]


FAULTS = """
import resource
import numpy as np
from stages.entry import stage_main

def rounds():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        tensors = [np.ones(700_000, np.float32) for _ in range(10)]  # together 28 MB
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

rounds()  # glibc learns what it would return to the system
before = rounds()
stage_main(lambda: None)
rounds()
print(before, rounds())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
@pytest.mark.parametrize("by_hand", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_a_stage_keeps_the_memory_that_it_frees_for_its_next_tensors(by_hand, tmp_path, repository):
    """A page fault is a page of 4 kB that the system hands out anew; who sets the options by hand is left alone."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=tmp_path, env=others | {"PYTHONPATH": str(repository)} | by_hand,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, after = map(int, done.stdout.split())
    assert before > 20 * 10 * 2_800_000 / 4096 / 2
    assert after > before / 2 if by_hand else after < before / 20


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TENSOR = """
import os
from pathlib import Path
from stages.entry import stage_main
import stages.train

def huge() -> int:
    import torch
    tensor = torch.ones(16_000_000)  # 64 MB
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))

if "stage" in os.environ:
    stage_main(lambda: print(huge()))
else:
    print(huge())
"""


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="a system that gives pages of 2 MiB to whom asks for them; others always or never do",
)
@pytest.mark.parametrize(
    ("environment", "large"),
    [({}, False), ({"stage": "1"}, True), ({"stage": "1", "THP_MEM_ALLOC_ENABLE": "0"}, False)],
)
def test_tensors_of_a_stage_are_in_large_pages(environment, large, tmp_path, repository):
    others = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", TENSOR], cwd=tmp_path, env=others | {"PYTHONPATH": str(repository)} | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (int(done.stdout) > 2048) is large
