"""The command line, as a person starts it."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import search.__main__ as command
from search.cache import FeatureCache
from search.collection import Answer, PictureCollection
from tests.search.folders import Folder, wait_for
from tests.stages.conftest import SmallRun

SENTENCE = "two dogs in the snow"


def camp_search(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`camp search` started in a folder below this repository's command."""
    root = Path(command.__file__).parent.parent
    program = [sys.executable, "-m", "pipelines.camp", "--repository", str(root), "search", *arguments]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_cache_that_cannot_be_written_is_an_error_of_one_line(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.root)
    Path("cache").write_text("no folder")
    with pytest.raises(SystemExit, match="2"):
        command.main([SENTENCE, "--images", "images", "--model", "models/tiny", "--cache", "cache"])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: cache\S*: (Not a directory|File exists); expected that cache is a folder", line)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough_is_no_error_and_a_full_disk_is_one(folder: Folder, unbuffered: str) -> None:
    options = ["--images", "images", "--model", "models/tiny", "--cache", "cache"]
    program = [sys.executable, "-m", "search", SENTENCE, *options]
    environment = os.environ | {"PYTHONPATH": str(Path(command.__file__).parent.parent), "PYTHONUNBUFFERED": unbuffered}
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full").open("wb") as full:
        for output, code, said in ((write, 141, ""), (full, 2, "error: standard output: No space left on device; ")):
            done = subprocess.run(
                program, cwd=folder.root, env=environment, stdout=output, stderr=subprocess.PIPE, text=True, check=False
            )
            assert done.returncode == code and "Traceback" not in done.stderr and "ignored" not in done.stderr
            assert said in done.stderr
    os.close(write)


