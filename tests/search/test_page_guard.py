"""What the server refuses: other hosts' names, other sites' pages, paths out of it, uploads that are no picture."""

import contextlib
import io
import json
import socket
import struct
import zlib
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from search.collection import PictureCollection
from search.web.guard import HEADERS
from search.web.uploads import MAX_BYTES
from tests.search.conftest import Photographs, Server, picture_bytes


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
        answer = raw_answer(server, request.encode())
        assert answer.startswith(b"HTTP/1.1 400") and b"\r\ncontent-type: application/json" in answer
        assert f"Host: {host!r} is not" in (said := json.loads(answer.split(b"\r\n\r\n")[1])["error"])
        assert "--allow-host" in said
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
        answer = client.post(path, content=picture_bytes(), headers=headers)
        assert answer.status_code == 403 and "expected one from a page of this server" in answer.json()["error"]


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


def test_a_picture_whose_file_has_changed_is_no_longer_shown(
    photographs: Photographs, client: httpx.Client, collection: PictureCollection
) -> None:
    path = collection.file(photographs.ids[11]).path
    asked = {"id": photographs.ids[11], "side": "large"}  # no other test has: the server holds what it has shown
    before = path.read_bytes()
    try:
        path.write_bytes(picture_bytes(kind="JPEG"))
        answer = client.get("/image", params=asked)
        assert (answer.status_code, answer.json()) == (404, {"error": "the picture changed since it was indexed"})
        path.unlink()
        assert client.get("/image", params=asked).status_code == 404
        path.symlink_to("/etc/passwd")
        assert client.get("/image", params=asked).status_code == 404
        path.unlink()
    finally:
        path.write_bytes(before)
    assert client.get("/image", params=asked).status_code == 200


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
    assert "the picture the file" not in answer.text


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
