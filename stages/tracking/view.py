"""The columns and charts with which MLflow's pages compare runs, as a view that `make ui` links to."""

import base64
import json
import zlib
from typing import Any

KEY = "camp"
"""Its name in an address: ...#/experiments/1/runs?viewStateShareKey=camp."""
TAG = f"mlflow.sharedViewState.{KEY}"
"""The experiment's tag in which MLflow looks for it."""

COLUMNS = (
    *(f"metrics.`{name}`" for name in ("best/val_rsum", "test/rsum", "test/i2t_r1", "test/t2i_r1")),
    "tags.`git.commit`",
    "tags.`dvc.experiment`",
    "attributes.`Models`",
)
SECTIONS = {
    "Retrieval": ("BAR", "test/rsum", "test/i2t_r1", "test/i2t_r5", "test/t2i_r1", "test/t2i_r5", "best/val_rsum"),
    "Training": ("LINE", "train/loss", "val/rsum", "val/gate_positive_mean", "val/gate_negative_mean"),
    "Gates": ("BAR", "test/gate_positive_mean", "test/gate_negative_mean", "test/gate_auc"),
    "One word changed": (
        "BAR", "test/foils_all_true_first", "test/foils_all_guilty_by_score", "test/foils_all_guilty_by_gate",
    ),
}  # fmt: skip
"""Title -> the kind of its charts, and their metrics."""


def view() -> str:
    """The value of `TAG`, as MLflow's own "share" writes it: compressed, for a tag holds 5,000 characters."""
    sections = [
        {"uuid": title, "name": title, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
        for title in SECTIONS
    ]
    charts = [_chart(kind, title, metric) for title, (kind, *metrics) in SECTIONS.items() for metric in metrics]
    state = {
        "searchFilter": "tags.`camp.kind` = 'train'",
        "orderByKey": "metrics.`best/val_rsum`",
        "orderByAsc": False,
        "selectedColumns": COLUMNS,
        "compareRunSections": sections,
        "compareRunCharts": charts,
        "isAccordionReordered": True,
    }
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def _chart(kind: str, section: str, metric: str) -> dict[str, Any]:
    chart: dict[str, Any] = {
        "uuid": metric, "type": kind, "metricSectionId": section, "metricKey": metric, "displayName": metric,
        "runsCountToCompare": 10, "deleted": False, "isGenerated": False,
    }  # fmt: skip
    if kind == "LINE":
        chart |= {
            "xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear", "scaleType": "linear",
            "yAxisKey": "metric", "yAxisExpressions": [], "selectedMetricKeys": [metric], "range": {},
            "lineSmoothness": 0, "ignoreOutliers": False, "useGlobalXaxisKey": False, "useGlobalLineSmoothing": True,
        }  # fmt: skip
    return chart
