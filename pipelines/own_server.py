"""The temporary Prefect server that a flow brings along where PREFECT_API_URL names none.

Prefect ends it when the flow's process exits. If that is killed (SIGKILL), the server would stay and idly use a few
percent of a core. So a flow starts this module as a process that waits for the flow's end and then looks for it.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import uuid

from stages.errors import InputError

FLOW = "CAMP_FLOW"
"""Environment variable: the id of the flow, of all that it has started."""
SERVER = "prefect.server.api.server:create_app"
"""What is on the command line of a temporary server."""


def prepare_server() -> None:
    """If a flow of this process will bring a server along, check that it can, and make it end with this process.

    Raises:
        InputError: the server could not write its database: Prefect would try for minutes to start it.
    """
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_API_URL, PREFECT_HOME

    if PREFECT_API_URL.value() is not None:
        return
    home = PREFECT_HOME.value()
    if str(home) in (PREFECT_API_DATABASE_CONNECTION_URL.value() or ""):
        try:
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=home):
                pass
        except OSError as error:
            raise InputError(
                f"PREFECT_HOME: {home}: {error.strerror}; expected a folder that can be written, for the database of "
                "the flow's own server, or another server in PREFECT_API_URL"
            ) from None
    os.environ[FLOW] = uuid.uuid4().hex
    here, _ = os.pipe()
    # Only this process has the other end. In a session of its own it hears no Ctrl-C, and no kill of the flow's group.
    subprocess.Popen([sys.executable, "-m", "pipelines.own_server"], stdin=here, start_new_session=True)
    os.close(here)


def _end_after_flow() -> None:
    """Wait until the flow's process has ended, however it does, then end its server if that still runs."""
    sys.stdin.buffer.read()
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if SERVER in process.cmdline() and process.environ().get(FLOW) == os.environ[FLOW]:
                process.terminate()


if __name__ == "__main__":
    _end_after_flow()
