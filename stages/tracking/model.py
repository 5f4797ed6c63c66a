"""Logs the trained model to MLflow as code and safetensors, registers it, and gives the best the alias `champion`."""

import json
from collections.abc import Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camp_model.packages import PREFIX
from stages.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "camp"
CHAMPION = "champion"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pyarrow", "regex", "safetensors", "torch")


def log_model(client: "MlflowClient", run_id: str, checkpoint: Path, event: dict[str, Any]) -> None:
    """Log and register the checkpoint of a run, once, and make it champion if its validation rsum is the best.

    Args:
        client: client of the run's store.
        run_id: MLflow's id of the run.
        checkpoint: folder with model.safetensors, config.json and vocabulary.json; beside it served_model.py and the
            package camp_model, as they were when the model was trained.
        event: `val_rsum`, and how captions were tokenized: `start_end`, `max_words`.
    """
    tags = {"val_rsum": str(event["val_rsum"]), "dataset": client.get_run(run_id).data.tags.get("dataset", "")}
    known = client.search_model_versions(f"run_id = '{run_id}'")
    registered = known[0].version if known else _log(client, run_id, checkpoint, event, tags)
    promote_if_better(client, registered, tags)


def promote_if_better(client: "MlflowClient", version: str, tags: Mapping[str, str]) -> str | None:
    """Make a version champion if there is none, or if its validation rsum is higher on the same dataset.

    Args:
        version: of the registered model.
        tags: its tags `dataset` and `val_rsum`.

    Returns:
        Why the alias stays where it is; None if the version is champion now.
    """
    from mlflow.exceptions import MlflowException

    try:
        champion = client.get_model_version_by_alias(NAME, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    else:
        own, best = (float(of.get("val_rsum", "-inf")) for of in (tags, champion.tags))
        if str(champion.version) == str(version):
            return None
        if champion.tags.get("dataset", "") != tags.get("dataset", ""):  # their rsums cannot be compared
            return f"version {champion.version} was validated on other captions or pictures"
        if not own > best:
            return f"the validation rsum of version {champion.version} is {best:.1f}, and this one's {own:.1f}"
    client.set_registered_model_alias(NAME, CHAMPION, version)
    return None


def _log(client: "MlflowClient", run_id: str, checkpoint: Path, event: dict[str, Any], tags: dict[str, str]) -> str:
    """Log and register the model and return its version; delete what a killed delivery has logged of it."""
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature

    experiment = client.get_run(run_id).info.experiment_id
    for logged in client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'"):
        client.delete_logged_model(logged.model_id)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    with_regions: Any = pd.DataFrame({"sentence": ["a red circle"], "regions": [[[0.0] * config["region_dim"]] * 2]})
    # A column with a missing value is an optional one.
    columns = pd.concat([with_regions, pd.DataFrame({"sentence": ["a red circle"], "image_id": ["1"]})]).astype(object)
    answer = pd.DataFrame({"query": [0], "image_id": ["1"], "rank": [1], "score": [0.5], "error": [""]})
    mlflow.set_tracking_uri(client.tracking_uri)
    mlflow.set_registry_uri(client.tracking_uri)
    with mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name="model",
            registered_model_name=NAME,
            tags=tags,
            # To log a `python_model` or an `input_example` MLflow would run the model, and import torch, for nothing.
            loader_module="served_model",
            data_path=str(checkpoint),
            code_paths=[str(checkpoint.with_name(name)) for name in ("served_model.py", "camp_model")],
            signature=infer_signature(columns, answer, {"store": "", "top_k": 10}),
            model_config={name: event.get(name) for name in ("start_end", "max_words")},
            pip_requirements=[f"{package}=={version(package)}" for package in requirements(config)],
        )
    return str(info.registered_model_version)


def requirements(config: dict[str, Any]) -> list[str]:
    """The distributions that a served model with this config imports or reads weights from."""
    if config.get("text") != "transformer":
        return list(REQUIREMENTS)
    source = config["transformer"]
    package = source.removeprefix(PREFIX) if source.startswith(PREFIX) and config["transformer_frozen"] else ""
    return [*REQUIREMENTS, "transformers", *packages_distributions().get(package, [])]


def promote(client: "MlflowClient", run_id: str) -> str:
    """Make the model of a run champion, whatever the present one's rsum, and return its version.

    Raises:
        InputError: the run has registered no model.
    """
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    if not versions:
        raise InputError(f"run {run_id} has registered no model; expected a train run that ended well")
    client.set_registered_model_alias(NAME, CHAMPION, versions[0].version)
    return str(versions[0].version)
