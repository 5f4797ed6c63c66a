"""How fast training goes."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Pace:
    """How fast this process has trained; resumed parts of a run are not in it."""

    seconds: float
    """Spent in steps."""
    steps: int
    pairs: int
    waited: float
    """Seconds of `seconds` in which the next batch was not there yet."""

    def metrics(self) -> dict[str, float]:
        """Rates, for the tracking server."""
        seconds = max(self.seconds, 1e-9)
        return {
            "steps_per_second": self.steps / seconds,
            "pairs_per_second": self.pairs / seconds,
            "data_wait_share": self.waited / seconds,
        }

    def after(self, seconds: float, pairs: int, waited: float) -> "Pace":
        """The pace after one more step."""
        return Pace(self.seconds + seconds, self.steps + 1, self.pairs + pairs, self.waited + waited)

    def since(self, earlier: "Pace") -> "Pace":
        """The pace from `earlier` on."""
        return Pace(*(now - then for now, then in zip(astuple(self), astuple(earlier), strict=True)))
