"""The GPU kernel of scoring, run by Triton's interpreter on the CPU; test_cuda.py has it on a GPU."""

import subprocess
import sys

import pytest
import torch

from camp_model.scoring import fused_pooling
from tests.camp_model.encoded_batches import make

SOURCE = "camp_model.scoring.fused_pooling_kernel"


def test_the_kernel_is_exact(repository):
    pytest.importorskip("triton", reason="no Triton on this platform")
    command = [sys.executable, "-m", "tests.camp_model.interpreted_kernel"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def test_without_triton_or_a_compiler_pytorch_scores_instead(monkeypatch):
    plan = make().kernel_plan()
    fused_pooling.kernel.cache_clear()
    try:
        monkeypatch.setenv("CAMP_NATIVE", "0")
        assert not fused_pooling.supports(plan)
        monkeypatch.delenv("CAMP_NATIVE")
        fused_pooling.kernel.cache_clear()
        monkeypatch.setitem(sys.modules, SOURCE, None)  # as an import error of Triton
        assert not fused_pooling.supports(plan)
        fused_pooling.kernel.cache_clear()
        monkeypatch.delitem(sys.modules, SOURCE)
        if torch.cuda.is_available():
            return
        pytest.importorskip("triton", reason="no Triton on this platform")
        with pytest.warns(UserWarning, match=r"the GPU kernel cannot be built, so scoring is slower: .+"):
            assert not fused_pooling.supports(plan)  # here Triton finds no GPU
    finally:
        sys.modules.pop(SOURCE, None)
        fused_pooling.kernel.cache_clear()
