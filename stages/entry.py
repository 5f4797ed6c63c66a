"""Starts a stage: it locks the stage's outputs, and prints errors in a form that users can read.

If dvc is killed, its stage keeps running, and the next `dvc repro` would start the same stage beside it. So a stage
that DVC runs takes a lock that is released with its process, and names the holder if it must wait. On Linux it also
asks the system for a SIGTERM when its dvc ends; training answers that by saving its state.

A stage that prints nothing for a while says that it runs. Ctrl-C ends it at once: the next run handles what it leaves.
"""

import argparse
import contextlib
import ctypes
import fcntl
import io
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

from camp_model.files import ACCESS_ERRORS, DISK_ERRORS, write_text
from camp_model.seal import set_seal_cache
from stages.cost import file_name, record_cost
from stages.errors import InputError
from stages.garbage import exempt_from_collection, keep_freed_memory
from stages.params.section import PARAMS, StageSections
from stages.unchanged import check_unchanged, removed_outputs

S = TypeVar("S", bound=StageSections)

FOLDER = Path(".work") / "locks"
SEAL_CACHE = Path(".work") / "whole"
"""Records which files' seals were valid, so that each is checked once and not by every stage."""
LOCK_TIMEOUT = 600.0
"""Seconds that a stage waits for another process with the same outputs."""
QUIET_SECONDS = 8.0
"""Seconds without output after which a stage prints that it still runs."""
PR_SET_PDEATHSIG = 1
OUTPUTS = ("data", "models", "metrics", "plots", "report")
"""Folders of the stages' outputs."""
COMMAND = "CAMP_COMMAND"
"""Environment variable: id of the process that a flow started, an ancestor of every stage of that flow."""


class OutputsLocked(Exception):
    """Another process has held a stage's outputs for too long; the message names it."""


def end_with_parent() -> None:
    """Ask the system to send SIGTERM to this process when its parent dies; only on Linux."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent or _orphaned():  # the parent died before the call
            os.kill(os.getpid(), signal.SIGTERM)


def _orphaned() -> bool:
    """Whether the flow's command is dead already: a stage imports for seconds before it can ask for the signal."""
    import psutil

    command = os.environ.get(COMMAND)
    return command is not None and int(command) not in [process.pid for process in psutil.Process().parents()]


@contextlib.contextmanager
def lock_outputs(stage: str, folder: Path = FOLDER, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold the lock on the outputs of `stage` in this workspace; wait if another process has it.

    Raises:
        OutputsLocked: another process still has it after `timeout` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def own(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)  # a link's target would be overwritten

    with open(folder / f"{stage}.lock", "a+", encoding="utf-8", opener=own) as file:
        os.set_inheritable(file.fileno(), True)  # a stage may replace itself by torchrun
        _acquire(file, stage, timeout)
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "since": time.strftime("%F %T"), "host": os.uname().nodename}, file)
        file.flush()
        yield


def _acquire(file: IO[str], stage: str, timeout: float) -> None:
    begun, last_printed = time.monotonic(), -60.0
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waited = time.monotonic() - begun
            file.seek(0)
            holder = f"stage {stage}: its outputs are being written by another process ({file.read() or 'unknown'})"
            if waited > timeout:
                raise OutputsLocked(f"{holder}; waited {waited:.0f} s, expected it to end") from None
            if waited - last_printed >= 60:
                last_printed = waited
                print(f"{holder}; waiting for it", file=sys.stderr, flush=True)
            time.sleep(0.2)


@contextlib.contextmanager
def lock_own_outputs() -> Iterator[None]:
    """Hold the lock on the outputs of the stage that DVC runs in this process; do nothing if DVC runs none.

    Raises:
        OutputsLocked: as `lock_outputs`.
    """
    stage, is_worker = os.environ.get("DVC_STAGE"), "RANK" in os.environ  # of torchrun, which holds the lock
    if stage is not None or is_worker:
        end_with_parent()
    with contextlib.nullcontext() if stage is None or is_worker else lock_outputs(file_name(stage)):
        yield


def read_params(sections: type[S], path: Path = PARAMS) -> S:
    """Read a stage's sections of params.yaml, after validating the whole file.

    Raises:
        InputError: the file cannot be read, has a wrong key or value (the message names both), or lacks a compared key;
            or evaluation would fail after long work (`check_ahead`).
    """
    # Imported here, not by the stage: a change in what other stages read must not make this one stale.
    from stages.params.pipeline import Params, check_dvc_keys

    params, stage = Params.load(path), os.environ.get("DVC_STAGE")
    if stage:
        check_dvc_keys(path)
        if stage in ("train_detector", "train") and "RANK" not in os.environ:  # a torchrun worker's parent has checked
            from stages.ahead import check_ahead  # late, for it imports much

            check_ahead(params, stage)
    return sections.load(path)


def _check_outputs() -> None:
    """Raise an InputError if a folder of outputs is a link, before the stage works: DVC would refuse its outputs."""
    for name in OUTPUTS:
        if Path(name).is_symlink():
            raise InputError(
                f"{name}: is a link to {Path(name).resolve()}; DVC keeps no outputs behind a link. Expected a folder: "
                "put the repository on that disk; or mount it here (mount --bind), and move DVC's cache to it, too "
                "(dvc cache dir --local)"
            )


