"""Weights from files: those of torch, safetensors and NumPy pickles, none of which may run code."""

import http.server
import importlib
import pickle
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import detection

from camp_model.files import sha256_of
from stages.detectors import torchvision, weights
from stages.detectors.weights import _SafeRedirects, cache_folder, download, load_state, locate, save_state
from stages.errors import InputError
from stages.params.detector import DetectorParams

MOBILENET = "fasterrcnn_mobilenet_v3_large_320_fpn"


class Malicious:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "it ran")


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_pickle_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a.bias": np.float64(2.5),
        "big_endian": np.arange(3, dtype=">i4"),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol=protocol))
    state = load_state(path)
    assert set(state) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[name].numpy(), array)


def test_solver_state_and_texts_of_caffe2_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.ones(2), "conv1_w_momentum": np.ones(2), "cfg": "x"}}))
    assert list(load_state(path)) == ["conv1_w"]


@pytest.mark.parametrize("place", ["alone", "inside"])
def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path: Path, place: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pkl"
    bomb = Malicious(trace)
    path.write_bytes(pickle.dumps(bomb if place == "alone" else {"model": {"a": np.ones(2), "b": bomb}}))
    with pytest.raises(InputError, match=r"weights\.pkl: is no pickle of arrays .*nothing of it was run"):
        load_state(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the file of this test does run code where pickle is trusted"


def test_a_torch_file_that_would_run_code_is_refused_unrun(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    torch.save({"model": Malicious(trace)}, path)
    with pytest.raises(InputError, match=r"weights\.pth: holds more than tensors"):
        load_state(path)
    assert not trace.exists()


@pytest.mark.parametrize("text", [b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html><html>"])
def test_a_text_in_place_of_weights_is_said_to_be_one(tmp_path: Path, text: bytes) -> None:
    """Not that it could run code, with PyTorch's advice to trust it."""
    (tmp_path / "a.pth").write_bytes(text)
    with pytest.raises(InputError) as told:
        load_state(tmp_path / "a.pth")
    assert repr(text[:12])[:-1] in str(told.value) and "code" not in str(told.value)


@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "a.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04 no weights")
    with pytest.raises(InputError, match=name):
        load_state(tmp_path / name)


def test_an_error_without_a_text_and_one_of_any_length_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"x")
    for error in (EOFError(), pickle.UnpicklingError("x" * 100_000), MemoryError()):
        monkeypatch.setattr(torch, "load", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        with pytest.raises(InputError, match=r"a\.pth: (cannot be read|holds more)") as raised:
            load_state(path)
        assert len(str(raised.value)) < 700 + len(str(path))
    save_state(state | {"x" * 100_000: torch.zeros(1)}, tmp_path)
    params = DetectorParams(architecture=MOBILENET, weights=str(tmp_path / "weights.safetensors"))
    monkeypatch.undo()
    with pytest.raises(InputError, match="is unknown to the architecture") as raised:
        torchvision.resolve(params, tmp_path, tmp_path)
    assert len(str(raised.value)) < 1000


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.array(["x", 1], dtype=object)}}))
    with pytest.raises(InputError, match="a: is of type object"):
        load_state(path)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return detection.__dict__[MOBILENET](weights=None, weights_backbone=None, num_classes=4).state_dict()


def test_weights_of_a_file_come_with_their_identity(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"model": state, "epoch": 3}, tmp_path / "mine.pth")
    out = tmp_path / "detector"
    out.mkdir()
    params = DetectorParams(backend="torchvision", architecture=MOBILENET, weights=str(tmp_path / "mine.pth"))
    description = torchvision.resolve(params, out, tmp_path)
    assert description.weights_source == params.weights
    assert description.weights_sha256 == sha256_of(out / "weights.safetensors")
    assert len(description.categories) == 3 and description.region_dim == 1024
    torch.testing.assert_close(
        load_state(out / "weights.safetensors")["roi_heads.box_head.fc6.weight"], state["roi_heads.box_head.fc6.weight"]
    )


