"""The section `report`: what the report shows."""

from pydantic import Field

from stages.params.section import Section, Seed


class ReportParams(Section):
    """What the report page shows."""

    queries: int = Field(default=12, ge=1)
    """Queries shown in each direction."""
    top_k: int = Field(default=5, ge=1, le=10)
    """Results shown per query; evaluation keeps ten."""
    foils: int = Field(default=2, ge=0)
    """Random foils shown of each kind, and half as many of the worst; 0: none."""
    seed: Seed = 0
    """Seed of the choice of queries."""
