"""The HTTP API and the limits of the server, asked over HTTP of a real process."""

import io
import re
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import ANY

import httpx
import numpy as np
import pytest
from PIL import Image

from search.app import serve
from search.collection import PictureCollection
from search.web.uploads import MAX_BYTES
from stages.detectors.images import decode
from stages.errors import InputError
from tests.search.conftest import HOSTILE_NAME, Photographs, Server

SENTENCE = "a dog and a zyzzyva near the 2 people"


def test_search_answers_what_the_collection_does(client: httpx.Client, collection: PictureCollection) -> None:
    answer = client.get("/api/search", params={"q": SENTENCE, "top": 5, "offset": 2}).json()
    expected = collection.search(SENTENCE, 5, 2)
    assert [picture["id"] for picture in answer["pictures"]] == [hit.picture_id for hit in expected.hits]
    assert [picture["logit"] for picture in answer["pictures"]] == pytest.approx(
        [hit.score for hit in expected.hits], abs=1e-4
    )
    for picture in answer["pictures"]:
        assert picture["score"] == pytest.approx(1 / (1 + np.exp(-picture["logit"])))
        assert picture["name"] == collection.file(picture["id"]).name
    assert answer["unknown"] == expected.unknown and "zyzzyva" in answer["unknown"]
    assert (answer["offset"], answer["scored"], answer["total"]) == (2, 39, 39)


def test_a_pair_is_explained_in_shares(client: httpx.Client, photographs: Photographs) -> None:
    pair = client.get("/api/pair", params={"id": photographs.ids[3], "q": SENTENCE}).json()
    words, regions = len(pair["words"]), len(pair["boxes"])
    assert pair["words"] == ["a", "dog", "and", "a", "zyzzyva", "near", "the", "2", "people"] and regions == 6
    assert 4 in pair["unknown"] and pair["effects"][4] is None and len(pair["effects"]) == words
    assert all(0 <= gate <= 1 for gate in pair["word_gates"] + pair["region_gates"])
    assert [sum(row) for row in pair["word_attention"]] == pytest.approx([1] * words, abs=0.01)
    assert [len(row) for row in pair["region_attention"]] == [words] * regions
    with Image.open(photographs.pictures / pair["name"]) as picture:
        assert (pair["width"], pair["height"]) == picture.size


def test_a_sentence_of_unknown_words_alone_is_answered(client: httpx.Client, photographs: Photographs) -> None:
    pair = client.get("/api/pair", params={"id": photographs.ids[3], "q": "zyzzyva zyzzyva"}).json()
    assert (pair["unknown"], pair["effects"]) == ([0, 1], [None, None])
    for path, params in (("/picture", {"id": photographs.ids[3]}), ("/", {})):
        answer = client.get(path, params=params | {"q": "zyzzyva zyzzyva"})
        assert answer.status_code == 200 and "does not know" in answer.text


def test_the_page_promises_of_a_score_no_more_than_an_order(client: httpx.Client, photographs: Photographs) -> None:
    """The shipped model gives half of the sentences less than 0.54 with the photograph that they were written of."""
    for path, params in (("/picture", {"id": photographs.ids[3]}), ("/", {})):
        page = client.get(path, params=params | {"q": SENTENCE}).text
        assert "from 0 to 1" in page and "better" in page and "near 1" not in page


def test_an_indexed_picture_is_most_like_itself_when_it_is_sent(client: httpx.Client, photographs: Photographs) -> None:
    chosen = photographs.ids[7]
    name = client.get("/api/pair", params={"id": chosen, "q": "a"}).json()["name"]
    sent = client.post("/api/similar", params={"top": 4}, content=(photographs.pictures / name).read_bytes()).json()
    assert sent["pictures"][0]["id"] == chosen and sent["pictures"][0]["cosine"] > 0.999
    others = client.get("/api/similar", params={"id": chosen, "top": 3}).json()
    assert [picture["id"] for picture in others["pictures"]] == [picture["id"] for picture in sent["pictures"][1:]]
    assert [caption["text"] for caption in sent["captions"]] == [caption["text"] for caption in others["captions"]]
    logits = [[caption["logit"] for caption in answer["captions"]] for answer in (sent, others)]
    assert logits[0] == pytest.approx(logits[1], abs=1e-5), "regions are stored as float16"


