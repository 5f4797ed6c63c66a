import threading
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from camp_model.captions import write_captions
from camp_model.regions import RegionStore
from camp_model.vocabulary import Vocabulary
from stages.errors import InputError
from stages.training.data import Split, epoch_batches, prefetch, steps_per_epoch
from stages.training.processes import Processes


def load(paths, name="train"):
    vocabulary = Vocabulary.load(paths.captions / "vocabulary.json")
    return Split(RegionStore(paths.regions), paths.captions / f"{name}.parquet", vocabulary)


@example(5, 2, 1, 0)
@example(3, 1, 8, 0)
@given(st.integers(2, 400), st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_sees_every_caption_once_in_batches_of_like_size(pairs, each, processes, epoch):
    batch_size = max(2, each) if processes == 1 else each * processes
    batches = epoch_batches(pairs, batch_size, seed=1, epoch=epoch, processes=processes)
    assert sorted(np.concatenate(batches)) == list(range(pairs))
    sizes = [len(batch) for batch in batches]
    least = max(2, processes)
    assert min(sizes) >= min(least, pairs) and max(sizes) <= max(2 * least - 1, batch_size)
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == steps_per_epoch(pairs, batch_size, processes)
    if batch_size >= 2 * least:  # and so is training, with any number of processes
        alone = epoch_batches(pairs, batch_size, seed=1, epoch=epoch)
        assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in alone]
    for batch in batches:
        shares = [batch[Processes(rank, processes).share(len(batch))] for rank in range(processes)]
        assert np.concatenate(shares).tolist() == batch.tolist()
        assert pairs < processes or min(map(len, shares)) >= 1


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return np.concatenate(epoch_batches(50, 8, seed, epoch)).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) and order(0, 1) != order(1, 1)


def test_a_batch_holds_each_captions_own_image(make_data):
    split = load(make_data())
    batch = split.batch(np.array([5, 0, 4]))  # two captions an image
    assert batch.image_index.tolist() == [2, 0, 2]
    features, mask = split.store.features([2, 0, 2])
    assert torch.equal(batch.features, torch.from_numpy(features)) and batch.features.dtype == torch.float16
    assert torch.equal(batch.region_mask, torch.from_numpy(mask))
    assert torch.equal(batch.tokens[1, : batch.lengths[1]], split.captions.batch([0])[0][0])
    assert batch.to(torch.device("cpu")).features.dtype == torch.float32


def test_prefetching_keeps_order_and_stays_ahead():
    made = []

    def items():
        for i in range(6):
            made.append(i)
            yield i

    ready = prefetch(items(), depth=2)
    assert next(ready) == 0
    deadline = threading.Event()
    while len(made) < 3 and not deadline.wait(0.01):
        pass
    assert made == [0, 1, 2]
    assert list(ready) == [1, 2, 3, 4, 5]


def test_prefetching_passes_errors_on():
    def items():
        yield 1
        raise InputError("a damaged shard")

    ready = prefetch(items())
    assert next(ready) == 1
    with pytest.raises(InputError, match="a damaged shard"):
        next(ready)


def test_a_consumer_that_leaves_ends_the_thread():
    before = threading.active_count()
    ready = prefetch(iter(range(1000)), depth=2)
    next(ready)
    ready.close()
    assert threading.active_count() == before


def test_captions_of_images_without_regions_are_an_error(make_data):
    paths = make_data()
    write_captions(paths.captions / "train.parquet", [1], ["elsewhere"], ["x"], [[4]])
    with pytest.raises(InputError, match=r"train\.parquet: image_id: caption 1 names image 'elsewhere'"):
        load(paths)


def test_captions_of_another_vocabulary_are_an_error(make_data):
    paths = make_data()
    Vocabulary.build([["red"]]).save(paths.captions / "vocabulary.json")
    with pytest.raises(InputError, match=r"train\.parquet: tokens: word id \d+ is outside the vocabulary of 5"):
        load(paths)
    paths = make_data("same_size")
    table = pq.read_table(path := paths.captions / "train.parquet")
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"camp.vocabulary": b"c" * 64}), path)
    with pytest.raises(InputError, match=r"train\.parquet: tokens: are ids of words of another vocabulary"):
        load(paths)


def test_an_empty_split_is_an_error(make_data):
    paths = make_data()
    write_captions(paths.captions / "train.parquet", [], [], [], [])
    with pytest.raises(InputError, match=r"train\.parquet: holds no captions"):
        load(paths)


def test_a_damaged_shard_is_named(make_data):
    paths = make_data()
    shard = paths.regions / "a.arrow"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(InputError, match=r"a\.arrow"):
        load(paths).batch(np.array([0]))


def test_a_damaged_manifest_stops_the_stage(make_data, params, run_train):
    paths = make_data()
    (paths.regions / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"manifest\.parquet: cannot be read"):
        run_train(params(), paths)
    assert not paths.model.exists() and not paths.metrics.exists()


@pytest.mark.parametrize(("split", "images", "val_images"), [("train", 1, 3), ("val", 3, 1)])
def test_one_image_is_not_enough(make_data, params, run_train, split, images, val_images):
    """To train, or to measure: it would be ranked first by any model."""
    paths = make_data(images=images, val_images=val_images)
    assert len(pq.read_table(paths.captions / f"{split}.parquet")) == 2
    with pytest.raises(InputError, match=rf"{split}\.parquet: image_id: one image only"):
        run_train(params(), replace(paths))
