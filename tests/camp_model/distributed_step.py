"""One training step of a share of a batch; run as a process: `distributed_step.py RANK FOLDER FIRST`.

The first of two processes has FIRST of the 4 pairs.
"""

import sys

import torch
import torch.distributed as dist

from camp_model import CAMP, CampConfig
from camp_model.distributed import gather_batch
from camp_model.encoders import length_mask
from camp_model.losses import hardest_negative_bce

CONFIG = CampConfig(vocab_size=12, region_dim=5, word_dim=3, dim=6)
INDEX = torch.tensor([0, 1, 2, 0])
TEXTS = torch.tensor([7, 8, 8, 9])
COUNTS, LENGTHS = torch.tensor([4, 2, 3, 4]), torch.tensor([3, 2, 5, 1])


def share_of_a_step(rows: slice) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the given pairs; negatives from all processes."""
    torch.manual_seed(0)
    model = CAMP(CONFIG).double()
    features, tokens = torch.randn(4, 4, 5, dtype=torch.float64), torch.randint(0, 12, (4, 5))
    lengths, counts = LENGTHS[rows], COUNTS[rows]
    size = int(lengths.max())  # each process pads to its own longest caption
    region_mask = length_mask(counts, 4)
    regions = model.encode_regions(features[rows], region_mask)
    words = model.encode_captions(tokens[rows, :size], lengths)
    batch = gather_batch(regions, region_mask, words, length_mask(lengths, size), INDEX[rows], TEXTS[rows])
    own = {"caption_index": batch.caption_index, "pairs": batch.pairs}
    loss = hardest_negative_bce(model, *batch.tensors, gate_supervision=0.5, **own)
    if dist.is_initialized():  # the gradient that autograd hands to the exchange is not the exchange's to change
        regions.retain_grad()
        handed: list[torch.Tensor] = []
        batch.tensors[0].register_hook(lambda gradient: handed.extend((gradient, gradient.clone())))
    loss = loss * batch.weight
    loss.backward()
    if dist.is_initialized():
        assert torch.equal(*handed)
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def main() -> None:
    rank, folder, first = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    loss, gradients = share_of_a_step(slice(first, 4) if rank else slice(0, first))
    for gradient in gradients.values():
        dist.all_reduce(gradient)
        gradient.div_(2)
    torch.save((loss, gradients), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
