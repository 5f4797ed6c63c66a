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
    """The switches of the model; which of them fit each other is CampConfig's to say."""

    @model_validator(mode="after")
    def _check_config(self) -> Self:
        self.config(vocab_size=4, region_dim=1)
        return self

    def config(self, vocab_size: int, region_dim: int, geometry: float = 0.0) -> CampConfig:
        """The model's config, once the data has said what it alone knows."""
        return CampConfig(vocab_size=vocab_size, region_dim=region_dim, geometry=geometry, **dict(self))
