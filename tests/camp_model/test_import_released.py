"""Checkpoints in the form of the authors' released code, with random weights, against their equations."""

import argparse
import pickle
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from camp_model.checkpoint import load_checkpoint
from camp_model.import_released import convert, read_checkpoint, read_vocabulary

D, REGION_DIM, WORD_DIM, HEADS = 6, 5, 3, 4
WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "red", "circle"]


def layer(state, name, rows, columns, bias=True):
    state[f"module.{name}.weight"] = 0.6 * torch.randn(rows, columns)
    if bias:
        state[f"module.{name}.bias"] = 0.3 * torch.randn(rows)


def pooling(state, name):
    for i in (1, 2):
        layer(state, f"{name}_{i}.linear.0", D, D)
        layer(state, f"{name}_{i}.linear.2", HEADS, D)


def released(kind):
    """Three state dicts with the names and shapes of model.py and fusion_module.py."""
    torch.manual_seed(0)
    image, text, scoring = OrderedDict(), OrderedDict(), OrderedDict()
    layer(image, "fc", D, REGION_DIM)
    text["module.embed.weight"] = torch.randn(len(WORDS), WORD_DIM)
    for way in ("", "_reverse"):
        for name, columns in (("ih", WORD_DIM), ("hh", D)):
            text[f"module.rnn.weight_{name}_l0{way}"] = 0.5 * torch.randn(3 * D, columns)
            text[f"module.rnn.bias_{name}_l0{way}"] = 0.5 * torch.randn(3 * D)
    for name in ("img_key_fc", "txt_key_fc"):
        layer(scoring, name, D, D, bias=False)
    if kind == "GatedFusionNew":
        for name in ("img", "txt", "weighted_img", "weighted_txt"):
            for role in ("query", "key"):
                layer(scoring, f"{name}_{role}_fc", D, D, bias=False)
    if kind != "CrossAttention":
        joint = D if kind == "GatedFusion sum" else 2 * D
        for name in ("fc_1.0", "fc_2.0"):
            layer(scoring, name, D, joint, bias=kind != "GatedFusionNew")
        layer(scoring, "fc_out.0", D, joint)
        layer(scoring, "fc_out.3", 1, D)
    pooling(scoring, "final_reduce" if kind == "GatedFusionNew" else "reduce_layer")
    return [image, text, scoring]


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def encode_text(s, tokens):
    def run(x, way):
        h, states = np.zeros(D), []
        for step in x:
            a = s[f"rnn.weight_ih_l0{way}"] @ step + s[f"rnn.bias_ih_l0{way}"]
            b = s[f"rnn.weight_hh_l0{way}"] @ h + s[f"rnn.bias_hh_l0{way}"]
            r, z = sigmoid(a[:D] + b[:D]), sigmoid(a[D : 2 * D] + b[D : 2 * D])
            h = (1 - z) * np.tanh(a[2 * D :] + r * b[2 * D :]) + z * h
            states.append(h)
        return np.array(states)

    x = s["embed.weight"][tokens]
    return (run(x, "") + run(x[::-1], "_reverse")[::-1]) / 2


def expected_score(kind, states, features, tokens):
    """One image and one caption through the released scoring module, in float64: a logit, or a cosine."""
    image, text, s = (
        {name.removeprefix("module."): value.double().numpy() for name, value in state.items()} for state in states
    )
    v = features @ image["fc.weight"].T + image["fc.bias"]
    t = encode_text(text, tokens)

    def attend(q, k, values):
        return softmax(q @ k.T / np.sqrt(D), axis=1) @ values

    def summary(name, x):
        hidden = np.maximum(x @ s[f"{name}.linear.0.weight"].T + s[f"{name}.linear.0.bias"], 0)
        weights = softmax(hidden @ s[f"{name}.linear.2.weight"].T + s[f"{name}.linear.2.bias"], axis=0)
        return (weights.T @ x).mean(axis=0)

    key_v, key_t = v @ s["img_key_fc.weight"].T, t @ s["txt_key_fc.weight"].T
    query_v, query_t = key_v, key_t
    if kind == "GatedFusionNew":
        query_v, query_t = v @ s["img_query_fc.weight"].T, t @ s["txt_query_fc.weight"].T
    from_t, from_v = attend(query_v, key_t, t), attend(query_t, key_v, v)
    if kind == "CrossAttention":
        return unit(summary("reduce_layer_1", from_t)) @ unit(summary("reduce_layer_2", from_v))
    pool = "reduce_layer"
    if kind == "GatedFusionNew":
        pool = "final_reduce"

        def again(x, name):
            return unit(
                attend(x @ s[f"weighted_{name}_query_fc.weight"].T, x @ s[f"weighted_{name}_key_fc.weight"].T, x)
            )

        from_t, from_v = again(from_t, "txt"), again(from_v, "img")
    gate_v, gate_t = (sigmoid((x * m).sum(-1, keepdims=True)) for x, m in ((v, from_t), (t, from_v)))

    def join(x, m):
        return x + m if kind == "GatedFusion sum" else np.concatenate([x, m], axis=-1)

    def fuse(name, x):
        return np.maximum(x @ s[f"{name}.0.weight"].T + s.get(f"{name}.0.bias", 0.0), 0)

    image_vector = summary(f"{pool}_1", fuse("fc_1", join(v, from_t) * gate_v) + v)
    caption_vector = summary(f"{pool}_2", fuse("fc_2", join(t, from_v) * gate_t) + t)
    if kind == "GatedFusionNew":
        image_vector, caption_vector = unit(image_vector), unit(caption_vector)
    hidden = fuse("fc_out", join(image_vector, caption_vector))
    return (s["fc_out.3.weight"] @ hidden + s["fc_out.3.bias"])[0]


