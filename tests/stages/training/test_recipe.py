"""Averaged weights, regions and words left out, a first epoch on all negatives, validation on some images."""

import json
from csv import DictReader

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from camp_model.all_negatives import all_negatives_bce, all_negatives_triplet
from camp_model.checkpoint import load_checkpoint
from camp_model.encoders import length_mask
from camp_model.joint import joint_contrastive, pooled_vectors
from camp_model.losses import hardest_negative_bce, triplet_loss
from camp_model.metrics import retrieval_metrics
from camp_model.vocabulary import END, START, Vocabulary
from stages.device import Precision
from stages.params.train import TrainParams
from stages.training.data import epoch_batches, load_splits
from stages.training.dropping import drop, is_start_or_end
from stages.training.loss import batch_loss, mining_parts
from stages.training.processes import Processes
from stages.training.start import new_model
from stages.training.validation import images_for, validate
from tests.stages.training.killing import Killed, kill_after

CPU = torch.device("cpu")


def rows(path):
    with path.open(newline="") as file:
        return list(DictReader(file))


def results(paths):
    return [
        *((paths.plots / f"{name}.csv").read_text() for name in ("train_loss", "val_recall")),
        {name: value.numpy().tobytes() for name, value in load_file(paths.model / "model.safetensors").items()},
        {name: value for name, value in json.loads(paths.metrics.read_text()).items() if "second" not in name},
    ]


