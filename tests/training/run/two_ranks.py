"""Run by torchrun: the gradients that several processes find together, saved by the first."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.training.methods import (
    EXAMPLES,
    batch_of,
    gradients_of,
    learner_of,
    rows_of,
    student_network,
    teacher_network,
)
from training.objective.lesson import Networks
from training.run.distributed import Group, join


def gradients(group: Group, kind: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    networks = Networks(student_network(), [teacher_network()])
    # Batch statistics are each process's own on a CPU: in eval mode the rest can be compared.
    learner = learner_of(kind, networks, gather=group.gather, rank=group.rank).eval()
    batch = batch_of(kind, parts=8, channels=6)
    share = len(batch.labels) // group.size
    mine = rows_of(batch, slice(group.rank * share, (group.rank + 1) * share))
    learn = learner if group.size == 1 else DistributedDataParallel(learner)
    loss, _ = learn(mine, 100)
    return gradients_of(learner, loss.total)


def main() -> None:
    torch.set_num_threads(1)
    group = join()
    found = {kind: gradients(group, kind) for kind in EXAMPLES}
    if group.leads:
        torch.save(found, Path(sys.argv[1]))
    flags = [group.any(False), group.any(group.rank == group.size - 1)]
    # Only the last process's host has a state; then each has one, the first an older one.
    weights = torch.arange(3.0)
    kept = {"step": 5, "weights": weights} if group.rank == group.size - 1 else None
    moved = group.newest(kept)
    further = group.newest({"stage": 1, "step": group.rank})
    nothing = group.newest(None)
    group.close()
    shared = moved is not None and moved["step"] == 5 and moved["weights"].equal(weights)
    newer = further is not None and further["step"] == group.size - 1
    sys.exit(flags != [False, True] or not shared or not newer or nothing is not None)


if __name__ == "__main__":
    main()
