"""Runs the commands of a flow, streams their output into Prefect's logs, and classifies their failures."""

import atexit
import contextlib
import logging
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from pipelines.own_server import prepare_server
from stages.entry import unwritable
from stages.errors import InputError, without_password

LOG_EVERY = 10.0
"""Seconds between two updates of a progress bar in the log."""
GRACE = 30.0
"""Seconds that a terminated command, or the processes that an ended one left behind, may take to finish."""
REPORT_SECONDS = 20.0
"""Seconds that a terminated flow may take, after its commands have ended, to report to Prefect's server."""

PACKAGES = ("camp_model", "stages", "search", "pipelines")
MEMORY = ("out of memory", "OutOfMemoryError", "MemoryError", "Cannot allocate memory", "std::bad_alloc")
TRANSIENT = {
    "network": (
        "Connection refused", "Connection reset", "ConnectionError", "Connection timed out", "Read timed out",
        "Temporary failure in name resolution", "Network is unreachable", "RemoteDisconnected", "SSLError",
        "503 Service", "502 Bad Gateway", "504 Gateway", "RequestTimeout", "SlowDown", "Cannot connect to host",
        "Server disconnected", "failed to push data to the cloud",
    ),
    "busy": ("Unable to acquire lock", "is busy, it is being blocked by", "database is locked"),
    "worker": (
        "NCCL", "Connection closed by peer", "worker exited unexpectedly", "DataLoader worker",
        "No space left on device",
    ),
}  # fmt: skip
"""Reason -> strings in the output of a failure that may be temporary."""


_running: set[subprocess.Popen[bytes]] = set()
_ending = False


def allow_commands() -> None:
    """Allow commands to run again after `stop_commands`."""
    global _ending  # noqa: PLW0603
    _ending = False


def stop_commands() -> None:
    """End the flow's commands: send SIGTERM to running ones (training saves its state) and refuse new ones."""
    global _ending  # noqa: PLW0603
    _ending = True
    for process in list(_running):
        process.terminate()


