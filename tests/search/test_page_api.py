"""The HTTP API and the limits of the server, asked over HTTP of a real process."""

import contextlib
import io
import re
import signal
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from search.app import serve
from search.collection import PictureCollection, open_workspace
from search.web.guard import HEADERS
from search.web.uploads import MAX_BYTES
from stages.detectors.images import decode
from stages.errors import InputError
from tests.search.conftest import HOSTILE_NAME, Photographs, Server

SENTENCE = "a dog and a zyzzyva near the 2 people"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def collection(photographs: Photographs) -> PictureCollection:
    """The same pictures and model in this process."""
    return open_workspace(photographs.root)


def picture_bytes(width: int = 60, height: int = 40, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def test_search_answers_what_the_collection_does(client: httpx.Client, collection: PictureCollection) -> None:
    answer = client.get("/api/search", params={"q": SENTENCE, "top": 5, "offset": 2}).json()
    expected = collection.search(SENTENCE, 5, 2)
    assert [picture["id"] for picture in answer["pictures"]] == [hit.picture_id for hit in expected.hits]
    assert [picture["logit"] for picture in answer["pictures"]] == pytest.approx(
        [hit.score for hit in expected.hits], abs=1e-4
    )
    for picture in answer["pictures"]:
        assert picture["score"] == pytest.approx(1 / (1 + np.exp(-picture["logit"])))
        assert picture["name"] == collection.picture(picture["id"]).name
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


def test_an_indexed_picture_is_most_like_itself_when_it_is_sent(client: httpx.Client, photographs: Photographs) -> None:
    chosen = photographs.ids[7]
    name = client.get("/api/pair", params={"id": chosen, "q": "a"}).json()["name"]
    sent = client.post("/api/similar", params={"top": 4}, content=(photographs.pictures / name).read_bytes()).json()
    assert sent["pictures"][0]["id"] == chosen and sent["pictures"][0]["cosine"] > 0.999
    others = client.get("/api/similar", params={"id": chosen, "top": 3}).json()
    assert [picture["id"] for picture in others["pictures"]] == [picture["id"] for picture in sent["pictures"][1:]]
    assert sent["captions"] == others["captions"]


def test_health_says_how_far_it_is_and_which_pictures_are_broken(client: httpx.Client) -> None:
    health = client.get("/api/health").json()
    assert (health["status"], health["indexing"]) == ("ok", False)
    assert (health["total"], health["ready"], health["rejected"]) == (39, 39, 1)
    (rejected,) = client.get("/api/rejected").json()
    assert rejected["name"].endswith(".jpg") and rejected["reason"]
    assert client.post("/api/rescan").status_code == 202
    assert client.get("/api/health").json() == health


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
        ("/?like=nothing", 404, "is not in the collection"),
        ("/?q=%21", 400, "holds no word"),
        ("/nothing", 404, "Not Found"),
    ],
)
def test_what_cannot_be_answered_is_said(client: httpx.Client, path: str, status: int, said: str) -> None:
    answer = client.get(path)
    assert answer.status_code == status and said in answer.text
    assert len(answer.text) < (1000 if path.startswith("/api") else 50_000)


@pytest.mark.parametrize(
    "name",
    ["../../../../../../etc/passwd", "/etc/passwd", "..", ".", "", "\x00", "%2e%2e%2fetc%2fpasswd",
     "models/camp/config.json", "../params.yaml", "\ud83d\ude00" * 30, "a" * 1000],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/image", "/picture", "/api/pair", "/api/similar", "/like"])
def test_nothing_but_indexed_pictures_is_served(
    client: httpx.Client, photographs: Photographs, path: str, name: str
) -> None:
    name = name.encode("utf-16", "surrogatepass").decode("utf-16")
    answer = client.get(path, params={"id": name, "q": "a dog"})
    assert answer.status_code == 404 and "root:" not in answer.text and str(photographs.root) not in answer.text


def raw_answer(server: Server, request: bytes, wait: float = 20) -> bytes:
    """What the server answers to the very bytes of a request."""
    port = int(server.address.rsplit(":", 1)[1].rstrip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/static/../app.py", "/static/..%2f..%2fapp.py", "/static/%2e%2e/guard.py", "//etc/passwd"],
)  # fmt: skip
def test_paths_lead_nowhere(server: Server, path: str) -> None:
    answer = raw_answer(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "localhost:1234"])
def test_names_of_this_machine_are_served(client: httpx.Client, host: str) -> None:
    assert client.get("/api/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "a@localhost",
     "0.0.0.0"],
)  # fmt: skip
def test_another_host_name_is_refused(server: Server, host: str) -> None:
    for path in ("/", "/api/health", "/image?id=x"):
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert raw_answer(server, request.encode()).startswith(b"HTTP/1.1 400")
    for request in ("GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"):
        assert raw_answer(server, request.encode()).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"},
     {"Origin": "null"}, {"Origin": "http://localhost:1"},
     {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}],
)  # fmt: skip
def test_pages_of_other_sites_may_not_post(client: httpx.Client, headers: dict[str, str]) -> None:
    for path in ("/api/similar", "/like", "/captions", "/rescan", "/api/rescan"):
        assert client.post(path, content=picture_bytes(), headers=headers).status_code == 403


