"""The section `report`: what the report shows."""

from dataclasses import dataclass

from stages.params.checks import at_least


@dataclass(frozen=True)
class ReportParams:
    """What the report page shows."""

    queries: int = 12
    """Queries shown in each direction."""
    top_k: int = 5
    """Results shown for a query."""
    foils: int = 2
    """Foils of each kind shown, and half as many of the worst; 0: none."""
    seed: int = 0
    """Seed of the choice of queries."""

    def __post_init__(self) -> None:
        at_least("report", self, queries=1, top_k=1, foils=0)
