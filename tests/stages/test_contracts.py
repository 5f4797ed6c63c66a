"""One reader for each format of file that stages read: every fault is an InputError that names file and key."""

import ast
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from camp_model.files import write_json, write_table
from stages.contracts import read_fingerprint, read_json, read_object, read_table
from stages.errors import InputError

ROOT = Path(__file__).parents[2]
COLUMNS = {"image_id": pa.string(), "width": pa.int32(), "note": None}


def _table(**more: pa.Array) -> pa.Table:
    columns = {"image_id": pa.array(["a", "b"]), "width": pa.array([1, 2], pa.int32()), "note": pa.array(["x", "y"])}
    return pa.table(columns | more).replace_schema_metadata({"camp.format": "test", "camp.version": "1"})


@pytest.mark.parametrize("folder", ["plain", "split=val"])
def test_columns_come_as_they_were_written(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "images.parquet"
    write_table(path, _table(split=pa.array(["train", "val"])))
    assert read_table(path, COLUMNS, form="test").equals(_table().replace_schema_metadata(), check_metadata=False)
    assert read_table(path, ("split", "note")).to_pydict() == {"split": ["train", "val"], "note": ["x", "y"]}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"images\.parquet: cannot be read as Parquet .*; expected a table"),
        (lambda path: (path.unlink(), path.mkdir()), r"images\.parquet: cannot be read as Parquet"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"images\.parquet: cannot be read as Parquet"),
        (lambda path: write_table(path, _table().drop_columns("note")), r"images\.parquet: note: no such column"),
        (lambda path: write_table(path, _table(width=pa.array([1.0, 2.0]))), "width: is double; expected int32"),
        (lambda path: write_table(path, _table(note=pa.array(["x", None]))), "note: holds nulls"),
        (
            lambda path: write_table(path, _table().replace_schema_metadata()),
            r"camp\.format: is .., .*; expected test, 1",
        ),
        (
            lambda path: write_table(path, _table().replace_schema_metadata({"camp.format": b"\xff" * 999})),
            "format: is .*; expected test, 1",
        ),
    ],
)
def test_a_fault_of_a_table_is_named(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "images.parquet"
    write_table(path, _table())
    spoil(path)
    with pytest.raises(InputError, match=f"^dataset: {path.parent}/.*{message}"):
        read_table(path, COLUMNS, "a table", form="test", where="dataset: ")


def test_an_error_is_short_however_long_the_column_type(tmp_path: Path) -> None:
    wide = pa.array([{f"field_{i}": i for i in range(5000)}] * 2)
    write_table(tmp_path / "images.parquet", _table(width=wide))
    with pytest.raises(InputError, match="width: is struct") as raised:
        read_table(tmp_path / "images.parquet", COLUMNS)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .*; expected metrics"),
        (b"{", "is not JSON: .*; expected metrics"),
        (b"\xe9", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "holds list, not a JSON object; expected metrics"),
    ],
)
def test_a_fault_of_an_object_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "train.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^train: {path}: {message}"):
        read_object(path, "metrics", "train: ")


def test_json_of_any_kind_and_fingerprints(tmp_path: Path) -> None:
    write_json(tmp_path / "list.json", [1, "é"])
    assert read_json(tmp_path / "list.json", "a list") == [1, "é"]
    assert read_fingerprint(tmp_path) == {}
    write_json(tmp_path / "fingerprint.json", {"detector": "abc"})
    assert read_fingerprint(tmp_path) == {"detector": "abc"}
    write_json(tmp_path / "fingerprint.json", ["abc"])
    with pytest.raises(InputError, match=r"fingerprint\.json: holds list"):
        read_fingerprint(tmp_path)


READ_ELSEWHERE = {
    "camp_model/files.py",
    "stages/sources/table_files.py",  # a person's own table, of whatever columns
    "pipelines/unpack.py",  # the same
}


@pytest.mark.parametrize("package", ["camp_model", "stages", "search", "pipelines"])
def test_no_other_module_opens_parquet(package: str) -> None:
    loose = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / package).rglob("*.py")
        if path.relative_to(ROOT).as_posix() not in READ_ELSEWHERE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("pq.read_table", "pq.ParquetFile", "pq.read_schema", "pd.read_parquet")
        and not (package == "pipelines" and ast.unparse(node.func).startswith("pd."))  # from DVC's cache, not a path
    }
    assert loose == set()
