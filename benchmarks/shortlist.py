"""How much of CAMP's ranking a shortlist keeps: `python -m benchmarks.shortlist [WORKSPACE] [SENTENCES]`.

Of a workspace in which the pipeline has run (default: this one), a model trained with the joint term: captions of the
test split, drawn at random, are ranked over all of its pictures by CAMP, and by the vectors that choose a shortlist.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from camp_model.checkpoint import load_checkpoint
from camp_model.encoding import captions_as_read, encode_captions, encode_images
from camp_model.regions import RegionStore
from stages.contracts import read_fingerprint
from stages.evaluation.folds import read_split

KEPT = (10, 30, 100, 300)
BEST = 10
SENTENCES = 500


@torch.inference_mode()
def measure(root: Path, sentences: int) -> None:
    """Print the table of a workspace."""
    model, vocabulary, _ = load_checkpoint(root / "models/camp")
    if not read_fingerprint(root / "models/camp").get("joint_weight"):
        print("the model was trained without the joint term: it has no shortlist")
        return
    split = read_split("test", root / "data/captions", store := RegionStore(root / "data/regions"))
    captions = captions_as_read([model], vocabulary, split.captions)
    drawn = np.random.default_rng(0).permutation(len(split.rows))[:sentences]
    regions, mask = encode_images(model, store, [store.row_of(image_id) for image_id in split.images])
    words = encode_captions(model, captions, split.rows[drawn])
    scores = model.score_matrix(regions, mask, *words).T  # [C, I]
    cosines = model.caption_vectors(*words) @ model.image_vectors(regions, mask).T
    own = torch.from_numpy(split.caption_image[drawn])[:, None]
    best = scores.argsort(dim=1, descending=True)
    order = cosines.argsort(dim=1, descending=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))  # [C, I], from 0
    print(f"{len(drawn)} captions of the test split over its {len(split.images):,} pictures")
    print("     K  CAMP's first  CAMP's ten  own picture   R@1 of CAMP in it (in all)")
    in_all = (best[:, :1] == own).float().mean().item()
    for size in (size for size in KEPT if size < len(split.images)):
        inside = ranks < size
        within = scores.masked_fill(~inside, -torch.inf).argmax(dim=1, keepdim=True)
        shares = (
            inside.gather(1, best[:, :1]), inside.gather(1, best[:, :BEST]), inside.gather(1, own), within == own,
        )  # fmt: skip
        first, ten, right, recall = (share.float().mean().item() for share in shares)
        print(f"{size:6} {first:13.1%} {ten:11.1%} {right:12.1%} {recall:12.1%} ({in_all:.1%})")


def main() -> None:
    arguments = sys.argv[1:]
    root = Path(arguments[0]) if arguments else Path()
    if not (root / "data/regions/manifest.parquet").is_file() or not (root / "models/camp/config.json").is_file():
        print(f"{root.resolve()}: no data/regions and models/camp; run the pipeline first, or name its workspace")
        return
    measure(root, int(arguments[1]) if len(arguments) > 1 else SENTENCES)


if __name__ == "__main__":
    main()
