"""Files of the authors' released code that are whole but wrong: an error names the file and its own key."""

import json
import random
import sys

import numpy as np
import pytest
import torch

from camp_model.checkpoint import load_checkpoint
from camp_model.import_released import convert, main, read_checkpoint
from tests.camp_model.test_import_released import HEADS, WORDS, D, released, write

FC = "module.fc.weight"


@pytest.mark.parametrize("value", [np.int64(9), np.float32(4), np.bool_(True), np.uint8(3), np.float16(2)])
@pytest.mark.parametrize("legacy", [True, False])
def test_scalars_of_numpy_are_read(tmp_path, value, legacy):
    write(tmp_path / "a.pth.tar", released("GatedFusion"), legacy, Eiters=value)
    read = read_checkpoint(tmp_path / "a.pth.tar")["Eiters"]
    assert (read, type(read)) == (value, type(value))


def test_a_flipped_bit_is_an_error_with_the_file(tmp_path):
    path, choice, errors = tmp_path / "a.pth.tar", random.Random(5), 0
    write(path, released("GatedFusion"), legacy=True)
    content = path.read_bytes()
    for _ in range(300):
        flipped = bytearray(content)
        flipped[choice.randrange(len(flipped))] ^= 1 << choice.randrange(8)
        path.write_bytes(flipped)
        try:
            convert(read_checkpoint(path)["model"], str(path))
        except ValueError as error:
            assert str(path) in str(error)
            errors += 1
    assert errors > 50


def resized(name, *shape):
    return lambda states: [
        state.update({key: torch.ones(shape)}) for state in states for key in list(state) if key == f"module.{name}"
    ]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("GatedFusion sum", lambda s: s[2].pop("module.fc_out.0.weight"), r"fc_out\.0\.weight: is missing"),
        ("GatedFusion sum", resized("fc_out.0.weight", 2, 2, 2), r"fc_out\.0\.weight: shape \[2, 2, 2\]"),
        ("GatedFusion sum", resized("fc_out.0.weight", D, 5), r"fc_out\.0\.weight: shape \[6, 5\]; expected \[6, 6\]"),
        ("GatedFusion", resized("fc.weight", 3), r"fc\.weight: shape \[3\]; expected a matrix"),
        ("GatedFusion", resized("embed.weight"), r"embed\.weight: shape \[\]; expected a matrix"),
        ("GatedFusion", resized("embed.weight", 0, 3), r"embed\.weight: shape \[0, 3\]; expected a matrix"),
        ("GatedFusion", resized("reduce_layer_1.linear.2.weight"), r"linear\.2\.weight: shape \[\]; expected a matrix"),
        ("GatedFusion", resized("fc_1.0.weight", 6), r"fc_1\.0\.weight: shape \[6\]; expected a matrix"),
        ("GatedFusion", resized("fc_1.0.weight", 6, 7), r"fc_1\.0\.weight: shape \[6, 7\]; expected twice as many"),
        ("GatedFusion", lambda s: s[0].update({3: torch.ones(2)}), "3: is no name of a weight"),
        ("GatedFusion", lambda s: s[0].update({"fc.weight": s[0][FC]}), r"fc\.weight: stands there both with and"),
        ("GatedFusion", lambda s: s[0].update({FC: s[0][FC].to_sparse()}), r"module\.fc\.weight: is sparse"),
        ("GatedFusion", lambda s: s[0].update({FC: torch.ones(1).expand(2**40, 2)}), r"fc\.weight: .*or not all there"),
        ("GatedFusion", lambda s: s[0].update({FC: s[0][FC].long()}), r"module\.fc\.weight: holds torch\.int64"),
        ("GatedFusion", lambda s: s[0].update({FC: s[0][FC] * torch.nan}), r"module\.fc\.weight, here .*not finite"),
        ("GatedFusion", lambda s: s[2].pop("module.txt_key_fc.weight"), r"txt_key_fc\.weight, here .*is missing"),
        ("GatedFusion", resized("txt_key_fc.weight", 2), r"module\.txt_key_fc\.weight, here .*shape \[2\]"),
        ("GatedFusion", resized("rnn.bias_hh_l0", 2), r"module\.rnn\.bias_hh_l0, here caption_encoder.*shape \[2\]"),
    ],
)  # fmt: skip
def test_a_wrong_weight_is_named_as_in_the_file(kind, change, message):
    states = released(kind)
    change(states)
    with pytest.raises(ValueError, match=f"^a.pth.tar: .*{message}"):
        convert(states, "a.pth.tar")


def test_more_heads_than_any_model_has_are_an_error_with_the_file():
    states = released("GatedFusion")
    for i in (1, 2):
        states[2][f"module.reduce_layer_{i}.linear.2.weight"] = torch.ones(HEADS * 10_000, D)
    with pytest.raises(ValueError, match=r"^a\.pth\.tar: model\.pooling_heads: 40000 is not"):
        convert(states, "a.pth.tar")


@pytest.mark.parametrize("value", [torch.ones(3), "False", [[]]], ids=["tensor", "text", "list"])
def test_an_option_that_is_no_switch_is_refused(tmp_path, value):
    write(tmp_path / "a.pth.tar", released("GatedFusion"), True, opt={"no_imgnorm": value})
    with pytest.raises(ValueError, match=r"a.pth.tar: opt.no_imgnorm: ('False'|<\w+>); only models with True"):
        read_checkpoint(tmp_path / "a.pth.tar")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on a checkpoint with other facts."""

    def run(words=WORDS, **more):
        ids = {word: i for i, word in enumerate(words)}
        vocabulary = {"word2idx": ids, "idx2word": {str(i): word for word, i in ids.items()}, "idx": len(ids)}
        (tmp_path / "v.json").write_text(json.dumps(vocabulary))
        write(tmp_path / "a.pth.tar", released("GatedFusion"), True, **more)
        paths = [tmp_path / "a.pth.tar", "--vocabulary", tmp_path / "v.json", "--out", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["import", *map(str, paths)])
        main()

    return run


@pytest.mark.parametrize(
    ("epoch", "recorded", "said"),
    [
        (np.int64(3), 3, ""),
        (torch.tensor(7), None, "a.pth.tar: epoch: <Tensor> is not recorded; expected a whole number"),
        (b"7", None, "a.pth.tar: epoch: b'7' is not recorded; expected a whole number"),
    ],
    ids=["numpy", "tensor", "bytes"],
)
def test_what_is_no_epoch_is_said_and_not_recorded(tmp_path, capsys, run, epoch, recorded, said):
    run(epoch=epoch)
    errors = capsys.readouterr().err
    assert said in errors and ("epoch" in errors) == bool(said)
    assert load_checkpoint(tmp_path / "out")[2]["epoch"] == recorded


def test_a_vocabulary_of_another_size_is_an_error_with_both_files(tmp_path, capsys, run):
    with pytest.raises(SystemExit, match="2"):
        run([*WORDS, "dog"])
    said = f"a.pth.tar: embed.weight: 7 rows; expected 8, a row for each word of {tmp_path / 'v.json'}"
    assert said in capsys.readouterr().err
