"""Prefect's run form of params: the classes of stages/params themselves, with the values of params.yaml as defaults.

What a person leaves as it is stays as it is there.
"""

import copy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError, create_model, model_validator

from stages.errors import InputError
from stages.params import document
from stages.params.pipeline import Params
from stages.params.section import PARAMS, Section, said

S = TypeVar("S", bound=Section)


def form(filled: S) -> type[S]:
    """The class of `filled` with its values as defaults."""
    kind = type(filled)
    fields: dict[str, Any] = {}
    for name, value in filled:
        field = copy.copy(kind.model_fields[name])
        nested: Any = form(value) if isinstance(value, Section) else None
        field.default, field.default_factory = nested() if nested else value, None
        fields[name] = (nested or field.annotation, field)
    settings = {"use_attribute_docstrings": False}  # the fields have their descriptions already
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, __cls_kwargs__=settings, **fields)


def present_params() -> Params:
    """params.yaml, or the classes' own defaults where there is none."""
    return Params.load(PARAMS) if PARAMS.is_file() else Params()


def _filled() -> tuple[Params, InputError | None]:
    """What the form is filled with, and why that is not params.yaml: it is said by what starts a flow, not by every
    import, of `--help` too."""
    try:
        return present_params(), None
    except InputError as error:
        return Params(), error


_FILLED, _WRONG = _filled()


class ParamsForm(form(_FILLED)):  # type: ignore[misc]
    """All of params.yaml."""

    @model_validator(mode="wrap")
    @classmethod
    def _said_as_everywhere(cls, values: Any, check: Any) -> Any:
        """A wrong value ends a flow with the message that params.yaml would have got, not with pydantic's."""
        try:
            return check(values)
        except ValidationError as error:
            raise InputError(said(error)) from None


def write_params(params: Params, path: Path = PARAMS) -> list[str]:
    """Write what differs from params.yaml into it, comments kept; the dotted names of what changed.

    Raises:
        InputError: params.yaml is wrong, or was when the form was made without its values, which would be lost; it
            stays as it was.
    """
    if _WRONG is not None:
        raise _WRONG
    present, wanted = (dict(document.leaves(values.to_dict(), values)) for values in (Params.load(path), params))
    changed = [name for name, value in wanted.items() if value != present[name]]
    if changed:
        document.rewrite(path, params.to_dict())
    return changed
