import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from camp_model import CAMP, CampConfig
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build([["a", "red", "circle"], ["blue", "circle"]])
CONFIG = CampConfig(vocab_size=len(VOCABULARY), region_dim=5, word_dim=3, dim=6, gate="elementwise")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = CAMP(CONFIG)
    save_checkpoint(tmp_path / "camp", model, VOCABULARY, {"epoch": 3})
    return tmp_path / "camp"


def test_a_model_comes_back_whole(folder):
    torch.manual_seed(0)
    model = CAMP(CONFIG)
    loaded, vocabulary, extra = load_checkpoint(folder)
    assert loaded.config == CONFIG and vocabulary == VOCABULARY and extra == {"epoch": 3}
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocabulary.json"]
    assert json.loads((folder / "config.json").read_text()) == CONFIG.to_dict()


def test_a_newer_model_replaces_an_older_one(folder):
    save_checkpoint(folder, CAMP(CONFIG), VOCABULARY, {"epoch": 4})
    assert load_checkpoint(folder)[2] == {"epoch": 4}


def change_weight(folder, name, value):
    from safetensors import safe_open

    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    save_file(weights, path, metadata)


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: change_weight(f, "matcher.matching.output.bias", None),
            r"model.safetensors: matcher.matching.output.bias: is missing",
        ),
        (
            lambda f: change_weight(f, "matcher.matching.output.bias", torch.zeros(3)),
            r"bias: shape \[3\]; expected \[1\]",
        ),
        (lambda f: change_weight(f, "more", torch.zeros(3)), r"model.safetensors: more: "),
        (
            lambda f: change_weight(f, "matcher.matching.output.bias", torch.tensor([float("nan")])),
            r"model.safetensors: matcher.matching.output.bias: holds numbers that are not finite",
        ),
        (lambda f: change_config(f, gate="soft"), r"config.json: model.gate: 'soft'"),
        (
            lambda f: change_config(f, colour=1),
            r"config.json: colour: unknown key; expected .*: vocab_size, region_dim, ",
        ),
        (
            lambda f: (f / "config.json").write_text("{}"),
            r"config.json: vocab_size: is missing; expected the number of",
        ),
        (lambda f: change_config(f, dim=8), r"model.safetensors: .*: shape"),
        (lambda f: change_config(f, vocab_size=99), r"vocabulary.json: word2idx: is another vocabulary"),
        (
            lambda f: Vocabulary.build([["other", "words", "of", "size"]]).save(f / "vocabulary.json"),
            r"vocabulary.json: word2idx",
        ),
        (lambda f: (f / "vocabulary.json").unlink(), r"vocabulary.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("{"), r"config.json: is not JSON"),
        (lambda f: (f / "config.json").unlink(), r"config.json: cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors: is missing"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 40),
            r"model.safetensors: cannot be read as safetensors",
        ),
        (lambda f: save_file(load_file(f / "model.safetensors"), f / "model.safetensors"), r"camp.format"),
    ],
)
def test_damage_is_an_error_that_names_file_and_key(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_captions_of_another_vocabulary_are_an_error(folder):
    other = Vocabulary.build([["a", "green", "circle", "blue"]])
    assert len(other) == len(VOCABULARY)
    with pytest.raises(ValueError, match="vocabulary.json: word2idx: .* another vocabulary than the captions'"):
        load_checkpoint(folder, vocabulary=other)
    load_checkpoint(folder, vocabulary=VOCABULARY)


def test_a_vocabulary_of_another_size_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="vocabulary: 4 words"):
        save_checkpoint(tmp_path / "camp", CAMP(CONFIG), Vocabulary.build([]))
    assert not (tmp_path / "camp").exists()