EVERYTHING = {
    "epochs": 3, "checkpoint_steps": 2, "ema_decay": 0.8, "drop_regions": 0.3, "drop_words": 0.3,
    "all_negatives_epochs": 1, "validation_share": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("loss", ["triplet", "hardest_bce"])
def test_killed_after_any_step_it_ends_the_same(make_data, params, run_train, loss):
    whole, paths = make_data("whole", images=15), make_data("killed", images=15)
    settings = params(**EVERYTHING, loss=loss)
    run_train(settings, whole)
    for steps in (0, 1, 1, 3, 2):  # three steps an epoch, saved at every second and after each epoch
        with pytest.raises(Killed):
            run_train(settings, paths, stop=kill_after(steps))
    run_train(settings, paths)
    assert results(paths) == results(whole)


def test_what_is_kept_is_the_average_of_the_weights_of_every_step(make_data, params, run_train):
    plain, averaged = make_data("plain", images=15), make_data("averaged", images=15)
    settings = params(epochs=1, ema_decay=0.5)
    run_train(params(epochs=1), plain)
    vocabulary = Vocabulary.load(averaged.captions / "vocabulary.json")
    model = new_model(settings.model, settings.train, vocabulary, 16)
    expected = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for step in range(2):
        with pytest.raises(SystemExit):
            run_train(settings, averaged, stop=lambda: True)
        (state,) = averaged.work.glob("*/state.safetensors")
        tensors = load_file(state)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {n: decay * v + (1 - decay) * tensors[f"model.{n}"] for n, v in expected.items()}
        for name, value in expected.items():
            torch.testing.assert_close(tensors[f"average.{name}"], value)
    run_train(settings, averaged)
    kept, last = (load_file(paths.model / "model.safetensors") for paths in (averaged, plain))
    assert results(averaged)[0] == results(plain)[0], "training itself is the same"
    decay = (1 + 2) / (10 + 2)
    for name, value in expected.items():  # without an average, what is kept are the weights of the last step
        torch.testing.assert_close(kept[name], decay * value + (1 - decay) * last[name])
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    split = load_splits(averaged.regions, averaged.captions)[0]["val"]
    measured = validate(load_checkpoint(averaged.model)[0], split, Precision("fp32", CPU), Processes())[0]
    assert measured["rsum"] == pytest.approx(float(rows(averaged.plots / "val_recall.csv")[0]["rsum"]))


@pytest.mark.parametrize("share", [0.2, 0.7, 1.0])
def test_a_share_is_left_out_but_never_all(share):
    torch.manual_seed(0)
    mask = length_mask(torch.tensor([1, 2, 9, 20] * 500), 22)
    values = torch.arange(22.0).expand(2000, 22)[..., None].clone()
    dropped, remains = drop(values, mask, share)
    assert bool((remains.sum(1) >= 1).all())
    assert torch.equal(remains, length_mask(remains.sum(1), 22)), "what remains comes first"
    for row in range(2000):
        places = dropped[row, remains[row], 0]
        assert bool((places.diff() > 0).all()) and bool(mask[row, places.long()].all()), "in its order, all real"
    long = mask.sum(1) == 20
    assert remains[long].sum(1).float().mean().item() == pytest.approx(max(1.0, 20 * (1 - share)), rel=0.03)
    assert len({tuple(row) for row in dropped[long, :, 0].tolist()}) > (500 * 0.9 if share < 1 else 10)


def test_marks_of_a_caption_stay_and_a_word_with_them():
    torch.manual_seed(0)
    tokens = torch.tensor([[START, 7, 8, 9, END, 0], [START, END, 0, 0, 0, 0], [START, 5, END, 0, 0, 0]] * 100)
    mask = length_mask(torch.tensor([5, 2, 3] * 100), 6)
    dropped, remains = drop(tokens[..., None].float(), mask, 0.9, is_start_or_end(tokens))
    for i, (row, real) in enumerate(zip(dropped[..., 0].tolist(), remains.tolist(), strict=True)):
        words = [int(token) for token, is_real in zip(row, real, strict=True) if is_real]
        assert words[0] == START and words[-1] == END
        assert len(words) == 2 if i % 3 == 1 else len(words) >= 3


def make_batch(paths, settings, **changes):
    splits, vocabulary = load_splits(paths.regions, paths.captions)
    model = new_model(settings.model, settings.train, vocabulary, 16).train()
    batch = splits["train"].batch(epoch_batches(len(splits["train"]), 12, 0, 0)[0]).to(CPU)

    def loss(step, **values):
        train = settings.train.replace(**(changes | values))
        torch.manual_seed(3)
        return batch_loss(model, batch, train, step, 5, Precision("fp32", CPU))

    return model, batch, loss


@pytest.mark.parametrize("side", ["regions", "words"])
def test_a_loss_sees_only_what_is_not_left_out(make_data, params, side):
    """It is that of the same images and captions with fewer regions or words, encoded before they were left out."""
    model, batch, loss = make_batch(make_data(images=12), params(gate_supervision=0.0))
    regions, mask = model.encode_regions(batch.features, batch.region_mask), batch.region_mask
    words = model.encode_captions(batch.tokens, batch.lengths)
    word_mask = length_mask(batch.lengths, batch.tokens.shape[1])
    torch.manual_seed(3)
    if side == "regions":
        regions, mask = drop(regions, mask, 0.5)
    else:
        words, word_mask = drop(words, word_mask, 0.5, is_start_or_end(batch.tokens))
    options = {"caption_index": batch.caption_index, "generator": torch.Generator().manual_seed(hash((0, 0)))}
    expected = hardest_negative_bce(model, regions, mask, words, word_mask, batch.image_index, **options)
    torch.testing.assert_close(loss(0, **{f"drop_{side}": 0.5}), expected)
    assert loss(0, **{f"drop_{side}": 0.5}).item() != loss(0).item()


def test_negatives_are_searched_within_parts_of_a_batch(make_data, params):
    settings = params(gate_supervision=0.0)
    model, batch, loss = make_batch(make_data(images=12), settings, joint_weight=0.7, joint_temperature=0.2)
    regions, mask = model.encode_regions(batch.features, batch.region_mask), batch.region_mask
    words = model.encode_captions(batch.tokens, batch.lengths)
    word_mask = length_mask(batch.lengths, batch.tokens.shape[1])
    encoded = (regions, mask, words, word_mask, batch.image_index)
    vectors = pooled_vectors(regions, mask), pooled_vectors(words, word_mask), batch.image_index
    expected = 0.7 * joint_contrastive(*vectors, caption_index=batch.caption_index, temperature=0.2)  # of the whole
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        tensors = [tensor[part] for tensor in encoded]
        of_part = hardest_negative_bce(model, *tensors, caption_index=batch.caption_index[part])
        expected = expected + of_part * len(tensors[0]) / 12
    torch.testing.assert_close(loss(0, mining_batch=5), expected)
    assert loss(0, mining_batch=12).item() == loss(0).item() != pytest.approx(expected.item())


@pytest.mark.parametrize("size", range(2, 40))
@pytest.mark.parametrize("length", [0, *range(2, 12)])
def test_no_pair_is_left_without_a_negative(size, length):
    parts = [range(size)[part] for part in mining_parts(size, length)]
    assert [pair for part in parts for pair in part] == list(range(size))
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 2 and max(sizes) - min(sizes) <= 1
    assert not length or max(sizes) <= max(length, 3), "three cannot be cut"


@pytest.mark.parametrize(
    ("loss", "first", "then"),
    [("hardest_bce", all_negatives_bce, hardest_negative_bce), ("triplet", all_negatives_triplet, triplet_loss)],
)
def test_first_epochs_on_all_negatives(make_data, params, loss, first, then):
    settings = params(loss=loss, gate_supervision=0.0)
    model, batch, of_step = make_batch(make_data(images=12), settings, all_negatives_epochs=2)
    encoded = (
        model, model.encode_regions(batch.features, batch.region_mask), batch.region_mask,
        model.encode_captions(batch.tokens, batch.lengths), length_mask(batch.lengths, batch.tokens.shape[1]),
        batch.image_index,
    )  # fmt: skip
    losses = {of: of(*encoded, caption_index=batch.caption_index).item() for of in (first, then)}
    assert losses[first] != pytest.approx(losses[then])
    for step, of in ((0, first), (9, first), (10, then)):  # five steps an epoch
        assert of_step(step).item() == pytest.approx(losses[of])


@pytest.mark.parametrize(("loss", "of"), [("hardest_bce", hardest_negative_bce), ("triplet", triplet_loss)])
def test_the_hardest_of_a_few_is_drawn_anew_in_every_step(make_data, params, loss, of):
    settings = params(loss=loss, batch_size=16, curriculum_steps=4, margin=0.3, seed=2, gate_supervision=0.0)
    model, batch, of_step = make_batch(make_data(images=12), settings)
    encoded = (
        model, model.encode_regions(batch.features, batch.region_mask), batch.region_mask,
        model.encode_captions(batch.tokens, batch.lengths), length_mask(batch.lengths, batch.tokens.shape[1]),
        batch.image_index,
    )  # fmt: skip
    options = {"caption_index": batch.caption_index} | ({"margin": 0.3} if loss == "triplet" else {})
    values = []
    for step, count in ((1, 2), (2, 4), (3, 8), (4, 0), (5, 0)):
        generator = torch.Generator().manual_seed(hash((2, step)))
        values.append(of(*encoded, candidates=count, generator=generator, **options).item())
        assert of_step(step).item() == pytest.approx(values[-1])
    assert len({round(value, 6) for value in values}) > 2 and values[-1] == values[-2] == max(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss": "bce"}, "train.all_negatives_epochs: 1, but train.loss bce has all"),
        ({"random_negative_steps": 5}, "train.all_negatives_epochs: 1, but train.random_negative_steps, 5, is another"),
        ({"curriculum_steps": 7}, "train.all_negatives_epochs: 1, but train.curriculum_steps, 7, is another way"),
    ],
)
def test_two_ways_to_begin_are_an_error(values, said):
    with pytest.raises(ValueError, match=said):
        TrainParams(all_negatives_epochs=1, **values)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ema_decay", 1.0), ("ema_decay", -0.1), ("drop_regions", 1.1), ("drop_words", -1), ("validation_share", 0.0),
     ("validation_share", 1.5), ("all_negatives_epochs", -1), ("dropout", 1.0), ("region_dropout", 1.0),
     ("learning_rate", 1e300), ("learning_rates", {"matcher": 1e300}), ("weight_decay", 1e300)],
)  # fmt: skip
def test_a_value_outside_its_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        TrainParams(**{name: value})


