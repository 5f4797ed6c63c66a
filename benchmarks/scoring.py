"""Pairs per second of `CAMP.score_matrix` against a plain broadcast of the equations, and how exact and small it is.

float32, d 1024, 36 regions, up to 16 words, 2 CPU threads, all in one process, the two sides measured in turns so that
another load on the machine hits both.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._broadcast import all_pairs
from camp_model import CAMP, CampConfig
from camp_model.encoders import length_mask
from camp_model.losses import hardest_negative_bce
from camp_model.metrics import retrieval_metrics
from camp_model.scoring import native
from camp_model.scoring.all_pairs import score_blocks
from camp_model.scoring.ranking import rank_queries
from camp_model.scoring.tiles import KernelTiles
from stages.cost import resident_bytes

DIM, REGIONS, WORDS = 1024, 36, 16
FLOP_PER_PAIR = 4 * 2 * REGIONS * WORDS * DIM + 2 * 2 * (REGIONS + WORDS) * DIM + 4 * DIM * DIM
"""Affinities and gates, messages to both sides, weighted sums, matching layer."""
FLOP_OF_HIDDEN_LAYER = 2 * (REGIONS + WORDS) * DIM * DIM
"""Of `mlp` pooling, on every number of every fused vector. The kernel passes over those that the ReLU made 0."""
COLLECTIONS = 8
"""Of 1,000 images: of one alone, a single query weighs as much as the bar."""
BARS = {"attention": 12.0, "mlp": 5.0}

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def encodings(images: int, captions: int) -> Batch:
    """Random encoded images, all with 36 regions, and captions of 16 words."""
    regions, words = 0.5 * torch.randn(images, REGIONS, DIM), 0.5 * torch.randn(captions, WORDS, DIM)
    return regions, torch.ones(images, REGIONS).bool(), words, torch.ones(captions, WORDS).bool()


def cut(batch: Batch, images: int, captions: int) -> Batch:
    return batch[0][:images], batch[1][:images], batch[2][:captions], batch[3][:captions]


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(runs: dict[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """Mean seconds of each, measured for about `budget` seconds in turns of like length: other load hits all alike."""
    for run in runs.values():
        run()  # warms up
    turn = max(seconds(run) for run in runs.values())
    spent, count = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0)
    turns = 0
    while sum(spent.values()) < budget:
        turns += 1
        for name, run in runs.items():
            while spent[name] < turns * turn:
                spent[name] += seconds(run)
                count[name] += 1
    return {name: spent[name] / count[name] for name in runs}


def eager(model: CAMP, batch: Batch) -> Tensor:
    """`score_matrix` without the compiled kernel."""
    lanes, native.lanes = native.lanes, lambda: 0
    try:
        return model.score_matrix(*batch)
    finally:
        native.lanes = lanes


def shares_of_entries(model: CAMP, batch: Batch) -> tuple[float, float]:
    """How many numbers the ReLU of the fusion does not make 0: in a pair, and in one of two pairs of an own item."""
    matcher: Any = model.matcher
    to_regions, to_words = matcher.messages.to_regions, matcher.messages.to_words
    kept: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> None:
        kept.append(output > 0)

    with to_regions.fusion.register_forward_hook(keep), to_words.fusion.register_forward_hook(keep):
        all_pairs(model, *batch)
    single, either = 0.0, 0.0
    for values, other in zip(kept, (1, 0), strict=True):  # [I, C, L, d]
        weight = values.shape[2] / (REGIONS + WORDS)
        single += weight * values.double().mean().item()
        either += weight * values.unflatten(other, (-1, 2)).any(other + 1).double().mean().item()
    return single, either


def speed(pooling: str) -> bool:
    torch.manual_seed(0)
    model = CAMP(CampConfig(vocab_size=8, region_dim=8, word_dim=8, dim=DIM, pooling=pooling)).eval()
    batch = encodings(128, 128)
    sizes = {"broadcast": (8, 16), "tiles in PyTorch": (32, 64), "as shipped": (128, 128)}
    if pooling == "mlp":
        sizes |= {"tiles in PyTorch": (16, 32), "as shipped": (96, 128)}
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    runs = {
        "broadcast": lambda: all_pairs(model, *cut(batch, *sizes["broadcast"])),
        "tiles in PyTorch": lambda: eager(model, cut(batch, *sizes["tiles in PyTorch"])),
        "as shipped": lambda: model.score_matrix(*cut(batch, *sizes["as shipped"])),
        "product": lambda: a @ b,
    }
    times = in_turns(runs, 40)
    rates = {name: size[0] * size[1] / times[name] for name, size in sizes.items()}
    ceiling = 2 * 2048**3 / times["product"]
    print(f"{pooling} pooling ({'kernel' if KernelTiles.build(model) else 'no kernel on this machine'}):")
    for name, rate in rates.items():
        print(f"  {name:18}{rate:10,.0f} pairs/s{rate / rates['broadcast']:8.1f} x")
    left = float(FLOP_PER_PAIR)
    if pooling == "mlp":
        share, either = shares_of_entries(model, cut(batch, 8, 16))
        left += share * FLOP_OF_HIDDEN_LAYER
        print(f"  the fusion's ReLU leaves {share:.0%} of the numbers of a pair, {either:.0%} in one of two neighbours")
    used = rates["as shipped"] * left
    print(
        f"  {left / 1e6:.1f} MFLOP a pair are left: {used / 1e9:.0f} GFLOP/s, {used / ceiling:.0%} "
        f"of the {ceiling / 1e9:.0f} GFLOP/s of torch's 2048 x 2048 float32 product"
    )
    ratio = rates["as shipped"] / rates["broadcast"]
    return verdict(f"at least {BARS[pooling]:.0f} x the broadcast", f"{ratio:.1f} x", ratio >= BARS[pooling])


def evidence() -> bool:
    """What counts and locations (`gate_evidence`) cost."""
    torch.manual_seed(0)
    batch = encodings(128, 128)
    models = {
        name: CAMP(
            CampConfig(vocab_size=8, region_dim=8, word_dim=8, dim=DIM, geometry=4.0, gate_evidence=name == "with")
        ).eval()
        for name in ("without", "with")
    }
    times = in_turns({name: partial(model.score_matrix, *batch) for name, model in models.items()}, 20)
    share = times["without"] / times["with"]
    return verdict("gate evidence keeps two thirds of the speed", f"{share:.0%}", share >= 2 / 3)


def exactness() -> bool:
    """Against float64, with real weights spread: gates open and shut, captions of 4 to 16 words.

    Logits that cross 0 are left out: next to 0 every way to add in float32 is relatively far off.
    """
    error = 0.0
    for pooling in BARS:
        torch.manual_seed(1)
        model = CAMP(CampConfig(vocab_size=8, region_dim=8, word_dim=8, dim=DIM, pooling=pooling)).eval()
        regions, region_mask, words, _ = encodings(24, 48)
        word_mask = length_mask(torch.randint(4, WORDS + 1, (48,)), WORDS)
        scores = model.score_matrix(regions, region_mask, words, word_mask)
        wide = CAMP(model.config).double()
        wide.load_state_dict(model.state_dict())
        exact = all_pairs(wide, regions.double(), region_mask, words.double(), word_mask)
        errors = ((scores - exact).abs() / exact.abs())[exact.abs() >= 0.01]
        error = max(error, errors.max().item())
    return verdict("float32 logits (from 0.01 on) within 1e-4 relative of float64", f"{error:.1e}", error < 1e-4)


def verdict(bar: str, value: str, met: bool) -> bool:
    print(f"  [{'met' if met else 'NOT MET'}] {bar}: {value}", flush=True)
    return met


def scenes(images: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of 12 regions of 60 kinds, seen through noise, and captions that name 5 of each: learnable in seconds."""
    kinds = torch.randint(4, 64, (images, 12), generator=generator)
    prototypes = torch.randn(64, 64, generator=torch.Generator().manual_seed(9))
    features = prototypes[kinds] + 0.5 * torch.randn(images, 12, 64, generator=generator)
    return features, torch.ones(images, 12).bool(), kinds[:, :5], torch.full((images,), 5)


