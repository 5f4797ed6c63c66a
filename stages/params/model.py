"""The section `model`: the switches of the model."""

from dataclasses import asdict, dataclass

from camp_model.config import CampConfig
from stages.errors import InputError


@dataclass(frozen=True)
class ModelParams:
    """The switches of CAMP; meaning and allowed values: camp_model.config.CampConfig."""

    word_dim: int = 300
    dim: int = 1024
    text: str = "gru"
    matcher: str = "camp"
    message_passing: str = "both"
    hops: int = 1
    gate: str = "scalar"
    gate_context: float = 3.0
    fusion: str = "concat"
    residual: bool = True
    pooling: str = "attention"
    pooling_heads: int = 8
    matching: str = "mlp"

    def __post_init__(self) -> None:
        self.config(vocab_size=4, region_dim=1)

    def config(self, vocab_size: int, region_dim: int) -> CampConfig:
        """The model's config, once the data has said its two sizes."""
        try:
            return CampConfig(vocab_size=vocab_size, region_dim=region_dim, **asdict(self))
        except ValueError as error:
            raise InputError(str(error)) from None
