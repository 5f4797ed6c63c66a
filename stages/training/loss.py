"""The loss of a batch, as params.yaml sets it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from camp_model.all_negatives import all_negatives_bce, all_negatives_triplet
from camp_model.distributed import GlobalBatch, gather_batch
from camp_model.encoders import length_mask
from camp_model.foils import foil_bce
from camp_model.joint import joint_contrastive
from camp_model.losses import BatchOptions, gate_bce, hardest_negative_bce, triplet_loss
from camp_model.model import CAMP
from camp_model.tensors import take_rows, to_device
from stages.device import Precision
from stages.params.train import TrainParams
from stages.training.data import Batch
from stages.training.dropping import drop, is_start_or_end


def batch_loss(
    model: CAMP, batch: Batch, params: TrainParams, step: int, epoch_steps: int, precision: Precision
) -> Tensor:
    """The loss of a batch on the model's device, at optimizer step `step` (0 is the first).

    With several processes, each has the loss of its own pairs, so weighted that the mean over processes is the loss of
    the whole batch. Dropout and the dropping of regions and words use PyTorch's global generator.
    """
    with precision.autocast():
        regions = model.encode_regions(batch.features, batch.region_mask)
        words = model.encode_captions(batch.tokens, batch.lengths)
        word_mask = to_device(length_mask(batch.lengths, batch.tokens.shape[1]), words.device)
        foils = _foil_loss(model, batch, params, regions, words, word_mask)
        regions, region_mask = drop(regions, batch.region_mask, params.drop_regions)
        words, word_mask = drop(words, word_mask, params.drop_words, is_start_or_end(batch.tokens))
        global_batch = gather_batch(regions, region_mask, words, word_mask, batch.image_index, batch.caption_index)
        size = len(global_batch.tensors[0])
        own = range(size)[global_batch.pairs]
        blocks = [(block, range(max(own.start, block.start), min(own.stop, block.stop)))
                  for block in mining_parts(size, params.mining_batch)]  # fmt: skip
        loss = torch.stack([
            _pairs_loss(model, global_batch, params, step, epoch_steps, block, wanted) * (len(wanted) / len(own))
            for block, wanted in blocks if wanted
        ]).sum()  # fmt: skip
        if params.joint_weight:
            all_regions, all_region_mask, all_words, all_word_mask, image_index = global_batch.tensors
            joint = joint_contrastive(
                model.image_vectors(all_regions, all_region_mask), model.caption_vectors(all_words, all_word_mask),
                image_index, caption_index=global_batch.caption_index, temperature=params.joint_temperature,
                pairs=global_batch.pairs,
            )  # fmt: skip
            loss = loss + params.joint_weight * joint
        loss = loss if foils is None else loss + params.foil_weight * foils
        return loss * global_batch.weight


def mining_parts(size: int, length: int) -> list[slice]:
    """Split a batch of `size` pairs into nearly equal parts of at most `length` (0: one part), none of a single pair,
    which has no negative."""
    count = max(1, min(math.ceil(size / length), size // 2)) if length else 1
    return [slice(size * i // count, size * (i + 1) // count) for i in range(count)]


def _pairs_loss(
    model: CAMP,
    global_batch: GlobalBatch,
    params: TrainParams,
    step: int,
    epoch_steps: int,
    block: slice,
    wanted: range,
) -> Tensor:
    """The mean loss of matching and gates over the pairs `wanted`, with negatives from the batch's pairs `block`."""
    start = block.start
    # The same on all processes, so that they draw the same negatives.
    generator = torch.Generator().manual_seed(hash((params.seed, step, start) if start else (params.seed, step)))
    encoded = [tensor[block] for tensor in global_batch.tensors]
    options: BatchOptions = {
        "caption_index": None if global_batch.caption_index is None else global_batch.caption_index[block],
        "pairs": slice(wanted.start - start, wanted.stop - start),
        "micro_batch": params.micro_batch,
    }
    by_pair = params.gate_supervision if params.gate_target == "pair" else 0.0
    matching = _matching_loss(params, step, epoch_steps, generator)
    loss: Tensor = matching(model, *encoded, gate_supervision=by_pair, **options)
    if params.gate_supervision and params.gate_target == "words":
        gates = gate_bce(model, *encoded, temperature=params.gate_temperature, generator=generator, **options)
        loss = loss + params.gate_supervision * gates
    return loss


def _foil_loss(model: CAMP, batch: Batch, params: TrainParams, *encoded: Tensor) -> Tensor | None:
    """The mean loss of foils over this process's pairs; `encoded`: regions, words, and the mask of words.

    No words are dropped from these captions: a foil without its changed word would be true.
    """
    foils = batch.foils
    if foils is None:
        return None
    regions, words, word_mask = (take_rows(values, foils.pairs) for values in encoded)
    foil_words = model.encode_captions(foils.tokens, foils.lengths)
    foil_mask = to_device(length_mask(foils.lengths, foils.tokens.shape[1]), words.device)
    total = foil_bce(
        model, regions, batch.region_mask[foils.pairs], words, word_mask, foil_words, foil_mask,
        positions=foils.positions, weights=foils.weights, gate_supervision=params.gate_supervision,
    )  # fmt: skip
    return total / len(batch.lengths)


def _matching_loss(
    params: TrainParams, step: int, epoch_steps: int, generator: torch.Generator
) -> Callable[..., Tensor]:
    """The loss that `train.loss` names; over all negatives in the first epochs, if the params say so."""
    every = params.loss == "bce" or step < params.all_negatives_epochs * epoch_steps
    if every and params.loss == "triplet":
        return partial(all_negatives_triplet, margin=params.margin)
    if every:
        return all_negatives_bce
    negatives: dict[str, Any] = {"candidates": candidates(params, step), "generator": generator}
    if params.loss == "triplet":
        return partial(triplet_loss, margin=params.margin, **negatives)
    return partial(hardest_negative_bce, **negatives)


def candidates(params: TrainParams, step: int) -> int:
    """Number of random negatives of which the hardest is used; 0: all negatives."""
    begun = step - params.random_negative_steps
    if begun < 0:
        return 1
    if begun >= params.curriculum_steps:
        return 0
    searched = max(part.stop - part.start for part in mining_parts(params.batch_size, params.mining_batch))
    return round(float(searched ** (begun / params.curriculum_steps)))
