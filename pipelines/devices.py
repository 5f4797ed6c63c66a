"""Distributes the GPUs of this machine over workers or experiments through CUDA_VISIBLE_DEVICES."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as named in CUDA_VISIBLE_DEVICES; empty on a machine without GPUs."""
    chosen = os.environ.get(VISIBLE)
    if chosen is None:
        import torch  # here, because a cluster worker imports this module before it answers

        return [str(i) for i in range(torch.cuda.device_count())]
    names = [name.strip() for name in chosen.split(",")]
    # CUDA ignores all names from the first one that is not a device.
    end = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
    return names[:end]


def device_environments(jobs: int, devices: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The variables to add to the environment of each of `jobs` parallel processes.

    With at least as many devices as jobs, all devices are distributed and each belongs to one job; with fewer, jobs
    share devices in turn. Without devices nothing is added.

    Args:
        jobs: number of processes that run at the same time.
        devices: names of GPUs; None: `visible_devices`.
    """
    names = list(visible_devices() if devices is None else devices)
    if not names:
        return [{} for _ in range(jobs)]
    shares = [names[i::jobs] or [names[i % len(names)]] for i in range(jobs)]
    return [{VISIBLE: ",".join(share)} for share in shares]


class DevicePool:
    """Lends each of `jobs` threads the devices that the fewest others use at the moment."""

    def __init__(self, jobs: int, devices: Sequence[str] | None = None) -> None:
        self._environments = device_environments(jobs, devices)
        self._borrowers = [0] * jobs
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lend(self) -> Iterator[dict[str, str]]:
        """Yield the variables to add to the environment of a process that runs within this block."""
        with self._lock:
            device = min(range(len(self._borrowers)), key=self._borrowers.__getitem__)
            self._borrowers[device] += 1
        try:
            yield self._environments[device]
        finally:
            with self._lock:
                self._borrowers[device] -= 1
