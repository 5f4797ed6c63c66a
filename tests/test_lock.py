"""requirements.lock on every system and Python that README names: all that is needed there, and nothing that is not."""

import re
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}


def needed(environment: dict[str, str]) -> tuple[set[str], set[str]]:
    """The packages that `make lock` names, and all that these need in an environment; and those of them that are not
    installed here, of which nobody knows what they need."""
    extras = re.findall(r"--extra (\w+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    todo = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    seen: defaultdict[str, set[str]] = defaultdict(set)
    unknown = set()
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - seen[name]:
            seen[name].add(extra)
            try:
                lines = requires(name) or []
            except PackageNotFoundError:  # only other systems and Pythons need it
                unknown.add(name)
                continue
            for line in lines:
                marker = Requirement(line).marker
                if marker is None or marker.evaluate(environment | {"extra": extra}):
                    todo.append(line)
    return set(seen), unknown


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_lock_has_what_is_needed(system: str, python: str) -> None:
    here = {name: str(value) for name, value in default_environment().items()}
    environment = here | SYSTEMS[system] | {"python_version": python, "python_full_version": f"{python}.9"}
    pins = map(Requirement, (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())
    always = Marker("python_version > '0'")
    locked = {canonicalize_name(pin.name) for pin in pins if (pin.marker or always).evaluate(environment)}
    wanted, unknown = needed(environment)
    assert wanted <= locked
    compiled_here = sys.platform == "linux" and sys.version_info[:2] == (3, 11)  # what is unknown needs nothing more
    assert locked <= wanted or (unknown and not compiled_here)
