"""Steps per second and peak memory of a training step with mined hardest negatives, against the all-pairs graph.

float32, batch of 64, d 512, 36 regions, 16 words, 2 CPU threads. Each kind of step runs in a process of its own, so
that its peak is its own; the gradients of both are compared first. Then the smaller step of the embedded scenes, with
one thread, and with two that sleep or spin while they wait, alone and beside another such process.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from benchmarks._broadcast import all_pairs
from camp_model import CAMP, CampConfig
from camp_model.encoders import length_mask
from camp_model.losses import hardest_negative_bce, mine_hardest
from stages.cost import resident_bytes
from stages.garbage import keep_freed_memory

BATCH, DIM, REGIONS, WORDS = 64, 512, 36, 16
KINDS = {
    "all pairs": "forward and backward on all 64 x 64 pairs, broadcast",
    "all pairs, factorised": "the same graph from this project's factorised layers",
    "mined": "hardest negatives mined without gradients, then 3 x 64 pairs",
    "mined, micro_batch 16": "the same, 16 pairs at a time",
    "mined, memory kept": "mined, and freed memory is kept, as in every stage",
}

SMALL = "scenes, memory kept"
SCENES = {"dim": 192, "regions": 12, "words": 12}
WAITING = {
    "one thread": (1, {}),
    "two that sleep": (2, {"GOMP_SPINCOUNT": "0"}),
    "two that spin briefly": (2, {}),
    "two that spin": (2, {"GOMP_SPINCOUNT": "300000"}),
}
"""Threads, and what differs from the environment of a stage (`stages/__init__.py`); 300,000 is libgomp's default."""


def all_pairs_bce(scores: Tensor, index: Tensor) -> Tensor:
    """Hardest-negative cross-entropy from one graph over all scores [B, B]."""
    rows = torch.arange(len(scores))
    captions, images = mine_hardest(scores, index)
    negatives = logsigmoid(-scores[rows, captions]) + logsigmoid(-scores[images, rows])
    return -(2 * logsigmoid(scores.diagonal()) + negatives).mean()


class Step:
    """Forward and backward of one batch."""

    def __init__(
        self, kind: str, batch: int = BATCH, dim: int = DIM, regions: int = REGIONS, words: int = WORDS
    ) -> None:
        torch.manual_seed(0)
        self.kind = kind
        self.model = CAMP(CampConfig(vocab_size=1000, region_dim=512, word_dim=300, dim=dim))
        self.features = torch.randn(batch, regions, 512)
        self.region_mask = torch.ones(batch, regions, dtype=torch.bool)
        self.tokens, self.lengths = torch.randint(4, 1000, (batch, words)), torch.full((batch,), words)
        self.index = torch.arange(batch)

    def run(self) -> float:
        self.model.zero_grad()
        regions = self.model.encode_regions(self.features, self.region_mask)
        words = self.model.encode_captions(self.tokens, self.lengths)
        batch = (regions, self.region_mask, words, length_mask(self.lengths, self.tokens.shape[1]))
        if self.kind == "all pairs":
            loss = all_pairs_bce(all_pairs(self.model, *batch), self.index)
        elif self.kind == "all pairs, factorised":
            loss = all_pairs_bce(self.model.score_matrix(*batch), self.index)
        else:
            loss = hardest_negative_bce(self.model, *batch, self.index, micro_batch=16 if "16" in self.kind else 0)
        loss.backward()
        return loss.item()

    def gradient(self) -> Tensor:
        self.run()
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def measure(kind: str, threads: int) -> dict[str, float]:
    """Seconds of a step and its peak memory beyond model and batch."""
    torch.set_num_threads(min(threads, os.cpu_count() or 1))
    if "kept" in kind:
        keep_freed_memory()
    step = Step(kind, **(SCENES if kind == SMALL else {}))
    small = Step(kind, batch=4)
    small.run()  # libraries and kernels are loaded
    before = resident_bytes("VmRSS")
    times = []
    end = time.perf_counter() + 8
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        step.run()
        times.append(time.perf_counter() - start)
    return {"seconds": min(times), "bytes": resident_bytes("VmHWM") - before}


def in_processes(
    kind: str, threads: int = 2, environment: Mapping[str, str] = {}, processes: int = 1
) -> list[dict[str, float]]:
    """What `measure` gives in each of as many processes at once."""
    command = [sys.executable, "-m", "benchmarks.training", "--kind", kind, "--threads", str(threads)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
        for _ in range(processes)
    ]
    return [json.loads(process.communicate()[0]) for process in started]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=[*KINDS, SMALL], help="measure one kind of step and print JSON")
    parser.add_argument("--threads", type=int, default=2, help="of one kind of step")
    arguments = parser.parse_args()
    if arguments.kind is not None:
        print(json.dumps(measure(arguments.kind, arguments.threads)))
        return
    expected = Step("all pairs", batch=8, dim=64).gradient()
    for name in list(KINDS)[1:]:
        error = (Step(name, batch=8, dim=64).gradient() - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, f"{name}: the gradient differs by {error:.1e}"
    results = {}
    for name, meaning in KINDS.items():
        [results[name]] = in_processes(name)
        speed = results["all pairs"]["seconds"] / results[name]["seconds"]
        memory = results[name]["bytes"] / results["all pairs"]["bytes"]
        print(
            f"{name:24}{1 / results[name]['seconds']:7.2f} steps/s {speed:6.1f} x"
            f"{results[name]['bytes'] / 2**20:8.0f} MiB  1/{1 / memory:.1f}   {meaning}",
            flush=True,
        )
    print(f"\n{'':24}{'alone':28}each of two such processes")
    one_thread: list[float] = []
    for name, (threads, environment) in WAITING.items():
        measured = [in_processes(SMALL, threads, environment, processes) for processes in (1, 2)]
        seconds = [sum(each["seconds"] for each in of_each) / len(of_each) for of_each in measured]
        one_thread = one_thread or seconds
        cells = [f"{1 / mine:7.2f} steps/s {one / mine:6.2f} x" for mine, one in zip(seconds, one_thread, strict=True)]
        print(f"{name:24}{'   '.join(cells)}", flush=True)
    speed = results["all pairs"]["seconds"] / results["mined"]["seconds"]
    share = results["mined"]["bytes"] / results["all pairs"]["bytes"]
    print(f"[{'met' if speed >= 3 else 'NOT MET'}] at least 3 x the steps per second: {speed:.1f} x")
    print(f"[{'met' if share <= 0.2 else 'NOT MET'}] at most 1/5 of the peak memory: 1/{1 / share:.1f}")
    if speed < 3 or share > 0.2:
        sys.exit(1)


if __name__ == "__main__":
    main()
