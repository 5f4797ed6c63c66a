"""What every section of params.yaml is: typed once, frozen, checked whole, with errors that say what is allowed."""

import itertools
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from stages.errors import InputError, shown, without_password
from stages.params import document
from stages.workspace import main_root

PARAMS = Path("params.yaml")
TRAINED_MODEL = "models/camp"
_MESSAGES = {
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "string_type": "is not a text",
    "bool_type": "is not true or false",
    "tuple_type": "is not a list",
    "dict_type": "is not a mapping",
    "model_type": "is not a mapping",
    "finite_number": "is not a finite number",
    "greater_than_equal": "is below {ge:g}",
    "greater_than": "is not above {gt:g}",
    "less_than": "is not below {lt:g}",
    "less_than_equal": "is not between 0 and {le:g}",
    "too_short": "is empty; expected at least one",
    "literal_error": "is not one of {expected}",
}
"""Our wording of pydantic's error types, which follows the key and the value; braces are fields of its `ctx`."""


def _check_text(text: str) -> None:
    """Raise PydanticCustomError if a text holds a password, cannot be encoded, or can name no file."""
    if "://" in text and without_password(text) != text:
        raise PydanticCustomError(
            "password",
            "holds a user name, password or token, which dvc.lock and MLflow would record; expected an address without "
            "it: for Milvus MILVUS_TOKEN in the environment, for weights the path of the downloaded file",
        )
    try:
        size = max(map(len, text.encode().split(b"/"))) if "://" not in text else 0
    except UnicodeEncodeError:
        raise PydanticCustomError("text", "holds half a character (a lone surrogate)") from None
    if "\0" in text:
        raise PydanticCustomError("text", "holds a character of number 0, which no name of a file does")
    if size > 255 or len(text.encode()) > 4095:
        raise PydanticCustomError("text", "is longer than the name of a file may be")


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise PydanticCustomError("device", "is not one of auto, cpu, cuda, cuda:N, mps")
    return name


Split = Literal["train", "val", "test"]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, le=1e10)]
"""A number that AdamW multiplies with others of these; in float32, which goes to 3e38."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Device = Annotated[str, AfterValidator(_device)]


def check_no_output(key: str, path: str, *outputs: str) -> None:
    """Raise ValueError if `path` is or lies in one of `outputs`, however it is spelled.

    Args:
        outputs: folders that DVC removes before the stage that reads `path` runs, or that are made from its results.
    """
    # The spelling counts too: an output's files may be links into DVC's cache. In an experiment's own workspace, params
    # mean the same as in the main one.
    names = [Path(os.path.normpath(Path.cwd() / path)), Path(os.path.realpath(path))]
    for output, root in itertools.product(outputs, (Path.cwd(), main_root())):
        places = (root / output, Path(os.path.realpath(root / output)))
        if output == TRAINED_MODEL and any(name in places for name in names):
            raise ValueError(
                f"{key}: {path} is the model that train itself writes; expected another, such as a copy of it "
                f"(cp -r {TRAINED_MODEL} models/first)"
            )
        if any(name.is_relative_to(place) for name, place in itertools.product(names, places)):
            raise ValueError(
                f"{key}: {path} lies in {output}, which DVC removes before it is made anew; expected a path outside it"
            )


class Section(BaseModel):
    """A section of params.yaml. The string below a field is its description, in the form of Prefect too.

    A check of several keys is a validator that raises ValueError("section.key: what it is; what is allowed").
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_keys(cls, values: Any) -> Any:
        """Reject unknown keys; turn lists into tuples."""
        if not isinstance(values, dict):
            return values
        unknown = [key for key in values if key not in cls.model_fields]
        if unknown and cls.model_config["extra"] == "forbid":
            # Half a character in a key cannot be written, not even in the message.
            key = str(unknown[0])[:80].encode("utf-8", "backslashreplace").decode()
            known = ", ".join(cls.model_fields)
            raise PydanticCustomError(
                "unknown_key", "{key}: unknown key; allowed here: {known}", {"key": key, "known": known}
            )
        return {str(key): tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    @field_validator("*")
    @classmethod
    def _check_texts(cls, value: Any) -> Any:
        """Reject texts that `_check_text` rejects."""
        for text in value if isinstance(value, tuple | dict) else (value,):
            if isinstance(text, str):
                _check_text(text)
        return value

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Make the section from plain values.

        Raises:
            InputError: an unknown key, a key of another type, or a value that is not allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(error_message(error)) from None

    @classmethod
    def load(cls, path: Path = PARAMS) -> Self:
        """Read the section from a YAML file.

        Raises:
            InputError: the file cannot be read, or holds a wrong key or value; the message names both.
        """
        values = document.read(path)
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values, as they stand in YAML and JSON."""
        return self.model_dump(mode="json")

    def replace(self, **changes: Any) -> Self:
        """Return a checked copy with some values changed.

        Raises:
            InputError: as `from_dict`.
        """
        return self.from_dict(dict(self) | changes)


class StageSections(Section, extra="allow"):
    """The sections that one stage reads. Other sections of params.yaml are kept unchecked, for MLflow to record."""


def error_message(wrong: ValidationError) -> str:
    """The first error of pydantic in our form: key, its value, what is allowed."""
    error = wrong.errors(include_url=False)[0]
    where = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in error["loc"]).removeprefix(".")
    context = error.get("ctx", {})
    if error["type"] == "value_error":  # a section's own check
        return str(context["error"])
    if error["type"] == "unknown_key":
        return f"{where}.{error['msg']}" if where else error["msg"]
    if error["type"] == "missing":
        return f"{where}: is missing"
    if error["type"] == "less_than_equal" and isinstance(context["le"], int):  # of whole numbers, 0 may be too few
        return f"{where}: {shown(error['input'])} is above {context['le']}"
    if error["type"] == "literal_error":
        context = {"expected": context["expected"].replace("'", "").replace(" or ", ", ")}
    value = list(error["input"]) if isinstance(error["input"], tuple) else error["input"]
    says = _MESSAGES.get(error["type"], "").format(**context) or error["msg"]
    return f"{where or 'params'}: {'' if error['type'] in ('too_short', 'password') else shown(value) + ' '}{says}"
