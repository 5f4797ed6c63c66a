"""The rows of the study on photographs (`pipelines.photographs`), as changes to params.yaml."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.ablation import RANKING, STUDY, Variant
from pipelines.variants import override_params
from stages.errors import InputError
from stages.params.pipeline import Params
from stages.params.presets import compose

JOINT = "joint-embedding"
WORDS = "trained-words"
FIRST = Path("presets/best_1_joint.yaml")
TRAINED_WORDS = Path("presets/trained_words_joint.yaml")
AT_ONCE = Path("presets/best.yaml")
FOIL_WEIGHT = 0.5
"""Twice that of the scenes: here the encoders stay as trained by the joint embedding, which needs no relations."""
ROWS: dict[str, Variant] = {
    **{name: STUDY[name] for name in ("full", "no-gates", "no-messages", "published-gates", "mean-pooling")},
    "cosine-ranking": replace(
        STUDY["cosine-ranking"], label="cosine of fused vectors beside the joint one, ranking loss"
    ),
    **{
        name: replace(STUDY[name], overrides={**STUDY[name].overrides, "train.foil_weight": FOIL_WEIGHT})
        for name in ("foils", "counts")
    },
    "as-encoded": Variant("vectors as long as encoded", {"model.feature_norm": 0.0}),
}
"""Changes to the full model. Their logits include the joint cosine, so a ranking loss acts on the probability."""
_TUNED = {"train.freeze": [], "train.epochs": 1, "train.learning_rates": {
    "matcher.joint": 50, "region_encoder": 0.1, "caption_encoder": 0.1}}  # fmt: skip
TUNED: dict[str, Variant] = {
    "tuned": Variant("full model, one epoch, its encoders trained on", _TUNED),
    "tuned-without-term": Variant("the same without the joint term", {**_TUNED, "train.joint_weight": 0.0}),
}
"""Rows that measure the joint term. With frozen encoders, as in the full model, it changes no score."""
PEERS: dict[str, Variant] = {
    JOINT: Variant("joint embedding, which the others start from"),
    "vse-infinity": Variant("VSE-infinity", {"model.pooling": "gpo", "train.drop_regions": 0.2, "train.drop_words": 0.2,
                                             "train.all_negatives_epochs": 1}),
    "scan": Variant("SCAN, text to image", {"model.matcher": "scan"}),
    "scan-image-to-text": Variant("SCAN, image to text", {"model.matcher": "scan",
                                                          "model.scan_direction": "image_to_text"}),
    # It learns nothing from hardest negatives at the start, so they are phased in over two epochs. Scoring all pairs of
    # val would take as long as an epoch.
    "sgraf": Variant("SGRAF", {"model.matcher": "sgraf", "train.curriculum_steps": 470, "train.validation_share": 0.2}),
}  # fmt: skip
"""Changes to the joint embedding; all but itself use the ranking loss that they were published with."""
RANKED = {**RANKING, "train.joint_weight": 0.0, "train.batch_size": 128, "train.learning_rate": 0.0005,
          "train.epochs": 6}  # fmt: skip
"""Params of the peers, which score all pairs of a batch and learn from the hardest; SCAN's learning rate on COCO."""
ADDITIONS: dict[str, Variant] = {
    "gpo": Variant("generalised pooling", {"model.pooling": "gpo"}),
    "ema": Variant("averaged weights", {"train.ema_decay": 0.99}),
    "drop-regions": Variant("a fifth of the regions left out", {"train.drop_regions": 0.2}),
    "drop-words": Variant("a fifth of the words left out", {"train.drop_words": 0.2}),
    "all-negatives": Variant("first epoch on all negatives", {"train.all_negatives_epochs": 1}),
    "validation": Variant("epochs measured on a fifth of val", {"train.validation_share": 0.2}),
}
"""Changes to the full model and to the joint embedding, each alone and all (except the last) together."""


def starts_from_joint(row: Variant) -> bool:
    """Whether the joint embedding of the same seed initializes a row's training: unless the row has another matcher, or
    trains the transformer, too."""
    return not row.overrides.keys() & {"model.matcher", "model.transformer_frozen"}


def rows_of(full: Params, first: Path, base: Mapping[str, Any]) -> tuple[dict[str, Variant], dict[str, str]]:
    """All rows that can be trained, as changes to `full`, and the reason why each other row cannot.

    Args:
        full: the params of params.yaml with `base` applied.
        first: the preset of the joint embedding.
        base: params set for all rows; they override presets and RANKED, but not the changes that define a row.

    Raises:
        InputError: a preset cannot be read, or is wrong.
    """
    to_joint = _changes(full, _with_model(full, base, first))
    ranked = {key: value for key, value in RANKED.items() if key not in base}
    rows = ROWS | TUNED
    for name, peer in PEERS.items():
        rows[name] = Variant(peer.label, {**to_joint, **({} if name == JOINT else ranked), **peer.overrides})
    for under_name, label, under in (("full", "full model", {}), (JOINT, "joint embedding", to_joint)):
        some: dict[str, Any] = {}
        for name, addition in ADDITIONS.items():
            rows[f"{under_name}-{name}"] = Variant(f"{label}, {addition.label}", {**under, **addition.overrides})
            if name != "validation" and not _obstacle(full, {**under, **addition.overrides}):
                some |= addition.overrides
        rows[f"{under_name}-all-of-these"] = Variant(f"{label}, all of these", {**under, **some})
    if full.model.text == "transformer":
        trained = Variant("joint embedding", _changes(full, _with_model(full, base, first, TRAINED_WORDS)))
        at_once = _changes(full, _with_model(full, base, AT_ONCE))
        changed = {name: Variant(STUDY[name].label, {**at_once, **STUDY[name].overrides})
                   for name in ("full", "no-gates", "no-messages")}  # fmt: skip
        for name, row in {JOINT: trained, **changed}.items():
            rows[f"{name}-{WORDS}"] = Variant(f"{row.label}, trained with the transformer", row.overrides)
    obstacles = {name: obstacle for name, row in rows.items() if (obstacle := _obstacle(full, row.overrides))}
    return {name: row for name, row in rows.items() if name not in obstacles}, obstacles


def _with_model(full: Params, base: Mapping[str, Any], *presets: Path) -> Params:
    """The params with the sections model and train replaced by those of these presets, then with `base` applied."""
    other, _ = compose(presets)
    try:
        return override_params(full.replace(model=other.model, train=other.train), base)
    except InputError as error:
        raise InputError(f"{presets[-1]}, with what is set for every row: {error}") from None


def _changes(full: Params, other: Params) -> dict[str, Any]:
    """The changes that turn `full` into `other`, as dotted keys of model and train."""
    changes: dict[str, Any] = {}
    for section in ("model", "train"):
        own, wanted = full.to_dict()[section], other.to_dict()[section]
        changes |= {f"{section}.{key}": value for key, value in wanted.items() if own[key] != value}
    return changes


def _obstacle(full: Params, overrides: Mapping[str, Any]) -> str | None:
    """The reason why a row cannot be trained; None if it can."""
    try:
        train = override_params(full, overrides).train
    except InputError as error:
        return str(error)
    if train.all_negatives_epochs >= train.epochs:
        return f"train.epochs: {train.epochs} leaves none after those on all negatives"
    if train.validation_share < 1 and train.epochs == 1:
        return "train.validation_share: there is one epoch to choose from"
    return None