def test_health_says_how_far_it_is_and_which_pictures_are_broken(client: httpx.Client) -> None:
    health = client.get("/api/health").json()
    assert (health["status"], health["indexing"]) == ("ok", False)
    assert (health["total"], health["ready"], health["rejected"]) == (39, 39, 1)
    (rejected,) = client.get("/api/rejected").json()
    assert rejected["name"].endswith(".jpg") and rejected["reason"]
    assert client.post("/api/rescan").status_code == 202
    assert client.get("/api/health").json() == health | {"version": ANY}


def test_metrics_count_queries_and_their_time(client: httpx.Client) -> None:
    def count(outcome: str) -> float:
        text = client.get("/metrics").text
        found = re.search(rf'camp_query_seconds_count{{outcome="{outcome}",query="search"}} (\S+)', text)
        return float(found.group(1)) if found else 0

    answered, refused = count("answered"), count("refused")
    client.get("/api/search", params={"q": "a dog"})
    client.get("/", params={"q": "a dog"})
    client.get("/api/search", params={"q": "!?"})
    assert (count("answered") - answered, count("refused") - refused) == (2, 1)
    assert "camp_pictures_ready 39.0" in client.get("/metrics").text


def test_openapi_describes_the_api_and_no_page_loads_anything_from_elsewhere(client: httpx.Client) -> None:
    described = client.get("/api/openapi.json").json()
    assert {"/api/search", "/api/pair", "/api/similar", "/api/health", "/metrics"} <= set(described["paths"])
    answers = described["paths"]["/api/search"]["get"]["responses"]
    assert answers["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/SearchAnswer"}
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    chosen = client.get("/api/search", params={"q": SENTENCE}).json()["pictures"][0]["id"]
    for path in ("/", f"/?q={SENTENCE}", f"/picture?id={chosen}&q={SENTENCE}"):
        addresses = re.findall(r'(?:src|href|action|data-from)="([^"]+)"', client.get(path).text)
        assert addresses and [a for a in addresses if not a.startswith(("/", "#")) or a.startswith("//")] == []
        for asset in (a for a in addresses if a.startswith("/static/")):
            answer = client.get(asset)
            assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
            assert not re.search(r"https?://(?!www\.w3\.org/)", answer.text)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/search", 422, "q: "),
        ("/api/search?q=", 400, "holds no word"),
        ("/api/search?q=%21%3F", 400, "holds no word"),
        ("/api/search?q=" + "a" * 1001, 422, "1000 characters"),
        ("/api/search?q=a&top=0", 422, "top: "),
        ("/api/search?q=a&top=1001", 422, "top: "),
        ("/api/search?q=a&offset=-1", 422, "offset: "),
        ("/api/search?q=a&offset=99999999999999999999", 422, "offset: "),
        ("/api/pair?id=nothing&q=a", 404, "is not in the collection"),
        ("/api/similar?id=nothing", 404, "is not in the collection"),
        ("/image?id=nothing", 404, "is not in the collection"),
        ("/like?id=nothing", 404, "is not in the collection"),
        ("/image?id=nothing&side=99999", 422, "side: "),
        ("/picture?id=nothing", 404, "is not in the collection"),
        ("/?like=nothing", 404, "This picture is not in the collection: it was moved"),
        ("/?q=%21", 400, "holds no word"),
        ("/nothing", 404, "there is no page at /nothing"),
        ("/?q=" + "a" * 10_000, 422, "1000 characters"),
        ("/api/pair?id=" + "a" * 10_000 + "&q=a", 422, "1000 characters"),
    ],
)
def test_what_cannot_be_answered_is_said(client: httpx.Client, path: str, status: int, said: str) -> None:
    answer = client.get(path)
    assert answer.status_code == status and said in answer.text
    assert len(answer.text) < (1000 if path.startswith("/api") else 50_000)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/?q=a+dog", 200), ("/api/search?q=a+dog", 200), ("/metrics", 200), ("/static/icon.svg", 200),
     ("/api/search?q=...", 400), ("/nothing", 404), ("/static/nothing", 404), ("/api/rescan", 405)],
)  # fmt: skip
def test_head_is_answered_as_get_without_the_body(client: httpx.Client, path: str, status: int) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, get.status_code, head.content) == (status, status, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert status == 200 or get.json()["error"]
    assert (get.headers.get("Allow") == "POST") == (status == 405)


@pytest.mark.parametrize("form", ["{}", "W/{}", '"another", {}'])
def test_a_picture_that_the_browser_has_is_not_sent_again(
    client: httpx.Client, photographs: Photographs, form: str
) -> None:
    asked = {"id": photographs.ids[0]}
    tag = client.get("/image", params=asked).headers["ETag"]
    answer = client.get("/image", params=asked, headers={"If-None-Match": form.format(tag)})
    assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", tag)
    assert client.get("/image", params=asked, headers={"If-None-Match": '"another"'}).status_code == 200


def test_who_looks_at_pages_is_told_on_a_page(client: httpx.Client) -> None:
    looking = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    answer = client.get("/<b>nothing", headers=looking)
    assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/html")
    assert "there is no page at /&lt;b&gt;nothing" in answer.text and 'href="/"' in answer.text
    assert f'data-max-upload="{MAX_BYTES}"' in answer.text, "which the script tells before it sends too large a picture"
    assert set(client.get("/api/search?q=", headers=looking).json()) == {"error"}


def test_a_picture_comes_small_and_without_what_its_file_also_holds(
    client: httpx.Client, photographs: Photographs, collection: PictureCollection
) -> None:
    for side, longest in (("small", 360), ("large", 1280)):
        answer = client.get("/image", params={"id": photographs.ids[5], "side": side})
        assert answer.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(answer.content)) as picture:
            original = collection.pixels(photographs.ids[5]).shape[1::-1]
            assert max(picture.size) == min(longest, max(original)) and "exif" not in picture.info
        again = client.get("/image", params={"id": photographs.ids[5], "side": side},
                           headers={"If-None-Match": answer.headers["etag"]})  # fmt: skip
        assert (again.status_code, again.content) == (304, b"")


