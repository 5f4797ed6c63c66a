"""The flow `refresh`: run `reproduce` only if DVC reports that something is stale.

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

from pipelines.commands import prefect_command, run_command
from pipelines.dag import read_dag
from pipelines.forms import current_params
from pipelines.reproduce import DVC, reproduce
from stages.errors import InputError, without_password

SOURCE_CHANGED = "camp.source.changed"
"""The event that triggers the deployment of `refresh`."""


@flow(name="refresh")
def refresh(base: str = "main", transfers: bool = True) -> object:
    """Update the results if they are out of date with the source.

    Args:
        base: git revision to compare the metrics with.
        transfers: pull before and push after, if the default DVC remote is one of your own.
    """
    logger = get_run_logger()
    current_params()  # report wrong params before a stage reads them
    if watching := [stage.name for stage in read_dag().stages if stage.watches]:
        run_command([*DVC, "repro", "--single-item", *watching], logger.info)
    stale = read_dag().pending
    if not stale:
        return Completed(name="Nothing to do", message="DVC: everything is up to date", data={})
    logger.info("stale: %s", ", ".join(stale))
    return reproduce(base=base, transfers=transfers)


def announce() -> None:
    """Tell the Prefect server that the source has changed.

    The request is sent at once and checked; Prefect's own emitter sends events later and drops those not accepted.

    Raises:
        InputError: no server is configured, or it does not accept the event.
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
        raise InputError(f"PREFECT_API_URL: {without_password(server)}: did not accept the event ({reason})") from None


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the pipeline if the source or anything else has changed.")
    parser.add_argument("command", nargs="?", choices=["announce"], help="tell the server that the source has changed")
    command = announce if parser.parse_args().command == "announce" else refresh
    with prefect_command(runs_flow=command is refresh):
        command()


if __name__ == "__main__":
    main()
