"""Stage named_files: hash every file and folder that params name by path, for DVC to compare.

DVC notices another path in params.yaml, but not changed content at the same path. This stage writes one hash for each
such path into named/content.json, under the stage that reads it, and that stage depends on its key. If a path is
missing (in a clone that pulled only the results), its recorded hash is kept.

If params name any path, this stage also writes the DVC pipeline named/dvc.yaml. Its only stage is run by every
`dvc repro`: it hashes the files again and writes named/watched.json, on which this stage depends. Commit all three
files with dvc.lock: without the pipeline, a clone or an applied experiment would never check the files.
"""

import argparse

from camp_model.files import write_json, write_text
from stages.content.hashes import HASHES
from stages.content.named import CONTENT, Content, NamedFilesSections, content_of, named_paths, read_content
from stages.entry import read_params, stage_main
from stages.workspace import main_root

FOLDER = CONTENT.parent
WATCH_PIPELINE = """# Written by the stage named_files while params name files, which every `dvc repro` looks at again.
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
EMPTY_PIPELINE = (
    "# Written by the stage named_files: params name no file that `dvc repro` would have to look at.\nstages: {}\n"
)


def _recorded() -> Content:
    """The recorded content: the watched one if there is any, because it is the newer."""
    for path in (FOLDER / "watched.json", CONTENT):
        if path.is_file() and (values := read_content(path)):
            return values
    return {}


def current_content(params: NamedFilesSections) -> Content:
    """The content of the files and folders that params name; the recorded content of those that are not here.

    Raises:
        InputError: as `content_of`, or the recorded content is damaged.
    """
    recorded = _recorded()
    return content_of(named_paths(params, recorded), recorded, main_root() / HASHES)


def named_files(params: NamedFilesSections, watch: bool = False) -> None:
    """Write content.json and what watches it; with `watch`, only watched.json.

    Raises:
        InputError: as `current_content`.
    """
    content = current_content(params)
    if not watch:
        write_json(CONTENT, content)
    named = any(content.values())
    write_json(FOLDER / "watched.json", content if named else {})
    if watch:
        return
    write_text(FOLDER / "dvc.yaml", WATCH_PIPELINE if named else EMPTY_PIPELINE)
    if not named:
        (FOLDER / "dvc.lock").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Hash the files and folders that params.yaml names into named/content.json, as DVC runs it."
    )
    parser.add_argument("command", nargs="?", choices=["watch"], help="write only named/watched.json")
    arguments = parser.parse_args()
    named_files(read_params(NamedFilesSections), watch=arguments.command == "watch")


if __name__ == "__main__":
    stage_main(main, arguments=True)
