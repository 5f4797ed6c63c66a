"""Training on made-up data: what it learns, writes and records, with every switch and loss."""

import csv
import json
import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from tqdm import tqdm

from camp_model.checkpoint import load_checkpoint
from camp_model.encoders import length_mask
from camp_model.gates import BINS, NAMES
from camp_model.metrics import retrieval_metrics
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from camp_model.vocabulary import Vocabulary
from stages.device import Precision, choose_device
from stages.errors import InputError
from stages.params.model import ModelParams
from stages.training import loss as batch_loss
from stages.training.data import Split
from stages.training.loop import Trainer, TrainingError
from stages.training.processes import Processes
from stages.training.resume import Resume
from stages.training.validation import validate


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_camp_learns_which_words_go_with_which_regions(make_data, params, run_train):
    paths = make_data(images=30)
    run_train(params({"dim": 32, "word_dim": 16}, epochs=60), paths)
    summary = json.loads(paths.metrics.read_text())
    assert summary["val_i2t_r1"] == summary["val_t2i_r1"] == 100.0
    assert summary["val_gate_auc"] > 0.9
    assert summary["val_gate_positive_mean"] > summary["val_gate_negative_mean"] + 0.2


def test_outputs_tell_what_happened(make_data, params, run_train):
    paths = make_data(images=20, val_images=8)
    run_train(params(epochs=3), paths)
    summary = json.loads(paths.metrics.read_text())
    losses, epochs = read_csv(paths.plots / "train_loss.csv"), read_csv(paths.plots / "val_recall.csv")
    assert [int(row["step"]) for row in losses] == list(range(1, summary["steps"] + 1))
    assert summary["steps"] == 3 * math.ceil(40 / 12) and len(epochs) == summary["epochs"] == 3
    best = max(epochs, key=lambda row: float(row["rsum"]))
    assert int(best["epoch"]) == summary["best_epoch"] and float(best["rsum"]) == summary["val_rsum"]
    assert list(best)[:11] == [
        "epoch", "rsum", "i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10",
        "gate_positive_mean", "gate_negative_mean", "gate_auc",
    ]  # fmt: skip
    assert set(NAMES) <= set(best) and len(best) == len(set(best))
    assert all(0 <= float(best[name]) <= 1 for name in NAMES)
    bins = read_csv(paths.plots / "val_gates.csv")
    assert [row["epoch"] for row in bins] == [str(epoch) for epoch in (1, 2, 3) for _ in range(BINS)]
    for name, column in (("gate_positive_mean", "words_positive"), ("region_gate_negative_mean", "regions_negative")):
        of_epoch = [(float(row["gate"]), int(row[column])) for row in bins if row["epoch"] == best["epoch"]]
        assert sum(count for _, count in of_epoch) == 16  # every caption of val
        mean = sum(gate * count for gate, count in of_epoch) / 16
        assert mean == pytest.approx(float(best[name]), abs=0.5 / BINS)
    fingerprint = json.loads((paths.model / "fingerprint.json").read_text())
    assert (fingerprint["detector"], fingerprint["loss"]) == ("made-up", "hardest_bce")
    assert fingerprint["val_rsum"] == summary["val_rsum"] and fingerprint["max_words"] == 50
    model, _, _ = load_checkpoint(paths.model)
    assert validate(model, load_split(paths, "val"), cpu(), Processes())[0]["rsum"] == summary["val_rsum"]
    assert not list(paths.work.iterdir()), "the state for resuming is removed after success"


def load_split(paths, name):
    return Split(
        RegionStore(paths.regions),
        paths.captions / f"{name}.parquet",
        Vocabulary.load(paths.captions / "vocabulary.json"),
    )


def cpu(name="fp32"):
    return Precision(name, torch.device("cpu"))


