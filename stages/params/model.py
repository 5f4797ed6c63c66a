"""The section `model`: the switches of the model, as camp_model.config.CampConfig types and explains them."""

from typing import Any, Self, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, create_model, model_validator, with_config

from camp_model.config import AMOUNTS, CHOICES, HOPS, WIDEST, WIDTHS, CampConfig
from stages.params.section import Section

_FROM_DATA = ("vocab_size", "region_dim", "geometry")
"""What the data says and params do not."""

_ALLOWED: dict[str, dict[str, Any]] = {
    **{name: {"enum": list(choices)} for name, choices in CHOICES.items()},
    **{name: {"minimum": 1, "maximum": WIDEST} for name in WIDTHS},
    **{name: {"minimum": 0} for name in AMOUNTS},
    "hops": {"enum": list(HOPS)},
}
"""What Prefect's form says of a switch; CampConfig checks it."""


def _switches() -> Any:
    """The fields of CampConfig as a section: its types, defaults and descriptions."""
    hints = get_type_hints(CampConfig)
    documented = with_config(ConfigDict(use_attribute_docstrings=True))(CampConfig)
    properties = TypeAdapter(documented).json_schema()["properties"]
    fields: dict[str, Any] = {
        name: (
            hint,
            Field(
                getattr(CampConfig, name),
                description=properties[name]["description"],
                json_schema_extra=_ALLOWED.get(name),
            ),
        )
        for name, hint in hints.items()
        if name not in _FROM_DATA
    }
    return create_model("Switches", __base__=Section, **fields)


class ModelParams(_switches()):  # type: ignore[misc]  # the fields are CampConfig's own
    """The switches of the model; which of them contradict each other is CampConfig's to say."""

    @model_validator(mode="after")
    def _check_config(self) -> Self:
        config = self.config(vocab_size=4, region_dim=1)
        # Not in CampConfig: checkpoints whose config has a switch without effect can still be read.
        if config.fusion == "message" and config.message_passing == "none":
            raise ValueError("model.fusion: message needs messages, but model.message_passing is none")
        if config.gate_context and (config.gate == "none" or config.message_passing in ("none", "text_to_image")):
            raise ValueError(
                f"model.gate_context: {config.gate_context:g} acts on gates of words, which model.gate "
                f"{config.gate} with model.message_passing {config.message_passing} lacks; expected 0"
            )
        return self

    def config(self, vocab_size: int, region_dim: int, geometry: float = 0.0) -> CampConfig:
        """The model's config, once the data has said what it alone knows."""
        return CampConfig(vocab_size=vocab_size, region_dim=region_dim, geometry=geometry, **dict(self))
