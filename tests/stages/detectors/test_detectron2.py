"""What is detectron2's own: its configs, its weights' names, the Visual Genome head, and what is said without it."""

import importlib.util
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.detectors import detectron2, visual_genome
from stages.detectors.base import Description
from stages.detectors.weights import load_state
from stages.errors import InputError
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams

INSTALLED = importlib.util.find_spec("detectron2") is not None
needs_it = pytest.mark.skipif(not INSTALLED, reason=f"detectron2 is not installed; to run this: {detectron2.INSTALL}")
C4, FPN = "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"


@pytest.mark.skipif(INSTALLED, reason="detectron2 is installed: what is said without it cannot be seen")
def test_without_it_the_error_is_the_command_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        detectron2.resolve(DetectorParams(backend="detectron2", architecture=C4, weights="random"), tmp_path, tmp_path)
    assert f"detectron2.git@{detectron2.COMMIT}" in str(error.value)
    assert "--no-build-isolation" in str(error.value)
    with pytest.raises(InputError, match="install it with"):
        detectron2.load(tmp_path, Description("detectron2", C4, "", "", 1), RegionsParams(), "cpu", DetectorParams())


@pytest.mark.skipif(INSTALLED, reason="detectron2 is installed: a half of it cannot stand in its place")
def test_without_what_it_needs_the_error_is_the_command_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model_zoo.py").write_text("from fvcore.common.config import CfgNode\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("detectron2", "detectron2.model_zoo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(InputError, match="No module named 'fvcore'.*install it with: pip install") as error:
        detectron2.resolve(DetectorParams(backend="detectron2", architecture=C4, weights="random"), tmp_path, tmp_path)
    assert detectron2.INSTALL in str(error.value)
    for name in ("detectron2", "detectron2.model_zoo"):
        sys.modules.pop(name, None)


def test_documents_name_the_command_that_the_error_names() -> None:
    repository = Path(detectron2.__file__).parents[2]
    for document in ("README.md", "docs/regions.md"):
        text = (repository / document).read_text(encoding="utf-8")
        assert all(command in text for command in detectron2.INSTALL.split(" && ")), document


@needs_it
@pytest.mark.parametrize(("architecture", "dim"), [(C4, 2048), (FPN, 1024)])
def test_heads_have_their_published_widths_and_names(tmp_path: Path, architecture: str, dim: int) -> None:
    description = detectron2.resolve(
        DetectorParams(backend="detectron2", architecture=architecture, weights="random"), tmp_path, tmp_path
    )
    assert description.region_dim == dim
    assert len(description.categories) == 80 and description.categories[0] == "person"


@needs_it
def test_a_config_file_is_read_like_one_of_the_zoo(tmp_path: Path) -> None:
    from detectron2.model_zoo import get_config_file

    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {get_config_file(C4)}\nMODEL:\n  ROI_HEADS:\n    NUM_CLASSES: 7\n")
    description = detectron2.resolve(
        DetectorParams(backend="detectron2", architecture=str(path), weights="random"), tmp_path, tmp_path
    )
    assert description.categories == [f"class {i}" for i in range(7)]


@needs_it
@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("COCO-Detection/none.yaml", "'COCO-Detection/none.yaml' is not visual_genome, a file, or a config"),
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "is no Faster R-CNN or Mask R-CNN with one box head"),
        ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", "is no Faster R-CNN or Mask R-CNN with one box head"),
        ("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "has no proposals of its own .*PrecomputedProposals"),
        ("COCO-Detection/rpn_R_50_FPN_1x.yaml", "is no Faster R-CNN or Mask R-CNN with one box head"),
    ],
)
def test_configs_that_do_not_fit_are_named(tmp_path: Path, architecture: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detectron2.resolve(
            DetectorParams(backend="detectron2", architecture=architecture, weights="random"), tmp_path, tmp_path
        )


@needs_it
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  ROI_HEADS:\n    NAME: MyHeads\n", "cannot be built .*MyHeads"),
        ("MODEL:\n  NO_SUCH_KEY: 1\n", "is not visual_genome, a file, or a config .*NO_SUCH_KEY"),
        ("MODEL: [\n", "is not visual_genome, a file, or a config"),
        ("- a list\n", "is not visual_genome, a file, or a config"),
        ("MODEL:\n  PROPOSAL_GENERATOR:\n    NAME: RRPN\n", "cannot be built|has no proposals of its own"),
    ],
)
def test_a_config_file_that_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        detectron2.resolve(
            DetectorParams(backend="detectron2", architecture=str(path), weights="random"), tmp_path, tmp_path
        )