KINDS = ["GatedFusion", "GatedFusion sum", "GatedFusionNew", "CrossAttention"]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocabulary.json"
    ids = {word: i for i, word in enumerate(WORDS)}
    import json

    path.write_text(json.dumps({"word2idx": ids, "idx2word": {str(i): w for w, i in ids.items()}, "idx": len(ids)}))
    return path


def write(path, states, legacy, **more):
    """As the released train.py does: PyTorch of its time wrote the legacy format."""
    content = {"epoch": 7, "model": states, "best_rsum": np.float64(400.5), "Eiters": 9} | more
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_released_model(kind, tmp_path, vocabulary):
    states = released(kind)
    write(tmp_path / "model_best.pth.tar", states, legacy=True)
    command = [sys.executable, "-m", "camp_model.import_released", str(tmp_path / "model_best.pth.tar")]
    if kind == "GatedFusion":  # once through the command line, for the others its parts
        subprocess.run([*command, "--vocabulary", str(vocabulary), "--out", str(tmp_path / "out")], check=True)
        assert '"start_end": true' in (tmp_path / "out/fingerprint.json").read_text()
        model, words, extra = load_checkpoint(tmp_path / "out")
        assert words.words == WORDS and extra == {"released": "model_best.pth.tar", "epoch": 7}
    else:
        model = convert(read_checkpoint(tmp_path / "model_best.pth.tar")["model"])
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 4, REGION_DIM, generator=generator)
    tokens = torch.randint(0, len(WORDS), (2, 5), generator=generator)
    lengths, region_mask = torch.tensor([5, 3]), torch.ones(3, 4, dtype=torch.bool)
    word_mask = torch.arange(5) < lengths[:, None]
    with torch.no_grad():
        scores = model.score_matrix(
            model.encode_regions(features, region_mask), region_mask, model.encode_captions(tokens, lengths), word_mask
        )
    expected = [
        [expected_score(kind, states, f.double().numpy(), t[:n].numpy()) for t, n in zip(tokens, lengths, strict=True)]
        for f in features
    ]
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("legacy", [True, False])
def test_options_are_read_without_their_class(tmp_path, legacy):
    options = argparse.Namespace(no_imgnorm=True, margin=0.2)
    write(tmp_path / "a.pth.tar", released("GatedFusion"), legacy, opt=options)
    assert read_checkpoint(tmp_path / "a.pth.tar")["epoch"] == 7


