"""Stage named_files: the content of every file and folder that params name by path, for DVC to compare.

DVC sees another path in params.yaml, but not other content at the same path. This stage writes one hash for each such
path into named/content.json, under the stage that reads it, and that stage depends on its key of the file. A path that
is not here (a second clone, which pulled the results alone) keeps the hash that was recorded for it.

Where something is named, it also writes a DVC pipeline of one stage, named/dvc.yaml, that `dvc repro` always runs: it
looks again and writes what it saw into named/watched.json, on which this stage depends. The three files belong into Git
as dvc.lock does. They are looked after in the main workspace; an experiment's own one takes what Git has of them.
"""

import json
import sys
from pathlib import Path

from camp_model.files import write_json, write_text
from stages.content.named import Content, NamedFilesSections, content_of, named_paths
from stages.entry import read_params, stage_main
from stages.workspace import main_root

FOLDER = Path("named")
CACHE = Path(".work") / "hashes.sqlite"
WATCH = """# Written by the stage named_files while params name files, which every `dvc repro` looks at again.
stages:
  watch:
    wdir: ..
    cmd: exec python -m stages.named_files watch
    always_changed: true
    outs:
      - named/watched.json:
          cache: false
          persist: true
"""


def _recorded() -> Content:
    """What was written last; the watched content is the newer."""
    for name in ("watched.json", "content.json"):
        if (FOLDER / name).is_file():
            values: Content = json.loads((FOLDER / name).read_text(encoding="utf-8"))
            if values:
                return values
    return {}


def content_now(params: NamedFilesSections) -> Content:
    """What the files and folders hold that params name; of one that is not here, what was recorded.

    Raises:
        InputError: as `content_of`.
    """
    return content_of(named_paths(params), _recorded(), main_root() / CACHE)


def named_files(params: NamedFilesSections, watch: bool = False) -> None:
    """Write content.json and what watches it; with `watch`, only watched.json.

    Raises:
        InputError: as `content_of`.
    """
    root, content = main_root(), content_now(params)
    if not watch:
        write_json(FOLDER / "content.json", content)
    if root != Path.cwd().resolve() and not watch:
        return
    named = any(content.values())
    write_json(FOLDER / "watched.json", content if named else {})
    if not watch and named:
        write_text(FOLDER / "dvc.yaml", WATCH)
    elif not watch:
        for name in ("dvc.yaml", "dvc.lock"):
            (FOLDER / name).unlink(missing_ok=True)


def main() -> None:
    named_files(read_params(NamedFilesSections), watch=sys.argv[1:] == ["watch"])


if __name__ == "__main__":
    stage_main(main, arguments=True)
