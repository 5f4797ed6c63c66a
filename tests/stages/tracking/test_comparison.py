"""Two models are compared by the ranks that their runs recorded, or that a folder holds."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from camp_model.files import write_sealed, write_table
from stages.errors import InputError
from stages.evaluation.tables import QUERY_SCHEMA
from stages.tracking import track
from stages.tracking.__main__ import main as commands
from stages.tracking.delivery import sync
from stages.tracking.restore import find_run
from stages.tracking.store import connect, local_uri, search_runs
from tests.stages.tracking.conftest import run_of

pytestmark = pytest.mark.usefixtures("created")
IMAGES = 60


def write_ranks(folder: Path, ranks: list[int], split: str = "test", queries: str = "equal") -> Path:
    """A split of images with two captions each: `ranks` of the images' own queries, and of their captions (twice)."""
    ids = [f"i{number:03}" for number in range(IMAGES)]
    rows = [
        {"direction": "i2t", "query_id": id_, "image_id": id_, "rank": rank}
        for id_, rank in zip(ids, ranks, strict=True)
    ]
    rows += [{**row, "direction": "t2i", "query_id": f"{n}{row['query_id']}"} for row in rows for n in range(2)]
    table = pa.Table.from_pylist([{**row, "top_ids": [], "top_scores": []} for row in rows[::-1]], schema=QUERY_SCHEMA)
    write_table(
        folder / f"{split}.parquet",
        table.replace_schema_metadata({**QUERY_SCHEMA.metadata, b"camp.queries": queries.encode()}),
    )
    return folder


def record(name: str, folder: Path) -> str:
    """A run with its evaluation, as the stages record them."""
    with track("train", {}, name=name) as run:
        pass
    with track("evaluate", {}, parent=run.run_id) as child:
        for file in sorted(folder.iterdir()):
            child.log_artifact(file, "queries")
    return str(run.run_id)