def test_pages_of_other_sites_may_link_here_and_nothing_else(client: httpx.Client, server: Server) -> None:
    other = {"Sec-Fetch-Site": "cross-site"}
    assert client.get("/?q=a+dog", headers=other | {"Sec-Fetch-Mode": "navigate"}).status_code == 200
    for path in ("/api/search?q=a", "/image?id=x", "/"):
        assert client.get(path, headers=other | {"Sec-Fetch-Mode": "no-cors"}).status_code == 403
    own = {"Origin": server.address.rstrip("/")}
    assert client.post("/rescan", headers=own).status_code == 303
    assert client.post("/rescan", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 303


def test_every_answer_carries_the_policy(client: httpx.Client, photographs: Photographs) -> None:
    for path in ("/", "/?q=a", "/nothing", "/api/health", f"/image?id={photographs.ids[0]}", "/api/search"):
        answer = client.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "'unsafe" not in HEADERS["Content-Security-Policy"] and "http" not in HEADERS["Content-Security-Policy"]
    assert client.get("/", headers={"Host": "evil.example"}).headers["X-Frame-Options"] == "DENY"


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


def test_a_picture_whose_file_has_changed_is_no_longer_shown(
    photographs: Photographs, client: httpx.Client, collection: PictureCollection
) -> None:
    path = collection.picture(photographs.ids[11])
    before = path.read_bytes()
    try:
        path.write_bytes(picture_bytes(kind="JPEG"))
        answer = client.get("/image", params={"id": photographs.ids[11]})
        assert answer.status_code == 404 and "changed" in answer.text
        path.unlink()
        assert client.get("/image", params={"id": photographs.ids[11]}).status_code == 404
        path.symlink_to("/etc/passwd")
        assert client.get("/image", params={"id": photographs.ids[11]}).status_code == 404
        path.unlink()
    finally:
        path.write_bytes(before)
    assert client.get("/image", params={"id": photographs.ids[11]}).status_code == 200


def bomb() -> bytes:
    """A PNG of 2 KB that claims 60,000 x 60,000 pixels."""
    out = io.BytesIO()
    Image.new("1", (64, 64)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize("path", ["/api/similar", "/like"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the file is empty"),
        (b"GIF89a", "is no image of a known format"),
        (b"no picture", "is no image of a known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image of a known format"),
        (picture_bytes()[:200], "cannot be decoded"),
        (bomb(), "claims 60000 x 60000 pixels"),
    ],
)
def test_what_is_no_picture_is_refused(client: httpx.Client, path: str, body: bytes, said: str) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == 422 and said in answer.json()["error"] and len(answer.text) < 500


def test_a_huge_upload_is_refused_before_it_has_arrived(server: Server, client: httpx.Client) -> None:
    head = "POST /api/similar HTTP/1.1\r\nHost: localhost\r\n"
    claimed = raw_answer(server, f"{head}Content-Length: {MAX_BYTES + 1}\r\n\r\n".encode())
    assert claimed.startswith(b"HTTP/1.1 413")
    for wrong in ("-1", "9" * 400, "1e9"):
        answer = raw_answer(server, f"{head}Content-Length: {wrong}\r\nConnection: close\r\n\r\n".encode())
        assert answer.split(b" ")[1] in (b"400", b"413")

    def chunks() -> Iterator[bytes]:  # without a length
        for _ in range(MAX_BYTES // 10**6 + 2):
            yield bytes(10**6)

    with contextlib.suppress(httpx.TransportError):  # hung up on what was still on its way
        assert client.post("/api/similar", content=chunks()).status_code == 413
    assert client.get("/api/health").status_code == 200


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
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", server.address)
    assert listening(server.process.pid) == {"127.0.0.1"}
    with httpx.Client(base_url=server.address, trust_env=False) as client:
        assert client.get("/api/health").status_code == 200  # its connection stays open
        assert server.end(number) == (0, "")


def test_a_port_that_is_taken_and_a_wrong_name_are_said(collection: PictureCollection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port}: cannot be listened on"):
            serve(collection, port=port)
    with pytest.raises(InputError, match="cannot be listened on"):
        serve(collection, port=70_000)
    for name in ("", "http://x", "a*b", "*b"):
        with pytest.raises(InputError, match="--allow-host"):
            serve(collection, allowed_hosts=[name])


def test_uploads_are_decoded_as_extraction_decodes(client: httpx.Client, collection: PictureCollection) -> None:
    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(pixels).save(out, "JPEG", exif=exif)
    sent = client.post("/api/similar", params={"top": 5, "captions": 0}, content=out.getvalue()).json()
    upright = collection.similar(decode(out.getvalue(), 10**6), 5)
    assert [picture["id"] for picture in sent["pictures"]] == [hit.picture_id for hit in upright]
    assert [picture["cosine"] for picture in sent["pictures"]] == pytest.approx(
        [hit.score for hit in upright], abs=1e-4
    )