def test_validation_measures_all_pairs_and_the_processes_share_them(make_data, monkeypatch, capsys):
    split = load_split(make_data(images=2, val_images=9), "val")
    torch.manual_seed(0)
    model = CAMP(ModelParams(dim=8, word_dim=4).config(vocab_size=20, region_dim=16), dropout=0.5).eval()
    monkeypatch.setattr("camp_model.scoring.collection.CAPTIONS_AT_ONCE", 4)
    monkeypatch.setattr("camp_model.scoring.collection.OWN_PAIRS_AT_ONCE", 3)
    features, mask = split.store.features(split.images)
    tokens, lengths = split.captions.batch(range(len(split)))
    regions = model.encode_regions(torch.from_numpy(features).float(), torch.from_numpy(mask))
    words = model.encode_captions(tokens, lengths)
    scores = model.score_matrix(regions, torch.from_numpy(mask), words, length_mask(lengths, tokens.shape[1]))
    expected = retrieval_metrics(scores.detach(), torch.from_numpy(split.rows - 2))
    drawn = {"delay": 0, "mininterval": 0, "miniters": 1}
    monkeypatch.setattr("stages.training.validation.tqdm", lambda **bar: tqdm(**bar | drawn))
    metrics, _ = validate(model.train(), split, cpu(), Processes())
    assert {name: metrics[name] for name in expected} == expected, "nothing is dropped"
    assert "validation: 100%" in capsys.readouterr().err

    scored = []
    of_each, both = [None, None], Barrier(2, timeout=60)

    class Half(Processes):
        def sum_(self, values):
            of_each[self.rank] = values.clone()
            both.wait()
            total = of_each[0] + of_each[1]
            both.wait()
            values.copy_(total)

    own = CAMP.score_matrix
    monkeypatch.setattr(CAMP, "score_matrix", lambda *some, **more: scored.append(own(*some, **more)) or scored[-1])
    with ThreadPoolExecutor(2) as threads:
        shared = list(threads.map(lambda rank: validate(model, split, cpu(), Half(rank, 2)), range(2)))
    assert sum(scores.shape[1] for scores in scored) == len(split), "each caption is scored by one of the processes"
    assert shared == [validate(model, split, cpu(), Processes())] * 2


SWITCHES = [
    *({"message_passing": value} for value in ("image_to_text", "text_to_image", "none")),
    *({"gate": value} for value in ("elementwise", "none", "unapplied")),
    {"hops": 2},
    {"fusion": "sum"},
    {"fusion": "message", "gate": "none", "residual": False},
    {"residual": False},
    {"pooling": "mlp"},
    {"pooling": "mean"},
    {"matching": "cosine"},
    {"message_passing": "none", "matching": "cosine", "pooling": "mean"},
    {"matcher": "joint"},
    {"matcher": "scan"},
    {"matcher": "scan", "scan_direction": "both"},
    {"matcher": "joint", "pooling": "gpo"},
    {"matcher": "sgraf", "similarity_dim": 8},
]


@pytest.mark.parametrize("loss", ["hardest_bce", "bce", "triplet"])
@pytest.mark.parametrize("model", SWITCHES, ids=lambda model: ",".join(f"{k}={v}" for k, v in model.items()))
def test_every_switch_lowers_the_loss_of_one_batch(make_data, params, run_train, loss, model):
    paths = make_data(images=12, captions=1)
    # One batch an epoch, the negatives drawn at random for one step and mined from then on.
    settings = params(model, loss=loss, epochs=12, learning_rate=0.003, random_negative_steps=1, margin=0.5)
    run_train(settings, paths)
    losses = [float(row["loss"]) for row in read_csv(paths.plots / "train_loss.csv")]
    assert len(losses) == 12 and all(map(math.isfinite, losses))
    assert min(losses[-3:]) < losses[1]


