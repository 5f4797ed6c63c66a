"""The trained model in MLflow: logged as code and safetensors, registered, and the best one called `champion`."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

NAME = "camp"
CHAMPION = "champion"
NEEDS = ("mlflow", "numpy", "pandas", "pyarrow", "regex", "safetensors", "torch")


def log_model(client: "MlflowClient", run_id: str, checkpoint: Path, code: Path, event: dict[str, Any]) -> None:
    """Log and register the checkpoint of a run, once, and call it champion if its validation rsum is the best.

    Args:
        client: of the store that the run is in; also the one that `mlflow` is set to.
        run_id: MLflow's id of the run.
        checkpoint: folder with model.safetensors, config.json and vocabulary.json.
        code: folder with served_model.py and the package camp_model, as they were when the model was trained.
        event: `val_rsum` and `start_end`.
    """
    known = client.search_model_versions(f"run_id = '{run_id}'")
    registered = known[0] if known else _register(client, run_id, checkpoint, code, event)
    champion = _champion(client)
    dataset = registered.tags.get("dataset")
    if champion is None or (
        # Sums of recalls on two datasets say nothing about each other.
        champion.tags.get("dataset") == dataset and float(champion.tags.get("val_rsum", "-inf")) < event["val_rsum"]
    ):
        client.set_registered_model_alias(NAME, CHAMPION, registered.version)


def _register(
    client: "MlflowClient", run_id: str, checkpoint: Path, code: Path, event: dict[str, Any]
) -> "ModelVersion":
    import mlflow

    region_dim = _region_dim(checkpoint)
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code / "served_model.py"),
            code_paths=[str(code / "camp_model")],
            artifacts={"checkpoint": str(checkpoint)},
            signature=_signature(),
            input_example=_example(region_dim),
            model_config={"start_end": event["start_end"]},
            pip_requirements=[f"{package}=={version(package)}" for package in NEEDS],
        )
    tags = {"val_rsum": str(event["val_rsum"]), "dataset": client.get_run(run_id).data.tags.get("dataset", "")}
    registered = mlflow.register_model(info.model_uri, NAME, tags=tags)
    return client.get_model_version(NAME, registered.version)


def _region_dim(checkpoint: Path) -> int:
    import json

    return int(json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["region_dim"])


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "sentence"),
                ColSpec(DataType.string, "image_id", required=False),
                ColSpec(Array(Array(DataType.double)), "regions", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.long, "query"),
                ColSpec(DataType.string, "image_id"),
                ColSpec(DataType.long, "rank"),
                ColSpec(DataType.double, "score"),
            ]
        ),
        params=ParamSchema(
            [ParamSpec("store", DataType.string, ""), ParamSpec("top_k", DataType.long, 10)],
        ),
    )


def _example(region_dim: int) -> Any:
    import pandas as pd

    return pd.DataFrame({"sentence": ["a red circle"], "regions": [[[0.0] * region_dim] * 2]})


def _champion(client: "MlflowClient") -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(NAME, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None  # there is no champion yet
        raise


def promote(client: "MlflowClient", run_id: str) -> str:
    """Call the model of a run champion, whatever the present one's rsum; its version.

    Raises:
        ValueError: the run has registered no model.
    """
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    if not versions:
        raise ValueError(f"run {run_id} has registered no model; expected a train run that ended well")
    client.set_registered_model_alias(NAME, CHAMPION, versions[0].version)
    return str(versions[0].version)