def test_weights_that_do_not_fit_name_the_parameter(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    name = "rpn.head.cls_logits.bias"
    for change, message in (
        ({key: value for key, value in state.items() if key != name}, f"{name}: is missing"),
        (state | {"extra": torch.zeros(1)}, "extra: is unknown"),
        (state | {name: torch.zeros(99)}, rf"{name}: has shape \[99\]"),
        (state | {name: torch.full_like(state[name], torch.nan)}, rf"weights.safetensors: {name}: holds numbers that"),
        ({"a": torch.zeros(1)}, r"box_predictor.cls_score.weight: is missing"),
    ):
        save_state(change, tmp_path)
        params = DetectorParams(
            backend="torchvision", architecture=MOBILENET, weights=str(tmp_path / "weights.safetensors")
        )
        with pytest.raises(InputError, match=message):
            torchvision.resolve(params, tmp_path, tmp_path)


def test_random_weights_come_from_the_seed(tmp_path: Path) -> None:
    params = DetectorParams(backend="torchvision", architecture=MOBILENET, weights="random")
    shas = [torchvision.resolve(params, tmp_path, tmp_path).weights_sha256 for _ in range(2)]
    assert shas[0] == shas[1]
    assert len(torchvision.resolve(params, tmp_path, tmp_path).categories) == 90


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves tmp_path/served: what lies below `short` breaks off, below `away` it redirects to another machine."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "w.pth").write_bytes(b"x" * 3_000_000)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "served"))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            if self.path.startswith("/away"):
                self.send_response(302)
                self.send_header("Location", "http://weights.example/w.pth")
                self.end_headers()
            elif self.path.startswith(("/short", "/chunked")):
                chunked = self.path.startswith("/chunked")
                self.protocol_version = "HTTP/1.1"
                self.send_response(200)
                self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", "5000")))
                self.end_headers()
                self.wfile.write(b"1388\r\nxxxx" if chunked else b"xxxx")
                self.close_connection = True
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_another_machine_does_not_lead_to_this_one() -> None:
    asked = urllib.request.Request("https://weights.example/w.pth")
    with pytest.raises(ValueError, match="another machine leads to this one"):
        _SafeRedirects().redirect_request(asked, None, 302, "", {}, "http://127.0.0.1:5000/api")
    assert _SafeRedirects().redirect_request(asked, None, 302, "", {}, "https://other.example/w.pth") is not None


def test_a_url_is_fetched_once(tmp_path: Path, server: str) -> None:
    path = download(f"{server}/w.pth?x=1", tmp_path / "cache")
    assert path.name == "w.pth" and path.stat().st_size == 3_000_000
    path.write_bytes(b"kept")
    assert locate(f"{server}/w.pth?x=1", tmp_path / "cache").read_bytes() == b"kept"
    with pytest.raises(InputError, match=r"none\.pth cannot be fetched .*give the path of a file"):
        download(f"{server}/none.pth", tmp_path / "cache")
    assert files(tmp_path / "cache") == ["w.pth"]


def test_two_urls_of_one_base_name_are_two_files(tmp_path: Path, server: str) -> None:
    for number in "12":
        (tmp_path / "served" / number).mkdir()
        (tmp_path / "served" / number / "model_final.pth").write_text(number)
    paths = [download(f"{server}/{number}/model_final.pth", tmp_path / "cache") for number in "12"]
    assert [path.read_text() for path in paths] == ["1", "2"]
    assert download(f"{server}/w.pth?v=1", tmp_path / "cache") != download(f"{server}/w.pth?v=2", tmp_path / "cache")


def test_the_hash_that_a_name_or_the_url_states_is_checked(tmp_path: Path, server: str) -> None:
    sha256 = sha256_of(tmp_path / "served" / "w.pth")
    right, wrong = f"w-{sha256[:8]}.pth", "w-0123abcd.pth"
    for name in (right, wrong, "w-20240131.pth"):
        (tmp_path / "served" / name).write_bytes(b"x" * 3_000_000)
    cache = tmp_path / "cache"
    path = download(f"{server}/{right}", cache)
    path.write_bytes(b"changed")
    assert download(f"{server}/{right}", cache).stat().st_size == 3_000_000, "a changed copy is fetched again"
    assert download(f"{server}/w-20240131.pth", cache).is_file(), "a date is no hash"
    assert download(f"{server}/w.pth#sha256={sha256}", cache).is_file()
    for url in (f"{server}/{wrong}", f"{server}/w.pth#sha256={'0' * 64}"):
        with pytest.raises(InputError, match=f"its sha256 is {sha256}; expected it to begin with 0"):
            download(url, cache)
    assert wrong not in files(cache)
    with pytest.raises(InputError, match="#md5=1 is not #sha256= and a hash"):
        download(f"{server}/w.pth#md5=1", cache)


@pytest.mark.parametrize("url", ["http://weights.example/w.pth", "ftp://weights.example/w.pth", "file:///etc/passwd"])
def test_what_is_not_protected_on_its_way_is_refused(tmp_path: Path, server: str, url: str) -> None:
    with pytest.raises(InputError, match=r"is not protected on its way; expected https://"):
        locate(url, tmp_path / "cache")
    with pytest.raises(InputError, match=r"http:// is not protected on its way"):
        locate(f"{server}/away/w.pth", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["short", "chunked"])
def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path, server: str, kind: str) -> None:
    with pytest.raises(InputError, match=r"cannot be fetched"):
        download(f"{server}/{kind}/w.pth", tmp_path / "cache")
    assert files(tmp_path / "cache") == []


def test_without_a_home_downloads_stay_in_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert cache_folder() == tmp_path / ".work" / "downloads"
    importlib.reload(weights)  # nothing asks for a home on import
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/camp-retrieval")


def test_a_source_that_is_neither_file_nor_url_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"detector\.weights: 'nothing' is no file"):
        locate("nothing", tmp_path)
    with pytest.raises(InputError, match=r"detector\.weights: 'x+' is no file") as error:
        locate("x" * 100_000, tmp_path)
    assert len(str(error.value)) < 500
