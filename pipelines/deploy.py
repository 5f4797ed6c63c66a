"""Deploy the flows of prefect.yaml: `python -m pipelines.deploy [--pool-type process]`; server: PREFECT_API_URL.

It first creates the work pool and the automations of deploy/automations.yaml, which must exist before the first run,
then runs `prefect deploy --all`. Running it again only applies changes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL

from pipelines.commands import prefect_command, run_command
from pipelines.forms import current_params
from stages.errors import InputError

AUTOMATIONS = Path("deploy/automations.yaml")
SHARED = "workspace"
"""The work queue of flows that write to the workspace itself."""


def deploy_automations(client: SyncPrefectClient, path: Path = AUTOMATIONS) -> list[str]:
    """Create or update the automations of a file; return their names."""
    names = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["automations"]:
        automation = AutomationCore.model_validate(entry)
        if known := client.read_automations_by_name(automation.name):
            client.update_automation(known[0].id, automation)
        else:
            client.create_automation(automation)
        names.append(automation.name)
    return names


def limit_queue(client: SyncPrefectClient, pool: str, content: Any) -> None:
    """Create or update the queue for runs in the workspace, one at a time, if a deployment to this pool names it."""
    pools = [entry.get("work_pool") or {} for entry in content.get("deployments") or []]
    if not any(each.get("work_queue_name") == SHARED and each.get("name", pool) == pool for each in pools):
        return
    known = {queue.name: queue.id for queue in client.read_work_queues(pool)}
    if SHARED in known:
        client.update_work_queue(known[SHARED], concurrency_limit=1)
    else:
        client.create_work_queue(SHARED, concurrency_limit=1, work_pool_name=pool)


def deploy(pool: str, pool_type: str | None, prefect_file: Path) -> None:
    """Create the pool if it does not exist, and deploy the automations and the flows of a file.

    Raises:
        InputError: params.yaml, which fills the run form, is wrong, the file does not exist, PREFECT_API_URL is not
            set, or the pool exists and is of another type; nothing is changed.
        CommandFailed: Prefect rejects the pool or a flow.
    """
    current_params()
    if not prefect_file.is_file():
        raise InputError(f"--prefect-file: {prefect_file} is not a file; expected one such as prefect.yaml")
    if not PREFECT_API_URL.value():
        raise InputError("PREFECT_API_URL: is not set; expected the address of the server that flows are deployed to")
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    with get_client(sync_client=True) as client:
        types = {known.name: known.type for known in client.read_work_pools()}
        if pool not in types:
            run_command([*prefect, "work-pool", "create", "--type", pool_type or "process", pool], print)
        elif pool_type not in (None, types[pool]):
            raise InputError(f"--pool-type: {pool} is of type {types[pool]} already; expected that, or another --pool")
        deploy_automations(client)
        limit_queue(client, pool, yaml.safe_load(prefect_file.read_text(encoding="utf-8")))
    run_command([*prefect, "deploy", "--all", "--prefect-file", str(prefect_file)], print)


def main() -> None:
    parser = argparse.ArgumentParser(description="Deploy the flows of prefect.yaml, or of another such file.")
    parser.add_argument("--pool", default="camp", help="name of the work pool (default: %(default)s)")
    parser.add_argument("--pool-type", help="type of a new pool: process, kubernetes, ... (default: process)")
    parser.add_argument("--prefect-file", type=Path, default=Path("prefect.yaml"), metavar="FILE",
                        help="file of the deployments (default: %(default)s)")  # fmt: skip
    arguments = parser.parse_args()
    with prefect_command(runs_flow=False):
        deploy(arguments.pool, arguments.pool_type, arguments.prefect_file)


if __name__ == "__main__":
    main()
