"""The flow `refresh`: run `reproduce` only where DVC says that something is stale.

python -m pipelines.refresh             # now
python -m pipelines.refresh announce    # tell the server that the source has new images or captions
"""

import argparse

import httpx
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed

from pipelines.commands import exit_when_asked, run_command, saying_how_to_go_on
from pipelines.dag import read_dag
from pipelines.forms import present_params
from pipelines.reproduce import DVC, reproduce
from stages.errors import InputError
from stages.tracking.store import without_password

SOURCE_CHANGED = "camp.source.changed"
"""The event that the deployment of `refresh` waits for."""


@flow(name="refresh")
def refresh(base: str = "main", transfers: bool = True) -> object:
    """Bring the results up to date with the source, if they are not.

    Args:
        base: git revision that the metrics are compared with.
        transfers: pull before and push after, where a DVC remote of your own is the default.
    """
    logger = get_run_logger()
    present_params()  # wrong ones are said before a stage meets them
    if watching := [stage.name for stage in read_dag().stages if stage.watches]:
        run_command([*DVC, "repro", "--single-item", *watching], logger.info)
    stale = [stage.name for stage in read_dag().stages if stage.stale and not stage.watches]
    if not stale:
        return Completed(name="Nothing to do", message="DVC: everything is up to date", data={})
    logger.info("stale: %s", ", ".join(stale))
    return reproduce(base=base, transfers=transfers)


def announce() -> None:
    """Tell the Prefect server that the source has changed.

    It is told at once and heard: Prefect's own way of emitting events sends them later, and lets go what is not taken.

    Raises:
        InputError: there is no server, or it does not take the event.
    """
    server = PREFECT_API_URL.value()
    if not server:
        raise InputError(
            "PREFECT_API_URL: is not set; expected the address of the server that `refresh` is deployed on"
        )
    event = Event(event=SOURCE_CHANGED, resource={"prefect.resource.id": "camp.source"})  # type: ignore[arg-type]
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"PREFECT_API_URL: {without_password(server)}: has not taken the event ({reason})") from None


def main() -> None:
    exit_when_asked()
    parser = argparse.ArgumentParser(description="Run the pipeline if the source or anything else has changed.")
    parser.add_argument("command", nargs="?", choices=["announce"], help="tell the server that the source has changed")
    command = announce if parser.parse_args().command == "announce" else refresh
    with saying_how_to_go_on():
        command()


if __name__ == "__main__":
    main()
