"""Deploy all flows: `python -m pipelines.deploy [--pool-type process]`, on the server of PREFECT_API_URL.

What `prefect deploy --all` does, and before it the work pool and the automation of deploy/automations.yaml, which must
be there before the first run. Doing it again changes nothing but what has changed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore

AUTOMATIONS = Path("deploy/automations.yaml")


def deploy_automations(client: SyncPrefectClient, path: Path = AUTOMATIONS) -> list[str]:
    """Create the automations of a file, or bring them up to date; their names."""
    names = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["automations"]:
        automation = AutomationCore.model_validate(entry)
        known = client.request(
            "POST", "/automations/filter", json={"automations": {"name": {"any_": [automation.name]}}}
        ).json()
        body = automation.model_dump(mode="json", exclude={"owner_resource"})
        if known:
            client.request("PUT", "/automations/{id}", path_params={"id": known[0]["id"]}, json=body)
        else:
            client.request("POST", "/automations/", json=body)
        names.append(automation.name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description="Deploy all flows.")
    parser.add_argument("--pool", default="camp", help="name of the work pool")
    parser.add_argument("--pool-type", default="process", help="process, kubernetes, ...")
    parser.add_argument("--prefect-file", type=Path, default=Path("prefect.yaml"))
    arguments = parser.parse_args()
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    with get_client(sync_client=True) as client:
        pools = client.request("POST", "/work_pools/filter", json={}).json()
        if arguments.pool not in {pool["name"] for pool in pools}:
            subprocess.run([*prefect, "work-pool", "create", "--type", arguments.pool_type, arguments.pool], check=True)
        deploy_automations(client)
    subprocess.run([*prefect, "deploy", "--all", "--prefect-file", str(arguments.prefect_file)], check=True)


if __name__ == "__main__":
    main()