def half_precision() -> bool:
    """Recall in bf16 and float32 of a model trained for a few hundred steps; one query of all weighs 0.0125."""
    torch.manual_seed(2)
    model = CAMP(CampConfig(vocab_size=64, region_dim=64, word_dim=32, dim=64))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(3)
    with torch.enable_grad():
        for _ in range(400):
            features, region_mask, tokens, lengths = scenes(64, generator)
            regions, words = model.encode_regions(features, region_mask), model.encode_captions(tokens, lengths)
            batch = (regions, region_mask, words, length_mask(lengths, 5))
            loss = hardest_negative_bce(model, *batch, torch.arange(64), gate_supervision=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    small = CAMP(model.config).eval().bfloat16()
    small.load_state_dict(model.state_dict())
    index, wide, half = torch.arange(1000), dict[str, float](), dict[str, float]()
    for _ in range(COLLECTIONS):
        features, region_mask, tokens, lengths = scenes(len(index), generator)
        regions, words = model.encode_regions(features, region_mask), model.encode_captions(tokens, lengths)
        word_mask = length_mask(lengths, 5)
        scores = model.score_matrix(regions, region_mask, words, word_mask)
        rounded = small.score_matrix(regions.bfloat16(), region_mask, words.bfloat16(), word_mask)
        for mean, found in ((wide, scores), (half, rounded)):
            for name, value in retrieval_metrics(found, index).items():
                mean[name] = mean.get(name, 0.0) + value / COLLECTIONS
    recalls = [name for name in wide if name[4:5] == "r"]
    for name, metrics in (("float32", wide), ("bf16", half)):
        print(f"  recalls in {name}: {', '.join(f'{recall} {metrics[recall]:.2f}' for recall in recalls)}")
    gap = max(abs(wide[name] - half[name]) for name in recalls)
    return verdict("bf16 recall within 0.1 of float32", f"{gap:.2f}", round(gap, 6) <= 0.1)


class Enough(Exception):
    """The blocks measured so far are like all that follow."""


def memory() -> bool:
    """Peak of ranking 5,000 x 25,000 pairs while scoring, and of the score matrix, beyond their inputs and outputs.

    All images and captions are of full size, so that every block is like the first; it ends inside the second, which
    is prepared while the first is still there.
    """
    torch.manual_seed(3)
    model = CAMP(CampConfig(vocab_size=8, region_dim=8, word_dim=8, dim=DIM)).eval()
    regions, words = torch.rand(5000, REGIONS, DIM), torch.rand(25_000, WORDS, DIM)
    batch = (regions, torch.ones(5000, REGIONS).bool(), words, torch.ones(25_000, WORDS).bool())
    block = next(iter(score_blocks(model, *batch)))[2].numel()
    met = True
    runs: dict[str, Callable[..., object]] = {
        "the score matrix of": lambda progress: model.score_matrix(*batch, progress=progress),
        "ranks while scoring": lambda progress: rank_queries(
            model, *batch, torch.arange(25_000) // 5, progress=progress
        ),
    }
    for name, run in runs.items():
        scored = 0

        def progress(pairs: int) -> None:
            nonlocal scored
            scored += pairs
            if scored > block:
                raise Enough

        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak so far
        before = resident_bytes("VmHWM")
        with contextlib.suppress(Enough):
            run(progress)
        used = (resident_bytes("VmHWM") - before) / 2**30
        met &= verdict(f"{name} 5,000 x 25,000 under 2 GiB beyond inputs and outputs", f"{used:.2f} GiB", used < 2)
    return met


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    print(f"d {DIM}, {REGIONS} regions, {WORDS} words, float32, {torch.get_num_threads()} threads", flush=True)
    met = [speed("attention"), speed("mlp"), evidence(), exactness(), half_precision()]
    if Path("/proc/self/clear_refs").exists():
        met.append(memory())
    if not all(met):
        sys.exit(1)


if __name__ == "__main__":
    main()
