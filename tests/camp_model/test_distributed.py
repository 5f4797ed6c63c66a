import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize("first", [2, 3])
def test_two_processes_make_the_step_of_one(first, tmp_path, distributed_step, repository):
    script = str(Path(__file__).with_name("distributed_step.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), str(tmp_path), str(first)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    expected_loss, expected = distributed_step.share_of_a_step(slice(0, 4))
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(sum(loss for loss, _ in results) / 2, expected_loss, rtol=0, atol=1e-12)
    for _, gradients in results:
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-12, msg=name)