def test_epochs_are_measured_on_some_images_and_the_kept_model_on_all(make_data, params, run_train, capsys):
    paths = make_data(images=20, val_images=30)
    run_train(params(epochs=4, validation_share=0.4), paths)
    metrics, curve = json.loads(paths.metrics.read_text()), rows(paths.plots / "val_recall.csv")
    of_epochs = [float(row["rsum"]) for row in curve]
    assert metrics["selection_images"] == 12 and metrics["selection_rsum"] == pytest.approx(max(of_epochs))
    assert metrics["best_epoch"] == 1 + of_epochs.index(max(of_epochs))
    said = capsys.readouterr()
    assert "on 12 of 30 images" in said.out + said.err and "on all 30" in said.out

    model, split = load_checkpoint(paths.model)[0], load_splits(paths.regions, paths.captions)[0]["val"]
    images = images_for(split, 0.4)
    assert len(images) == 12 and set(images) < set(split.images)
    assert images.tolist() == sorted(images_for(split, 0.4)) and len(images_for(split, 0.41)) == 13
    assert len(images_for(split, 0.001)) == 2 and images_for(split, 1.0).tolist() == split.images.tolist()
    chosen = np.flatnonzero(np.isin(split.rows, images))
    with torch.no_grad():
        features, mask = split.regions(split.images)
        tokens, lengths = split.captions.batch(np.arange(len(split)))
        encoded = model.encode_regions(features.float(), mask), mask, model.encode_captions(tokens, lengths)
        scores = model.score_matrix(*encoded, length_mask(lengths, tokens.shape[1]))
    own = torch.from_numpy(np.searchsorted(split.images, split.rows))
    assert metrics["val_rsum"] == pytest.approx(retrieval_metrics(scores, own)["rsum"])
    positions = torch.from_numpy(np.searchsorted(split.images, images))
    some = scores[positions][:, torch.from_numpy(chosen)]
    expected = retrieval_metrics(some, torch.from_numpy(np.searchsorted(images, split.rows[chosen])))
    assert metrics["selection_rsum"] == pytest.approx(expected["rsum"])
    assert metrics["val_rsum"] != metrics["selection_rsum"]


def test_measured_on_all_images_nothing_stands_beside_it(make_data, params, run_train):
    paths = make_data(images=12)
    run_train(params(epochs=1), paths)
    assert not any(name.startswith("selection") for name in json.loads(paths.metrics.read_text()))