@needs_it
def test_a_config_file_that_would_run_code_is_refused_unrun(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "mine.yaml"
    made = f"!!python/object/apply:pathlib.PosixPath ['{trace}']"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:pathlib.Path.write_text [{made}, ran]\n")
    with pytest.raises(InputError, match="could not determine a constructor"):
        detectron2.resolve(
            DetectorParams(backend="detectron2", architecture=str(path), weights="random"), tmp_path, tmp_path
        )
    assert not trace.exists()


def caffe2_name(name: str) -> str:
    """The name that Detectron 1 gave a parameter of a C4 model; empty for the running statistics, which it folded."""
    if "running_" in name:
        return ""
    name = re.sub(r"^(backbone|roi_heads)\.(stem\.)?", "", name).replace("proposal_generator.rpn_head.", "rpn.")
    for ours, theirs in (("shortcut", "branch1"), ("conv1", "branch2a"), ("conv2", "branch2b"), ("conv3", "branch2c")):
        name = re.sub(rf"^(res\d)\.(\d+)\.{ours}\.", rf"\1_\2_{theirs}_", name)
    name = name.replace("norm.weight", "bn_s").replace("norm.bias", "bn_b").replace("box_predictor.", "")
    name = name.replace("rpn.conv.", "conv_rpn_").replace("rpn.objectness_logits.", "rpn_cls_logits_")
    name = name.replace("rpn.anchor_deltas.", "rpn_bbox_pred_").replace("weight", "w").replace("bias", "b")
    return name.replace("conv1.bn", "res_conv1_bn").replace(".", "_")


@needs_it
def test_weights_of_detectron_1_load_as_detectron2_loads_them(tmp_path: Path) -> None:
    from detectron2.checkpoint import DetectionCheckpointer

    torch.manual_seed(3)
    model = detectron2.build(detectron2.read_config(C4), C4)
    blobs = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("pixel_") and (theirs := caffe2_name(name)):
            array = torch.rand_like(tensor.float()).numpy()
            if theirs.startswith(("cls_score", "bbox_pred")):  # the background is class 0 there
                array = np.roll(array, 1, axis=0) if "cls" in theirs else np.concatenate([array[:4] * 0, array])
            blobs[theirs] = array
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs | {"conv1_w_momentum": np.ones(2), "fc1000_w": np.ones((3, 2))}}))
    out = tmp_path / "detector"
    out.mkdir()
    detectron2.resolve(DetectorParams(backend="detectron2", architecture=C4, weights=str(path)), out, tmp_path)
    DetectionCheckpointer(model).load(str(path))
    state = load_state(out / "weights.safetensors")
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(state[name], expected, rtol=0, atol=0, msg=name)
    assert (state["backbone.res2.0.conv1.norm.running_var"] == 1).all()


def published(folder: Path, **extra: np.ndarray) -> tuple[Path, dict[str, np.ndarray]]:
    """A pickle in the form of the published Visual Genome weights, with numbers of our own."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = detectron2.build(detectron2.read_config("visual_genome"), "visual_genome")
    arrays = {name: value.numpy() for name, value in model.state_dict().items() if not name.startswith("pixel_")}
    path = folder / "faster_rcnn_from_caffe_attr.pkl"
    path.write_bytes(pickle.dumps({"model": arrays | extra, "__author__": "test"}))
    return path, arrays


@needs_it
def test_converted_caffe_weights_load_by_their_names(tmp_path: Path) -> None:
    path, arrays = published(tmp_path)
    (tmp_path / "objects_vocab.txt").write_text("\n".join(f"thing {i},other name" for i in range(1600)))
    out = tmp_path / "detector"
    out.mkdir()
    description = detectron2.resolve(
        DetectorParams(backend="detectron2", architecture="visual_genome", weights=str(path)), out, tmp_path
    )
    assert (description.region_dim, len(description.categories), len(description.attributes)) == (2048, 1600, 400)
    assert description.categories[3] == "thing 3" and description.attributes[3] == "attribute 3"
    state = load_state(out / "weights.safetensors")
    head = "roi_heads.box_predictor"
    shapes = {
        f"{head}.cls_score.weight": (1601, 2048),
        f"{head}.bbox_pred.weight": (6400, 2048),
        f"{head}.cls_embedding.weight": (1601, 256),
        f"{head}.fc_attr.weight": (512, 2304),
        f"{head}.attr_score.weight": (401, 512),
        "proposal_generator.rpn_head.conv.weight": (512, 1024, 3, 3),
        "proposal_generator.rpn_head.objectness_logits.weight": (12, 512, 1, 1),
        "backbone.stem.conv1.weight": (64, 3, 7, 7),
    }
    for name, shape in shapes.items():
        assert state[name].shape == shape
        np.testing.assert_array_equal(state[name].numpy(), arrays[name])
    (tmp_path / "objects_vocab.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"objects_vocab\.txt: names 2 things; the detector knows 1600"):
        detectron2.resolve(
            DetectorParams(backend="detectron2", architecture="visual_genome", weights=str(path)), out, tmp_path
        )


@needs_it
def test_weights_of_another_detector_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps({"model": {"roi_heads.box_predictor.cls_score.weight": np.zeros((3, 2048))}}))
    with pytest.raises(InputError, match=r"other\.pkl: .* is missing"):
        detectron2.resolve(DetectorParams(backend="detectron2", architecture=C4, weights=str(path)), tmp_path, tmp_path)


@needs_it
def test_the_visual_genome_network_departs_where_the_original_does() -> None:
    model = detectron2.build(detectron2.read_config("visual_genome"), "visual_genome").eval()
    with torch.inference_mode():
        # Caffe pads the pooling at the far side alone: 75 rows become 37, where detectron2's own stem has 38.
        assert model.backbone.stem(torch.zeros(1, 3, 149, 152)).shape == (1, 64, 37, 38)
        pooled = torch.randn(2, 1024, 14, 14)
        assert model.roi_heads.res5(pooled).shape == (2, 2048, 14, 14), "res5 keeps its resolution"
        features, classes = torch.rand(5, 2048), torch.tensor([0, 1, 2, 3, 1599])
        probabilities = visual_genome.attribute_probabilities(model.roi_heads.box_predictor, features, classes)
    assert probabilities.shape == (5, 400)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))
