"""The variants that are run in parallel: changes to params.yaml, and what else their results depend on."""

import argparse
import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prefect import get_run_logger

from camp_model.seal import digest_of_values
from pipelines.pairs import by_name
from stages.content.named import Content, NamedFilesSections, named_paths
from stages.errors import InputError, shown
from stages.named_files import current_content
from stages.params.dataset import SPLITS
from stages.params.document import leaves
from stages.params.pipeline import Params
from stages.params.section import Section
from stages.tracking.machine import copy_index

GRID = '{"model.pooling": ["attention", "mean"]}'
"""An example of a grid, as written on the command line."""


def grid_of(text: str) -> dict[str, Any]:
    """Parse a grid from JSON; a key that is there twice is an error, as JSON itself would keep the last alone."""
    try:
        grid = json.loads(text, object_pairs_hook=_each_key_once)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}; expected {GRID}") from None
    if not isinstance(grid, dict):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not an object; expected {GRID}")
    return grid


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    try:
        return by_name(pairs)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def set_param(key: str, value: Any) -> list[str]:
    """Arguments of `dvc exp run` that set a key of params.yaml to a value, whatever its old value, and if it has none.

    To set an empty mapping, the key is removed, which is equivalent because params that are mappings are empty by
    default. Otherwise DVC would write invalid YAML if the old mapping spans several lines.
    """
    if not isinstance(value, dict | list):
        return ["--set-param", f"++{key}={_hydra(value)}"]
    # DVC parses these arguments with Hydra, which would merge the value with the old one.
    last = f"~{key}" if value == {} else f"++{key}={_hydra(value)}"
    return ["--set-param", f"++{key}=0", "--set-param", last]  # Hydra deletes no null


def override_params(params: Params, overrides: Mapping[str, Any]) -> Params:
    """The params with the values of some keys replaced.

    Raises:
        InputError: a key does not exist or is a whole section, whose other keys would silently become the defaults, or
            a value is not allowed, by itself or together with the others.
    """
    values = params.to_dict()
    for dotted, value in overrides.items():
        present: Any = params
        for part in dotted.split("."):
            present = getattr(present, part, None) if isinstance(present, Section) else None
        if isinstance(present, Section):
            first = f"{dotted}.{next(iter(present))[0]}"
            raise InputError(f"{dotted}: is a whole section; expected keys of it with dots, such as {first}")
        *sections, key = dotted.split(".")
        level = values
        for section in sections:
            level = level.setdefault(section, {})  # an unknown section is rejected below
            if not isinstance(level, dict):
                raise InputError(f"{dotted}: {section} has no keys; expected a key of params.yaml")
        level[key] = value
    return Params.from_dict(values)


def _hydra(value: Any) -> str:
    """Format a value in Hydra's override grammar: keys are unquoted, and inside quotes only a quote is escaped."""
    if isinstance(value, dict):
        keys = (re.sub(r"([][(){}:=, \\])", r"\\\1", key) for key in value)
        return f"{{{', '.join(f'{key}: {_hydra(inner)}' for key, inner in zip(keys, value.values(), strict=True))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_hydra, value))}]"
    if isinstance(value, str):
        return '"' + re.sub(r'(\\*)("|\Z)', lambda end: end[1] * 2 + end[2].replace('"', r"\""), value) + '"'
    return json.dumps(value)