BETTER, WORSE = [1] * IMAGES, [1, 6] * (IMAGES // 2)


@pytest.fixture
def recorded(root: Path, tmp_path: Path) -> str:
    """The runs full and plain, and full's key."""
    key = record("full", write_ranks(tmp_path / "full", BETTER))
    record("plain", write_ranks(tmp_path / "plain", WORSE))
    sync(root)
    return key


def numbers(text: str) -> dict[str, list[str]]:
    return {line[:8].strip(): line[8:].split(maxsplit=3) for line in text.splitlines()[2:-1]}


def test_runs_are_compared_by_name_and_key_and_with_a_folder(recorded, tmp_path, capsys):
    commands(["compare", "full", "plain"])
    said = capsys.readouterr().out
    rows = numbers(said)
    assert said.startswith("test: 60 images, 120 captions; of each model 1 run\n")
    # Half of the second's queries have rank 6: they are missed at 1 and 5, and found at 10.
    assert rows["rsum"][:3] == ["600.0", "400.0", "+200.0"]
    assert rows["i2t R@1"][:3] == rows["t2i R@5"][:3] == ["100.0", "50.0", "+50.0"]
    assert rows["t2i R@10"] == ["100.0", "100.0", "+0.0", "[+0.0, +0.0]"]
    low, high = (float(end) for end in rows["rsum"][3].strip("[]").split(","))
    # Half of sixty images: a binomial deviation of 6.45 points at each of the four depths that differ.
    assert low == pytest.approx(200 - 1.96 * 4 * 6.45, abs=8) and high == pytest.approx(200 + 1.96 * 4 * 6.45, abs=8)
    commands(["compare", recorded[:12], str(tmp_path / "plain")])
    assert capsys.readouterr().out == said
    commands(["compare", "plain", "full"])
    assert numbers(capsys.readouterr().out)["rsum"][:3] == ["400.0", "600.0", "-200.0"]


def test_several_seeds_are_paired_and_widen_the_interval(root, tmp_path, capsys):
    for name in "abcdef":
        write_ranks(tmp_path / name, BETTER if name in "abf" else WORSE)
    a, b, c, d, e, f = (str(tmp_path / name) for name in "abcdef")
    commands(["compare", f"{a},{b},{c}", f"{d},{e}, {f}"])
    said = capsys.readouterr().out
    assert "of each model 3 runs" in said and "covers the choice of images and of seeds" in said
    rows = numbers(said)
    assert rows["rsum"][:3] == ["533.3", "466.7", "+66.7"]  # differences of 200, 200 and -200
    low, high = (float(end) for end in rows["rsum"][3].strip("[]").split(","))
    assert low < -300 and high > 430  # t of two degrees of freedom: 66.7 +- 4.30 x 230.9 / 3 ** 0.5, and the images


def test_runs_that_cannot_be_compared_are_an_error(root, recorded, tmp_path):
    (tmp_path / "empty").mkdir()
    record("unmeasured", tmp_path / "empty")
    record("of-val", write_ranks(tmp_path / "val", BETTER, "val"))
    record("others", write_ranks(tmp_path / "others", BETTER, queries="other"))
    for _ in range(2):
        record("twice", tmp_path / "empty")
    sync(root)
    for other, message in (
        ("none", "run none: no runs have this name or id; expected the name"),
        ("it's", "run it's: no runs have this name or id; expected the name"),
        ("", "run : no runs"),
        ("plain,others", "full: 1 and plain,others: 2 runs; expected as many of both models"),
        ("unmeasured", r"\(unmeasured\): recorded no ranks of test; expected a run"),
        ("of-val", r"\(of-val\): recorded no ranks of test, but of val"),
        ("others", "others: test: other images or captions were ranked than in full, or under another evaluate.proto"),
        (str(tmp_path / "val"), r"test\.parquet: cannot be read as Parquet .*; expected ranks that the stage evaluate"),
        ("twice", r"run twice: 2 runs have this name or id \("),
    ):
        with pytest.raises(InputError, match=message):
            commands(["compare", "full", other])
    with pytest.raises(InputError, match="plain: is named twice; expected runs of one model with different seeds"):
        commands(["compare", "full,others", "plain,plain"])


def test_one_model_is_one_seed_however_it_is_named(root, recorded, tmp_path):
    plain = str(tmp_path / "plain")
    first, second = (write_ranks(tmp_path / name, BETTER) for name in ("evaluated", "copied"))
    for folder in (first, second):
        write_sealed(folder / "results.json", {"results": {"model.safetensors": "f" * 64}})
    with (
        track("train", {}, name="same", tags={"camp.model": "f" * 64}) as run,
        track("evaluate", {}, parent=run.run_id),
    ):
        pass
    sync(root)
    connected = connect(root, local_uri(root))
    (child,) = search_runs(connected, f"tags.`mlflow.parentRunId` = '{run_of(root, run.run_id).info.run_id}'")
    for one, again in (
        (plain, f"{tmp_path}/full/../plain"),
        ("full", recorded[:12]),
        (str(first), str(second)),
        (str(first), "same"),
        ("same", child.info.run_id),
    ):
        with pytest.raises(InputError, match=f"{re.escape(again)}: is named twice; expected runs of one model with"):
            commands(["compare", "full,plain", f"{one},{again}"])


def test_what_is_a_run_in_full_is_no_beginning_of_another(root):
    client = connect(root, local_uri(root))
    experiment = client.create_experiment("any")

    def begin(name: str, key: str) -> str:
        run = client.create_run(experiment, tags={"camp.run": key, "camp.model": f"x{key}"}, run_name=name)
        return str(run.info.run_id)

    first = begin("first", "yyyy")
    assert find_run(client, first[:2]).info.run_id == first
    short, spelled = begin(first[:2], "zzzz"), begin("model-zz", "wwww")
    for name, found in ((first[:2], short), (first, first), ("zz", short), ("model-zz", spelled), ("xy", first)):
        assert find_run(client, name).info.run_id == found
    other = begin(short, "vvvv")
    with pytest.raises(InputError, match=r": 2 runs have this name or id \(") as said:
        find_run(client, short)
    assert short in str(said.value) and other in str(said.value)
