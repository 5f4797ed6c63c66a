"""Which epoch is the best: validation alone decides, the same whatever the features; the test split is never read."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from camp_model.captions import write_captions
from stages.training.task import task_hash


def test_training_stops_after_patience_and_keeps_the_best_weights(make_data, params, run_train):
    paths = make_data(images=12, val_images=12)
    run_train(params(epochs=40, patience=2, learning_rate=1e-9), paths)
    summary = json.loads(paths.metrics.read_text())
    assert summary["best_epoch"] == 1 and summary["epochs"] == 3


def test_a_split_named_test_is_never_read(make_data, params, run_train):
    paths = make_data(images=10)
    assert not (paths.captions / "test.parquet").exists()
    run_train(params(epochs=1), replace(paths))


def test_a_split_asks_the_same_whatever_its_features_and_words_are(tmp_path):
    def task(pictures=("x", "y"), texts=("a cat", "a dog"), tokens=((4,), (5,)), named=True):
        write_captions(tmp_path / "val.parquet", [1, 2], ["i1", "i2"], texts, tokens)
        images = tmp_path / "images.parquet"
        pq.write_table(pa.table({"image_id": ["i2", "i1"], "sha256": list(reversed(pictures))}), images)
        return task_hash(tmp_path / "val.parquet", images if named else tmp_path / "none")

    assert task() == task(tokens=((4, 6), (7,)))
    others = [task(), task(pictures=("x", "z")), task(texts=("a cat", "the dog")), task(named=False)]
    assert len(set(others)) == 4
    assert task(pictures=("", "")) == task(named=False)


def test_better_features_compete_for_the_same_champion(make_data, params, run_train):
    first, better = make_data("first", images=12), make_data("better", images=12)
    manifest = better.regions / "manifest.parquet"
    pq.write_table(pq.read_table(manifest), manifest, compression="gzip")  # another store of regions
    for paths in (first, better):
        run_train(params(epochs=1), paths)
    datasets = [json.loads((paths.model / "fingerprint.json").read_text())["dataset"] for paths in (first, better)]
    assert datasets[0] == datasets[1]
