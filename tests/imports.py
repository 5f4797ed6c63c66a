"""Which module of the project imports which, read from the code without running it."""

import ast
from functools import cache
from pathlib import Path

from stages.detectors import DETECTORS
from stages.sources import SOURCES

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("camp_model", "stages", "search", "pipelines")
REGISTRIES = {
    "camp_model": ("camp_model.config", "camp_model.model"),  # what its `__getattr__` hands out
    "stages.detectors": tuple(DETECTORS.values()),
    "stages.sources": tuple(SOURCES.values()),
}
"""Modules that a package imports by names that do not stand in its code."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


class _Imports(ast.NodeVisitor):
    """Collects imported names; with `late` those that functions import, too, and with `registered` modules whose names
    stand in texts, as in a registry.

    What is only imported for type checkers is left out, for Python never imports it.
    """

    def __init__(self, late: bool, registered: bool) -> None:
        self.names: set[str] = set()
        self.late, self.registered = late, registered

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.dump(node.test):
            self.generic_visit(node)
        else:
            for other in node.orelse:
                self.visit(other)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if self.late:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0 and node.module, "imports are absolute"
        self.names.add(node.module)
        self.names |= {f"{node.module}.{alias.name}" for alias in node.names}

    def visit_Constant(self, node: ast.Constant) -> None:
        if self.registered and node.value in modules():
            self.names.add(str(node.value))


@cache
def imports(module: str, late: bool = True, registered: bool = False) -> frozenset[str]:
    """All names that a module imports, as written: see `_Imports`."""
    visitor = _Imports(late, registered)
    visitor.visit(ast.parse(modules()[module].read_text(encoding="utf-8")))
    return frozenset(visitor.names).union(REGISTRIES.get(module, ()) if registered else ())


def has_code(path: Path) -> bool:
    """Whether a file holds more than a docstring."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def project_imports(module: str, late: bool = True, registered: bool = False) -> set[str]:
    """The project's modules that a module imports."""
    return {name for name in imports(module, late, registered) if name in modules() and name != module}


def packages_above(module: str) -> set[str]:
    """The packages that hold a module, whose `__init__` runs before it."""
    return {".".join(module.split(".")[:end]) for end in range(1, module.count(".") + 1)}


def closure(start: str, without: tuple[str, ...] = ()) -> frozenset[str]:
    """`start` and every module of the project that it leads to; what begins with `without` is not followed.

    Of a package that is imported only because it holds a module, only what its `__init__` imports at once is followed.
    """
    reached: set[tuple[str, bool]] = set()
    waiting = [(start, True)]
    while waiting:
        module, late = node = waiting.pop()
        if node in reached or any(module == name or module.startswith(f"{name}.") for name in without):
            continue
        reached.add(node)
        names = project_imports(module, late, registered=late)
        # `from package import module` needs no more of the package than its `__init__`
        wanted = {name for name in names if not _only_holds(name, module, names, late)}
        waiting += [(name, late) for name in wanted]
        waiting += [(above, False) for name in (*names, module) for above in packages_above(name)]
    return frozenset(module for module, _ in reached)


def _only_holds(package: str, module: str, names: set[str], late: bool) -> bool:
    """Whether a package is among the imported names because modules of it are, and nothing that it defines itself."""
    inside = {
        name
        for name in imports(module, late, registered=late)
        if name.startswith(f"{package}.") and name.count(".") == package.count(".") + 1
    }
    return bool(inside) and inside <= names
