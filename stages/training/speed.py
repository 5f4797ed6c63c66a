"""The speed of training."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class TrainingSpeed:
    """The training speed of this process, without the part of a resumed run that was trained before."""

    seconds: float = 0.0
    """Time spent in steps."""
    steps: int = 0
    pairs: int = 0
    waited: float = 0.0
    """The part of `seconds` spent waiting for the next batch."""

    def metrics(self) -> dict[str, float]:
        """Rates, for the tracking server."""
        seconds = max(self.seconds, 1e-9)
        return {
            "steps_per_second": self.steps / seconds,
            "pairs_per_second": self.pairs / seconds,
            "data_wait_share": self.waited / seconds,
        }

    def after(self, seconds: float, pairs: int, waited: float) -> "TrainingSpeed":
        """The speed after one more step."""
        return TrainingSpeed(self.seconds + seconds, self.steps + 1, self.pairs + pairs, self.waited + waited)

    def since(self, earlier: "TrainingSpeed") -> "TrainingSpeed":
        """The speed since `earlier`."""
        return TrainingSpeed(*(now - then for now, then in zip(astuple(self), astuple(earlier), strict=True)))
