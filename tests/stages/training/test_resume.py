"""A killed training goes on as if nothing had happened."""

import copy
import os
import shutil
import signal
import time

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from camp_model.model import CAMP
from camp_model.vocabulary import Vocabulary
from stages.params.model import ModelParams
from stages.training.identity import PACKAGES, imported_files, sha256_of_files, training_key
from stages.training.resume import UNUSED_DAYS, Progress, Resume
from tests.stages.training.killing import EVERYTHING, Killed, kill_after


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
    resume = Resume(state.parent.parent, "")
    resume.folder, resume.state = state.parent, state
    with safe_open(state, framework="pt") as file:
        resume.key = file.metadata()["key"]
    return resume.load(*untrained(paths, settings))


def untrained(paths, settings):
    vocabulary = Vocabulary.load(paths.captions / "vocabulary.json")
    model = CAMP(settings.model.config(vocab_size=len(vocabulary), region_dim=16))
    return model, torch.optim.AdamW(model.parameters()), torch.GradScaler("cpu", enabled=False)


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
    assert "continuing after step" not in capsys.readouterr().out


def test_how_often_to_save_may_change(make_data, params, run_train, capsys):
    paths = make_data(images=15)
    with pytest.raises(Killed):
        run_train(params(**EVERYTHING), paths, stop=kill_after(4))
    capsys.readouterr()
    run_train(params(**(EVERYTHING | {"checkpoint_steps": 1})), paths)
    assert "continuing after step 4 of 9" in capsys.readouterr().out


def test_a_training_that_other_code_has_begun_is_told_of(make_data, params, run_train, capsys):
    paths = make_data(images=15)
    with pytest.raises(Killed):
        run_train(params(**EVERYTHING), paths, stop=kill_after(4))
    (state,) = paths.work.glob("*/state.safetensors")
    with safe_open(state, framework="pt") as file:
        of_code = file.metadata()["task"]
    for task, said in ((of_code, True), ("b" * 64, False)):
        resume = Resume(paths.work, "a" * 64, task)  # the key that other code makes of the same training
        assert resume.load(*untrained(paths, params(**EVERYTHING))) is None
        assert ("this training reached step 4 with other code" in capsys.readouterr().out) == said


