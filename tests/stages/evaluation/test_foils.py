"""Scores of foils, the word held responsible, and gates over content words, on models whose answers are known."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from camp_model import CampConfig
from camp_model.captions import CaptionTable, write_captions
from camp_model.checkpoint import load_checkpoint
from camp_model.encoders import length_mask
from camp_model.files import write_table
from camp_model.gates import mean_gates, summarise
from camp_model.matchers.matching import mean_logits
from camp_model.model import PairDetails
from camp_model.regions import RegionStore
from camp_model.vocabulary import UNK, Vocabulary
from stages.errors import InputError
from stages.evaluate import evaluate
from stages.evaluation.foils import choose_foils, foil_metrics, measure_foils
from stages.evaluation.folds import read_split
from stages.evaluation.tables import FOIL_SCHEMA
from stages.foils.table import foil_table, read_foils
from stages.foils.words import KINDS, ids_of_kinds, load_words
from stages.params.evaluate import EvaluateParams

CPU = torch.device("cpu")
PARAMS = EvaluateParams(device="cpu", gate_pairs=40)
BLUE_CIRCLE = ("colour", "a blue circle number 0", 1, "red", "blue")


def run(small, params=PARAMS):
    """Evaluate a small run; returns foils.json and the rows of foils_test.parquet."""
    folders = {"out": small.root / "data/evaluation", "metrics": small.root / "metrics"}
    evaluate(params, regions=small.regions, captions=small.token_tables, model=small.model, **folders)
    return json.loads((folders["metrics"] / "foils.json").read_text()), pq.read_table(
        folders["out"] / "foils_test.parquet"
    ).to_pylist()


class Additive(torch.nn.Module):
    """A model whose logit is the sum of a value for each word, and whose gate is another value for each word."""

    matcher = SimpleNamespace(cosine=None)

    def __init__(self, values: dict[int, float], gates: dict[int, float], **switches: str) -> None:
        super().__init__()
        self.values, self.gates = values, gates
        self.config = CampConfig(vocab_size=4, **switches)

    def encode_regions(self, features, mask):
        return features

    def encode_captions(self, tokens, lengths):
        return tokens[..., None]

    def _of(self, table, words, mask):
        return torch.tensor([[table.get(int(w), 0.0) for w in row] for row in words[..., 0]]) * mask

    def score_pairs(self, regions, region_mask, words, word_mask):
        assert len(regions) == len(words)
        return self._of(self.values, words, word_mask).sum(1)

    def inspect_pairs(self, regions, region_mask, words, word_mask):
        gates, none = self._of(self.gates, words, word_mask), torch.zeros(0)
        of_regions = torch.arange(1.0, regions.shape[1] + 1) * region_mask
        return PairDetails(none, gates, of_regions, None, None, none, none)


def measured(small, model, rows, lexicon):
    """The table of some foils, [(caption_id, kind, text, position, word, foil_word)]; words are of the vocabulary."""
    vocabulary = Vocabulary.load(small.token_tables / "vocabulary.json")
    store = RegionStore(small.regions)
    split = read_split("test", small.token_tables, store)
    owner = {caption_id: image_id for caption_id, image_id, _ in small.captions}
    path = small.token_tables / "foils_test.parquet"
    write_table(path, foil_table(
        {"caption_id": c, "image_id": owner.get(c, small.images[0]), "text": text,
         "tokens": vocabulary.encode(text.split()), "length": len(text.split()), "kind": kind, "position": at,
         "word": word, "foil_word": foil_word}
        for c, kind, text, at, word, foil_word in rows
    ))  # fmt: skip
    foils = read_foils(path)
    ids = vocabulary.encode(lexicon)
    return measure_foils(
        model if isinstance(model, list) else [model], store, split, foils, range(len(foils)), lexicon=ids
    )


def test_the_guilty_word_is_that_whose_loss_raises_the_score_most_and_that_with_the_lowest_gate(small):
    # Caption 0 is "A red circle number 0."
    vocabulary = Vocabulary.load(small.token_tables / "vocabulary.json")
    ids = dict(zip(vocabulary.words, range(len(vocabulary)), strict=True))
    # <unk> is worth -1: without "blue" the foil gains 2, without "circle" 1, without "number" 9; "square" is not there.
    values = {ids["red"]: 2.0, ids["blue"]: -3.0, ids["circle"]: -2.0, ids["number"]: -10.0, UNK: -1.0}
    gates = {ids["blue"]: 0.5, ids["circle"]: 0.3, ids["number"]: 0.1, ids["red"]: 0.9}
    foil = (0, *BLUE_CIRCLE)
    lexicon = ["red", "blue", "circle", "square"]
    (row,) = measured(small, Additive(values, gates), [foil], lexicon).to_pylist()
    assert (row["caption_score"], row["foil_score"]) == (-10.0, -15.0)
    assert (row["guilty_by_score"], row["guilty_by_gate"], row["candidates"]) == (1, 2, 2)
    assert (row["caption"], row["foil"], row["kind"]) == ("A red circle number 0.", BLUE_CIRCLE[1], "colour")
    (row,) = measured(small, Additive(values, gates), [foil], [*lexicon, "number"]).to_pylist()
    assert (row["guilty_by_score"], row["guilty_by_gate"], row["candidates"]) == (3, 3, 3)
    (row,) = measured(small, Additive(values, gates, gate="none"), [foil], lexicon).to_pylist()
    assert row["guilty_by_gate"] is None and row["guilty_by_score"] == 1
    (row,) = measured(small, Additive({}, {}), [foil], lexicon).to_pylist()
    assert (row["guilty_by_score"], row["guilty_by_gate"]) == (2, 2), "a tie counts against the model"
    # Two models: m is averaged, and the gates are the first one's.
    other = Additive({ids["red"]: 1.0}, {ids["blue"]: 0.0})
    (row,) = measured(small, [Additive(values, gates), other], [foil], lexicon).to_pylist()
    m = [(1 / (1 + np.exp(10)) + 1 / (1 + np.exp(-1))) / 2, (1 / (1 + np.exp(15)) + 0.5) / 2]
    assert [row["caption_score"], row["foil_score"]] == pytest.approx([np.log(p / (1 - p)) for p in m], rel=1e-5)
    assert row["guilty_by_gate"] == 2


def test_a_foil_whose_word_the_lexicon_lacks_is_an_error(small):
    with pytest.raises(InputError, match=r"foils_test.parquet: the word 'blue': is not in .*lexicon.json"):
        measured(small, Additive({}, {}), [(0, *BLUE_CIRCLE)], ["red", "circle"])
    with pytest.raises(InputError, match=r"foils_test.parquet: caption 77: is not in test.parquet or lexicon.json"):
        measured(small, Additive({}, {}), [(77, *BLUE_CIRCLE)], ["red", "blue"])


def test_percentages_of_foils_by_hand():
    columns = {
        "kind": ["colour"] * 5 + ["count"],
        "caption_score": [2.0, 1.0, 0.0, 3.0, 3.0, 5.0],
        "foil_score": [1.0, 1.0, 3.0, 1.0, 1.0, -5.0],  # won, a tie counts against the model, lost, won three times
        "position": [1, 2, 3, 1, 1, 4],
        "guilty_by_score": [1, 2, 0, 1, 0, 4],
        "guilty_by_gate": [1, 0, 0, 0, 0, 0],
        "candidates": [2, 4, 4, 2, 2, 5],
    }
    others = {name: [""] * 6 for name in ("image_id", "caption", "foil")} | {
        "caption_id": [1] * 6, "word": ["red", "red", "blue", "blue", "red", "two"],
        "foil_word": ["blue", "blue", "red", "red", "blue", "three"],
    }  # fmt: skip
    table = pa.table(columns | others).select(FOIL_SCHEMA.names).cast(FOIL_SCHEMA)
    found = foil_metrics(table)
    assert list(found) == ["colour", "count", "all"]
    assert found["colour"] == pytest.approx({
        "foils": 5, "true_first": 60.0, "true_first_balanced": 700 / 12, "guilty_by_score": 60.0,
        "guilty_by_gate": 20.0, "chance": 40.0, "foils_balanced": 5,  # (3 * 2/3 + 2)^2 / (3 * 4/9 + 2)
    })  # fmt: skip
    assert found["count"] == {
        "foils": 1, "true_first": 100.0, "true_first_balanced": None, "guilty_by_score": 100.0, "guilty_by_gate": 0.0,
        "chance": 20.0, "foils_balanced": 0,
    }  # fmt: skip
    assert found["all"]["true_first"] == pytest.approx(400 / 6) and found["all"]["chance"] == pytest.approx(220 / 6)
    gateless = table.set_column(
        table.schema.get_field_index("guilty_by_gate"), "guilty_by_gate", pa.nulls(6, pa.int32())
    )
    assert foil_metrics(gateless)["all"]["guilty_by_gate"] is None
    assert foil_metrics(table.slice(0, 0)) == {}


def test_the_limit_takes_as_many_of_each_kind_as_there_can_be(small):
    split = read_split("test", small.token_tables, RegionStore(small.regions))
    foils = read_foils(small.token_tables / "foils_test.parquet")
    numbers = {kind: foils.kinds.count(kind) for kind in set(foils.kinds)}
    fewest = min(numbers.values())
    assert set(numbers) == {"object", "colour", "relation"} and fewest < min(numbers["object"], numbers["colour"])
    chosen = choose_foils(foils, split, split.rows, 3 * fewest + 6)
    assert len(set(chosen)) == 3 * fewest + 6 and chosen == choose_foils(foils, split, split.rows, 3 * fewest + 6)
    kinds = [foils.kinds[i] for i in chosen]
    assert [kinds.count(kind) for kind in ("relation", "object", "colour")] == [fewest, fewest + 3, fewest + 3]
    some = choose_foils(foils, split, split.rows[:5], 1000)
    wanted = set(split.captions.caption_ids[:5].tolist())
    assert {int(foils.captions.caption_ids[i]) for i in some} == wanted
    assert len(some) == sum(int(i) in wanted for i in foils.captions.caption_ids)


def test_scores_are_those_of_each_pair_alone(small):
    metrics, rows = run(small)
    model, vocabulary, _ = load_checkpoint(small.model)
    store = RegionStore(small.regions)
    known = set(ids_of_kinds(load_words(small.token_tables / "lexicon.json"), vocabulary))
    assert len(rows) == metrics["test"]["all"]["foils"] > 80
    assert len({(row["caption_id"], row["foil"]) for row in rows}) == len(rows), "none twice"

    def score(image_id, ids):
        features, mask = store.features([store.row_of(image_id)])
        tokens, lengths = torch.tensor([ids]), torch.tensor([len(ids)])
        regions = model.encode_regions(torch.from_numpy(features).float(), torch.from_numpy(mask))
        words = model.encode_captions(tokens, lengths)
        found = model.inspect_pairs(regions, torch.from_numpy(mask), words, length_mask(lengths, len(ids)))
        return found.logits.item(), found.word_gates[0]

    table = CaptionTable.load(small.token_tables / "test.parquet")
    row_of = {int(c): i for i, c in enumerate(table.caption_ids)}
    with torch.inference_mode():
        for row in rows[::7]:
            caption = table.batch([row_of[row["caption_id"]]])[0][0].tolist()
            foil = list(caption)
            (foil[row["position"]],) = vocabulary.encode([row["foil_word"]])
            assert row["caption_score"] == pytest.approx(score(row["image_id"], caption)[0], abs=1e-4)
            own, gates = score(row["image_id"], foil)
            assert row["foil_score"] == pytest.approx(own, abs=1e-4)
            candidates = [i for i, word in enumerate(foil) if word in known]
            without = {i: score(row["image_id"], [*foil[:i], UNK, *foil[i + 1 :]])[0] for i in candidates}
            assert without[row["guilty_by_score"]] == pytest.approx(max(without.values()), abs=1e-5)
            assert gates[row["guilty_by_gate"]].item() == pytest.approx(min(gates[candidates]).item(), abs=1e-6)
            assert row["candidates"] == len(candidates)
    won = [row["foil_score"] < row["caption_score"] for row in rows]
    assert metrics["test"]["all"]["true_first"] == pytest.approx(100 * np.mean(won))
    assert set(metrics["test"]) <= {*KINDS, "all"}


@pytest.mark.parametrize(
    ("switches", "gates"),
    [
        ({"gate": "none"}, False),
        ({"matcher": "joint"}, False),
        ({"matcher": "scan"}, False),
        ({"message_passing": "text_to_image"}, False),
        ({"message_passing": "image_to_text", "gate": "elementwise"}, True),
    ],
)
def test_every_kind_of_model_is_measured(make_run, tmp_path, monkeypatch, switches, gates):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAMP_TRACKING", "off")
    metrics, _ = run(make_run(tmp_path, 6, **switches))
    for kind in ("colour", "all"):
        assert (metrics["test"][kind]["guilty_by_gate"] is not None) == gates
        assert 0 <= metrics["test"][kind]["true_first"] <= 100


def test_no_foils_where_none_are_wanted_or_there_are_none(small):
    metrics, rows = run(small, PARAMS.replace(foils=0))
    assert metrics == {"test": {}} and rows == []
    (small.token_tables / "train.parquet").write_bytes((small.token_tables / "test.parquet").read_bytes())
    assert run(small, PARAMS.replace(splits=("train", "test")))[0]["train"] == {}


@pytest.mark.parametrize("name", ["foils_test.parquet", "lexicon.json"])
def test_a_broken_or_missing_file_is_named_and_nothing_is_written(small, name):
    for damage in (Path.unlink, lambda path: path.write_text("no such thing")):
        damage(small.token_tables / name)
        with pytest.raises(InputError, match=name):
            run(small)
        assert not (small.root / "data/evaluation").exists() and not (small.root / "metrics/foils.json").exists()


def test_mean_gates_over_words_content_words_and_regions_by_hand(tmp_path):
    # Words 4 and 5 are content; the third caption has none.
    write_captions(tmp_path / "c.parquet", [1, 2, 3], ["a", "b", "c"], ["", "", ""], [[4, 6, 5, 7], [4, 4], [6]])
    captions = CaptionTable.load(tmp_path / "c.parquet")
    model = Additive({}, {4: 0.75, 5: 0.5, 6: 0.125, 7: 0.25})
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])

    def encode(images):
        return torch.zeros(len(images), 3, 2), mask[torch.from_numpy(images)]

    rows, images = np.array([0, 1, 2]), np.array([0, 1, 2])
    gates = mean_gates(model, encode, captions, rows=rows, images=images, content=[4, 5])
    assert gates["words"] == pytest.approx([0.40625, 0.75, 0.125])
    assert gates["content"][:2] == pytest.approx([0.625, 0.75]) and np.isnan(gates["content"][2])
    assert gates["regions"] == pytest.approx([1.5, 1.0, 2.0])
    lower = {side: values / 2 for side, values in gates.items()}
    numbers = summarise({"positive": gates, "negative": lower, "hardest": gates})
    assert numbers["gate_positive_mean"] == pytest.approx(1.28125 / 3)
    assert numbers["gate_content_positive_mean"] == pytest.approx(0.6875)  # the pair without content is left out
    assert numbers["gate_content_negative_mean"] == pytest.approx(0.34375)
    assert numbers["gate_content_hardest_mean"] == pytest.approx(0.6875)
    assert numbers["gate_content_auc"] == 1.0 and numbers["gate_content_hardest_auc"] == 0.5
    # Over words each against the halves of all: three wins, three, and one.
    assert numbers["gate_auc"] == pytest.approx(7 / 9) and numbers["gate_hardest_auc"] == 0.5
    none = mean_gates(model, encode, captions, rows=rows, images=images, content=[])
    numbers = summarise({"positive": none, "negative": none, "hardest": none})
    assert numbers["gate_content_auc"] is None and numbers["gate_auc"] == 0.5


def test_the_mean_of_one_model_is_its_own_logit():
    values = torch.tensor([40.0, -40.0, 0.3])
    assert mean_logits([values]).tolist() == values.tolist()
    assert mean_logits([values, values]).tolist() == pytest.approx(values.tolist())
