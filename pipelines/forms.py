"""Prefect's run form of params: the classes of stages/params themselves, with the values of params.yaml as defaults.

A field that the user does not change keeps its value of params.yaml.
"""

import copy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError, create_model, model_validator

from stages.errors import InputError
from stages.params import document
from stages.params.pipeline import Params
from stages.params.presets import merge
from stages.params.section import PARAMS, Section, error_message

S = TypeVar("S", bound=Section)


def form(filled: S) -> type[S]:
    """A subclass of the class of `filled`, with its values as defaults."""
    kind = type(filled)
    fields: dict[str, Any] = {}
    for name, value in filled:
        field = copy.copy(kind.model_fields[name])
        nested: Any = form(value) if isinstance(value, Section) else None
        field.default, field.default_factory = nested() if nested else value, None
        fields[name] = (nested or field.annotation, field)
    settings = {"use_attribute_docstrings": False}  # the fields have their descriptions already
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, __cls_kwargs__=settings, **fields)


def current_params() -> Params:
    """The params of params.yaml, or the classes' own defaults if there is no such file."""
    return Params.load(PARAMS) if PARAMS.is_file() else Params()


def _form_values() -> tuple[Params, InputError | None]:
    """The values of the form, and the error in params.yaml if they are not taken from it. A flow raises this error when
    it starts; raising it here would fail every import, even for `--help`."""
    try:
        return current_params(), None
    except InputError as error:
        return Params(), error


_FORM_VALUES, _PARAMS_ERROR = _form_values()


class ParamsForm(form(_FORM_VALUES)):  # type: ignore[misc]
    """All of params.yaml."""

    @model_validator(mode="wrap")
    @classmethod
    def _reworded_errors(cls, values: Any, check: Any) -> Any:
        """Report a wrong value with the same message as one in params.yaml, not with pydantic's."""
        try:
            return check(values)
        except ValidationError as error:
            raise InputError(error_message(error)) from None


def write_params(params: Params, path: Path = PARAMS) -> list[str]:
    """Write values that differ into params.yaml and keep its comments; return the dotted names of changed values.

    Only values that were given are written, not those that a form was made with: params.yaml may have changed since, as
    while a flow waits for another run.

    Raises:
        InputError: params.yaml is wrong, or was so when the form was made: the form lacks its values, which would be
            lost. The file is left unchanged.
    """
    if _PARAMS_ERROR is not None:
        raise _PARAMS_ERROR
    before = Params.load(path)
    given = params.model_dump(mode="json", exclude_unset=True)
    after = Params.from_dict(merge(before.to_dict(), given, before))
    present, wanted = (dict(document.leaves(values.to_dict(), values)) for values in (before, after))
    changed = [name for name, value in wanted.items() if value != present[name]]
    if changed:
        document.rewrite(path, after.to_dict())
    return changed
