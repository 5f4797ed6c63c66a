"""Many pictures that are sent at once: how many are taken, what the others are told, and the memory that they take."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from search.web.uploads import MAX_BYTES, MAX_PENDING_BYTES, MIN_PENDING_BYTES, RETRY_AFTER
from tests.search.conftest import Photographs, Server, picture_bytes

PATHS = ("/api/similar", "/like", "/captions")
SENT = 16


@contextlib.contextmanager
def begun(server: Server, size: int, body: bytes) -> Iterator[socket.socket]:
    """An upload of `size` bytes that are still to come, but for the first."""
    port = int(server.address.rsplit(":", 1)[1].rstrip("/"))
    head = f"POST /api/similar HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        yield connection


def ask_until(client: httpx.Client, status: int, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Send a picture until it is answered with `status`."""
    deadline = time.monotonic() + 30
    while (answer := client.post("/api/similar", content=picture_bytes())).status_code != status:
        assert time.monotonic() < deadline and answer.status_code in (200, 503), answer.text
        meanwhile()


@pytest.mark.parametrize(
    ("count", "size"),
    [(MAX_PENDING_BYTES // MIN_PENDING_BYTES, len(picture_bytes())), (MAX_PENDING_BYTES // MAX_BYTES, MAX_BYTES)],
)
def test_one_upload_too_many_is_told_to_come_again_and_others_are_answered(
    server: Server, client: httpx.Client, count: int, size: int
) -> None:
    body = picture_bytes()
    with contextlib.ExitStack() as stack:
        uploads: list[socket.socket] = []

        def begin() -> None:
            uploads.append(stack.enter_context(begun(server, size, body[:-1])))

        for _ in range(count):
            begin()
        ask_until(client, 503, begin)  # one that came while it was asked has found no room itself
        for path in PATHS:
            answer = client.post(path, content=body)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, str(RETRY_AFTER))
            assert "try again" in answer.json()["error"]
        with begun(server, len(body), body[:-1]) as late:  # the answer may not be lost because more is still sent
            time.sleep(0.3)
            late.sendall(body[-1:])
            time.sleep(0.3)
            assert late.recv(12) == b"HTTP/1.1 503"
        assert client.get("/api/search", params={"q": "a dog"}).status_code == 200
        uploads.pop(0).close()  # hangs up
        ask_until(client, 200)
        for upload in uploads:
            with contextlib.suppress(ConnectionError):  # refused
                upload.sendall(body[-1:])
        if size == len(body):
            answers = [upload.recv(12)[-3:] for upload in uploads]
            assert (answers.count(b"200"), answers.count(b"503")) == (count - 1, len(answers) - count + 1)
    assert [client.post(path, content=body).status_code for path in PATHS] == [200] * 3


@pytest.mark.parametrize("head", ["Content-Length: 1000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\n"])
def test_who_hangs_up_amid_an_upload_leaves_no_traceback(photographs: Photographs, head: str) -> None:
    server = Server(photographs.root)
    try:
        port = int(server.address.rsplit(":", 1)[1].rstrip("/"))
        for path in PATHS:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{head}ab".encode())
        with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
            assert client.post("/like", content=picture_bytes()).status_code == 200
        assert server.end() == (0, "")
    finally:
        server.process.kill()


def test_an_upload_that_does_not_come_to_its_end_is_refused_when_the_server_is_stopped(
    photographs: Photographs,
) -> None:
    server = Server(photographs.root)
    try:
        with begun(server, 1000, b"ab") as connection:
            with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
                assert client.post("/like", content=picture_bytes()).status_code == 200  # the other has arrived by now
            status, errors = server.end()
            assert status == 0 and "Traceback" not in errors
            assert connection.recv(12) == b"HTTP/1.1 503"
    finally:
        server.process.kill()


def test_a_form_is_told_that_the_body_is_the_picture(client: httpx.Client) -> None:
    for path in PATHS:
        answer = client.post(path, files={"file": ("dog.jpg", picture_bytes(), "image/jpeg")})
        assert (answer.status_code, "curl --data-binary" in answer.json()["error"]) == (422, True)


def peak_bytes(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_large_uploads_do_not_lie_decoded_in_memory_while_they_wait(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    size = 6000 * 5000 * 3
    Image.fromarray(np.zeros((5000, 6000, 3), np.uint8)).save(tmp_path / "large.png", compress_level=1)
    body = (tmp_path / "large.png").read_bytes()
    assert client.post("/like", content=body).status_code == 200
    before = peak_bytes(server.process.pid)
    with ThreadPoolExecutor(SENT) as pool:
        answers = pool.map(lambda _: client.post("/like", content=body, timeout=120).status_code, range(SENT))
        assert list(answers) == [200] * SENT
    # Two are decoded at one time, and each is copied a few times. Sixteen would take 1.4 GB at least.
    assert peak_bytes(server.process.pid) - before < 10 * size
