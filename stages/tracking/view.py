"""The columns and charts for comparing runs on MLflow's pages, as a shared view that `make ui` links to.

MLflow has no public API for this; the tag written here is the one that its own "share" button writes.
"""

import base64
import json
import zlib
from typing import Any

KEY = "camp"
"""The view's name in addresses: ...#/experiments/1/runs?viewStateShareKey=camp."""
TAG = f"mlflow.sharedViewState.{KEY}"

COLUMNS = (
    *(f"metrics.`{name}`" for name in ("best/val_rsum", "test/rsum", "test/i2t_r1", "test/t2i_r1")),
    "tags.`git.commit`", "tags.`dvc.experiment`", "attributes.`Models`",
)  # fmt: skip
SECTIONS = {
    "Retrieval": ("BAR", "test/rsum", "test/i2t_r1", "test/i2t_r5", "test/t2i_r1", "test/t2i_r5", "best/val_rsum"),
    "Training": ("LINE", "train/loss", "val/rsum", "val/gate_positive_mean", "val/gate_negative_mean"),
    "Gates": ("BAR", "test/gate_positive_mean", "test/gate_negative_mean", "test/gate_auc"),
    "One word changed": (
        "BAR", "test/foils_all_true_first", "test/foils_all_guilty_by_score", "test/foils_all_guilty_by_gate",
    ),
}  # fmt: skip
"""Title of a section -> type of its charts, and their metrics."""
LINE = {
    "xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear", "scaleType": "linear",
    "yAxisKey": "metric", "yAxisExpressions": [], "range": {}, "lineSmoothness": 0, "ignoreOutliers": False,
    "useGlobalXaxisKey": False, "useGlobalLineSmoothing": True,
}  # fmt: skip


def view() -> str:
    """The value of `TAG`, compressed because a tag holds 5,000 characters."""
    usual = {"isReordered": True, "deleted": False, "isGenerated": False}
    charts: list[dict[str, Any]] = [
        {"uuid": metric, "type": kind, "metricSectionId": title, "metricKey": metric, "displayName": metric,
         "runsCountToCompare": 10, **usual, **({**LINE, "selectedMetricKeys": [metric]} if kind == "LINE" else {})}
        for title, (kind, *metrics) in SECTIONS.items() for metric in metrics
    ]  # fmt: skip
    state = {
        "searchFilter": "tags.`camp.kind` = 'train'", "orderByKey": "metrics.`best/val_rsum`", "orderByAsc": False,
        "selectedColumns": COLUMNS, "compareRunCharts": charts, "isAccordionReordered": True,
        "compareRunSections": [{"uuid": title, "name": title, "display": True, **usual} for title in SECTIONS],
    }  # fmt: skip
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