@pytest.mark.parametrize("target", ["pair", "words"])
def test_one_epoch_follows_the_equations_of_adam_and_the_loss(make_data, params, run_train, target):
    """The stage's losses are those of a bare loop written here."""
    from camp_model.losses import gate_bce, hardest_negative_bce
    from stages.training.data import epoch_batches
    from stages.training.start import new_model

    paths, settings = make_data(images=10), params(
        epochs=1, weight_decay=0.1, gradient_clip=0.5, gate_supervision=0.5, gate_target=target, gate_temperature=3.0,
        schedule="cosine", dropout=0.3, seed=3,
    )  # fmt: skip
    run_train(settings, paths)
    split = load_split(paths, "train")
    model = new_model(settings.model, settings.train, Vocabulary.load(paths.captions / "vocabulary.json"), 16)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.005, weight_decay=0.1)  # half of 0.01, then 0
    losses = []
    for step, captions in enumerate(epoch_batches(20, 12, seed=3, epoch=0)):
        batch = split.batch(captions)
        torch.manual_seed(hash((3, step, 0)))  # what is dropped is new in every step
        regions = model.encode_regions(batch.features.float(), batch.region_mask)
        words = model.encode_captions(batch.tokens, batch.lengths)
        mask = length_mask(batch.lengths, batch.tokens.shape[1])
        encoded = (model, regions, batch.region_mask, words, mask, batch.image_index)
        loss = hardest_negative_bce(*encoded, gate_supervision=0.5 if target == "pair" else 0.0)
        if target == "words":
            generator = torch.Generator().manual_seed(hash((3, step)))
            loss = loss + 0.5 * gate_bce(*encoded, temperature=3.0, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    assert [float(row["loss"]) for row in read_csv(paths.plots / "train_loss.csv")] == pytest.approx(losses, rel=1e-6)


def test_micro_batches_change_nothing(make_data, params, run_train):
    curves = []
    for micro_batch in (0, 5):
        paths = make_data(f"micro{micro_batch}", images=10)
        run_train(params(micro_batch=micro_batch), paths)
        curves.append([float(row["loss"]) for row in read_csv(paths.plots / "train_loss.csv")])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_bf16_trains(make_data, params, run_train):
    paths = make_data(images=12, captions=1)
    run_train(params(precision="bf16", epochs=12), paths)
    losses = [float(row["loss"]) for row in read_csv(paths.plots / "train_loss.csv")]
    assert losses[-1] < losses[0]
    assert load_checkpoint(paths.model)[0].region_encoder.linear.weight.dtype == torch.float32


class Recorder:
    """Stands where a tracking run does and keeps what it is told."""

    run_id = "run"

    def __init__(self):
        self.metrics = []

    def log_metrics(self, values, step=None):
        self.metrics.append((step, values))


def trainer(paths, settings, work):
    torch.manual_seed(0)
    vocabulary = Vocabulary.load(paths.captions / "vocabulary.json")
    model = CAMP(settings.model.config(vocab_size=len(vocabulary), region_dim=16))
    splits = load_split(paths, "train"), load_split(paths, "val")
    return Trainer(model, settings.train, *splits, vocabulary, precision=cpu(), resume=Resume(work, "k" * 64))


def test_every_step_and_epoch_is_recorded(make_data, params, tmp_path):
    run = Recorder()
    trainer(make_data(images=12), params(), tmp_path / "work").fit(run)
    steps = [step for step, values in run.metrics if "train/loss" in values]
    assert steps == [1, 2, 3, 4]
    recorded = run.metrics[0][1]
    assert set(recorded) == {
        f"train/{name}" for name in ("loss", "learning_rate", "gradient_norm", "steps_per_second",
                                     "pairs_per_second", "data_wait_share")
    }  # fmt: skip
    assert recorded["train/learning_rate"] == 0.01 and 0 <= recorded["train/data_wait_share"] <= 1
    assert [step for step, values in run.metrics if "val/rsum" in values] == [2, 4]
    assert "val/gate_auc" in run.metrics[-1][1]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_with_the_step_and_keeps_the_last_state(
    make_data, params, tmp_path, monkeypatch, what
):
    training = trainer(make_data(images=24), params(checkpoint_steps=1), tmp_path / "work")
    loss, calls = batch_loss.hardest_negative_bce, []

    def broken(model, *arguments, **options):
        calls.append(1)
        value = loss(model, *arguments, **options)
        if len(calls) < 3:
            return value
        return value * math.nan if what == "loss" else value + (model.matching_weight - model.matching_weight).sqrt()

    weight = next(training.model.matcher.matching.parameters())
    training.model.matching_weight = weight.sum()
    monkeypatch.setattr(batch_loss, "hardest_negative_bce", broken)
    with pytest.raises(TrainingError, match=rf"the {what} of step 3 is not finite.*the state before it is in"):
        training.fit(Recorder())
    assert isinstance(TrainingError("x"), InputError)
    monkeypatch.undo()
    monkeypatch.setenv("CAMP_TRACKING", "off")
    again = trainer(make_data("again", images=24), params(checkpoint_steps=1), tmp_path / "work")
    assert again.progress.step == 2 and all(p.isfinite().all() for p in again.model.parameters())


def test_a_scaler_that_no_scale_helps_stops_and_one_that_overflows_goes_on(make_data, params, tmp_path):
    """As in fp16: a step whose gradient overflows is left out; one that does at any scale is an error."""
    for broken, epochs in ((2, 1), (1000, 20)):
        training = trainer(make_data(f"{broken}", images=12), params(epochs=epochs), tmp_path / f"work-{broken}")
        training.precision.scaler = torch.GradScaler("cpu", enabled=True)
        first = {name: value.clone() for name, value in training.model.state_dict().items()}
        calls = []
        weight = next(training.model.matcher.matching.parameters())
        weight.register_hook(lambda g, c=calls, n=broken: c.append(1) or (g * math.nan if len(c) < n else g))
        if broken == 1000:
            with pytest.raises(TrainingError, match=r"the gradient of step \d+ is not finite"):
                training.fit(Recorder())
            assert len(calls) >= 17, "65,536 halved until it is below 1"
        else:
            training.fit(Recorder())
            assert any(not torch.equal(value, first[name]) for name, value in training.model.state_dict().items())


def test_devices_and_precisions_that_are_not_here_are_an_error():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(InputError, match=r"train\.precision: fp16 needs a CUDA device, not cpu"):
        cpu("fp16")
    missing = [name for name in ("cuda", "mps") if not getattr(torch, name).is_available()]
    for name in missing:
        with pytest.raises(InputError, match=rf"train\.device: {name} is not available here; expected auto or one of"):
            choose_device(name)
    assert missing
