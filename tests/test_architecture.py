"""How the house is built: imports run one way, and everything lies in the folder that bears its name."""

import ast
import graphlib
import subprocess
import sys
from collections import defaultdict

import pytest
import yaml

from tests.imports import PACKAGES, ROOT, imports, modules, project_imports

LIBRARY = {"torch", "numpy", "pyarrow", "safetensors", "regex", "faiss", "triton"}
"""What `camp_model` may need beside Python itself; faiss only where a shortlist is built."""
SHARED = {"__init__", "ahead", "contracts", "cost", "device", "entry", "errors", "garbage", "unchanged", "workspace"}
"""What lies beside the stages in stages/."""


@pytest.mark.parametrize("module", modules())
def test_imports_run_one_way(module: str) -> None:
    package = module.split(".", maxsplit=1)[0]
    above = PACKAGES[PACKAGES.index(package) + 1 :]
    assert not [name for name in imports(module) if name.split(".")[0] in above]


def test_no_circle_of_imports() -> None:
    graph = {
        # a package's own `__init__` runs before its modules and may hand on what they define
        name: {other for other in project_imports(name) if not name.startswith(f"{other}.")}
        for name in modules()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_the_library_needs_little() -> None:
    import sys

    for module in modules():
        if module.startswith("camp_model"):
            outside = {name.split(".")[0] for name in imports(module)} - set(sys.stdlib_module_names) - {"camp_model"}
            assert outside <= LIBRARY, f"{module}: {outside - LIBRARY}"


def test_a_stage_is_a_short_module_beside_a_folder_of_its_parts() -> None:
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    loose = {path.stem for path in (ROOT / "stages").glob("*.py")}
    assert loose == stages | SHARED
    for stage in stages:
        lines = len((ROOT / "stages" / f"{stage}.py").read_text(encoding="utf-8").splitlines())
        assert lines <= 125, f"stages/{stage}.py: {lines} lines"


def test_a_file_is_about_one_thing() -> None:
    files = [*modules().values(), *(path for name in ("tests", "benchmarks") for path in (ROOT / name).rglob("*.py"))]
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > 300} == {}


ONE_MEANING = {"main", "resolve", "load", "build", "read_source", "read_json", "read_object", "read_table", "extract"}
"""Functions that several modules have because they are called alike: commands, detectors, sources, readers of files
(with the errors of the library and of the stages), extraction in this process and as a flow."""


def test_no_two_public_things_of_one_name() -> None:
    places = defaultdict(list)
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    assert {name: at for name, at in places.items() if len(at) > 1 and name not in ONE_MEANING} == {}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("stages.tokenize_captions", "torch"), ("stages.train_detector", "torchvision"), ("stages.tracking", "mlflow")],
)
def test_a_command_does_not_wait_for_a_library_that_it_may_never_use(module: str, heavy: str) -> None:
    code = f"import sys, {module}; raise SystemExit({heavy!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_benchmark_begins() -> None:
    """None is run by the tests, and what they take from the project may get another name."""
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))
    code = f"import {', '.join(f'benchmarks.{name}' for name in names)}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