def test_a_closed_output_is_no_error(folder: Folder) -> None:
    options = ["--images", "images", "--model", "models/tiny", "--cache", "cache"]
    done = subprocess.run(
        ["bash", "-c", '"$@" >&-', "bash", sys.executable, "-m", "search", SENTENCE, *options], cwd=folder.root,
        env=os.environ | {"PYTHONPATH": str(Path(command.__file__).parent.parent)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_id_without_a_name_searches_with_the_shipped_model(folder: Folder, tmp_path: Path) -> None:
    """As of `docker run --user`; torch asks for the name when the transformer's library is loaded."""
    nameless = "import pwd\ndef nobody(uid):\n    raise KeyError(uid)\npwd.getpwuid = nobody\n"
    (tmp_path / "sitecustomize.py").write_text(nameless)
    repository = Path(command.__file__).parent.parent
    names = ("USER", "LOGNAME", "LNAME", "USERNAME", "TORCHINDUCTOR_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (tmp_path, repository)))
    options = ["--images", str(folder.root / "images"), "--cache", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "search", SENTENCE, *options], cwd=repository, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_folder_is_searched_from_where_one_stands(folder: Folder) -> None:
    folder.draw("zyzzyva.png", 9)
    (folder.images / "torn.png").write_bytes(b"no picture")
    shutil.copyfile(folder.images / "0.png", folder.images / "zz.png")
    (folder.root / "cache").mkdir()
    (folder.root / "cache/hashes.sqlite").write_bytes(b"damaged " * 512)
    done = camp_search(
        folder.root, f"{SENTENCE} zyzzyva", "--images", "images", "--model", "models/tiny", "--cache", "cache",
        "--top", "3", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "hashes.sqlite: cannot be read" in done.stderr
    answer = json.loads(done.stdout)
    assert [answer[name] for name in ("pictures", "rejected", "copies", "unknown")] == [8, 1, 1, ["zyzzyva"]]
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    assert "1 picture cannot be used, such as torn.png: is no image of a known format" in done.stderr
    assert "copies of other files, which are listed only under the first name: 1" in done.stderr
    collection = folder.open()
    collection.start()
    wait_for(collection)
    hits = collection.search(f"{SENTENCE} zyzzyva", 3).hits
    assert [hit["path"] for hit in answer["hits"]] == [str(hit.file.path) for hit in hits]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit.score for hit in hits])
    collection.close()


def test_the_workspace_is_searched_without_a_folder(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.root)
    command.main(["a red circle", "--top", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("data/dataset/images/image-" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--images", "nowhere", "a dog"], "nowhere: is not a folder"),
        (["--images", "images", "--model", "nowhere", "a dog"], "nowhere/config.json"),
        (["--model", "models/tiny", "a dog"], "--model: can only be used with --images"),
        (["--images", "images", "!?"], "holds no word"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(folder.root)
    monkeypatch.setattr(command, "SHIPPED", folder.model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.root / "cache"))
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a dog", "--top", "0"], "'0' is not a whole number"),
        (["a dog", "--top", "many"], "'many' is not a whole number"),
        (["a dog", "--top", "²"], "'²' is not a whole number"),
        (["--json"], "--json: needs a sentence"),
        (["--top", "10"], "--top: needs a sentence"),
        (["a dog", "--host", "127.0.0.1"], "--host: is for the page"),
        (["a dog", "--port", "0"], "--port: is for the page"),
        (["--sentences", "-", "--allow-host", "example.org"], "--allow-host: is for the page"),
        (["a dog", "--images", ""], "is empty; expected a folder"),
        (["--sentences", ""], "--sentences: is empty; expected a file"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_names_reach_the_terminal_without_control_characters(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.images.iterdir():
        path.unlink()
    folder.draw("drawn.png", 1).rename(folder.images / "\x1b]0;gotcha\x07\n.png")
    monkeypatch.chdir(folder.root)
    command.main([SENTENCE, "--images", "images", "--model", "models/tiny", "--cache", "cache"])
    out = capsys.readouterr().out
    assert "gotcha" in out and "\x1b" not in out and len(out.splitlines()) == 1


def test_what_is_not_read_and_what_is_not_there_is_said(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.root)
    options = ["--images", "images", "--model", "models/tiny", "--cache", "cache"]
    command.main(["red " * 100, *options])
    assert "the last 40 words of the sentence are not read" in capsys.readouterr().err
    command.main(["red " * 100, *options, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert (answer["dropped"], answer["indexing"], answer["problem"]) == (40, False, None)
    for path in folder.images.iterdir():
        path.unlink()
    (folder.images / "camera.dng").touch()
    with pytest.raises(SystemExit, match="2"):
        command.main([SENTENCE, *options])
    said = capsys.readouterr()
    assert said.out == "" and "1 picture cannot be used, such as camera.dng: is in a format that is not" in said.err
    assert (
        "error: images: no picture that can be searched; files of pictures end in .apng, .avif, .avifs, .bmp"
        in said.err
    )


def test_a_file_of_sentences_is_answered_line_by_line(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.root)
    options = ["--images", "images", "--model", "models/tiny", "--cache", "cache"]
    expected = []
    for sentence in (SENTENCE, "two zyzzyvas"):
        command.main([sentence, *options, "--json"])
        expected.append(json.loads(capsys.readouterr().out))
    Path("queries.txt").write_text(f"{SENTENCE}\n\n  two zyzzyvas\r\n")
    command.main(["--sentences", "queries.txt", *options])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["sentence"] for answer in answers] == [SENTENCE, "  two zyzzyvas"]
    assert [{**answer, "sentence": ""} for answer in answers] == [{**answer, "sentence": ""} for answer in expected]
    for text, message in ((f"{SENTENCE}\n...\n", "line 2: sentence: '...' holds no word"), ("\n", "holds no sentence")):
        Path("queries.txt").write_text(text)
        with pytest.raises(SystemExit, match="2"):
            command.main(["--sentences", "queries.txt", *options])
        said = capsys.readouterr()
        assert said.out == "" and f"error: queries.txt: {message}" in said.err
    with pytest.raises(SystemExit, match="2"):
        command.main([SENTENCE, "--sentences", "queries.txt", *options])
    assert "--sentences: cannot be used with a sentence" in capsys.readouterr().err
    program = [sys.executable, "-m", "search", "--sentences", "-", "--top", "1", *options]
    root = str(Path(command.__file__).parents[1])
    done = subprocess.run(
        program, input=f"{SENTENCE}\n" * 2, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert [json.loads(line)["hits"] for line in done.stdout.splitlines()] == [expected[0]["hits"][:1]] * 2


def test_pictures_that_go_between_two_sentences_are_no_error(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def search_and_lose_one(self: PictureCollection, *arguments: Any) -> Answer:
        answer = ask(self, *arguments)
        answer.hits[0].file.path.unlink()
        self.rescan()
        wait_for(self)
        return answer

    ask = PictureCollection.search
    monkeypatch.setattr(PictureCollection, "search", search_and_lose_one)
    monkeypatch.chdir(folder.root)
    Path("queries.txt").write_text(f"{SENTENCE}\n" * 2)
    options = ["--images", "images", "--model", "models/tiny", "--cache", "cache"]
    command.main(["--sentences", "queries.txt", *options])
    first, second = (json.loads(line)["hits"] for line in capsys.readouterr().out.splitlines())
    assert [hit["path"] for hit in first[1:]] == [hit["path"] for hit in second] and len(second) == 6


def test_why_indexing_has_stopped_is_in_the_json(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(folder.root)
    options = [SENTENCE, "--images", "images", "--model", "models/tiny", "--cache", "cache", "--json"]
    command.main(options)
    whole = json.loads(capsys.readouterr().out)
    folder.draw("further.png", 99)
    monkeypatch.setattr(FeatureCache, "extract", fail)
    command.main(options)
    answer = json.loads(capsys.readouterr().out)
    assert answer["hits"] == whole["hits"] and answer["pictures"] == whole["pictures"]
    assert (whole["problem"], answer["problem"]) == (None, "indexing has stopped: [Errno 28] No space left on device")


def test_interrupted_while_it_is_loaded_it_just_ends(folder: Folder) -> None:
    program = [sys.executable, "-m", "search", SENTENCE, "--images", str(folder.images)]
    root = Path(command.__file__).parent.parent
    with subprocess.Popen(
        program, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that runs the tests in the background has them, and all that they start, ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:  # fmt: skip
        maps = Path(f"/proc/{process.pid}/maps")
        until = time.monotonic() + 60
        while "libtorch" not in maps.read_text() and time.monotonic() < until:  # which takes a while to load
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err


def test_how_long_indexing_took_is_said_once(folder: Folder, capfd: pytest.CaptureFixture[str]) -> None:
    said = r"7 pictures can be searched after \d+\.\d s \(7 processed, \d+\.\d a second\)\n"
    for expected in (said, ""):
        collection = folder.open()
        collection.start()
        wait_for(collection)
        collection.close()
        assert re.fullmatch(expected, capfd.readouterr().err)
