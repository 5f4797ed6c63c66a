"""The files that flows are deployed with: prefect.yaml, and those of deploy/."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments.steps.core import run_steps
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import PrefectHTTPStatusError
from prefect.utilities.templating import apply_values
from pydantic import ValidationError

import pipelines
from pipelines.deploy import SHARED, limit_queue

ROOT = Path(pipelines.__file__).parents[1]


def test_the_shipped_files_are_valid():
    for entry in yaml.safe_load((ROOT / "deploy" / "automations.yaml").read_text())["automations"]:
        AutomationCore.model_validate(entry)
    for file in (ROOT / "prefect.yaml", ROOT / "deploy" / "kubernetes" / "prefect.yaml"):
        content = yaml.safe_load(file.read_text())
        deployments = PrefectYamlModel.model_validate(content).deployments  # as `prefect deploy` reads it
        assert len(deployments) >= 4
        for deployment in deployments:
            path, _, name = deployment.entrypoint.partition(":")
            assert f"def {name}(" in (ROOT / path).read_text()
            assert deployment.work_pool.name == content["definitions"]["pool"]["name"]
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    refresh = next(item for item in content["deployments"] if "refresh" in item["entrypoint"])
    assert refresh["schedules"][0]["active"]
    refresh["schedules"][0]["cron"] = 3
    with pytest.raises(ValidationError, match="cron"):
        PrefectYamlModel.model_validate(content)


def test_the_queue_of_the_workspace_lets_one_run_go_whether_or_not_it_was_there(prefect_server):
    """A pool that no deployment uses by that queue stays as it is."""
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text().replace("name: camp\n", "name: camp-limited\n"))
    with get_client(sync_client=True) as client:

        def limits(pool):
            limit_queue(client, pool, content)
            return {queue.name: queue.concurrency_limit for queue in client.read_work_queues(pool)}

        for pool in ("camp-limited", "camp-unlimited"):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        assert limits("camp-unlimited") == {"default": None}
        assert limits("camp-limited") == {"default": None, SHARED: 1}
        (queue,) = (queue for queue in client.read_work_queues("camp-limited") if queue.name == SHARED)
        client.update_work_queue(queue.id, concurrency_limit=3)
        assert limits("camp-limited") == {"default": None, SHARED: 1}


def test_the_kubernetes_template_makes_a_job(prefect_server):
    template = json.loads((ROOT / "deploy" / "kubernetes" / "job-template.json").read_text())
    Draft202012Validator.check_schema(template["variables"])
    with get_client(sync_client=True) as client:  # the server checks that every placeholder is a variable
        body = {"name": "camp-kubernetes", "type": "kubernetes", "base_job_template": template}
        client.request("POST", "/work_pools/", json=body)
        wrong = json.loads(json.dumps(template).replace("{{ gpus }}", "{{ graphics }}"))
        with pytest.raises(PrefectHTTPStatusError, match="graphics"):
            client.request("POST", "/work_pools/", json=body | {"name": "wrong", "base_job_template": wrong})
    defaults = {
        name: item["default"] for name, item in template["variables"]["properties"].items() if "default" in item
    }
    values = defaults | {"image": "camp", "env": {"A": "b"}, "labels": {"app": "camp"}}
    job = apply_values(template["job_configuration"]["job_manifest"], values)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert (job["apiVersion"], job["kind"], job["spec"]["backoffLimit"]) == ("batch/v1", "Job", 0)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["workingDir"] in [mount["mountPath"] for mount in container["volumeMounts"]]  # outlives the pod
    volumes = {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert "{{" not in json.dumps(job)


def test_the_next_pod_finds_what_a_lost_one_has_left(prefect_server, repository, tmp_path, monkeypatch):
    pull = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "prefect.yaml").read_text())["pull"]
    clone = pull[0]["prefect.deployments.steps.run_shell_script"]
    clone["script"] = clone["script"].replace("{{ $CAMP_REPOSITORY }}", repository.as_uri())
    subprocess.run(["git", "branch", "-M", "main"], check=True)
    volume = tmp_path / "volume"
    volume.mkdir()

    def next_pod():
        monkeypatch.chdir(volume)
        return Path(asyncio.run(run_steps(pull))["directory"])

    first = next_pod()
    state = first / ".work" / "state"
    state.parent.mkdir(exist_ok=True)
    state.write_text("half done")
    (first / "dvc.lock").write_text("schema: '2.0'")
    (first / "params.yaml").write_text("the parameters of the lost run")
    (repository / "new.txt").write_text("a later commit")
    subprocess.run(["git", "-C", str(repository), "add", "new.txt"], check=True)
    subprocess.run(["git", "-C", str(repository), "commit", "-q", "-m", "later"], check=True)
    second = next_pod()
    assert second == first == volume / "camp" == Path.cwd()
    assert (second / "new.txt").exists()
    assert (second / "params.yaml").read_bytes() == (repository / "params.yaml").read_bytes()
    assert state.read_text() == "half done" and (second / "dvc.lock").exists()


@pytest.mark.parametrize("script", ["worker", "dask"])
def test_the_slurm_scripts_are_valid(script):
    path = ROOT / "deploy" / "slurm" / f"{script}.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert len(directives) > 5
    assert max(directives) < first_command  # Slurm reads none after the first command
    known = {
        "job-name", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gpus", "gpus-per-task", "mem", "time",
        "signal", "requeue", "output",
    }  # fmt: skip
    assert {lines[i].split("--")[1].partition("=")[0] for i in directives} <= known


def test_the_image_installs_the_pinned_requirements():
    lines = (ROOT / "deploy" / "Dockerfile").read_text()
    assert "COPY requirements.lock" in lines
    assert "USER camp" in lines