def variants_of(grid: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Every combination of a grid, named after its values: {"model.gate": [..]} -> {"gate-none": {..}}.

    Raises:
        InputError: a value of the grid is not a list, or is empty, or two combinations have the same name.
    """
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid: {key}: {values!r} is not a list of values")
    variants: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*grid.values()):
        overrides = dict(zip(grid, values, strict=True))
        name = "-".join(f"{key.split('.')[-1]}-{_label(value)}" for key, value in overrides.items()) or "as-is"
        if name in variants:
            raise InputError(f"grid: {variants[name]} and {overrides} are both {name}; expected every value once")
        variants[name] = overrides
    return variants


def _label(value: Any) -> str:
    """Format a value as part of a name that MLflow accepts."""
    text = "_".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"[^\w./-]+", "_", text, flags=re.ASCII)


def params_of(variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Params]:
    """The params of each variant: params.yaml with its overrides.

    Raises:
        InputError: params.yaml is wrong, or becomes so with a variant, which the message names.
    """
    present = Params.load()
    params = {}
    for name, overrides in variants.items():
        try:
            params[name] = override_params(present, overrides)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    return params


def check_evaluated(params: Mapping[str, Params], split: str) -> None:
    """Raise InputError if a variant would not be evaluated on the split that the study reports, or on other images than
    the first variant: differences between rows pair their images."""
    _check_equal_images(params, split, "all rows, which the study compares")
    for name, of_variant in params.items():
        if split not in of_variant.evaluate.splits:
            splits = shown(list(of_variant.evaluate.splits))
            raise InputError(f"{name}: evaluate.splits: {splits} lacks {split}; expected it, which the study reports")


def check_validated(params: Mapping[str, Params]) -> None:
    """Raise InputError if a variant would be validated on other images than the first: they are ranked by val."""
    _check_equal_images(params, "val", "val of all variants, which ranks them")


def _check_equal_images(params: Mapping[str, Params], split: str, where: str) -> None:
    first, *_ = params
    compared = {
        name: dict(leaves(_decides_images(of_variant, split), of_variant)) for name, of_variant in params.items()
    }
    for name, values in compared.items():
        for key, value in values.items():
            if value != compared[first].get(key):
                raise InputError(
                    f"{name}: {key}: {shown(value)}, but {shown(compared[first].get(key))} in {first}; expected equal "
                    f"images in {where}"
                )


def _decides_images(params: Params, split: str) -> dict[str, Any]:
    """The params that decide which images and captions of a split are ranked."""
    dataset = params.to_dict()["dataset"]
    for other in {*SPLITS} - {split}:  # a split's scenes do not depend on the number of another's
        del dataset["scenes"][other]
    # The protocol is one of the evaluation; val is ranked whole.
    return {"dataset": dataset} | ({} if split == "val" else {"evaluate": {"protocol": params.evaluate.protocol}})


def warn_of_kept_params(variants: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any]) -> None:
    """Log a warning that names the rows that override keys of `base`."""
    kept = {name: sorted(overrides.keys() & base.keys()) for name, overrides in variants.items()}
    if messages := [f"{name}: {', '.join(keys)}" for name, keys in kept.items() if keys]:
        get_run_logger().warning("rows keep their own value: %s", "; ".join(messages))


def warn_of_left_out(reasons: Mapping[str, str]) -> None:
    """Log a warning that names the rows that params.yaml cannot have, each with its reason."""
    if reasons:
        get_run_logger().warning("rows left out: %s", "; ".join(map(": ".join, reasons.items())))


def named_content(params: Mapping[str, Params]) -> dict[str, Content]:
    """By variant, the content of the files and folders that its params name.

    It is part of a variant's identity: overrides only have the paths, and the content may change later.

    Raises:
        InputError: a file or folder that a variant names is missing.
    """
    known: dict[str, Content] = {}
    content = {}
    for name, of_variant in params.items():
        sections = NamedFilesSections.from_dict(of_variant.to_dict())
        paths = json.dumps([named_paths(sections), sections.model.transformer], sort_keys=True)
        if paths not in known:  # most variants name the same files
            try:
                known[paths] = current_content(sections)
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
        content[name] = known[paths]
    return content


@dataclass(frozen=True)
class SharedInputs:
    """What all variants share: tracked files that can affect a stage, and the outputs of shared stages."""

    stages: tuple[str, ...]
    """The shared stages."""
    content: Mapping[str, Any]
    """File -> its mode and hash; dvc.lock -> the outputs of the shared stages."""

    @classmethod
    def of(cls, stages: Sequence[str]) -> "SharedInputs":
        """The files as they are now, committed or not; waits while DVC begins an experiment: for this moment, it writes
        the experiment's params into this workspace, under its lock."""
        from dvc.repo import Repo

        with Repo(_wait_for_lock=True) as repo, repo.lock, tempfile.TemporaryDirectory() as folder:
            own = {**os.environ, "GIT_INDEX_FILE": str(copy_index(Path(folder)))}
            subprocess.run(["git", "add", "--update", "--", "."], env=own, capture_output=True, check=True)
            files = (".", *(f":!{path}" for path in ("docs", "tests", "*.md", ".dvc", "dvc.lock", "metrics", "plots")))
            command = ["git", "ls-files", "-s", "-z", "--", *files]
            listed = subprocess.run(command, env=own, capture_output=True, check=True).stdout.split(b"\0")
        entries = (os.fsdecode(entry).split("\t", 1) for entry in listed if entry)
        lock = Path("dvc.lock")  # missing if the only shared stage is that of named/dvc.yaml
        known = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if stages and lock.is_file() else {}
        outputs = [known.get(name, {}).get("outs", []) for name in stages]
        return cls(tuple(stages), {file: entry for entry, file in entries} | {"dvc.lock": outputs})

    @property
    def sha256(self) -> str:
        """One hash over all of it."""
        return digest_of_values(self.content)

    def check(self, name: str) -> None:
        """Raise InputError if anything has changed since: DVC would run the experiment `name` with what is here now."""
        before, now = self.content, self.of(self.stages).content
        changed = sorted(file for file in before.keys() | now.keys() if before.get(file) != now.get(file))
        if changed:
            raise InputError(
                f"{name}: code or params have changed since the first experiment of these began: {shown(changed)}; "
                "expected the same for all: undo the change, or run all of them again"
            )


def name_for_git(kind: str, of_variant: str, name: str) -> str:
    """A name that a ref, and thus a file, may end with; dots stay only in numbers: git refuses `..` and `.lock`."""
    return re.sub(r"[^a-zA-Z0-9.-]+|\.(?!\d)", "-", f"{kind}-{of_variant[:8]}-{name}")[:200].strip("-.")