def test_an_easydict_is_read_without_easydict(tmp_path, monkeypatch):
    module = type(sys)("easydict")
    module.EasyDict = type("EasyDict", (dict,), {"__module__": "easydict"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "easydict", module)
        options = module.EasyDict(no_imgnorm=False)
        options.no_imgnorm = False  # kept as an attribute too, as the real one does
        write(tmp_path / "a.pth.tar", released("GatedFusion"), True, opt=options)
    with pytest.raises(ValueError, match="a.pth.tar: opt.no_imgnorm: False"):
        read_checkpoint(tmp_path / "a.pth.tar")


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path, legacy):
    write(tmp_path / "a.pth.tar", released("GatedFusion"), legacy, opt=Touch(str(tmp_path / "ran")))
    with pytest.raises(ValueError, match="a.pth.tar: cannot be read as weights and plain values: it holds"):
        read_checkpoint(tmp_path / "a.pth.tar")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[2].pop("module.txt_key_fc.weight"), "messages.word_key.weight: is missing"),
        (lambda s: s[0].pop("module.fc.weight"), "fc.weight: is missing"),
        (
            lambda s: s[1].update({"module.rnn.weight_ih_l1": torch.zeros(1)}),
            "rnn.weight_ih_l1: this project's model has",
        ),
        (lambda s: s[2].update({"module.fc_out.3.bias": torch.zeros(3)}), r"matching.output.bias: shape \[3\]"),
        (lambda s: s[2].pop("module.reduce_layer_1.linear.2.weight"), "averages regions and words"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(change, message):
    states = released("GatedFusion")
    change(states)
    with pytest.raises(ValueError, match=message):
        convert(states)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"model": 3})])
def test_another_file_is_an_error(tmp_path, content):
    (tmp_path / "a.pth.tar").write_bytes(content)
    with pytest.raises(ValueError, match="a.pth.tar"):
        read_checkpoint(tmp_path / "a.pth.tar")
    torch.save({"model": [{"fc.weight": torch.zeros(2)}, {"embed.weight": 1}, {}]}, tmp_path / "b.pth.tar")
    with pytest.raises(ValueError, match=r"b.pth.tar: model\[1\]: is not a state dict"):
        read_checkpoint(tmp_path / "b.pth.tar")
    with pytest.raises(ValueError, match="missing.pth.tar: is missing"):
        read_checkpoint(tmp_path / "missing.pth.tar")


ATTRIBUTES = ("idx2word", "word2idx", "idx")
MANY = [*WORDS, *ATTRIBUTES, *(f"word{i}" for i in range(9000))]
"""So many that protocol 4 cuts them into frames."""


def vocabulary_pickle(protocol, attributes=ATTRIBUTES, words=MANY):
    """An instance of a class Vocabulary as the released code makes it: its two dicts hold the same texts."""
    module = type(sys)("vocab")
    module.Vocabulary = type("Vocabulary", (), {"__module__": "vocab"})
    vocabulary = module.Vocabulary()
    values = {"idx2word": dict(enumerate(words)), "word2idx": {word: i for i, word in enumerate(words)}}
    vocabulary.__dict__ = {name: values.get(name, len(words)) for name in attributes}
    sys.modules["vocab"] = module
    try:
        return pickle.dumps(vocabulary, protocol)
    finally:
        del sys.modules["vocab"]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("attributes", [ATTRIBUTES, ("word2idx", "idx2word", "idx")])  # of Python 2, and of 3
def test_a_released_vocabulary_is_read(tmp_path, protocol, attributes):
    (tmp_path / "v.pkl").write_bytes(vocabulary_pickle(protocol, attributes))
    assert read_vocabulary(tmp_path / "v.pkl").words == MANY


def test_words_that_are_bytes_are_an_error(tmp_path):
    (tmp_path / "v.pkl").write_bytes(vocabulary_pickle(4, words=[*WORDS, b"dog", b"cat"]))
    with pytest.raises(ValueError, match=r"v\.pkl: idx2word: b'dog' is not text \(2 such\); expected words"):
        read_vocabulary(tmp_path / "v.pkl")


@pytest.mark.parametrize("content", [b"junk", pickle.dumps([1, 2]), "code", vocabulary_pickle(4)[:-9]])
def test_another_pickle_is_no_vocabulary(tmp_path, content):
    content = pickle.dumps(Touch(str(tmp_path / "ran"))) if content == "code" else content
    (tmp_path / "v.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="v.pkl"):
        read_vocabulary(tmp_path / "v.pkl")
    assert not (tmp_path / "ran").exists()


def test_checkpoints_that_would_become_one_folder_are_refused(tmp_path, vocabulary):
    paths = [tmp_path / run / "model_best.pth.tar" for run in ("run1", "run2")]
    for path in paths:
        path.parent.mkdir()
        write(path, released("GatedFusion"), legacy=True)
    command = [sys.executable, "-m", "camp_model.import_released", *map(str, paths)]
    options = ["--vocabulary", str(vocabulary), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {paths[1]}: would become {tmp_path / 'out/model_best'}, as {paths[0]}" in done.stderr
    assert not (tmp_path / "out").exists()
