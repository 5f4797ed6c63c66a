"""The page of a folder that is being indexed: there at once, says how far it is, searches what is ready."""

import re
import shutil
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from search.collection import PictureCollection
from search.shipping import export_model
from search.web.application import create_application
from search.workspace import Workspace
from tests.search.conftest import Photographs, Server, picture_bytes
from tests.search.folders import Folder, wait_for, wait_until


def health(client: httpx.Client) -> dict[str, Any]:
    return client.get("/api/health").json()


@pytest.mark.parametrize(
    ("q", "said"), [("", "No picture yet</span>. Say what one shows"), ("a circle", "No picture yet.")]
)
def test_before_the_folder_is_read_the_page_says_so(folder: Folder, q: str, said: str) -> None:
    text = TestClient(create_application(folder.open()), base_url="http://127.0.0.1").get("/", params={"q": q}).text
    assert said in text and "<p>The folder is being read.</p>" in text


@pytest.mark.parametrize("q", ["", "a circle"])
def test_a_list_does_not_go_on_with_as_many_but_other_pictures(
    folder: Folder, opened: PictureCollection, q: str
) -> None:
    client = TestClient(create_application(opened), base_url="http://127.0.0.1")
    (version,) = re.findall('data-version="(.+?)"', client.get("/", params={"q": q, "count": 3}).text)
    more = {"q": q, "offset": 3, "version": version}
    assert client.get("/rows", params=more).text.count("<li") == 4
    answers = [client.get("/api/search", params={"q": "a circle", "offset": offset}).json() for offset in (0, 3)]
    assert {answer["version"] for answer in answers} == {version} == {client.get("/api/health").json()["version"]}
    (folder.images / "0.png").unlink()
    folder.draw("further.png", 50)
    opened.rescan()
    assert wait_for(opened).ready == 7
    answer = client.get("/rows", params=more)
    assert answer.status_code == 409 and "open the list anew" in answer.json()["error"]
    assert client.get("/api/search", params={"q": "a circle"}).json()["version"] != version


@pytest.mark.parametrize(("q", "most", "said"), [("", 4, True), ("a circle", 4, True), ("", 7, False)])
def test_a_list_that_one_page_cannot_show_says_where_it_ends(
    opened: PictureCollection, monkeypatch: pytest.MonkeyPatch, q: str, most: int, said: bool
) -> None:
    monkeypatch.setattr("search.web.pages.MOST", most)
    client = TestClient(create_application(opened), base_url="http://127.0.0.1")
    page = client.get("/", params={"q": q, "count": most}).text
    assert page.count('class="tile"') == most and "More pictures" not in page
    assert ("The list ends at 4 of 7 pictures" in page) == said


def test_more_files_that_cannot_be_used_than_have_their_reasons_kept_are_said(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.web.pages.REJECTED_LISTED", 1)
    for number, said in enumerate(([], ["and 1 more in"], ["and 2 more, the first of them in"])):
        (folder.images / f"camera {number}.dng").touch()
        monkeypatch.setattr("search.web.queries.REJECTED_SHOWN", 2)
        collection = folder.open()
        collection.start()
        wait_for(collection)
        client = TestClient(create_application(collection), base_url="http://127.0.0.1")
        assert re.findall(r"(and \d+ more.*) <a", client.get("/").text) == said
        collection.close()


@pytest.mark.timeout(300)
def test_the_page_is_there_at_once_and_pictures_become_ready(
    page: Any, photographs: Photographs, tmp_path: Path
) -> None:
    export_model(Workspace(photographs.root), tmp_path / "model")
    shutil.copytree(photographs.pictures, tmp_path / "images", ignore=shutil.ignore_patterns("*.csv"))
    later = sorted((tmp_path / "images").glob("[0-9]*.jpg"))[3].rename(tmp_path / "later.jpg")
    shutil.copyfile(min((tmp_path / "images").glob("[0-9]*.jpg")), tmp_path / "images/zz copy.jpg")
    server = Server(
        tmp_path, "--images", str(tmp_path / "images"), "--model", str(tmp_path / "model"),
        "--cache", str(tmp_path / "cache"),
    )  # fmt: skip
    try:
        with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
            first = health(client)
            assert first["indexing"] and first["ready"] < 38
            assert re.search(r'<div id="progress" class="progress">', client.get("/").text)
            assert client.get("/", params={"q": "a dog"}).status_code == 200
            page.open(server.address)
            page.wait("document.querySelector('#progress p').textContent.includes('can be searched')")
            done = wait_until(lambda health: not health["indexing"], partial(health, client))
            assert (done["ready"], done["rejected"], done["copies"], done["problem"]) == (38, 1, 1, None)
            page.wait("document.querySelector('#progress p').textContent === 'All 38 pictures can be searched.'")
            page.open(f"{server.address}?q=a+dog")
            page.wait("document.querySelectorAll('#tiles img').length >= 24")
            assert "1 file could not be used" in page.text("footer summary")
            assert "Copies of other files, listed only under the first name: 1" in page.text("footer")
            later.rename(tmp_path / "images/later.jpg")
            client.post("/api/rescan")
            wait_until(lambda health: health["ready"] == 39, partial(health, client))
            found = client.get("/api/search", params={"q": "a dog", "top": 100}).json()["pictures"]
            assert "later.jpg" in [picture["name"] for picture in found]
            assert client.get("/image", params={"id": found[0]["id"]}).headers["content-type"] == "image/jpeg"
            like = client.get("/api/similar", params={"id": found[0]["id"]}).json()
            assert len(like["pictures"]) == 20 and like["captions"] is None
            for text in (
                client.get("/", params={"like": found[0]["id"]}).text,
                client.post("/captions", content=(tmp_path / "images/later.jpg").read_bytes()).text,
            ):
                assert "this model was shipped without its training captions" in text
            opened = client.get("/picture", params={"id": found[0]["id"]}).text
            assert "More like it" in opened and "training captions" not in opened
            assert page.errors == []
            _see_the_folder_go_and_come_back(page, server, client, tmp_path)
    finally:
        code, errors = server.end()
    assert code == 0 and "Traceback" not in errors


def _see_the_folder_go_and_come_back(page: Any, server: Server, client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "images").rename(tmp_path / "away")
    client.post("/api/rescan")
    wait_until(itemgetter("problem"), partial(health, client))
    page.open(server.address)
    assert "Indexing has stopped: " in page.text("#progress p")
    hidden = page.run("['#again', 'progress'].map(name => document.querySelector(name).hidden)")
    assert hidden == [True, True], "the pictures are those of before, and the bar would be full"
    page.run("document.querySelector('progress').hidden = false")  # as where it stops while the page is open
    page.wait("document.querySelector('progress').hidden")
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    for offline, said in ((True, "The server does not answer."), (False, "Indexing has stopped: ")):
        page.call("Network.emulateNetworkConditions", offline=offline, **network)
        page.wait(f"document.querySelector('#progress p').textContent.startsWith('{said}')")
    (tmp_path / "away/later.jpg").write_bytes(picture_bytes())
    (tmp_path / "away").rename(tmp_path / "images")
    client.post("/api/rescan")
    page.wait("document.querySelector('#progress p').textContent === 'All 39 pictures can be searched.'")
    assert page.run("!document.querySelector('#again').hidden"), "as many pictures, but others"
