"""How a stage starts: alone on its outputs, and with errors that a person can read.

A dvc that is killed outright leaves its stage running, and the next `dvc repro` would start the same stage beside it.
So a stage that DVC runs takes a lock that goes with its process, says who holds it if it must wait, and on Linux asks
the system to be ended (SIGTERM, which training answers by saving its state) when its dvc is gone.

A stage that has said nothing for a while says where it is. Ctrl-C ends it at once, in the middle of a library's call,
too: whatever a killed stage leaves is known to the next run.
"""

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from camp_model.files import NO_ROOM, NOT_OURS
from camp_model.seal import remember_in
from stages.cost import file_name, recording
from stages.errors import InputError
from stages.garbage import exempt_loaded
from stages.params.section import PARAMS, StageSections
from stages.unchanged import unchanged

S = TypeVar("S", bound=StageSections)

FOLDER = Path(".work") / "locks"
WHOLE = Path(".work") / "whole"
"""Which files' seals were right: each is compared once, not by every stage."""
PATIENCE = 600.0
"""Seconds that a stage waits for another process on the same outputs."""
QUIET = 8.0
"""Seconds without a word after which a stage says where it is."""
PR_SET_PDEATHSIG = 1
OUTPUTS = ("data", "models", "metrics", "plots", "report")
"""Folders that the stages' outputs lie in."""
COMMAND = "CAMP_COMMAND"
"""Environment variable: the process that a flow has started and that every stage of it descends from."""


class Held(Exception):
    """Another process has held a stage's outputs for too long. The message says which."""


def end_with_parent() -> None:
    """Have the system send SIGTERM to this process when its parent dies; does nothing but on Linux."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent or _orphaned():  # it died before the call
            os.kill(os.getpid(), signal.SIGTERM)


def _orphaned() -> bool:
    """Whether the flow's command has died already: a stage imports for seconds before it can ask to be told."""
    import psutil

    command = os.environ.get(COMMAND)
    return command is not None and int(command) not in [process.pid for process in psutil.Process().parents()]


