"""The authors' schedule: three trainings, each from the checkpoint of the one before."""

import json
import shutil

import torch

from camp_model.checkpoint import load_checkpoint
from stages.params.presets import compose


def test_the_three_presets_train_one_after_another(repository, make_data, run_train, params):
    paths, small = make_data(images=20), params()
    sizes = {"dim": 16, "word_dim": 8}
    shorter = {
        "epochs": 4, "batch_size": 10, "learning_rate": 0.003, "schedule": "constant", "random_negative_steps": 0,
        "device": "cpu",
    }  # fmt: skip
    kept, rsums = [], []
    for number, name in enumerate(("1_attention", "2_fusion", "3_finetune"), start=1):
        preset, _ = compose([repository / "presets" / f"three_step_{name}.yaml"])
        train = preset.train.replace(**shorter)
        if preset.train.start_from:
            assert preset.train.start_from == f"models/step_{number - 1}"
            train = train.replace(start_from=str(kept[-1]))
        run_train(small.replace(model=preset.model.replace(**sizes), train=train), paths)
        kept.append(paths.model.with_name(f"step_{number}"))
        shutil.copytree(paths.model, kept[-1])
        rsums.append(json.loads(paths.metrics.read_text())["val_rsum"])
    first, second, third = (load_checkpoint(folder)[0].state_dict() for folder in kept)
    held = ("region_enc", "caption_enc", "matcher.messages.")
    frozen = [name for name in second if name in first and name.startswith(held)]
    assert frozen and all(torch.equal(first[name], second[name]) for name in frozen)
    assert {"matcher.messages.region_key.weight", "matcher.messages.word_key.weight"} <= set(frozen)
    assert not torch.equal(second["region_encoder.linear.weight"], third["region_encoder.linear.weight"])
    assert rsums[2] > rsums[1]
