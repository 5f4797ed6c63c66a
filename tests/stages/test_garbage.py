"""What is loaded is exempted from garbage collection once; garbage of later is collected as ever."""

import subprocess
import sys

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
