"""The flow `refresh`: run `reproduce` only where DVC says that something is stale.

python -m pipelines.refresh             # now
python -m pipelines.refresh announce    # tell the server that the source has new images or captions
"""

import argparse

from prefect import flow, get_run_logger
from prefect.events import emit_event
from prefect.states import Completed

from pipelines.commands import exit_when_asked, run_command, saying_how_to_go_on
from pipelines.dag import read_dag
from pipelines.forms import present_params
from pipelines.reproduce import DVC, reproduce

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


def main() -> None:
    exit_when_asked()
    parser = argparse.ArgumentParser(description="Bring the results up to date with the source.")
    parser.add_argument("command", nargs="?", choices=["announce"], help="tell the server instead of running here")
    if parser.parse_args().command == "announce":
        emit_event(SOURCE_CHANGED, {"prefect.resource.id": "camp.source"})
    else:
        with saying_how_to_go_on():
            refresh()


if __name__ == "__main__":
    main()
