"""Several processes, one run. A single process is a group of one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.networks.device import find_device

EVALUATION_TIMEOUT = timedelta(
    hours=2
)  # others wait at a barrier while the first process evaluates


@dataclass(frozen=True)
class Group:
    """This process's place among those of the run.

    Attributes:
        rank: 0 … size - 1; the first writes files and reports.
        size: number of processes.
        device: where this process computes.
        control: process group for flags and barriers, on the CPU; None in a run of one.
    """

    rank: int
    size: int
    device: torch.device
    control: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all must ask."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.control)
        return bool(flags.item())

    def newest(self, saved: dict[str, Any] | None) -> dict[str, Any] | None:
        """The state that is furthest among those of all processes; all must bring theirs, or None.

        Processes of several hosts may have folders of their own, and torchrun may give the first
        place to another host than before.
        """
        if self.size == 1:
            return saved
        reached = torch.tensor(
            [-1, -1] if saved is None else [saved.get("stage", 0), saved["step"]]
        )
        everyone = [torch.empty_like(reached) for _ in range(self.size)]
        dist.all_gather(everyone, reached, group=self.control)
        steps = [tuple(one.tolist()) for one in everyone]
        if len(set(steps)) == 1:
            return saved
        found = [saved]
        dist.broadcast_object_list(found, src=steps.index(max(steps)), group=self.control)
        return found[0]

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            dist.barrier(group=self.control)

    def gather(self, local: Tensor) -> Tensor:
        """All processes' rows in order of rank, [n, …] → [size · n, …], differentiable.

        Every process must bring as many rows.
        """
        if self.size == 1:
            return local
        gathered: Tensor = _Gather.apply(local, self)  # type: ignore[no-untyped-call]
        return gathered

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums what every process asks of these rows.

    Each process computes the same loss from the gathered rows, so the sum is `size` times the
    gradient, and averaging gradients over processes, as DDP does, gives that of one process with
    the whole batch.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.rows = group, local.shape[0]
        everyone = [torch.empty_like(local) for _ in range(group.size)]
        dist.all_gather(everyone, local.contiguous())
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed)
        start = ctx.group.rank * ctx.rows
        return summed[start : start + ctx.rows], None


def join() -> Group:
    """The group that torchrun's environment describes; alone without torchrun.

    nccl on GPUs, gloo elsewhere.

    Raises:
        models.networks.device.NoSuchDevice: more processes on this machine than it has GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        device = find_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(device)
    else:
        device = find_device("cpu")
    if size == 1:
        return Group(0, 1, device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    control = dist.new_group(backend="gloo", timeout=EVALUATION_TIMEOUT)
    return Group(rank, size, device, control)
