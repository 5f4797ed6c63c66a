"""Stage named_files: the content of every file and folder that params name by path, for DVC to compare.

DVC sees another path in params.yaml, but not other content at the same path. This stage writes one hash for each such
path into named/content.json, under the stage that reads it, and that stage depends on its key of the file. A path that
is not here (a second clone, which pulled the results alone) keeps the hash that was recorded for it.

Where something is named, it also writes a DVC pipeline of one stage, named/dvc.yaml, that `dvc repro` always runs: it
looks again and writes what it saw into named/watched.json, on which this stage depends. The three files belong into Git
as dvc.lock does. They are looked after in the main workspace; an experiment's own one takes what Git has of them.
"""

import argparse
from pathlib import Path

from camp_model.files import read_object, write_json, write_text
from stages.content.named import Content, NamedFilesSections, content_of, named_paths
from stages.entry import read_params, stage_main
from stages.errors import InputError
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
    """What was written last; the watched content is the newer.

    Raises:
        InputError: a file cannot be read, as after a merge that is not settled.
    """
    for path in (FOLDER / "watched.json", FOLDER / "content.json"):
        try:
            values: Content = read_object(path, "what the stage named_files writes") if path.is_file() else {}
        except ValueError as error:
            raise InputError(f"{error}; `git checkout HEAD {path}` brings it back") from None
        if values:
            return values
    return {}


def content_now(params: NamedFilesSections) -> Content:
    """What the files and folders hold that params name; of one that is not here, what was recorded.

    Raises:
        InputError: as `content_of`; or what was recorded cannot be read.
    """
    return content_of(named_paths(params), _recorded(), main_root() / CACHE)


def named_files(params: NamedFilesSections, watch: bool = False) -> None:
    """Write content.json and what watches it; with `watch`, only watched.json.

    Raises:
        InputError: as `content_now`.
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
    parser = argparse.ArgumentParser(
        description="Hash the files and folders that params.yaml names, into named/content.json; DVC runs it so."
    )
    parser.add_argument("command", nargs="?", choices=["watch"], help="write named/watched.json alone")
    arguments = parser.parse_args()
    named_files(read_params(NamedFilesSections), watch=arguments.command == "watch")


if __name__ == "__main__":
    stage_main(main, arguments=True)
