"""The dataclasses of stages/params as pydantic models, so that Prefect's run form is their documentation.

Types and descriptions come from the dataclasses, values from the repository's params.yaml: what a person leaves as it
is stays as it is there.
"""

import ast
import dataclasses
import inspect
import textwrap
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from camp_model.config import CampConfig
from stages.params.model import ModelParams
from stages.params.pipeline import Params, from_dict, load_params


def field_docs(kind: type) -> dict[str, str]:
    """The string under each field of a class, by field name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    name = ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            docs[name] = inspect.cleandoc(str(node.value.value))
            name = ""
        else:
            name = ""
    return docs


def form(filled: Any) -> type[BaseModel]:
    """The pydantic model of a params dataclass, whose defaults are the values of `filled`; unknown keys are refused."""
    kind = type(filled)
    # The switches of the model are explained where the model is.
    docs = (field_docs(CampConfig) if kind is ModelParams else {}) | field_docs(kind)
    hints = typing.get_type_hints(kind)
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        value = getattr(filled, item.name)
        description = docs.get(item.name)
        if dataclasses.is_dataclass(value):
            section = form(value)
            fields[item.name] = (section, Field(default_factory=section, description=description))
        else:
            fields[item.name] = (_annotation(hints[item.name]), Field(default=_plain(value), description=description))
    config = ConfigDict(extra="forbid", title=kind.__name__)
    return create_model(kind.__name__, __config__=config, __doc__=kind.__doc__, **fields)


def _annotation(hint: Any) -> Any:
    """The hint with tuples as lists, and dataclasses in them as plain mappings (checked when they are written)."""
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return list[dict[str, Any]] if dataclasses.is_dataclass(inner) else list[inner]  # type: ignore[valid-type]
    return hint


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [dataclasses.asdict(item) if dataclasses.is_dataclass(item) else item for item in value]  # type: ignore[arg-type]
    return value


def present_params(path: Path = Path("params.yaml")) -> Params:
    """params.yaml, or the dataclasses' own defaults where there is none."""
    return load_params(path) if path.is_file() else Params()


ParamsForm = form(present_params())


def write_params(given: Any, path: Path = Path("params.yaml")) -> list[str]:
    """Write what differs from params.yaml into it, comments kept; the dotted names of what changed.

    Raises:
        InputError: a value is not allowed; the file stays as it was.
    """
    from ruamel.yaml import YAML

    wanted = given.model_dump()
    from_dict(Params, wanted)
    present = dataclasses.asdict(load_params(path))
    changed = dict(_differences(present, wanted))
    if not changed:
        return []
    round_trip = YAML()
    round_trip.width = 200
    document = round_trip.load(path.read_text(encoding="utf-8"))
    for name, value in changed.items():
        *sections, key = name.split(".")
        node = document
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            round_trip.dump(document, file)
        load_params(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return list(changed)


def _differences(present: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in wanted.items():
        before = present.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            found += _differences(before, value, f"{prefix}{key}.")
        elif value != (list(before) if isinstance(before, tuple) else before):
            found.append((f"{prefix}{key}", value))
    return found