def test_thirty_two_clients_get_the_answers_that_one_gets(server: Server, photographs: Photographs) -> None:
    sentences = [f"a {word} near the {number} people" for word in ("dog", "cat", "bus") for number in range(4)]
    upload = (photographs.pictures / HOSTILE_NAME).read_bytes()

    def ask(number: int) -> list[object]:
        with httpx.Client(base_url=server.address, timeout=120, trust_env=False) as client:
            answers: list[object] = []
            for turn in range(6):
                sentence = sentences[(number + turn) % len(sentences)]
                found = client.get("/api/search", params={"q": sentence, "top": 39}).json()
                answers.append((sentence, found))
                first = found["pictures"][0]["id"]
                answers.append((sentence, client.get("/api/pair", params={"id": first, "q": sentence}).json()))
                answers.append(client.get("/image", params={"id": first}).content)
            answers.append(client.post("/api/similar", content=upload).json())
            return answers

    alone = ask(0)
    known = {sentence: answer for sentence, answer in (a for a in alone if isinstance(a, tuple)) if "total" in answer}
    begun = time.perf_counter()
    with ThreadPoolExecutor(32) as pool:
        everybody = list(pool.map(ask, range(32)))
    assert time.perf_counter() - begun < 120
    assert everybody[0] == alone and everybody[12] == alone  # the same sentences
    for answers in everybody:
        assert answers[-1] == alone[-1]
        for sentence, answer in (a for a in answers if isinstance(a, tuple)):
            if "total" in answer and sentence in known:
                assert answer == known[sentence]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_listens_on_this_machine_alone_and_ends_cleanly(
    photographs: Photographs, listening: Callable[[int], set[str]], number: int
) -> None:
    server = Server(photographs.root)
    try:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", server.address)
        assert listening(server.process.pid) == {"127.0.0.1"}
        with httpx.Client(base_url=server.address, trust_env=False) as client:
            assert client.get("/api/health").status_code == 200  # its connection stays open
            assert server.end(number) == (0, "")
    finally:
        server.process.kill()


def test_a_port_that_is_taken_and_a_wrong_name_are_said(collection: PictureCollection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port}: cannot be listened on"):
            serve(collection, port=port)
    with pytest.raises(InputError, match="cannot be listened on"):
        serve(collection, port=70_000)
    for host in ("", "http://x"):
        with pytest.raises(InputError, match=f"^--host '{host}' --port 0: cannot be listened on"):
            serve(collection, host=host)
    for name in ("", "http://x", "a*b", "*b", "*.", "."):
        with pytest.raises(InputError, match="--allow-host"):
            serve(collection, allow_host=[name])


def test_uploads_are_decoded_as_extraction_decodes(client: httpx.Client, collection: PictureCollection) -> None:
    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(pixels).save(out, "JPEG", exif=exif)
    sent = client.post("/api/similar", params={"top": 5, "captions": 0}, content=out.getvalue()).json()
    upright = collection.similar(collection.find_regions(decode(out.getvalue(), 10**6)), 5)
    assert [picture["id"] for picture in sent["pictures"]] == [hit.picture_id for hit in upright]
    assert [picture["cosine"] for picture in sent["pictures"]] == pytest.approx(
        [hit.score for hit in upright], abs=1e-4
    )
