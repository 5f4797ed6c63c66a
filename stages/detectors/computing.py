"""Identifies what computes regions, by code and library versions, so that changed code extracts images again."""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.content.imports import imported_names
from stages.detectors import DETECTORS
from stages.detectors.harmless import HARMLESS

LIBRARIES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "PIL": "pillow",
    "detectron2": "detectron2",
}
"""Libraries that compute features: imported name -> distribution."""
FOLLOWED = ("stages.detectors.", "stages.sources.frames")
# They load weights, tables and reasons; the description has a hash of what they load.
NOT_IN_KEY = {
    f"stages.detectors.{name}"
    for name in ("base", "detectron2_weights", "images", "pickled_arrays", "timm_weights", "weights")
}
# The code around every detector, and the decoder of every picture.
AROUND, DECODER = "stages.extraction.describing", "stages.detectors.images"
WITHOUT_PICTURES = ("precomputed",)


def plain_code(tree: ast.AST) -> str:
    """The code without comments, docstrings and other standalone strings, reformatted."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, name, None), list) and statements:
                setattr(node, name, [item for item in statements if not _is_text(item)] or [ast.Pass()])
    return ast.unparse(_PartsOfTexts().visit(tree))


class _PartsOfTexts(ast.NodeTransformer):
    """Replaces an f-string by the tuple of its parts, because Python 3.12 unparses it with other quotes than 3.11."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Tuple([self.visit(part) for part in node.values], ast.Load())

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        form = ast.Constant(None) if node.format_spec is None else self.visit(node.format_spec)
        return ast.Tuple([self.visit(node.value), ast.Constant(node.conversion), form], ast.Load())


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def code_of(modules: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Return, by name, the code of modules and of the detector modules that they import; and the libraries used."""
    codes: dict[str, str] = {}
    libraries: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        module = importlib.util.find_spec(name) if name not in codes else None
        if module is None or module.origin is None:
            continue
        tree = ast.parse(Path(module.origin).read_bytes())
        imported = imported_names(tree)
        libraries |= {LIBRARIES[top] for item in imported if (top := item.split(".")[0]) in LIBRARIES}
        codes[name] = plain_code(tree)
        followed = {".".join(item.split(".")[:3]) for item in imported if item.startswith(FOLLOWED)}
        waiting += sorted(followed - NOT_IN_KEY)
    return codes, libraries


def _version(library: str) -> str:
    """The installed version, without the suffix for CPU or CUDA builds; the device makes no difference either."""
    try:
        distribution = importlib.metadata.distribution(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    version = distribution.version.split("+")[0]
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id", "")
    return f"{version} {commit}".strip()


def computed_by(backend: str) -> dict[str, Any]:
    """`digest` over the code and the versions that compute a backend's regions, and the `versions` themselves."""
    return _computed_by(DETECTORS.get(backend), backend not in WITHOUT_PICTURES)


@functools.cache
def _computed_by(module: str | None, pictures: bool) -> dict[str, Any]:
    codes, libraries = code_of([module, AROUND, *([DECODER] if pictures else [])] if module else [])
    if not pictures:
        libraries.discard("pillow")
    versions = {library: _version(library) for library in sorted(libraries)}
    content = json.dumps([codes, versions], sort_keys=True).encode()
    return {"digest": hashlib.sha256(content).hexdigest(), "versions": versions}


def computing_digest(backend: str) -> str:
    """The digest of the code that first computed the features that the current code computes (see HARMLESS)."""
    return _first(computed_by(backend)["digest"])


def _first(digest: str) -> str:
    """Follow HARMLESS back from `digest` to the first digest with the same features."""
    for _ in range(len(HARMLESS)):
        digest = HARMLESS.get(digest, digest)
    return digest


def changes_since(before: Any, backend: str) -> str:
    """A message that says what has changed since `before`, an earlier `computed_by`, and how to declare it harmless."""
    now, earlier = computed_by(backend), before["versions"]
    changes = [
        f"{library} {earlier.get(library, 'not used')} is now {version}"
        for library, version in now["versions"].items()
        if earlier.get(library) != version
    ]
    return (
        f"What computes the regions has changed ({', '.join(changes) or 'its code'}): extract_regions will extract all "
        "images again. If every feature stays as it was, say so in stages/detectors/harmless.py first: "
        f'HARMLESS = {{"{now["digest"]}": "{_first(before["digest"])}"}}'
    )
