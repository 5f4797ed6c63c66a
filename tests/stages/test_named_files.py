"""What params name by path is a dependency by content: the real dvc.yaml, its other stages' commands made trivial."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from camp_model.files import sha256_of
from stages.content import hashes
from stages.content.hashes import content_hash
from stages.content.named import NamedFilesSections, content_of, named_paths
from stages.errors import InputError
from stages.named_files import main, named_files

FAKE = """
import sys
from pathlib import Path
for name in sys.argv[1:]:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        path.write_text("0")
    else:
        path.mkdir(exist_ok=True)
        (path / "rejected.parquet").write_text(name)
"""
CODE = ("stages/", "camp_model")


def run(folder, *command, check=True):
    dropped = ("DVC_", "GIT_", "MLFLOW_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "true",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "t", f"GIT_{role}_EMAIL": "t@localhost"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def ran(folder, *command):
    """The stages that a dvc command runs."""
    lines = run(folder, "dvc", *command).splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def set_params(folder, **values):
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for key, value in values.items():
        section, name = key.split("__")
        params[section][name] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture
def workspace(repository, tmp_path):
    """A committed repository with the real dvc.yaml and params.yaml, nothing of which has run."""
    folder = tmp_path / "main"
    (folder / "data/raw/photos").mkdir(parents=True)
    (folder / "data/raw/README.md").write_text("what Git tracks of data/raw")
    (folder / "data/raw/photos/a.jpg").write_text("a")
    (folder / "named").mkdir()
    for name in ("params.yaml", ".gitignore", "named/content.json", "named/dvc.yaml", "named/watched.json"):
        (folder / name).write_bytes((repository / name).read_bytes())
    (folder / "fake.py").write_text(FAKE)
    pipeline = yaml.safe_load((repository / "dvc.yaml").read_text())
    for name, stage in pipeline["stages"].items():
        stage["deps"] = [path for path in stage.get("deps", ()) if not path.startswith(CODE)] or ["fake.py"]
        if name != "named_files":
            written = [item for key in ("outs", "metrics", "plots") for item in stage.get(key, ())]
            paths = [next(iter(item)) if isinstance(item, dict) else item for item in written]
            stage["cmd"] = f"python fake.py {' '.join(paths)}"
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "dvc", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "begin")
    run(folder, "git", "tag", "begin")
    return folder


ALL = [
    "prepare_dataset",
    "train_detector",
    "extract_regions",
    "tokenize_captions",
    "train",
    "index",
    "evaluate",
    "report",
]


@pytest.mark.timeout(600)
def test_other_content_at_the_same_path_makes_what_reads_it_stale_and_nothing_else(workspace, tmp_path):
    assert ran(workspace, "repro") == ["named_files", *ALL]
    assert "Data and pipelines are up to date" in run(workspace, "dvc", "repro")  # nothing is named: nothing is watched
    assert "Data and pipelines are up to date" in run(workspace, "dvc", "status")

    vectors, models = workspace / "data/raw/glove.txt", tmp_path / "elsewhere/model"
    vectors.write_text("red 1 2\n")
    models.mkdir(parents=True)
    (models / "model.safetensors").write_text("first")
    set_params(workspace, dataset__source="table", dataset__root="data/raw/photos", train__word_vectors=str(vectors),
               evaluate__ensemble=[str(models)], captions__lexicon="photographs")  # fmt: skip
    assert set(ran(workspace, "repro")) >= {"named_files", "prepare_dataset", "train", "evaluate"}
    assert ran(workspace, "repro") == ["named/dvc.yaml:watch"]
    assert run(workspace, "git", "ls-files", "--others", "--exclude-standard", "named") == "named/dvc.lock\n"

    vectors.write_text("red 2 1\n")
    assert [name for name in ran(workspace, "repro") if "named" not in name] == ["train"]  # the fake writes the same
    (models / "model.safetensors").write_text("other")
    assert [name for name in ran(workspace, "repro") if "named" not in name] == ["evaluate"]
    (workspace / "data/raw/photos/b.jpg").write_text("b")
    assert [name for name in ran(workspace, "repro") if "named" not in name] == ["prepare_dataset"]
    assert ran(workspace, "repro") == ["named/dvc.yaml:watch"]

    # A second clone, which has what Git and the remote have, and none of the files.
    run(workspace, "dvc", "remote", "add", "-q", "-d", "there", str(tmp_path / "remote"))
    run(workspace, "dvc", "push", "-q")
    run(workspace, "git", "add", "-A")
    run(workspace, "git", "commit", "-qm", "reproduced")
    run(tmp_path, "git", "clone", "-q", str(workspace), "clone")
    vectors.unlink()
    run(tmp_path / "clone", "dvc", "pull", "-q")
    assert ran(tmp_path / "clone", "repro") == ["named/dvc.yaml:watch"]
    assert run(tmp_path / "clone", "git", "status", "--porcelain") == ""

    # An experiment, whose workspace lacks data/raw/photos; nothing but what its params change is run in it.
    vectors.write_text("red 2 1\n")
    (workspace / "data/raw/other.txt").write_text("red 3 3\n")
    said = run(workspace, "dvc", "exp", "run", "--temp", "-n", "warmer", "-S", "train.word_vectors=data/raw/other.txt")
    assert [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")] == [
        "named/dvc.yaml:watch", "named_files", "train"
    ]  # fmt: skip

    set_params(workspace, dataset__source="scenes", captions__lexicon="scenes", train__word_vectors=None,
               evaluate__ensemble=[])  # fmt: skip
    ran(workspace, "repro")
    assert run(workspace, "git", "diff", "--stat", "begin", "--", "named/dvc.yaml") == ""
    assert "Data and pipelines are up to date" in run(workspace, "dvc", "repro")

    # An experiment that is the first to name a file: who applies it looks at that file from then on.
    run(workspace, "git", "add", "-A")
    run(workspace, "git", "commit", "-qm", "nothing is named")
    run(workspace, "dvc", "exp", "run", "--temp", "-n", "warm", "-S", "train.word_vectors=data/raw/glove.txt")
    run(workspace, "dvc", "exp", "apply", "warm")
    assert ran(workspace, "repro") == ["named/dvc.yaml:watch"]
    vectors.write_text("red 5 5\n")
    assert [name for name in ran(workspace, "repro") if "named" not in name] == ["train"]


@pytest.mark.parametrize("damage", ["", "<<<<<<< HEAD\n{}\n", '{"train": 5}', '{"train": {"train.word_vectors": {}}}'])
def test_damaged_records_are_an_error_that_says_how_they_are_made_again(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    Path("named").mkdir()
    Path("named/watched.json").write_text(damage)
    with pytest.raises(
        InputError, match=r"named/watched\.json: .*replace its content by \{\}, and the stage writes it again"
    ):
        named_files(NamedFilesSections())
    Path("named/watched.json").write_text("{}")
    named_files(NamedFilesSections())
    assert Path("named/content.json").exists()


def test_a_path_that_is_not_here_keeps_what_was_recorded_and_is_an_error_without(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {"train": {"train.word_vectors": "glove.txt"}, "evaluate": {}}
    with pytest.raises(InputError, match=r"params\.yaml: train\.word_vectors: glove\.txt: is not here"):
        content_of(paths, {}, tmp_path / "cache")
    Path("glove.txt").write_text("red 1 2\n")
    content = content_of(paths, {}, tmp_path / "cache")
    Path("glove.txt").unlink()
    assert content_of(paths, content, tmp_path / "cache") == content
    recorded = json.loads(json.dumps(content).replace("glove.txt", "another.txt"))
    with pytest.raises(InputError, match="is not here"):
        content_of(paths, recorded, tmp_path / "cache")
    empty = named_paths(NamedFilesSections.from_dict({"dataset": {"source": "table", "root": ""}}))
    with pytest.raises(InputError, match=r"params\.yaml: dataset\.root: is empty"):  # not the repository, unwatched
        content_of(empty, {}, tmp_path / "cache")


def test_a_config_is_hashed_with_those_that_it_builds_on_and_stays_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, base in (("configs/own.yaml", "'../base.yaml'  # ours"), ("base.yaml", "configs/deep.yaml")):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(f"MODEL: {{}}\n_BASE_: {base}\n")
    Path("configs/deep.yaml").write_text("_BASE_: own.yaml\n")  # detectron2 says that this is a circle
    params = NamedFilesSections.from_dict({"detector": {
        "backend": "detectron2", "architecture": "configs/own.yaml", "weights": "random",
    }})  # fmt: skip
    named_files(params)
    first = json.loads(Path("named/content.json").read_text())["train_detector"]
    assert [os.path.normpath(entry["path"]) for entry in first.values()] == [
        "configs/own.yaml", "base.yaml", "configs/deep.yaml"
    ]  # fmt: skip
    with Path("configs/deep.yaml").open("a") as file:
        file.write("SEED: 1\n")
    named_files(params)
    second = json.loads(Path("named/content.json").read_text())["train_detector"]
    assert [key for key in first if first[key] != second[key]] == ["detector.architecture._BASE_._BASE_"]
    for name in first.values():
        Path(name["path"]).unlink()
    named_files(params)  # as in a clone that has only the results
    assert json.loads(Path("named/content.json").read_text())["train_detector"] == second


@pytest.mark.parametrize("weights", ["COCO-Detection/faster_rcnn_R_50_C4_3x.yaml", "detectron2://a/b.pkl", "default"])
def test_weights_that_detectron2_fetches_by_name_are_no_file(weights):
    detector = {"backend": "detectron2", "architecture": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"}
    params = NamedFilesSections.from_dict({"detector": detector | {"weights": weights}})
    assert named_paths(params)["train_detector"] == {}


def test_options_start_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("train:\n  epochs: 1\n")
    for arguments in (["--help"], ["wacht"]):
        monkeypatch.setattr("sys.argv", ["named_files", *arguments])
        with pytest.raises(SystemExit):
            main()
        assert not Path("named").exists()
    assert "named/watched.json" in capsys.readouterr().out


def test_a_folders_hash_is_that_of_its_names_and_contents(tmp_path):
    folder, cache = tmp_path / "folder", tmp_path / "cache.sqlite"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a.txt").write_text("a")
    (folder / "back").symlink_to(folder)
    seen = [content_hash(folder, cache)]

    def changed(do):
        do()
        seen.append(content_hash(folder, cache))

    changed(lambda: (folder / "deep/a.txt").write_text("b"))
    changed(lambda: (folder / "deep/a.txt").rename(folder / "deep/b.txt"))
    changed(lambda: (folder / "empty.txt").write_text(""))
    assert len(set(seen)) == 4
    (folder / "empty.txt").unlink()
    assert content_hash(folder, cache) == seen[2]
    (folder / "deep/.DS_Store").write_text("by macOS, when somebody looks into the folder")
    assert content_hash(folder, cache) == seen[2]


def test_an_unchanged_file_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "SETTLED", 0.0)
    read = []
    monkeypatch.setattr(hashes, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    file, cache = tmp_path / "file", tmp_path / "cache.sqlite"
    file.write_text("a")
    os.utime(file, ns=(10**18, 10**18))
    before = content_hash(file, cache)
    assert content_hash(file, cache) == before and read == [file]
    changed = file.stat().st_ctime_ns
    file.write_text("b")  # as rsync does in place, and keeps times: the same size, time and inode
    while file.stat().st_ctime_ns == changed:  # a coarse clock
        os.utime(file, ns=(10**18, 10**18))
    os.utime(file, ns=(10**18, 10**18))
    assert content_hash(file, cache) != before


def test_the_content_of_a_package_is_seen_without_what_python_compiles_in_it(tmp_path, monkeypatch):
    package = tmp_path / "site" / "some_vectors"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('its code is not run')")
    (package / "data.txt").write_text("red 1")
    monkeypatch.syspath_prepend(package.parent)
    values = {"model": {"text": "transformer", "transformer": "package:some_vectors"}}
    named = named_paths(NamedFilesSections.from_dict(values))
    assert named["train"] == {"model.transformer": "package:some_vectors"}
    assert named_paths(NamedFilesSections.from_dict({}))["train"] == {}
    hub = {"model": {"text": "transformer", "transformer": "some-one/some-model"}}
    assert named_paths(NamedFilesSections.from_dict(hub))["train"] == {}
    # A folder of such a name that was hashed elsewhere, as a second clone finds it; and one that no hub could mean.
    recorded = {"train": {"model.transformer": {"path": "some-one/some-model", "sha256": "ab"}}}
    kept = named_paths(NamedFilesSections.from_dict(hub), recorded)
    assert content_of(kept, recorded, tmp_path / "cache")["train"] == recorded["train"]
    gone = {"model": {"text": "transformer", "transformer": "models/of/mine"}}
    with pytest.raises(InputError, match=r"model\.transformer: models/of/mine: is not here; expected a file or a fo"):
        content_of(named_paths(NamedFilesSections.from_dict(gone)), {}, tmp_path / "cache")
    first = content_of(named, {}, tmp_path / "cache")
    (package / "__pycache__" / "x.pyc").write_text("compiled")
    assert content_of(named, {}, tmp_path / "cache") == first
    (package / "data.txt").write_text("red 2")
    assert content_of(named, {}, tmp_path / "cache") != first
    monkeypatch.undo()
    assert content_of(named, first, tmp_path / "cache") == first
    with pytest.raises(InputError, match=r"model\.transformer: package:some_vectors: is not here; expected an inst"):
        content_of(named, {}, tmp_path / "cache")
