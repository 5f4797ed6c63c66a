"""What only evaluation would find, hours later, though params.yaml, this machine and what is there already tell it."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch

from camp_model.model import CAMP
from camp_model.regions import RegionStore
from camp_model.vocabulary import SPECIALS, Vocabulary
from stages.contracts import input_errors, read_table
from stages.device import check_precision, choose_device
from stages.evaluation.eccv import EccvCaption, metrics_class
from stages.evaluation.folds import folds_of, read_split
from stages.evaluation.loading import check_distinct, check_start_end, load_models
from stages.params.evaluate import EvaluateParams, check_gates, check_sizes
from stages.params.pipeline import Params
from stages.training.groups import parameter_groups
from stages.training.start import freeze
from stages.workspace import named_path

REGIONS, CAPTIONS = Path("data/regions"), Path("data/captions")


def check_ahead(params: Params, stage: str) -> None:
    """Check before a long stage that the splits have enough images, and that the model has the parameters that are
    named; before `train`, what else evaluation needs: a device, a package, COCO's ids, and the models of
    evaluate.ensemble. Earlier stages may run on another machine.

    Raises:
        InputError: a split has too few images; no name of a parameter begins with a prefix of params; this machine
            lacks the device or the package of evaluate.eccv, or the test split COCO's captions; or a model of the
            ensemble cannot be loaded, does not fit the data, or has no gates that could be replaced.
    """
    images, rejected = Path("data/dataset/images.parquet"), Path("data/regions/rejected.parquet")
    if images.is_file():
        table, where = read_table(images, {"image_id": pa.string(), "split": pa.string()}), f"{images}: "
        if stage == "train" and rejected.is_file():
            without = read_table(rejected, {"image_id": pa.string()})["image_id"].combine_chunks()
            table = table.filter(pc.invert(pc.is_in(table["image_id"], value_set=without)))
            where += f"without the {len(without)} images of {rejected}: " if len(without) else ""
        with input_errors(where):
            check_sizes(params.evaluate, Counter(table["split"].to_pylist()))
    _check_prefixes(params)
    if stage == "train":
        _check_machine(params.evaluate, params.train.precision)
        if params.evaluate.eccv and (CAPTIONS / "test.parquet").is_file():
            with input_errors():
                store = RegionStore(REGIONS)
            EccvCaption(folds_of(read_split("test", CAPTIONS, store), params.evaluate.protocol)[0])
        _check_ensemble(params.evaluate, params.captions.start_end)


def _check_prefixes(params: Params) -> None:
    """Check train.freeze and train.learning_rates against the names of the model's parameters, unless it holds a
    transformer, which would have to be loaded."""
    if params.model.text == "transformer" or not (params.train.freeze or params.train.learning_rates):
        return
    with input_errors():
        geometry = float(params.regions.geometry)
        camp = CAMP(params.model.config(vocab_size=len(SPECIALS), region_dim=64, geometry=geometry))
    freeze(camp, params.train.freeze)
    parameter_groups(camp, params.train.learning_rates)


def _check_machine(params: EvaluateParams, trained: str) -> None:
    precision = trained if params.precision == "trained" else params.precision
    check_precision(precision, choose_device(params.device, "evaluate.device"), "evaluate.precision")
    if params.eccv:
        metrics_class()


def _check_ensemble(params: EvaluateParams, start_end: bool) -> None:
    if not params.ensemble:
        return
    with input_errors():
        store, vocabulary = RegionStore(REGIONS), Vocabulary.load(CAPTIONS / "vocabulary.json")
    folders = list(map(named_path, params.ensemble))
    check_start_end(folders, CAPTIONS, start_end)
    check_distinct(folders)
    for folder in folders:  # one at a time, for memory
        (model,) = load_models([folder], store, vocabulary, torch.device("cpu"))
        with input_errors(f"{folder / 'config.json'}: "):
            check_gates(params.gates, model.config)