def _exit_on_signals() -> None:
    """Make SIGTERM exit normally, because only a normal exit stops the temporary server of a flow; make SIGTERM and
    Ctrl-C end this program even if no server answers.

    A signal to the whole process group, as Ctrl-C is, also ends that server, and Prefect would try for minutes to send
    it the remaining states and events. While a flow runs, Prefect's own handler takes SIGTERM, so the end is arranged
    by a thread that hears of signals whoever handles them.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_exit_after_signal, args=(heard,), daemon=True).start()

    def ended(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ended)


def _exit_after_signal(heard: int) -> None:
    """Wait for SIGINT or SIGTERM on the pipe `heard`, then end this program as `_exit`."""
    while (number := os.read(heard, 1)[0]) not in (signal.SIGINT, signal.SIGTERM):
        pass
    _exit(128 + number)


def _exit(code: int) -> None:
    """End this program with `code` after its commands have ended and Prefect has had `REPORT_SECONDS` seconds."""
    while _running:
        time.sleep(0.2)
    time.sleep(REPORT_SECONDS)
    print(f"ended before Prefect's server had received all states. {_resume_command()}.", file=sys.stderr, flush=True)
    os._exit(code)


def _resume_command() -> str:
    """A message that names the command, the one that started this program, to continue with."""
    module = getattr(sys.modules["__main__"].__spec__, "name", None)
    again = " ".join([*(("python", "-m", module) if module else ("camp",)), *map(shlex.quote, sys.argv[1:])])
    return f"Finished work is kept: `{again}` continues"


@contextlib.contextmanager
def prefect_command(runs_flow: bool = True) -> Iterator[None]:
    """Run the body as this program's work: errors that a flow cannot recover from, and signals, end the program with a
    short message instead of tracebacks.

    For failed work, a Prefect server that does not answer and Ctrl-C the message names the command to continue with;
    wrong input and a full disk are reported as by a stage, with exit code 2. It is printed last: exit handlers run in
    reverse order, and the temporary Prefect server of a flow registers its own, which stops it and says so, after this
    one.

    Args:
        runs_flow: whether the body runs a flow, which starts a server where PREFECT_API_URL names none.
    """
    import httpx
    from prefect.exceptions import ParameterTypeError

    loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs")]
    for logger in loggers:
        logger.addFilter(_without_traceback)
    last: list[str] = []
    atexit.register(lambda: sys.stderr.writelines(f"{line}\n" for line in last))
    try:
        if runs_flow:
            _exit_on_signals()
            prepare_server()
        yield
    except (InputError, ParameterTypeError) as error:
        last.append(f"error: {error}")
        sys.exit(2)
    except OSError as error:
        if (message := unwritable(error)) is None:
            raise
        last.append(f"error: {message}")
        sys.exit(2)
    except KeyboardInterrupt:
        last.append(f"ended. {_resume_command()}.")
        sys.exit(128 + signal.SIGINT)
    except Unfinished as error:
        last.append(f"error: {error}\n{_resume_command()}.")
        sys.exit(1)
    except (httpx.TransportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("Failed to reach API"):
            raise
        server = without_password(os.environ.get("PREFECT_API_URL", "that this program has started"))
        reason = str(error) or type(error).__name__
        # Prefect has just printed, without an end of line, that it could not send its log.
        silent = f"the Prefect server {server} does not answer ({reason})"
        last.append(f"\nerror: {silent}. {_resume_command()} once it does.")
        sys.exit(1)
    finally:
        for logger in loggers:
            logger.removeFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Remove the traceback when Prefect logs wrong input, failed work or a full disk: the message is sufficient."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, InputError | Unfinished) or (isinstance(error, OSError) and unwritable(error)):
        record.exc_info = None
    return True


class Unfinished(Exception):
    """A flow ended with some of its work not done. The message says which, and why."""


class CommandFailed(Unfinished):
    """A command ended with an error. `reason`: memory, killed, network, busy, worker or error (permanent)."""

    def __init__(self, command: str, code: int, reason: str, tail: str) -> None:
        super().__init__(f"{command} ended with code {code} ({reason}):\n{tail}")
        self.reason = reason

    def __reduce__(self) -> tuple[type["CommandFailed"], tuple[str, int, str, str]]:
        return CommandFailed, ("", 0, self.reason, str(self))


def failure_reason(code: int, output: str) -> str:
    """The reason for a failure, from the exit code and the last lines of output: see `CommandFailed`."""
    # dvc exits with 255 whatever the exit code of its stage was, and prints the latter last.
    exit_codes = re.findall(r"exited with (-?\d+)\s*$", output, re.MULTILINE)
    code = int(exit_codes[-1]) if exit_codes else code
    if code == 2:
        return "error"  # a stage's exit code for wrong params or input: retrying cannot help
    if any(sign in output for sign in MEMORY):
        return "memory"
    if code < 0 or code in (128 + signal.SIGKILL, 128 + signal.SIGTERM):
        return "killed"
    if code == 75:
        return "busy"
    return next((reason for reason, signs in TRANSIENT.items() if any(sign in output for sign in signs)), "error")


def run_command(
    command: Sequence[str], log: Callable[[str], object], environment: Mapping[str, str] | None = None
) -> str:
    """Run a command and pass each line of its output to `log`; return the last hundred lines.

    A progress bar, which rewrites its line, is passed on every `LOG_EVERY` seconds. The command gets SIGTERM when this
    process dies.

    Raises:
        CommandFailed: its exit code is not 0, or the flow is being ended.
    """
    if _ending:
        raise CommandFailed(" ".join(command), -15, "error", "the flow is being ended")
    # Stage commands begin with `python`; PATH makes it this interpreter even if its environment is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.entry", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **_project_pythonpath(), "PYTHONUNBUFFERED": "1", "PATH": path, **(environment or {})},
    )
    assert process.stdout is not None
    _running.add(process)
    lines: list[str] = []
    last_logged = 0.0
    try:
        for line, rewritten in _lines(process):
            if rewritten and time.monotonic() - last_logged < LOG_EVERY:
                continue
            if rewritten:
                last_logged = time.monotonic()
            lines = [*lines[-99:], line]
            log(line)
        code = process.wait()
    except BaseException:  # cancelled: end the command too, which saves its state
        process.terminate()
        try:
            process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    finally:
        _running.discard(process)
        process.stdout.close()
    tail = "\n".join(lines)
    if code:
        name = re.sub("^-m (pipelines.run_)?", "", " ".join(word for word in command if word != sys.executable))
        raise CommandFailed(name, code, "error" if _ending else failure_reason(code, tail), "\n".join(lines[-20:]))
    return tail


def _project_pythonpath() -> dict[str, str]:
    """PYTHONPATH with only the folders that have a package of this project: stages must not import another torch."""
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    own = [folder for folder in folders if any(Path(folder, name).is_dir() for name in PACKAGES)]
    return {"PYTHONPATH": os.pathsep.join(own)} if folders else {}


def _chunks(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Output of a process and, for GRACE seconds after its end, of its children: a stage may be saving its state."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    ended: float | None = None
    while True:
        if select.select([descriptor], [], [], 1.0)[0]:
            if not (chunk := os.read(descriptor, 65536)):
                return
            yield chunk
        if ended is None and process.poll() is not None:
            ended = time.monotonic()
        if ended is not None and time.monotonic() - ended > GRACE:
            return


def _lines(process: subprocess.Popen[bytes]) -> Iterator[tuple[str, bool]]:
    """Lines of a process's output, and whether each was rewritten in place (ended by a carriage return)."""
    rest = b""
    for chunk in _chunks(process):
        rest += chunk
        *whole, rest = re.split(rb"(?<=[\r\n])", rest)
        for line in whole:
            text = line.decode("utf-8", "replace").strip("\r\n")
            if text.strip():
                yield text, line.endswith(b"\r")
    if rest.strip():
        yield rest.decode("utf-8", "replace"), False
