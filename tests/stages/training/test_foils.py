"""Foils of the training captions: which are drawn, and what they do to a training."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from camp_model.files import write_table
from camp_model.foils import balance, foil_bce
from stages.device import Precision
from stages.errors import InputError
from stages.foils.table import foil_table, read_foils
from stages.training.data import epoch_batches, load_splits
from stages.training.foils import TrainingFoils
from stages.training.loss import batch_loss
from stages.training.start import new_model

CPU = torch.device("cpu")


def add_foils(paths, leave_out=()):
    """Foils of the captions that begin with colour0 to colour3: colour and shape each become their neighbour.

    leave_out: words of which only every third is changed.
    """
    splits, vocabulary = load_splits(paths.regions, paths.captions)
    captions = splits["train"].captions
    rows = []
    for row, caption_id in enumerate(captions.caption_ids.tolist()):
        words = captions.texts[row].split()
        if words[0] not in {f"colour{i}" for i in range(4)}:
            continue
        for position, kind in ((0, "colour"), (1, "object")):
            if words[position] in leave_out and row % 3:
                continue
            name, number = words[position][:-1], int(words[position][-1])
            changed = [*words[:position], f"{name}{number ^ 1}", *words[position + 1 :]]
            tokens = vocabulary.encode(changed)
            rows.append({
                "caption_id": caption_id, "image_id": captions.image_ids[row], "text": " ".join(changed),
                "tokens": tokens, "length": len(tokens), "kind": kind, "position": position,
                "word": words[position], "foil_word": changed[position],
            })  # fmt: skip
    write_table(paths.captions / "foils_train.parquet", foil_table(rows))
    return captions


def test_a_caption_gets_the_same_foil_in_whatever_batch(make_data):
    paths = make_data("data")
    captions = add_foils(paths)
    foils = TrainingFoils(paths.captions / "foils_train.parquet", captions, ["colour", "object"])
    everyone = np.arange(len(captions))
    whole = foils.draw(everyone, (0, 3))
    assert whole is not None and 0 < len(whole.pairs) < len(captions)
    for row, tokens, length, position in zip(whole.pairs, whole.tokens, whole.lengths, whole.positions, strict=True):
        own, own_length = captions.batch([int(row)])
        changed = (own[0, : int(length)] != tokens[: int(length)]).nonzero().flatten().tolist()
        assert int(own_length[0]) == int(length) and changed == [int(position)]
    some = everyone[::-1][: len(captions) // 2].copy()
    chosen = foils.draw(some, (0, 3))
    assert chosen is not None
    of_row = dict(zip(whole.pairs.tolist(), whole.positions.tolist(), strict=True))
    assert {
        int(some[p]): int(at) for p, at in zip(chosen.pairs, chosen.positions, strict=True)
    }.items() <= of_row.items()
    drawn = Counter(int(at) for epoch in range(40) for at in foils.draw(everyone, (0, epoch)).positions)
    assert drawn[0] / drawn.total() == pytest.approx(0.5, abs=0.05), "every kind equally often"
    only = TrainingFoils(paths.captions / "foils_train.parquet", captions, ["object"]).draw(everyone, (0, 0))
    assert set(only.positions.tolist()) == {1}


def test_every_kind_weighs_the_same_and_its_words_are_balanced(make_data):
    paths = make_data("data")
    captions = add_foils(paths, leave_out=["colour1", "colour3"])
    path = paths.captions / "foils_train.parquet"
    foils, table = TrainingFoils(path, captions, ["colour", "object"]), pq.read_table(path).to_pandas()
    balanced = balance(table["word"], table["foil_word"])
    colour = (table["kind"] == "colour").to_numpy()
    assert balanced[colour].mean() < 0.9 * balanced[~colour].mean()
    for kind in (colour, ~colour):
        weights = foils.weights[kind] / foils.weights[kind].sum()
        np.testing.assert_allclose(weights, balanced[kind] / balanced[kind].sum(), rtol=1e-6)
    everyone, cost, captions_drawn, rare = np.arange(len(captions)), Counter(), 0, []
    both = np.isin(everyone, [row for row, (some, _) in foils.choices.items() if len(some) == 2])
    for epoch in range(400):
        batch = foils.draw(everyone, (0, epoch))
        captions_drawn += len(batch.pairs)
        rare.append((batch.positions[both[batch.pairs]] == 0).double().mean().item())
        for position, weight in zip(batch.positions.tolist(), batch.weights.tolist(), strict=True):
            cost["object" if position else "colour"] += weight
    assert cost["colour"] / cost["object"] == pytest.approx(1, abs=0.05)
    assert np.mean(rare) == pytest.approx((~colour).sum() / len(table), abs=0.02), "the rarer a kind, the likelier"
    assert cost.total() / captions_drawn == pytest.approx(1, abs=0.05)


def test_a_foil_whose_words_are_nowhere_exchanged_is_never_drawn(make_data, capsys):
    paths = make_data("data")
    captions = add_foils(paths)
    path = paths.captions / "foils_train.parquet"
    table = pq.read_table(path)
    words = ["colour9", *table["foil_word"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("foil_word"), "foil_word", pa.array(words)), path)
    foils, kinds = TrainingFoils(path, captions, ["colour", "object"]), table["kind"].to_pylist()
    assert kinds[0] == "colour" and foils.eligible.tolist() == list(range(1, len(words)))
    assert f"colour {kinds.count('colour') - 1} of {kinds.count('colour')}, object" in capsys.readouterr().out


def test_what_foils_cost_is_added_for_whole_captions(make_data, params):
    """Per pair of the batch, whichever pairs have one, and without leaving out words."""
    paths = make_data("data")
    captions = add_foils(paths)
    splits, vocabulary = load_splits(paths.regions, paths.captions)
    foils = TrainingFoils(paths.captions / "foils_train.parquet", captions, ["colour", "object"])
    rows = np.arange(len(captions))[::2]
    batch = replace(splits["train"].batch(rows), foils=foils.draw(rows, (0, 1))).to(CPU)
    assert 0 < len(batch.foils.pairs) < len(rows)
    settings = params(gate_supervision=0.4, drop_words=0.5)
    model = new_model(settings.model, settings.train, vocabulary, 16).eval()

    def loss(batch):
        torch.manual_seed(0)
        return batch_loss(model, batch, settings.train.replace(foil_weight=0.7), 0, 5, Precision("fp32", CPU))

    total = 0.0
    for number, pair in enumerate(batch.foils.pairs.tolist()):
        here, one = slice(pair, pair + 1), slice(number, number + 1)
        lengths, foil_lengths = batch.lengths[here], batch.foils.lengths[one]
        words, foil_words = batch.tokens[here, : int(lengths)], batch.foils.tokens[one, : int(foil_lengths)]
        total += foil_bce(
            model, model.encode_regions(batch.features[here], batch.region_mask[here]), batch.region_mask[here],
            model.encode_captions(words, lengths), torch.ones_like(words).bool(),
            model.encode_captions(foil_words, foil_lengths), torch.ones_like(foil_words).bool(),
            positions=batch.foils.positions[one], weights=batch.foils.weights[one], gate_supervision=0.4,
        )  # fmt: skip
    torch.testing.assert_close(loss(batch) - loss(replace(batch, foils=None)), 0.7 * total / len(rows))


def test_foils_are_drawn_anew_in_every_epoch(make_data, params, run_train):
    """A training that hardly moves shows what each epoch, here of one step, was asked."""
    paths = make_data("data")
    captions = add_foils(paths)
    settings = params(
        epochs=2, batch_size=64, learning_rate=1e-12, foil_weight=1.0, foil_kinds=("colour", "object"), seed=5
    )
    run_train(settings, paths)
    losses = [float(row.split(",")[1]) for row in (paths.plots / "train_loss.csv").read_text().splitlines()[1:]]
    splits, vocabulary = load_splits(paths.regions, paths.captions)
    model = new_model(settings.model, settings.train, vocabulary, 16)
    foils, expected = TrainingFoils(paths.captions / "foils_train.parquet", captions, ["colour", "object"]), []
    for epoch in range(2):
        (rows,) = epoch_batches(len(captions), 64, seed=5, epoch=epoch)
        batch = replace(splits["train"].batch(rows), foils=foils.draw(rows, (5, epoch))).to(CPU)
        expected.append(batch_loss(model, batch, settings.train, epoch, 1, Precision("fp32", CPU)).item())
    assert losses == pytest.approx(expected, rel=1e-5) and len({f"{loss:.4f}" for loss in losses}) == 2


def test_foils_change_a_training_that_goes_on_as_if_it_had_never_stopped(make_data, params, run_train):
    whole, killed, without = (make_data(name, images=15) for name in ("whole", "killed", "without"))
    for paths in (whole, killed, without):
        add_foils(paths)
    wanted = {"foil_weight": 1.0, "foil_kinds": ("colour", "object"), "checkpoint_steps": 1}
    run_train(params(**wanted), whole)
    for _ in range(3):
        with pytest.raises(SystemExit):
            run_train(params(**wanted), killed, stop=lambda: True)
    run_train(params(**wanted), killed)
    run_train(params(checkpoint_steps=1), without)
    weights = [load_file(paths.model / "model.safetensors") for paths in (whole, killed, without)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert any(not torch.equal(value, weights[2][name]) for name, value in weights[0].items())


def test_foils_that_are_not_there_or_of_other_captions_are_said(make_data, params, run_train, capsys):
    paths = make_data("data")
    with pytest.raises(InputError, match=r"foils_train\.parquet: is not there; .*captions\.train_foils: true"):
        run_train(params(foil_weight=1.0), paths)
    captions = add_foils(paths)
    path = paths.captions / "foils_train.parquet"
    capsys.readouterr()
    TrainingFoils(path, captions, ["colour", "count"])
    every = sum(kind == "colour" for kind in read_foils(path).kinds)
    assert capsys.readouterr().out.startswith(f"train.foil_kinds: colour {every} of {every}, count 0 of 0 foils of")
    with pytest.raises(InputError, match="holds no foil of count whose words are each other's"):
        TrainingFoils(path, captions, ["count"])
    of_others = replace(captions, caption_ids=captions.caption_ids + 1000)
    with pytest.raises(InputError, match=r"caption_id: \d+ is not in train\.parquet beside it"):
        TrainingFoils(path, of_others, ["colour"])
    assert not paths.model.exists()
