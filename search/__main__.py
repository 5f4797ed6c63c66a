"""Find pictures by a sentence, in a folder or in this workspace: printed, or on a page.

camp search "two dogs in the snow" --images ~/photographs --top 5
camp search --images ~/photographs          # the page
camp search --sentences FILE --images ~/photographs      # many sentences: a line of JSON for each
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.errors import InputError, printable, shown
from stages.garbage import garbage_collection_paused
from stages.workspace import argument_path

SHIPPED = Path("pretrained/flickr8k")
TOP = 10
"""Pictures printed by default."""
PRINTED, SERVED = ("top", "json"), ("host", "port", "allow_host")
"""Options of answers to sentences, and of the page; each None unless it is given."""
REJECTED_PRINTED = 10
"""Pictures that cannot be used which are printed with their reasons."""
PROGRESS_SECONDS = 0.2
"""Seconds between two updates of the progress bar."""


def main(arguments: Sequence[str] | None = None) -> None:
    if None in (sys.stdin, sys.stdout, sys.stderr):
        from stages.entry import open_streams

        open_streams()
    parser = _parser()
    options = parser.parse_args(arguments)
    asks = options.sentence is not None or options.sentences is not None
    for name in SERVED if asks else PRINTED:
        if getattr(options, name) is not None:
            needs = "is for the page, which is served without a sentence" if asks else "needs a sentence to search for"
            parser.error(f"--{name.replace('_', '-')}: {needs}")
    if options.sentence is not None and options.sentences is not None:
        parser.error(f"--sentences: cannot be used with a sentence ({options.sentence[:40]!r})")
    try:
        _run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        from stages.entry import exit_on_broken_pipe

        exit_on_broken_pipe()
    except KeyboardInterrupt:  # while libraries are loaded; later code handles it itself
        raise SystemExit(130) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="camp search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sentence", nargs="?", help="what the pictures show; without it, the page is served")
    parser.add_argument(
        "--images", type=_folder, metavar="DIR", help="a folder of pictures (default: this workspace's)"
    )
    parser.add_argument("--model", type=_folder, metavar="DIR", help=f"for --images (default: {SHIPPED})")
    parser.add_argument("--cache", type=_folder, metavar="DIR", help="folder for the index (default: your cache)")
    parser.add_argument("--top", type=_count, metavar="N", help=f"pictures printed (default: {TOP})")
    parser.add_argument("--json", action="store_true", default=None, help="print JSON")
    parser.add_argument(
        "--sentences", type=_file, metavar="FILE",
        help="print a line of JSON for each line of a file, or of standard input (-)",
    )  # fmt: skip
    parser.add_argument("--host", help="address of the page (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port of the page (default: a free one)")
    parser.add_argument(
        "--allow-host", action="append", metavar="NAME", help="host name by which others may open the page"
    )
    return parser


def _folder(text: str) -> Path:
    if not text:  # from an unset variable; Path would make it the current folder
        raise argparse.ArgumentTypeError("is empty; expected a folder")
    return Path(text)


def _file(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("is empty; expected a file, or - for standard input")
    return Path(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to 100000")
    return int(text)


def _run(options: argparse.Namespace) -> None:
    with garbage_collection_paused():
        collection = _open(options)
    if options.sentence is None and options.sentences is None:
        from search.app import serve

        given = {name: value for name in SERVED if (value := getattr(options, name)) is not None}
        serve(collection, **given)
        return
    sentences = _sentences(options, collection.reader)
    collection.start()
    try:
        _wait(collection)
        _print_problems(collection.status())
        with _stdout_errors():
            for number, sentence in enumerate(sentences):
                _print(collection, sentence, options, first=number == 0)
        _check_pictures(collection, options)
    finally:
        collection.close()


def _sentences(options: argparse.Namespace, reader: Any) -> list[str]:
    """The sentences to search for; a wrong one is an error before the slow indexing."""
    if options.sentences is None:
        reader.read(options.sentence)
        return [options.sentence]
    from stages.contracts import read_lines

    file = Path("/dev/stdin") if str(options.sentences) == "-" else argument_path(options.sentences)
    numbered = [(number, line) for number, line in enumerate(read_lines(file), start=1) if line.strip()]
    for number, line in numbered:
        try:
            reader.read(line)
        except InputError as error:
            raise InputError(f"{file}: line {number}: {error}") from None
    if not numbered:
        raise InputError(f"{file}: holds no sentence; expected one on each line")
    return [line for _, line in numbered]


def _open(options: argparse.Namespace) -> Any:
    """The collection that the options name."""
    from search.collection import open_folder, open_workspace
    from stages.detectors.weights import cache_folder

    if options.images is None:
        for option, part in (("model", "model"), ("cache", "store of features")):
            if getattr(options, option) is not None:
                raise InputError(f"--{option}: can only be used with --images; a workspace has its own {part}")
        return open_workspace(Path())
    model = SHIPPED if options.model is None else argument_path(options.model)
    cache = cache_folder() / "search" if options.cache is None else argument_path(options.cache)
    try:
        return open_folder(argument_path(options.images), model=model, cache=cache)
    except OSError as error:
        raise InputError(
            f"{error.filename or cache}: {error.strerror}; expected that {cache} is a folder with room that can be "
            "written, or another one in --cache"
        ) from None


def _wait(collection: Any) -> None:
    """Show the progress of indexing until it is done. After Ctrl-C, the pictures indexed so far are searched."""
    from tqdm import tqdm

    if not collection.status().scanning:
        return
    bar = tqdm(total=0, unit="picture", desc="index", mininterval=PROGRESS_SECONDS / 2, file=sys.stderr, leave=False)
    try:
        with bar:
            while (status := collection.status()).scanning:
                bar.total = status.total
                bar.update(status.ready - bar.n)
                time.sleep(PROGRESS_SECONDS)
    except KeyboardInterrupt:
        print(
            "interrupted: only the pictures indexed so far are searched; the next call continues indexing",
            file=sys.stderr,
        )


def _print_problems(status: Any) -> None:
    if status.rejected_count:
        name, reason = status.rejected[0]
        pictures = "1 picture" if status.rejected_count == 1 else f"{status.rejected_count:,} pictures"
        print(f"{pictures} cannot be used, such as {_printable(name)}: {_printable(reason)}", file=sys.stderr)
        for name, reason in status.rejected[1:REJECTED_PRINTED]:
            print(f"  {_printable(name)}: {_printable(reason)}", file=sys.stderr)
        if status.rejected_count > REJECTED_PRINTED:
            print(f"  and {status.rejected_count - REJECTED_PRINTED:,} more; --json lists all", file=sys.stderr)
    if status.copies:
        print(f"copies of other files, which are listed only under the first name: {status.copies}", file=sys.stderr)
    if status.problem:
        print(_printable(status.problem), file=sys.stderr)


def _print(collection: Any, sentence: str, options: argparse.Namespace, first: bool) -> None:
    top = options.top or TOP
    answer, status = collection.search(sentence, top), collection.status()
    if options.json or options.sentences:
        hits = [
            {"rank": rank, "picture_id": hit.picture_id, "path": str(hit.file.path), "score": hit.score}
            for rank, hit in enumerate(answer.hits, start=1)
        ]
        # A long list is not repeated for each of many sentences.
        rejected = [{"name": name, "reason": reason} for name, reason in status.rejected]
        listed = rejected if first or not rejected else None
        content = {
            "sentence": sentence, "words": answer.words, "unknown": answer.unknown,
            "by_spelling": answer.by_spelling, "dropped": answer.dropped, "hits": hits, "ranked": answer.scored,
            "pictures": answer.total, "rejected": status.rejected_count, "rejected_pictures": listed,
            "copies": status.copies, "indexing": status.scanning, "problem": status.problem, "model": status.model,
        }  # fmt: skip
        print(json.dumps(content, indent=None if options.sentences else 2))
    else:
        if answer.unknown:
            print(f"unknown to the model: {_printable(', '.join(map(shown, answer.unknown)))}", file=sys.stderr)
        if answer.by_spelling:
            words = _printable(", ".join(map(shown, answer.by_spelling)))
            print(f"not in the training vocabulary, read by their spelling: {words}", file=sys.stderr)
        if answer.dropped:
            print(
                f"the last {answer.dropped} words of the sentence are not read: it is too long for the model",
                file=sys.stderr,
            )
        if len(answer.hits) < min(top, answer.total):
            print(f"{answer.scored} of {answer.total} pictures are ranked (index.shortlist)", file=sys.stderr)
        for hit in answer.hits:
            print(f"{hit.score:8.3f}  {_printable(str(hit.file.path))}")


def _check_pictures(collection: Any, options: argparse.Namespace) -> None:
    """Raise InputError if there was no picture to be searched."""
    status = collection.status()
    if not (status.ready or status.problem or status.scanning):
        from stages.sources.formats import SUFFIXES

        formats = ", ".join(sorted(SUFFIXES))
        where = "this workspace" if options.images is None else options.images
        raise InputError(f"{where}: no picture that can be searched; files of pictures end in {formats}")
    if status.problem and not status.ready:
        raise InputError(_printable(status.problem))


@contextlib.contextmanager
def _stdout_errors() -> Iterator[None]:
    """Raise InputError if the output of the body cannot be written, for instance to a file on a full disk."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.filename or isinstance(error, BrokenPipeError):
            raise
        from stages.entry import discard_stdout

        discard_stdout()
        raise InputError(f"standard output: {error.strerror}; expected enough free space for the output") from None


def _printable(text: str) -> str:
    """A text that is safe on a terminal, whatever the name of a file holds."""
    encoding = sys.stdout.encoding or "utf-8"
    return printable(text).encode(encoding, "replace").decode(encoding)


if __name__ == "__main__":
    main()
