"""The stage evaluate on a small run."""

import json

import pyarrow.parquet as pq

from stages.evaluate import evaluate
from stages.params.evaluate import EvaluateParams

PARAMS = EvaluateParams(device="cpu", gate_pairs=40)


def run(small, params=PARAMS):
    """Evaluate a small run; returns retrieval.json, gates.json and the rows of test.parquet."""
    folders = {"out": small.root / "data/evaluation", "metrics": small.root / "metrics"}
    evaluate(params, regions=small.regions, captions=small.token_tables, model=small.model, **folders)
    retrieval, gates = (
        json.loads((folders["metrics"] / f"{name}.json").read_text()) for name in ("retrieval", "gates")
    )
    return retrieval, gates, pq.read_table(folders["out"] / "test.parquet").to_pylist()