def test_a_crash_while_writing_leaves_the_older_model(folder, monkeypatch):
    def crash(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("camp_model.checkpoint.save_file", crash)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(folder, CAMP(CONFIG), VOCABULARY, {"epoch": 4})
    assert load_checkpoint(folder)[2] == {"epoch": 3}
    assert len(list(folder.iterdir())) == 3


def as_before_matchers(folder, config, seed=0):
    """A checkpoint as it was written before `matcher` was a key: its bytes, and the weights by their old names."""
    torch.manual_seed(seed)
    d, words = config["dim"], config["vocab_size"]
    shapes = {
        "region_encoder.linear.weight": (d, 5), "region_encoder.linear.bias": (d,),
        "caption_encoder.embedding.weight": (words, 3),
        **{f"caption_encoder.gru.{name}_l0{way}": shape for way in ("", "_reverse") for name, shape in
           {"weight_ih": (3 * d, 3), "weight_hh": (3 * d, d), "bias_ih": (3 * d,), "bias_hh": (3 * d,)}.items()},
    }  # fmt: skip
    if config["message_passing"] == "both":
        shapes |= {f"messages.{name}.weight": (d, d) for name in ("region_key", "word_key")}
        for side in ("to_regions", "to_words"):
            shapes |= {f"messages.{side}.fusion.weight": (d, 2 * d), f"messages.{side}.fusion.bias": (d,)}
    if config["pooling"] == "attention":
        shapes |= {f"{side}_pooling.score.weight": (1, d) for side in ("region", "word")}
    if config["matching"] == "mlp":
        shapes |= {"matching.hidden.weight": (d, 2 * d), "matching.hidden.bias": (d,)}
        shapes |= {"matching.output.weight": (1, d), "matching.output.bias": (1,)}
    else:
        shapes |= {"matching.log_scale": (), "matching.shift": ()}
    weights = {name: 0.5 * torch.randn(shape) for name, shape in shapes.items()}
    header, data = {"__metadata__": {
        "camp.format": "camp.model", "camp.version": "1", "vocabulary_sha256": VOCABULARY.sha256, "extra": "{}",
    }}, b""  # fmt: skip
    for name, value in weights.items():
        raw = value.numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "config.json").write_text(json.dumps(config))
    VOCABULARY.save(folder / "vocabulary.json")
    return {name: value.double().numpy() for name, value in weights.items()}


@pytest.mark.parametrize(
    ("switches", "matcher"),
    [
        ({}, "camp"),
        ({"message_passing": "none", "matching": "cosine"}, "camp"),
        ({"message_passing": "none", "matching": "scan", "pooling": "mean"}, "scan"),
    ],
)
def test_a_checkpoint_from_before_matchers_still_gives_its_scores(tmp_path, reference, switches, matcher):
    config = {
        "vocab_size": len(VOCABULARY), "region_dim": 5, "word_dim": 3, "dim": 6, "message_passing": "both", "hops": 1,
        "gate": "scalar", "gate_context": 0.0, "fusion": "concat", "residual": True, "pooling": "attention",
        "pooling_heads": 8, "matching": "mlp",
    } | switches  # fmt: skip
    weights = as_before_matchers(tmp_path / "old", config)
    model, _, extra = load_checkpoint(tmp_path / "old")
    assert model.config.matcher == matcher and extra == {}
    features, tokens = torch.randn(1, 4, 5), torch.tensor([[4, 6, 5]])
    score = model(features, torch.ones(1, 4).bool(), tokens, torch.tensor([3]))
    regions = reference.encode_regions(weights, features[0].double().numpy())
    words = reference.encode_caption(weights, tokens[0].tolist())
    expected, _ = reference.score(weights, model.config, regions, words)
    assert score.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    save_checkpoint(tmp_path / "new", model, VOCABULARY)
    again = load_checkpoint(tmp_path / "new")[0]
    assert again.config == model.config
    assert torch.equal(again(features, torch.ones(1, 4).bool(), tokens, torch.tensor([3])), score)


def test_weights_that_are_no_numbers_are_not_saved(folder):
    model, vocabulary, _ = load_checkpoint(str(folder))
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=r"region_encoder\.linear\.weight: holds numbers that are not finite"):
        save_checkpoint(str(folder), model, vocabulary)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("value", ["{", "[" * 100_000, "[]"])
@pytest.mark.parametrize("key", ["text", "extra"])
def test_facts_that_are_none_are_named(folder, key, value):
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    save_file(load_file(path), path, metadata | {key: value})
    with pytest.raises(ValueError, match=rf"model\.safetensors: {key}: is not a JSON object"):
        load_checkpoint(folder)


def test_evidence_of_before_it_read_places_is_named_with_its_file(tmp_path):
    """Its weights are of other evidence: nothing but the config, which says nothing of boxes, tells."""
    config = CampConfig(vocab_size=len(VOCABULARY), region_dim=9, geometry=1.0, word_dim=3, dim=8, gate_evidence=True)
    save_checkpoint(tmp_path, CAMP(config), VOCABULARY)
    path = tmp_path / "config.json"
    stated = json.loads(path.read_text())
    path.write_text(json.dumps(stated | {"geometry": 0.0}))
    with pytest.raises(ValueError, match=r"config\.json: model\.gate_evidence: true reads where regions lie"):
        load_checkpoint(tmp_path)
    del stated["geometry"]
    path.write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=r"config\.json: geometry: is missing.*expected a model that is trained again"):
        load_checkpoint(tmp_path)