@contextlib.contextmanager
def hold_outputs(stage: str, folder: Path = FOLDER, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the outputs of `stage` in this workspace; waits for another holder.

    Raises:
        Held: another process still holds them after `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def own(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)  # what a link leads to would be overwritten

    with open(folder / f"{stage}.lock", "a+", encoding="utf-8", opener=own) as file:
        os.set_inheritable(file.fileno(), True)  # a stage may replace itself by torchrun
        _acquire(file, stage, patience)
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "since": time.strftime("%F %T"), "host": os.uname().nodename}, file)
        file.flush()
        yield


def _acquire(file: IO[str], stage: str, patience: float) -> None:
    begun = time.monotonic()
    said = -60.0
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waited = time.monotonic() - begun
            file.seek(0)
            holder = f"stage {stage}: its outputs are being written by another process ({file.read() or 'unknown'})"
            if waited > patience:
                raise Held(f"{holder}; waited {waited:.0f} s, expected it to end") from None
            if waited - said >= 60:
                said = waited
                print(f"{holder}; waiting for it", file=sys.stderr, flush=True)
            time.sleep(0.2)


@contextlib.contextmanager
def hold_own_outputs() -> Iterator[None]:
    """Hold the outputs of the stage that DVC runs in this process; nothing where DVC runs none.

    Raises:
        Held: as `hold_outputs`.
    """
    stage = os.environ.get("DVC_STAGE")
    if stage is None or "RANK" in os.environ:  # one of torchrun's: the process that started it holds them
        yield
        return
    end_with_parent()
    with hold_outputs(file_name(stage)):
        yield


def read_params(sections: type[S], path: Path = PARAMS) -> S:
    """The sections of params.yaml that a stage reads, once the whole file has been found right.

    Raises:
        InputError: the file cannot be read, or holds a wrong key or value anywhere; the message names both. Or it lacks
            a key that DVC compares.
    """
    # Here and not in the stage: what other stages read must not make this one stale.
    from stages.params.pipeline import Params, check_compared

    Params.load(path)
    if "DVC_STAGE" in os.environ:
        check_compared(path)
    return sections.load(path)


def _check_outputs() -> None:
    """Have a link in the place of a folder of outputs said before a stage works: DVC would refuse what it made."""
    for name in OUTPUTS:
        if Path(name).is_symlink():
            raise InputError(
                f"{name}: is a link to {Path(name).resolve()}; DVC keeps no outputs behind a link. Expected a folder: "
                "put the repository on that disk; or mount it here (mount --bind), and move DVC's cache to it, too "
                "(dvc cache dir --local)"
            )


def _unwritable(error: OSError) -> str:
    """What a disk that takes no more says: the path, how much is free there, and what to do; or who may write there."""
    path = Path(os.fsdecode(error.filename) if error.filename else Path.cwd())
    if error.errno in NOT_OURS:
        return (
            f"{path}: {os.strerror(error.errno)}; expected that this user may read and write it, and nothing else there"
        )
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    free = f"{shutil.disk_usage(place).free / 1e6:,.1f} MB are free"
    return (
        f"{path}: {os.strerror(error.errno or 0)} ({free} on the disk of {place}); expected a disk with room for it "
        "that can be written. What is finished stays: make room and run it again"
    )


class _Listening:
    """A stream that knows when something was last written to any such stream."""

    last = 0.0

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        _Listening.last = time.monotonic()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def saying_where(quiet: float) -> Iterator[None]:
    """Have a line on stderr, in the body, after each `quiet` seconds in which nothing was written: where this thread is
    and since when the body runs."""
    ended, thread, begun, streams = threading.Event(), threading.get_ident(), time.monotonic(), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = map(_Listening, streams)
    _Listening.last = begun

    def watch() -> None:
        while not ended.wait(max(0.1, _Listening.last + quiet - time.monotonic())):
            if time.monotonic() - _Listening.last >= quiet:
                since = f"{time.monotonic() - begun:.0f} s so far"
                print(f"{_where(thread)}: going on, {since}", file=sys.stderr, flush=True)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        sys.stdout, sys.stderr = streams


@contextlib.contextmanager
def _working() -> Iterator[None]:
    """A stage at work: it says where it is, and Ctrl-C ends it at once."""
    interrupted = signal.getsignal(signal.SIGINT)
    if interrupted is signal.default_int_handler:  # else somebody has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    remember_in(WHOLE)
    try:
        # Of several processes of one training, the first speaks.
        with saying_where(QUIET) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
            yield
    finally:
        remember_in(None)
        signal.signal(signal.SIGINT, interrupted)


def _where(thread: int) -> str:
    """The innermost function of this project that a thread is in."""
    frame = sys._current_frames().get(thread)
    while frame and not frame.f_globals.get("__name__", "").startswith(("stages.", "camp_model.")):
        frame = frame.f_back
    return f"{frame.f_globals['__name__']}.{frame.f_code.co_name}" if frame else "the stage"


def drop_output() -> None:
    """Drop what is still to be printed to a place that takes none: Python would try once more as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_unread() -> NoReturn:
    """End a command whose reader has gone, as `head` has after its lines, without a word and as SIGPIPE would."""
    drop_output()
    raise SystemExit(128 + signal.SIGPIPE)


def stage_main(run: Callable[[], None], arguments: bool = False) -> None:
    """Run a stage's entry point, alone on its outputs; an InputError, or a place that cannot be written, becomes one
    line on stderr and exit code 2.

    Exit code 75 (try again later): another process holds the outputs. `arguments`: `run` reads the command line itself;
    otherwise nothing may stand there, so that a misplaced option does not start the stage without it.
    """
    if not arguments:
        parser = argparse.ArgumentParser(
            description=sys.modules["__main__"].__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="Everything is set in params.yaml; a stage takes no options.",
        )
        parser.parse_args()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    is_stage = not arguments or "DVC_STAGE" in os.environ
    exempt_loaded()
    try:
        with _working() if is_stage else contextlib.nullcontext(), hold_own_outputs(), recording():
            if "DVC_STAGE" in os.environ:
                _check_outputs()
            stage = os.environ.get("DVC_STAGE") if os.environ.get("RANK", "0") == "0" else None
            with unchanged(stage) if stage else contextlib.nullcontext():
                run()
        sys.stdout.flush()
    except (InputError, Held) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError) else 75) from None
    except BrokenPipeError:
        end_unread()
    except OSError as error:
        if error.errno not in NO_ROOM and not (error.errno in NOT_OURS and error.filename):
            raise
        print(f"error: {_unwritable(error)}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":  # python -m stages.entry COMMAND: becomes a command that ends with its parent
    end_with_parent()
    os.environ[COMMAND] = str(os.getpid())
    os.execvp(sys.argv[1], sys.argv[1:])
