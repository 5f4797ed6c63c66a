"""`.ci/audit` on an index of its own: withdrawn pins are found, holes are read, and no network is no failure."""

import functools
import importlib.machinery
import importlib.util
import os
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of an index with one package, whose release 1.0 is withdrawn."""
    folder = tmp_path / "simple" / "camp-example"
    folder.mkdir(parents=True)
    links = []
    for version in ("1.0", "2.0"):
        name = f"camp_example-{version}-py3-none-any.whl"
        about = f"Metadata-Version: 2.1\nName: camp-example\nVersion: {version}\n"
        with zipfile.ZipFile(folder / name, "w") as wheel:
            wheel.writestr(f"camp_example-{version}.dist-info/METADATA", about)
            wheel.writestr(f"camp_example-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"camp_example-{version}.dist-info/RECORD", "")
        links.append(f'<a href="{name}"{" data-yanked=broken" if version == "1.0" else ""}>{name}</a>')
    (folder / "index.html").write_text("<!DOCTYPE html><html><body>" + "".join(links) + "</body></html>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    server.shutdown()
    server.server_close()


def audit(repository: Path, lock: Path, index: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    environment |= {"UV_DEFAULT_INDEX": index, "UV_NO_CONFIG": "1", "UV_NO_CACHE": "1", "UV_HTTP_RETRIES": "0"}
    return subprocess.run(
        [str(repository / ".ci/audit"), str(lock)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("version", "code"), [("1.0", 1), ("2.0", 0)])
def test_a_withdrawn_pin_is_found(repository: Path, tmp_path: Path, index: str, version: str, code: int) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"camp-example=={version}\n")
    done = audit(repository, lock, index)
    assert done.returncode == code, done.stdout + done.stderr
    assert f"withdrawn releases: {code}" in done.stdout
    assert ("camp-example==1.0` is yanked" in done.stdout) == bool(code)
    assert "known holes: could not be checked" in done.stdout  # pip-audit is not on this index


def test_no_network_is_said_and_is_no_failure(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("camp-example==1.0\n")
    done = audit(repository, tmp_path / "requirements.lock", "http://127.0.0.1:9/simple")
    assert (done.returncode, done.stdout.count("could not be checked")) == (0, 2), done.stdout + done.stderr


def test_holes_are_read_out_of_a_report(repository: Path) -> None:
    loader = importlib.machinery.SourceFileLoader("audit", str(repository / ".ci/audit"))
    spec = importlib.util.spec_from_loader("audit", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    hole = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"], "description": "d" * 9000}
    report = {"dependencies": [
        {"name": "a", "version": "1.0", "vulns": [hole]}, {"name": "b", "version": "2.0", "vulns": []},
        {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (3.0)"},
    ]}  # fmt: skip
    assert module.known_holes(report) == (["a==1.0: PYSEC-1 CVE-1; mended in 1.1"], 2, 1)