def unwritable(error: OSError) -> str | None:
    """What to say of a path that cannot be written: free space, or permission, and what to do. None: another error."""
    path = Path(os.fsdecode(error.filename) if error.filename else Path.cwd())
    if error.errno in ACCESS_ERRORS and error.filename:
        expected = "expected that this user may read and write it, and nothing else there"
        return f"{path}: {os.strerror(error.errno)}; {expected}"
    if error.errno not in DISK_ERRORS:
        return None
    folder = next(one for one in (path.absolute(), *path.absolute().parents) if one.is_dir())
    free = f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB are free on the disk of {folder}"
    then = "Finished work is kept: free some space and run the command again"
    return f"{path}: {os.strerror(error.errno)} ({free}); expected a disk with enough space that can be written. {then}"


class _TimedStream:
    """A stream that records when something was last written to any such stream."""

    last = 0.0

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        _TimedStream.last = time.monotonic()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def reporting_progress(quiet: float) -> Iterator[None]:
    """While the body runs, print a line on stderr after each `quiet` seconds without output: the name of the stage, and
    how long the body has run."""
    ended, begun, streams, stage = threading.Event(), time.monotonic(), (sys.stdout, sys.stderr), Path(sys.argv[0]).stem
    sys.stdout, sys.stderr = map(_TimedStream, streams)
    _TimedStream.last = begun

    def watch() -> None:
        while not ended.wait(max(0.1, _TimedStream.last + quiet - time.monotonic())):
            if time.monotonic() - _TimedStream.last >= quiet:
                since = f"{time.monotonic() - begun:.0f} s so far"
                print(f"stage {stage}: still running, {since}", file=sys.stderr, flush=True)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        sys.stdout, sys.stderr = streams


@contextlib.contextmanager
def _running_stage() -> Iterator[None]:
    """Run a stage that prints that it still runs and that Ctrl-C ends at once."""
    interrupted = signal.getsignal(signal.SIGINT)
    if interrupted is signal.default_int_handler:  # otherwise it may be ignored on purpose
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    set_seal_cache(SEAL_CACHE)
    try:
        # Of a training's processes, only the first prints.
        with reporting_progress(QUIET_SECONDS) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
            yield
    finally:
        set_seal_cache(None)
        signal.signal(signal.SIGINT, interrupted)


def open_streams() -> None:
    """Open the null device, also for the commands that this process runs, for each standard stream that is closed, as
    by `>&-`: a file that is opened later could get the stream's number, into which libraries print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, stream := Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)


def discard_stdout() -> None:
    """Discard what is still buffered for a closed stdout: Python would try to write it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_on_broken_pipe() -> NoReturn:
    """End a command whose output is no longer read, as by `head`, silently and with SIGPIPE's exit code."""
    discard_stdout()
    raise SystemExit(128 + signal.SIGPIPE)


def _print_error(message: str) -> None:
    """Print an error; a training's process leaves it to its torchrun, which prints once what each of them says."""
    with contextlib.suppress(KeyError, OSError):
        write_text(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), json.dumps({"message": message}))
        return
    print(message + removed_outputs(os.environ.get("DVC_STAGE", "")), file=sys.stderr)


def stage_main(run: Callable[[], None], arguments: bool = False) -> None:
    """Run a stage's entry point with the lock on its outputs. An InputError, or a path that cannot be written, is
    printed as one line on stderr, with exit code 2.

    Exit code 75 (try again later): another process holds the lock. `arguments`: `run` parses the command line itself;
    otherwise no arguments are accepted, so that a misplaced option does not start the stage without it.
    """
    open_streams()
    if not arguments:
        parser = argparse.ArgumentParser(
            description=sys.modules["__main__"].__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="Everything is set in params.yaml; a stage takes no options.",
        )
        parser.parse_args()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in Latin-1 a Chinese caption must not end the stage that names it
            stream.reconfigure(errors="backslashreplace")
    is_stage = not arguments or "DVC_STAGE" in os.environ
    exempt_from_collection()
    keep_freed_memory()
    try:
        with _running_stage() if is_stage else contextlib.nullcontext(), lock_own_outputs(), record_cost():
            if "DVC_STAGE" in os.environ:
                _check_outputs()
            stage = os.environ.get("DVC_STAGE") if os.environ.get("RANK", "0") == "0" else None
            with check_unchanged(stage) if stage else contextlib.nullcontext():
                run()
        sys.stdout.flush()
    except (InputError, OutputsLocked) as error:
        _print_error(f"error: {error}")
        raise SystemExit(2 if isinstance(error, InputError) else 75) from None
    except BrokenPipeError:
        exit_on_broken_pipe()
    except OSError as error:
        if (message := unwritable(error)) is None:
            raise
        _print_error(f"error: {message}")
        raise SystemExit(2) from None


if __name__ == "__main__":  # python -m stages.entry COMMAND: becomes a command that ends with its parent
    end_with_parent()
    os.environ[COMMAND] = str(os.getpid())
    os.execvp(sys.argv[1], sys.argv[1:])
