"""Files that are written whole or not at all, and the one module that writes them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camp_model.files import replacing, replacing_folder, write_csv, write_json, write_table, write_text

ROOT = Path(__file__).parents[2]


def test_a_file_takes_its_place_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "words.txt"
    write_text(path, "a dog\n")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "a dog\n"
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "a dog\n"
    assert [file.name for file in path.parent.iterdir()] == ["words.txt"]


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    path = tmp_path / "words[1].txt"
    write = "import sys, os, pathlib; from camp_model.files import replacing\n"
    write += "with replacing(pathlib.Path(sys.argv[1])) as file: file.write_text('half'); {}"
    begun = [sys.executable, "-c", write.format("print(flush=True); sys.stdin.read()"), str(path)]
    subprocess.run([sys.executable, "-c", write.format("os.kill(os.getpid(), 9)"), str(path)], check=False, cwd=ROOT)
    assert len(list(tmp_path.iterdir())) == 1
    with subprocess.Popen(begun, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        write_text(path, "whole")
        assert len(list(tmp_path.iterdir())) == 2  # what the other process writes
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(path.name, "half")]


def test_a_folder_takes_its_place_whole(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "dataset"
    with replacing_folder(folder) as building:
        write_text(building / "sub" / "old.txt", "old")
    (folder.parent / ".dataset.tmp").mkdir()  # a killed process left it
    (folder.parent / ".dataset.tmp" / "torn").touch()
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder) as building:
        assert list(building.iterdir()) == []
        (building / "half").touch()
        raise KeyboardInterrupt
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*.txt"))] == [
        "data/dataset/sub/old.txt"
    ]
    with replacing_folder(folder) as building:
        (building / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "dataset", "new"]


@pytest.mark.parametrize("writing", [replacing, replacing_folder])
def test_a_file_that_cannot_be_read_on_the_way_is_not_taken_for_what_is_written(writing, tmp_path: Path) -> None:
    (source := tmp_path / "features.npz").mkdir()
    with pytest.raises(IsADirectoryError) as read, writing(tmp_path / "out"):
        source.read_bytes()
    assert read.value.filename == str(source)
    with pytest.raises(IsADirectoryError) as written, writing(tmp_path / "out") as temporary:
        temporary.mkdir(exist_ok=True)
        temporary.write_bytes(b"")
    assert written.value.filename == str(tmp_path / "out")


@pytest.mark.parametrize("writing", [replacing, replacing_folder])
@pytest.mark.parametrize("link", [False, True])
def test_a_device_pipe_or_socket_is_never_replaced(writing, link: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / ("link" if link else "pipe")
    if link:
        path.symlink_to("pipe")
    with (
        pytest.raises(FileExistsError, match="A device, pipe or socket is there; expected a file") as error,
        writing(path),
    ):
        pytest.fail("it is refused before anything is written")
    assert error.value.filename == str(path)
    assert (tmp_path / "pipe").is_fifo() and path.is_symlink() is link and len(list(tmp_path.iterdir())) == 1 + link


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1], "a": "é"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "b": [\n    1\n  ],\n  "a": "é"\n}\n'
    write_csv(tmp_path / "a.csv", ("x", "y"), [{"x": 1, "more": 2}, {"x": "a,b", "y": 0.5}])
    assert (tmp_path / "a.csv").read_bytes() == b'x,y\n1,\n"a,b",0.5\n'
    table = pa.table({"x": [1, 2]}).replace_schema_metadata({"camp.format": "test"})
    write_table(tmp_path / "a.parquet", table)
    assert pq.read_table(tmp_path / "a.parquet").equals(table, check_metadata=True)
    assert len(list(tmp_path.iterdir())) == 3


ALLOWED = {
    "camp_model/files.py",
    "stages/tracking/store.py",  # an SQLite file that MLflow writes
}


def _writers(module: ast.Module) -> list[int]:
    """Lines that write or move a file outside a block of `replacing`."""
    covered = {
        line
        for node in ast.walk(module)
        if isinstance(node, ast.With) and any("replacing" in ast.unparse(item.context_expr) for item in node.items)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = []
    for node in ast.walk(module):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.lineno in covered:
            continue
        name, arguments = node.func.attr, len(node.args)
        moves = name in ("replace", "rename") and arguments == 1 and not node.keywords  # text.replace takes two
        writes = name in ("save_file", "write_index") or ast.unparse(node.func) == "pq.write_table"
        if moves or writes:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("package", ["camp_model", "stages", "search", "pipelines"])
def test_no_other_module_replaces_files(package: str) -> None:
    loose = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / package).rglob("*.py")
        if path.relative_to(ROOT).as_posix() not in ALLOWED
        for line in _writers(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert loose == set()
