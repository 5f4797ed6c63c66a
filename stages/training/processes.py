"""Training in several processes, one per device."""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from camp_model.tensors import to_device
from stages import usable_cores
from stages.device import choose_device
from stages.errors import InputError
from stages.params.train import TrainParams

RENDEZVOUS_VARIABLES = ("PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")
"""Environment variables that tell torchrun which of several machines it is on, and their rendezvous."""
RENDEZVOUS_FILE = "CAMP_MEETING_FILE"
"""File for the rendezvous of one machine's processes: torchrun's TCP store would listen on every address."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and the rank of this one."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: torch.device) -> "Processes":
        """Join the processes that `torchrun` started; a group of one if it did not start this process."""
        if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
            return cls()
        # Other processes may wait long for one that validates.
        file, count = os.environ.get(RENDEZVOUS_FILE), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=None if file else "env://",
            store=dist.FileStore(file, count) if file else None,  # type: ignore[attr-defined]  # a URL would end at # or ?
            rank=int(os.environ["RANK"]),
            world_size=count,
            timeout=timedelta(hours=2),
        )
        return cls(dist.get_rank(), dist.get_world_size())

    def leave(self) -> None:
        """Leave the process group."""
        if self.count > 1:
            dist.destroy_process_group()

    def share(self, size: int) -> slice:
        """This process's slice of a batch of `size` pairs; those of the processes differ by at most one pair."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def sum_(self, values: Tensor) -> None:
        """Sum `values` over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is set on any process; all get the same answer."""
        if self.count == 1:
            return flag
        flags = torch.tensor(float(flag), device=device)
        dist.all_reduce(flags)
        return bool(flags > 0)

    def agree(self, number: int, device: torch.device) -> bool:
        """Whether all processes have the same number."""
        if self.count == 1:
            return True
        both = torch.tensor([number, -number], device=device)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return bool(both.sum() == 0)

    def average_gradients(self, parameters: list[nn.Parameter], loss: Tensor) -> Tensor:
        """Replace gradients by their mean over all processes, in one exchange; return the mean of `loss`.

        A parameter that has no gradient on any process keeps none: zeros would let the optimizer decay its weights.
        """
        if self.count == 1:
            return loss.detach()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        is_used = torch.tensor([p.grad is not None for p in parameters])
        facts = torch.cat([loss.detach().reshape(1), to_device(is_used.to(loss.dtype), loss.device)]).to(
            gradients[0].dtype
        )
        flat = torch.cat([facts, *(g.reshape(-1) for g in gradients)])
        dist.all_reduce(flat)
        flat /= self.count
        facts, *averages = torch.split(flat, [len(facts), *(g.numel() for g in gradients)])
        unused = [i for i, parameter in enumerate(parameters) if parameter.grad is None]
        # Reading waits for the device, so only unknown values are read.
        nowhere = (
            {i for i, share in zip(unused, facts[1:][unused].tolist(), strict=True) if not share} if unused else {}
        )
        for i, (parameter, average) in enumerate(zip(parameters, averages, strict=True)):
            parameter.grad = None if i in nowhere else average.view_as(parameter)
        return facts[0]


@contextlib.contextmanager
def in_processes(params: TrainParams, module: str) -> Iterator[tuple[torch.device, Processes, Callable[[], bool]]]:
    """Yield the device of `module`, its processes (started if there are to be several), and whether SIGTERM has come.

    While the body runs, only the first process prints: the lines of the others would repeat its lines.

    Raises:
        InputError: as `choose_device` and `launch`.
    """
    device = choose_device(params.device)
    launch(params, device, module)
    if device.type == "cuda":
        if device.index is None:  # a named one is for a single process
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    processes = Processes.join(device)
    with contextlib.ExitStack() as ending:
        ending.callback(processes.leave)
        if processes.rank:
            nowhere = ending.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            ending.enter_context(contextlib.redirect_stdout(nowhere))
        yield device, processes, stopped.is_set


def launch(params: TrainParams, device: torch.device, module: str) -> None:
    """Replace this process by `torchrun`, which starts `module` once per device; return if there is no need.

    It ends as the process that failed. With several machines, each runs the stage, and torchrun learns from its PET_
    variables which one it is on. Only that of rank 0 writes the stage's outputs.

    Raises:
        InputError: more processes than devices, or machines that do not know each other.
    """
    if params.processes * params.machines == 1 or "WORLD_SIZE" in os.environ:
        return
    if device.type == "mps" or (device.type == "cuda" and params.processes > torch.cuda.device_count()):
        count = torch.cuda.device_count() if device.type == "cuda" else 1
        raise InputError(f"train.processes: {params.processes}, but there are {count} {device.type} devices")
    if missing := [name for name in RENDEZVOUS_VARIABLES if params.machines > 1 and name not in os.environ]:
        raise InputError(
            f"train.machines: {params.machines}, but {', '.join(missing)} is not set; expected in the environment of "
            "every machine its rank from 0, and the address and a free port of machine 0"
        )
    command = ["-m", __name__, f"--nnodes={params.machines}", f"--nproc-per-node={params.processes}"]
    if params.machines == 1:
        command += _loopback_options()
    command += ["-m", module]
    if device.type == "cpu" and os.environ.get("OMP_NUM_THREADS") in (None, str(usable_cores())):  # not a choice
        os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // params.processes))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *command])


def _loopback_options() -> list[str]:
    """Options for torchrun and environment variables for its processes, so that nothing listens beyond loopback."""
    descriptor, os.environ[RENDEZVOUS_FILE] = tempfile.mkstemp(prefix="camp-processes-")
    os.close(descriptor)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    for backend in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{backend}_SOCKET_IFNAME", loopback)
    return ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file"]


def run_torchrun(arguments: list[str]) -> None:
    """Run torchrun, print once what processes leave to it (`stages.entry`), and end with the exit code of the process
    that failed: torchrun's is always 1, after a traceback.

    Others may fail only because that one is gone, or by the SIGTERM that torchrun then sends them. So wrong input (2)
    goes first, then another signal, as a shell reports it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        for line in dict.fromkeys(failure.message for failure in error.failures.values()):
            if line.startswith("error: "):  # else torchrun's own words for a process that left none
                print(line, file=sys.stderr)
        codes = [failure.exitcode for failure in error.failures.values()]
        code = 2 if 2 in codes else min(codes, key=lambda code: (code == -signal.SIGTERM, code))
        raise SystemExit(128 - code if code < 0 else code) from None


if __name__ == "__main__":
    run_torchrun(sys.argv[1:])
