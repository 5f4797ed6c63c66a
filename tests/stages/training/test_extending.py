"""docs/extending.md: its code blocks, registered by its own lines, train as the stage trains everything else."""

import csv
import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from camp_model import CAMP, CampConfig, registry
from camp_model.all_negatives import all_negatives_bce
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.encoders import length_mask
from camp_model.losses import hardest_negative_bce, triplet_loss
from camp_model.metrics import retrieval_metrics, t2i_ranks
from camp_model.scoring.ranking import rank_queries
from camp_model.vocabulary import Vocabulary
from stages.training import loss

VOCABULARY = Vocabulary.build([[f"word{i}" for i in range(8)]])


@pytest.fixture
def documented(repository, tmp_path, monkeypatch):
    """Put the modules of the page on the path, and its lines into the registries."""
    page = (repository / "docs" / "extending.md").read_text()
    modules = dict(re.findall(r"^`camp_model/(\S+)\.py`:\n\n```python\n(.*?)```", page, re.DOTALL | re.MULTILINE))
    lines = re.findall(r"The line in `(\w+)`.*?\n\n```python\n(.*?),\n```", page, re.DOTALL)
    assert sorted(modules) == ["contrastive", "encoders/self_attention", "matchers/late"]
    for name, code in modules.items():
        (tmp_path / "plugged").mkdir(exist_ok=True)
        (tmp_path / "plugged" / f"{name.split('/')[-1]}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for table, line in lines:
        ((name, entry),) = eval(f"{{{line}}}", {"Entry": registry.Entry}).items()
        *folder, module = entry.module.split(".")
        assert f"{folder[-1]}/{module}" in modules
        entry = registry.Entry(f"plugged.{module}", entry.name, entry.gates)
        monkeypatch.setitem(getattr(registry, table), name, entry)
    yield modules
    for module in [name for name in sys.modules if name.startswith("plugged")]:
        del sys.modules[module]


def make(**switches):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(VOCABULARY), "region_dim": 5, "word_dim": 4, "dim": 16}
    return CAMP(CampConfig(**sizes, **switches))


def batch_of(model):
    torch.manual_seed(1)
    features, tokens = torch.randn(6, 4, 5), torch.randint(4, len(VOCABULARY), (6, 7))
    counts, lengths = torch.tensor([4, 1, 3, 2, 4, 3]), torch.tensor([7, 2, 5, 1, 3, 6])
    region_mask, word_mask = length_mask(counts, 4), length_mask(lengths, 7)
    features[~region_mask] = 1e3
    return model.encode_regions(features, region_mask), region_mask, model.encode_captions(tokens, lengths), word_mask


SWITCHES = [{"matcher": "late"}, {"text": "self_attention"}, {"matcher": "late", "text": "self_attention"}]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_the_documented_code_scores_trains_and_is_saved(documented, tmp_path, switches):
    assert len(documented["matchers/late"].splitlines()) <= 35
    model = make(**switches)
    index = torch.arange(6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = sum(of(model, *batch_of(model), index) for of in (hardest_negative_bce, triplet_loss, all_negatives_bce))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    with torch.no_grad():
        encoded = batch_of(model)
        scores = model.score_matrix(*encoded)
        torch.testing.assert_close(scores.diagonal(), model.score_pairs(*encoded))
        alone = [model.score_pairs(*(values[[i]] for values in encoded[:2]), *(values[[j]] for values in encoded[2:]))
                 for i in range(6) for j in range(6)]  # fmt: skip
        torch.testing.assert_close(torch.cat(alone).view(6, 6), scores)
        ranked = rank_queries(model, *encoded, index)
        details = model.inspect_pairs(*encoded)
    assert ranked.t2i_ranks.tolist() == t2i_ranks(scores, index).tolist()
    assert retrieval_metrics(scores, index)["rsum"] > 0
    assert (details.word_gates is None) == ("matcher" in switches)
    save_checkpoint(tmp_path / "saved", model, VOCABULARY)
    loaded = load_checkpoint(tmp_path / "saved")[0]
    assert loaded.config == model.config and {"matcher": "camp", "text": "gru"} | switches == {
        "matcher": loaded.config.matcher, "text": loaded.config.text
    }  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(loaded.score_matrix(*batch_of(loaded)), scores)


def test_the_stage_trains_what_is_registered(documented, make_data, params, run_train):
    paths = make_data()
    run_train(params({"matcher": "late", "text": "self_attention"}, epochs=3, gate_supervision=0.0), paths)
    config = load_checkpoint(paths.model)[0].config
    assert (config.matcher, config.text) == ("late", "self_attention")
    metrics = json.loads(paths.metrics.read_text())
    assert metrics["val_rsum"] > 0 and "val_gate_auc" not in metrics


def test_the_documented_loss_is_that_of_a_loop_and_trains(documented, make_data, params, run_train, monkeypatch):
    softmax_loss = importlib.import_module("plugged.contrastive").softmax_loss
    model = make().double()
    encoded = [values.double() if values.is_floating_point() else values for values in batch_of(model)]
    images, captions = torch.tensor([0, 1, 1, 2, 3, 4]), torch.tensor([0, 1, 2, 3, 0, 5])
    logits = model.score_matrix(*encoded)
    same = {(i, j) for i in range(6) for j in range(6) if images[i] == images[j] or captions[i] == captions[j]}
    # An image is not told to dislike a caption whose text one of its own has.
    same |= {(i, j) for i in range(6) for j in range(6) for k in range(6)
             if images[k] == images[i] and captions[k] == captions[j]}  # fmt: skip
    total = 0.0
    for i in range(6):
        texts = [logits[i, j] for j in range(6) if j == i or (i, j) not in same]
        pictures = [logits[j, i] for j in range(6) if j == i or (j, i) not in same]
        total += sum(torch.stack(scores).logsumexp(0) - logits[i, i] for scores in (texts, pictures)) / 6
    torch.testing.assert_close(softmax_loss(model, *encoded, images, caption_index=captions), total)
    parts = [softmax_loss(model, *encoded, images, caption_index=captions, pairs=pairs, micro_batch=4)
             for pairs in (slice(0, 3), slice(3, 6))]  # fmt: skip
    torch.testing.assert_close(sum(parts) / 2, total)

    page = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()
    branch = page.split("`stages/training/loss.py`:\n\n```python\n")[1].split("```")[0]
    function = inspect.getsource(loss._matching_loss).replace("    every = ", f"{branch}    every = ", 1)
    names = {**vars(loss), "softmax_loss": softmax_loss}
    exec(function, names)
    monkeypatch.setattr(loss, "_matching_loss", names["_matching_loss"])
    settings = params(epochs=6)
    train = settings.train.model_copy(update={"loss": "softmax"})  # TrainParams has no such name yet
    paths = make_data()
    run_train(settings.model_copy(update={"train": train}), paths)
    with (paths.plots / "val_recall.csv").open() as file:
        rsums = [float(row["rsum"]) for row in csv.DictReader(file)]
    assert rsums[-1] > rsums[0] + 50


def test_a_name_that_is_not_registered_is_an_error(documented):
    assert make(matcher="late").config.no_gates_reason() == "model.matcher is late"
    with pytest.raises(ValueError, match=r"model\.matcher: 'early' is not one of camp, scan, joint, sgraf, late"):
        make(matcher="early")
