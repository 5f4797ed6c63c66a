"""Serve the page of a collection until the process is told to end."""

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
"""Connections at one time; further ones are told to come again."""
GRACE = 5
"""Seconds that requests may take to end once the process is told to."""


def serve(
    collection: PictureCollection, host: str = "127.0.0.1", port: int = 0, allowed_hosts: Sequence[str] = ()
) -> None:
    """Serve a collection; prints the address, returns once SIGINT or SIGTERM has ended it.

    Args:
        host: address to listen on; what is not of this machine alone is said.
        port: 0 for any that is free.
        allowed_hosts: names under which others may ask.

    Raises:
        InputError: an address that is not to be had, or a name that is none.
    """
    application = create_application(collection, [*allowed_hosts, *_own_name(host)])
    listening = _listen(host, port)
    # uvicorn raises the signal that ended it again once all is answered; here that only ends `run`.
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
    """The process was told to end."""


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
    """The name in addresses of a server that listens on `host`; none where that is every address of the machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return [host]
    return [] if address.is_unspecified else [f"[{host}]" if address.version == 6 else host]