@pytest.mark.parametrize("change", [{"micro_batch": 4}, {"device": "auto"}, {"processes": 2}, {"machines": 2}])
def test_what_leaves_the_result_alone_does_not_lose_a_training(make_data, params, run_train, capsys, change):
    whole, paths = make_data("whole", images=15), make_data("killed", images=15)
    settings = EVERYTHING | {"dropout": 0.0}
    run_train(params(**settings), whole)
    with pytest.raises(Killed):
        run_train(params(**settings), paths, stop=kill_after(4))
    capsys.readouterr()
    run_train(params(**(settings | change)), paths)  # alone, as the processes beside it are not started here
    assert "continuing after step 4 of 9" in capsys.readouterr().out
    losses = [
        [float(row.split(",")[1]) for row in item.splitlines()[1:]] for item in (results(whole)[0], results(paths)[0])
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def key_of(params, processes=1, pairs=32):
    return training_key(params.model, params.train, {"train": "a"}, pairs, processes, torch.device("cpu"))[0]


def test_processes_count_where_they_change_batches_or_dropout(params):
    same, dropping = params(batch_size=8), params(batch_size=8, dropout=0.1)
    assert key_of(same) == key_of(same, processes=2)
    assert key_of(same, pairs=31) == key_of(same, processes=2, pairs=31)  # the shares differ by a pair
    few = params(batch_size=4)
    assert key_of(few, pairs=5) != key_of(few, processes=4, pairs=5)  # two batches, or one with a pair for each
    assert key_of(dropping) != key_of(dropping, processes=2)


@pytest.mark.parametrize("frozen", [True, False])
def test_processes_count_where_a_network_is_trained_that_drops_on_its_own(params, frozen):
    switches = {"text": "transformer", "transformer_frozen": frozen}
    settings = params(switches, batch_size=8)
    assert (key_of(settings) == key_of(settings, processes=2)) == frozen


def test_word_vectors_count_by_what_is_in_them(params, tmp_path):
    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for file, text in zip(files, ("red 1", "red 1", "red 2"), strict=True):
        file.write_text(text)
    first, same, other = (key_of(params(word_vectors=str(file))) for file in files)
    assert first == same != other


def test_the_code_that_counts_is_what_training_imports():
    names = {path.relative_to(PACKAGES["stages"].parent).as_posix() for path in imported_files("stages.train")}
    assert {"stages/train.py", "stages/training/loop.py", "stages/foils/words.py", "camp_model/losses.py"} <= names
    assert {"camp_model/matchers/scan.py", "camp_model/scoring/receive.c"} <= names  # by a registry, and beside
    apart = ("stages/tracking/", "stages/entry.py", "stages/reporting/", "stages/evaluat", "pipelines/")
    assert not [name for name in names if name.startswith(apart)]


def test_a_state_that_nothing_uses_is_removed_and_others_are_not(make_data, params, run_train, tmp_path):
    paths = make_data(images=15)
    with pytest.raises(Killed):
        run_train(params(**EVERYTHING), paths, stop=kill_after(4))
    (unused,) = [path for path in paths.work.iterdir() if path.is_dir()]
    recent = shutil.copytree(unused, unused.with_name("b" * 16))
    long_ago = time.time() - (UNUSED_DAYS + 1) * 24 * 3600
    for path in (*unused.iterdir(), unused):
        os.utime(path, (long_ago, long_ago))
    run_train(params(epochs=1), paths)
    assert [path for path in paths.work.iterdir() if path.is_dir()] == [recent]


def test_a_file_that_another_training_replaces_meanwhile_is_no_error(tmp_path):
    used = tmp_path / ("b" * 16)
    used.mkdir()
    (used / ".state.safetensors.tmp").symlink_to(used / "gone")  # listed, and not there when it is looked at
    Resume(tmp_path, "a" * 64).remove_unused()
    assert used.is_dir()


def test_a_training_keeps_its_own_state_however_old_and_reads_none_of_a_key_that_begins_alike(tmp_path):
    model = torch.nn.Linear(2, 1)
    state = model, torch.optim.AdamW(model.parameters()), torch.GradScaler("cpu", enabled=False)
    own, other = (Resume(tmp_path, "a" * 16 + rest * 48) for rest in "ab")
    own.save(Progress(step=3), *state)
    long_ago = time.time() - (UNUSED_DAYS + 1) * 24 * 3600
    for path in (own.state, own.folder):
        os.utime(path, (long_ago, long_ago))
    own.remove_unused()
    assert own.load(*state).step == 3 and own.folder == other.folder and other.load(*state) is None


def test_a_killed_experiment_goes_on_in_another_workspace(make_job, params):
    """Its own workspace goes with it; the state lies in the main one."""
    settings = params(**(EVERYTHING | {"epochs": 12}))
    main = make_job("main", settings, images=15)
    whole = make_job("whole", settings, images=15)
    whole.train_here()

    def experiment(name):
        folder = main.folder / ".dvc/tmp/exps" / name
        folder.mkdir(parents=True)
        shutil.copytree(main.folder / "data", folder / "data")
        shutil.copy(main.folder / "params.yaml", folder)
        job = copy.copy(main)
        job.folder = folder
        return job

    first, second = experiment("one"), experiment("two")
    process = first.start()
    main.wait_for_step(8, process)
    process.kill()
    process.communicate()
    shutil.rmtree(first.folder)
    assert "continuing after step" in second.finish()
    assert second.result() == whole.result()
    assert not [path for path in (main.folder / ".work/train").iterdir() if path.is_dir()]


def test_a_torn_state_starts_anew(make_data, params, run_train, capsys):
    paths = make_data(images=15)
    with pytest.raises(Killed):
        run_train(params(**EVERYTHING), paths, stop=kill_after(4))
    (state,) = paths.work.glob("*/state.safetensors")
    state.write_bytes(state.read_bytes()[:500])
    run_train(params(**EVERYTHING), paths)
    printed = capsys.readouterr().out
    assert "state.safetensors: cannot be read" in printed and "continuing" not in printed


def test_a_hash_of_files_depends_on_their_content(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    before = sha256_of_files([tmp_path / "a.py"])
    (tmp_path / "a.py").write_text("x = 2")
    assert sha256_of_files([tmp_path / "a.py"]) != before


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
    whole.train_here()
    process = killed.start()
    killed.wait_for_step(20, process)
    process.kill()
    process.communicate()
    assert not (killed.folder / "models").exists() and not (killed.folder / "metrics").exists()

    process = killed.start()
    killed.wait_for_step(50, process)
    process.send_signal(signal.SIGTERM)
    assert "continuing after step" in process.communicate(timeout=200)[0]
    assert process.returncode == 143

    assert "continuing after step" in killed.finish()
    assert killed.result() == whole.result()


def test_a_state_whose_best_weights_are_gone_starts_anew_and_says_so(make_data, params, run_train, capsys):
    paths = make_data(images=15)
    with pytest.raises(Killed):
        run_train(params(**EVERYTHING), paths, stop=kill_after(8))
    (best,) = paths.work.glob("*/best-*")
    shutil.rmtree(best)
    run_train(params(**EVERYTHING), paths)
    printed = capsys.readouterr().out
    assert f"{best}: is not there, which {best.parent / 'state.safetensors'} needs; training starts over" in printed
    assert "continuing" not in printed
