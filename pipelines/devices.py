"""Which GPUs a worker or an experiment gets: those of this machine, shared out through CUDA_VISIBLE_DEVICES."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_devices() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes; none on other machines."""
    chosen = os.environ.get(VISIBLE)
    if chosen is None:
        import torch  # here: a worker of a cluster imports the module that imports this one before it answers

        return [str(i) for i in range(torch.cuda.device_count())]
    names = [name.strip() for name in chosen.split(",")]
    # CUDA ignores what follows the first name that stands for no device.
    end = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
    return names[:end]


def device_environments(jobs: int, devices: Sequence[str] | None = None) -> list[dict[str, str]]:
    """What to add to the environment of each of `jobs` processes that run side by side.

    With at least as many devices as jobs, each job has devices of its own, and all devices are shared out; with fewer,
    jobs take turns. Without devices nothing is added.

    Args:
        jobs: how many processes run at the same time.
        devices: names of GPUs; None: `visible_devices`.
    """
    names = list(visible_devices() if devices is None else devices)
    if not names:
        return [{} for _ in range(jobs)]
    shares = [names[i::jobs] or [names[i % len(names)]] for i in range(jobs)]
    return [{VISIBLE: ",".join(share)} for share in shares]


class DevicePool:
    """Lends each of `jobs` threads the devices that fewest others have at the moment."""

    def __init__(self, jobs: int, devices: Sequence[str] | None = None) -> None:
        self._environments = device_environments(jobs, devices)
        self._borrowers = [0] * jobs
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lend(self) -> Iterator[dict[str, str]]:
        """What to add to the environment of a process that runs within this block."""
        with self._lock:
            place = min(range(len(self._borrowers)), key=self._borrowers.__getitem__)
            self._borrowers[place] += 1
        try:
            yield self._environments[place]
        finally:
            with self._lock:
                self._borrowers[place] -= 1
