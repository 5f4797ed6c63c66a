"""K against recall and time: joint-embedding shortlist, then CAMP, on what `make repro` left here.

The collection is every image of the embedded data, all splits; the queries are captions of the test split. The joint
embedding is trained here for 600 steps on the train split (triplet loss, the same regions and vocabulary).
"""

import time
from pathlib import Path

import numpy as np
import torch

from camp_model import CAMP, CampConfig
from camp_model.captions import CaptionTable
from camp_model.checkpoint import load_checkpoint
from camp_model.encoders import length_mask
from camp_model.losses import triplet_loss
from camp_model.regions import RegionStore
from camp_model.retrieval import JointEmbedding, Retriever, build_index

QUERIES, STEPS, BATCH = 400, 600, 128


def train_joint(config: CampConfig, store: RegionStore, captions: CaptionTable, steps: int) -> CAMP:
    """A joint embedding of the collection's regions."""
    torch.manual_seed(0)
    model = CAMP(config)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    image_rows = captions.image_index(store.image_ids)
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for step in range(steps):
        rows = rng.choice(len(captions), BATCH, replace=False)
        features, mask = store.features(image_rows[rows].tolist())
        tokens, lengths = captions.batch(rows.tolist())
        region_mask = torch.from_numpy(mask)
        regions = model.encode_regions(torch.from_numpy(features), region_mask)
        words = model.encode_captions(tokens, lengths)
        word_mask = length_mask(lengths, tokens.shape[1])
        index = torch.from_numpy(image_rows[rows])
        candidates = 1 if step < 100 else 0  # the hardest negatives from the first step on can stall
        loss = triplet_loss(model, regions, region_mask, words, word_mask, index, candidates=candidates)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
    print(
        f"joint embedding: {steps} steps in {time.perf_counter() - start:.0f} s, last loss {loss.item():.3f}",
        flush=True,
    )
    return model.eval()


def main() -> None:
    folders = {name: Path(name) for name in ("models/camp", "data/regions", "data/captions")}
    missing = [name for name, path in folders.items() if not path.is_dir()]
    if missing:
        print(f"skipped: {missing[0]} is not here; `make repro` makes it")
        return
    model, vocabulary, _ = load_checkpoint(folders["models/camp"])
    store = RegionStore(folders["data/regions"])
    captions = {split: CaptionTable.load(folders["data/captions"] / f"{split}.parquet") for split in ("train", "test")}
    size = model.config
    config = CampConfig(
        vocab_size=len(vocabulary), region_dim=size.region_dim, word_dim=size.word_dim, dim=size.dim,
        matcher="joint",
    )  # fmt: skip
    joint = JointEmbedding(train_joint(config, store, captions["train"], STEPS))
    start = time.perf_counter()
    retriever = Retriever(model, joint, build_index(joint, store), store)
    print(f"index of {len(store)} images in {time.perf_counter() - start:.1f} s", flush=True)
    rows = np.random.default_rng(0).permutation(len(captions["test"]))[:QUERIES]
    tokens, lengths = captions["test"].batch(rows.tolist())
    right = torch.from_numpy(captions["test"].image_index(store.image_ids)[rows])[:, None]
    print(f"{len(rows)} captions of the test split\n     K  in shortlist    R@1    R@5   R@10  ms/query")
    for depth in (1, 10, 30, 100, 300, 1000, len(store)):
        if depth > len(store):
            continue
        chosen = slice(None) if depth < len(store) else slice(0, 50)
        start = time.perf_counter()
        result = retriever.search(tokens[chosen], lengths[chosen], shortlist=depth)
        each = (time.perf_counter() - start) / len(result.rows) * 1000
        in_shortlist = (result.shortlist == right[chosen]).any(1).float().mean() * 100
        recalls = [(result.rows[:, :k] == right[chosen]).any(1).float().mean().item() * 100 for k in (1, 5, 10)]
        note = "  (50 queries)" if depth == len(store) else ""
        print(f"{depth:6}{in_shortlist:14.1f}{''.join(f'{r:7.1f}' for r in recalls)}{each:10.1f}{note}", flush=True)


if __name__ == "__main__":
    main()
