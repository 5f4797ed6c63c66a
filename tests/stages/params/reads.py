"""Runs stages with each of some files of params and prints as JSON which keys of params.yaml each stage has read.

A key is read where the attribute of a section is, or a section is made plain values as a whole; not where params.yaml
is checked as a whole before a stage starts, and not where a run is recorded.
"""

import importlib
import json
import shutil
import sys
from typing import Any

from stages import entry
from stages.params.section import Section

reads: dict[str, set[str]] = {}
running: list[str] = []
"""The stage that runs, once its params are read."""
stage = ""
whole_sections: dict[int, tuple[str, Section]] = {}
"""id -> the key at which a section lies, and the section, held so that no other takes its id."""


def _record(section: Section, name: str) -> None:
    if running and id(section) in whole_sections:
        reads[running[0]].add(f"{whole_sections[id(section)][0]}{name}")


def _place(section: Section, prefix: str) -> None:
    """Note where a section lies, and those in it. A read of a section itself is none of its keys."""
    whole_sections[id(section)] = (prefix, section)
    for name, value in section.__dict__.items():
        if isinstance(value, Section):
            _place(value, f"{prefix}{name}.")


def _getattribute(section: Section, name: str) -> Any:
    value = object.__getattribute__(section, name)
    if not name.startswith("_") and name in type(section).model_fields and not isinstance(value, Section):
        _record(section, name)
    return value


def _to_dict(section: Section) -> dict[str, Any]:
    if not sys._getframe(1).f_globals["__name__"].startswith("stages.tracking"):
        _record_all(section)
    return section.model_dump(mode="json")


def _record_all(section: Section) -> None:
    for name, value in section.__dict__.items():
        _record_all(value) if isinstance(value, Section) else _record(section, name)


def _read_params(sections: Any, *path: Any) -> Any:
    params = original(sections, *path)
    _place(params, "")
    running[:] = [stage]
    return params


if __name__ == "__main__":
    original = entry.read_params
    entry.read_params = _read_params
    Section.__getattribute__ = _getattribute
    Section.to_dict = _to_dict
    stages, *files = (argument.split(",") for argument in sys.argv[1:])
    del sys.argv[1:]
    for (file,) in files:
        shutil.copy(file, "params.yaml")
        for stage in stages:
            reads.setdefault(stage, set())
            running.clear()
            importlib.import_module(f"stages.{stage}").main()
    print(json.dumps({name: sorted(keys) for name, keys in reads.items()}))
