"""A killed training goes on as if nothing had happened."""

import signal

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from camp_model.model import CAMP
from camp_model.vocabulary import Vocabulary
from stages.params.model import ModelParams
from stages.training.resume import Progress, Resume, run_key, sha256_of

EVERYTHING = {
    "epochs": 3, "dropout": 0.2, "random_negative_steps": 4, "warmup_steps": 3, "schedule": "cosine",
    "weight_decay": 0.01, "checkpoint_steps": 2,
}  # fmt: skip


class Killed(Exception):
    """The process dies here; nothing after it happens."""


def kill_after(steps):
    calls = []

    def stop():
        calls.append(1)
        if len(calls) > steps:
            raise Killed
        return False

    return stop


def results(paths):
    return [
        (paths.plots / "train_loss.csv").read_text(),
        (paths.plots / "val_recall.csv").read_text(),
        (paths.plots / "val_gates.csv").read_text(),
        {name: value.numpy().tobytes() for name, value in load_file(paths.model / "model.safetensors").items()},
    ]


def test_killed_after_any_step_it_ends_the_same(make_data, params, run_train):
    whole, paths = make_data("whole", images=15), make_data("killed", images=15)
    run_train(params(**EVERYTHING), whole)
    for steps in (0, 1, 1, 3, 2):  # three steps an epoch, saved at every second and after each epoch
        with pytest.raises(Killed):
            run_train(params(**EVERYTHING), paths, stop=kill_after(steps))
        assert not paths.model.exists()
    run_train(params(**EVERYTHING), paths)
    assert results(paths) == results(whole)


def test_asked_to_stop_it_saves_the_very_step(make_data, params, run_train):
    whole, paths = make_data("whole", images=15), make_data("stopped", images=15)
    settings = params(**(EVERYTHING | {"checkpoint_steps": 1000}))
    run_train(settings, whole)
    for step in range(1, 9):
        with pytest.raises(SystemExit) as ended:
            run_train(settings, paths, stop=lambda: True)
        assert ended.value.code == 143
        (state,) = paths.work.glob("*/state.safetensors")
        assert load_progress(state, paths, settings).step == step
    run_train(settings, paths)
    assert results(paths) == results(whole)


def load_progress(state, paths, settings):
    vocabulary = Vocabulary.load(paths.captions / "vocabulary.json")
    model = CAMP(settings.model.config(vocab_size=len(vocabulary), region_dim=16))
    resume = Resume(state.parent.parent, "")
    resume.folder, resume.state = state.parent, state
    with safe_open(state, framework="pt") as file:
        resume.key = file.metadata()["key"]
    return resume.load(model, torch.optim.AdamW(model.parameters()), torch.GradScaler("cpu", enabled=False))


@pytest.mark.parametrize("change", ["params", "captions", "regions", "vocabulary"])
def test_a_state_of_other_params_or_data_is_never_used(make_data, params, run_train, change, capsys):
    settings, paths = params(**EVERYTHING), make_data(images=15)
    with pytest.raises(Killed):
        run_train(settings, paths, stop=kill_after(4))
    if change == "params":
        settings = settings.replace(train=settings.train.replace(learning_rate=0.02))
    else:
        other = make_data("other", images=15, captions=3)
        source, target = {
            "captions": (other.captions / "val.parquet", paths.captions / "val.parquet"),
            "regions": (other.regions / "manifest.parquet", paths.regions / "manifest.parquet"),
            "vocabulary": (other.captions / "vocabulary.json", paths.captions / "vocabulary.json"),
        }[change]
        content = source.read_bytes()
        if change == "vocabulary":
            words = Vocabulary.load(source).words
            Vocabulary([*words[:4], *reversed(words[4:])]).save(target)
        elif change == "regions":
            pq.write_table(pq.read_table(source), target, compression="none")
        else:
            target.write_bytes(content)
    capsys.readouterr()
    run_train(settings, paths)
    assert "going on after step" not in capsys.readouterr().out


def test_how_often_to_save_may_change(make_data, params, run_train, capsys):
    paths = make_data(images=15)
    with pytest.raises(Killed):
        run_train(params(**EVERYTHING), paths, stop=kill_after(4))
    capsys.readouterr()
    run_train(params(**(EVERYTHING | {"checkpoint_steps": 1})), paths)
    assert "going on after step 4 of 9" in capsys.readouterr().out


def test_a_torn_state_starts_anew(make_data, params, run_train, capsys):
    paths = make_data(images=15)
    with pytest.raises(Killed):
        run_train(params(**EVERYTHING), paths, stop=kill_after(4))
    (state,) = paths.work.glob("*/state.safetensors")
    state.write_bytes(state.read_bytes()[:500])
    run_train(params(**EVERYTHING), paths)
    printed = capsys.readouterr().out
    assert "state.safetensors: cannot be read" in printed and "going on" not in printed


def test_keys_depend_on_code_and_everything_else(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    before = sha256_of([tmp_path / "a.py"])
    (tmp_path / "a.py").write_text("x = 2")
    assert sha256_of([tmp_path / "a.py"]) != before
    assert run_key({"a": 1, "b": 2}) == run_key({"b": 2, "a": 1}) != run_key({"a": 1, "b": 3})


def test_states_of_two_trainings_lie_side_by_side(tmp_path):
    model = CAMP(ModelParams(dim=4, word_dim=2).config(vocab_size=5, region_dim=3))
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.GradScaler("cpu", enabled=False)
    first, second = Resume(tmp_path, "a" * 64), Resume(tmp_path, "b" * 64)
    first.save(Progress(step=1), model, optimizer, scaler)
    second.save(Progress(step=2), model, optimizer, scaler)
    second.clear()
    assert first.load(model, optimizer, scaler).step == 1
    assert second.load(model, optimizer, scaler) is None


def test_a_killed_process_resumes_bit_for_bit(make_job, params):
    settings = params(**(EVERYTHING | {"epochs": 40}))
    whole, killed = make_job("whole", settings, images=15), make_job("killed", settings, images=15)
    whole.finish()
    process = killed.start()
    killed.wait_for_step(20, process)
    process.kill()
    process.communicate()
    assert not (killed.folder / "models").exists() and not (killed.folder / "metrics").exists()

    process = killed.start()
    killed.wait_for_step(50, process)
    process.send_signal(signal.SIGTERM)
    assert "going on after step" in process.communicate(timeout=200)[0]
    assert process.returncode == 143

    assert "going on after step" in killed.finish()
    assert killed.result() == whole.result()
