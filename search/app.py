"""Serves the page of a collection until the process is stopped."""

import contextlib
import ipaddress
import signal
import socket
from collections.abc import Sequence

import uvicorn

from search.collection import PictureCollection
from search.web.application import create_application
from stages.errors import InputError, shown

AT_ONCE = 256
"""Maximum number of connections; further ones get the answer to try again."""
GRACE = 5
"""Seconds that requests may take to finish after the process is told to stop."""


def serve(
    collection: PictureCollection, host: str = "127.0.0.1", port: int = 0, allow_host: Sequence[str] = ()
) -> None:
    """Serve a collection and print its address; return after SIGINT or SIGTERM.

    Args:
        host: address to listen on; a message warns if other machines can reach it.
        port: 0 for any free port.
        allow_host: host names that others may use in requests.

    Raises:
        InputError: the address is not available, or a name is invalid.
    """
    listening = _listen(host, port)  # first, because it says what is wrong with `host`
    try:
        application = create_application(collection, [*allow_host, *_own_name(host)])
    except InputError:
        listening.close()
        raise
    # After its last answer uvicorn raises the signal again; here that only ends `run`.
    previous = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        collection.start()
        shown_host = f"[{host}]" if ":" in host else host
        print(f"http://{shown_host}:{listening.getsockname()[1]}/", flush=True)
        if not _is_loopback(host):
            print("Everybody who can reach this address can see the pictures.", flush=True)
        uvicorn.Server(
            uvicorn.Config(
                application, log_level="warning", access_log=False, server_header=False, ws="none",
                limit_concurrency=AT_ONCE, timeout_graceful_shutdown=GRACE,
            )
        ).run(sockets=[listening])  # fmt: skip
    except _Ended:
        pass
    finally:
        listening.close()
        collection.close()
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Ended(BaseException):
    """The process was told to stop."""


def _end(number: int, frame: object) -> None:
    raise _Ended


def _listen(host: str, port: int) -> socket.socket:
    with contextlib.ExitStack() as failed:
        try:
            if not 0 <= port < 2**16:  # which getaddrinfo would shorten
                raise OverflowError("a port is a number of 0 to 65535")
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listening = failed.enter_context(socket.socket(family))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(AT_ONCE)
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--host {shown(host)} --port {port}: cannot be listened on ({error}); expected an address of this "
                "machine and a port that is free, or --port 0 for any"
            ) from None
        failed.pop_all()
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _own_name(host: str) -> list[str]:
    """The host name in addresses of a server that listens on `host`; empty if it listens on all addresses."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return [host]
    return [] if address.is_unspecified else [f"[{host}]" if address.version == 6 else host]
