"""Run by torchrun: the gradient that several processes find together, saved by the first."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from models.networks.head import GaitOutput
from models.networks.registry import build
from training.objective.objective import Objective
from training.objective.student import ConnectedStudent
from training.recipe import load
from training.run.distributed import Group, join

TERMS = (
    "terms=[{kind='triplet'}, {kind='cross-entropy'}, {kind='logit'}, {kind='ranking'}, "
    "{kind='relation'}, {kind='boundary', weight=0.01, connector=true}]"
)


def gradients(group: Group) -> dict[str, Tensor]:
    torch.manual_seed(0)
    config = {"channels": [4, 4, 8, 8], "parts": 4, "embedding_channels": 8, "identities": 4}
    # Batch statistics are each process's own on a CPU: in eval mode the rest can be compared.
    learner = ConnectedStudent(build("gaitbase", config), [6]).eval()
    clips, labels = torch.rand(8, 3, 64, 44), torch.arange(4).repeat_interleave(2)
    teacher = GaitOutput(torch.randn(8, 6, 4), torch.randn(8, 4, 4).tanh())
    share = 8 // group.size
    mine = slice(group.rank * share, (group.rank + 1) * share)
    recipe = load("gaitkd-corrected", settings=[TERMS, "distillation.ramp=0.0"])
    objective = Objective(recipe.terms, recipe.distillation, group.gather)
    embed = learner if group.size == 1 else DistributedDataParallel(learner)
    loss = objective(
        embed(clips[mine]),
        labels[mine],
        [GaitOutput(teacher.embeddings[mine], teacher.logits[mine])],
        progress=1.0,
    )
    loss.total.backward()  # type: ignore[no-untyped-call]
    return {name: w.grad for name, w in learner.named_parameters() if w.grad is not None}


def main() -> None:
    torch.set_num_threads(1)
    group = join()
    found = gradients(group)
    if group.leads:
        torch.save(found, Path(sys.argv[1]))
    flags = [group.any(False), group.any(group.rank == group.size - 1)]
    group.close()
    sys.exit(flags != [False, True])


if __name__ == "__main__":
    main()
