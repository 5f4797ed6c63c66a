"""GPUs are shared out among workers and jobs; the devices here are pretended."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.devices import VISIBLE, DevicePool, device_environments, visible_devices
from pipelines.extract import runner


def names(environments):
    return [environment[VISIBLE] for environment in environments]


@pytest.mark.parametrize(
    ("jobs", "devices", "expected"),
    [
        (4, "0123", ["0", "1", "2", "3"]),
        (2, "0123", ["0,2", "1,3"]),
        (3, "0123", ["0,3", "1", "2"]),
        (1, "0123", ["0,1,2,3"]),
        (5, "01", ["0", "1", "0", "1", "0"]),
    ],
)
def test_jobs_get_devices_of_their_own_and_all_devices_are_used(jobs, devices, expected):
    assert names(device_environments(jobs, list(devices))) == expected


def test_without_devices_nothing_is_set():
    assert device_environments(2, []) == [{}, {}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3,5", ["3", "5"]), (" GPU-a, GPU-b ", ["GPU-a", "GPU-b"]), ("", []), ("-1", []), ("2,-1,3", ["2"])],
)
def test_what_a_person_has_chosen_is_what_is_shared_out(monkeypatch, value, expected):
    monkeypatch.setenv(VISIBLE, value)
    assert visible_devices() == expected
    assert device_environments(1) == ([{VISIBLE: ",".join(expected)}] if expected else [{}])


def test_jobs_that_run_together_have_distinct_devices_and_give_them_back(monkeypatch):
    monkeypatch.setenv(VISIBLE, "4,5,6,7")
    pool = DevicePool(4)
    together = threading.Barrier(4, timeout=30)

    def job(_):
        with pool.lend() as environment:
            together.wait()
            return environment[VISIBLE]

    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            assert sorted(threads.map(job, range(4))) == ["4", "5", "6", "7"]


def test_a_job_that_fails_gives_its_device_back():
    pool = DevicePool(2, ["0", "1"])
    with pool.lend() as first:
        for _ in range(3):
            with pytest.raises(RuntimeError), pool.lend() as second:
                assert second != first
                raise RuntimeError


@pytest.mark.timeout(120)
def test_workers_of_a_local_cluster_see_distinct_devices(prefect_server, monkeypatch):
    monkeypatch.setenv(VISIBLE, "1,3,4")
    with runner(None, 3) as started:
        started.client.wait_for_workers(3, timeout=60)
        seen = started.client.run(lambda: os.environ[VISIBLE])
    assert sorted(seen.values()) == ["1", "3", "4"]
