"""Fuse Before Transfer (2410.12342): the student's first stages before the teacher's last."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.blocks import as_clips, as_frames
from models.networks.head import GaitOutput
from models.networks.network import GaitNetwork
from training.objective.distillation.alignment import require_equal
from training.objective.distillation.exits import adaptive_distillation, stage_shapes
from training.objective.lesson import Lesson, Method, Networks, half_as
from training.recipe.terms import FusionTerm


def part_contrast(
    own: Tensor,
    other: Tensor,
    labels: Tensor,
    temperature: Tensor,
    *,
    mask_same_identity: bool = True,
) -> Tensor:
    """InfoNCE part by part: of all sequences, which is this one as the other network sees it?

    Args:
        own: embeddings [n, c, p].
        other: embeddings [n, c, p]; the caller detaches what is not to learn.
        labels: [n] integer identities.
        temperature: a scalar, > 0.
        mask_same_identity: leave out other sequences of the same identity, which a batch has by
            design and which are no strangers.

    Returns:
        A scalar: the mean over sequences and parts.

    Raises:
        ValueError: the shapes differ.
    """
    require_equal(own, other, "embeddings")
    rows = F.normalize(own.float(), dim=1).permute(2, 0, 1)  # [p, n, c]
    columns = F.normalize(other.float(), dim=1).permute(2, 1, 0)  # [p, c, n]
    logits = rows @ columns / temperature  # [p, n, n]
    n = len(labels)
    if mask_same_identity:
        itself = torch.eye(n, dtype=torch.bool, device=labels.device)
        same = labels.unsqueeze(0) == labels.unsqueeze(1)
        logits = logits.masked_fill(same & ~itself, -math.inf)
    return -F.log_softmax(logits, dim=-1).diagonal(dim1=1, dim2=2).mean()


class Fusion(nn.Module):
    """The student's third stage, a projection, and the teacher's last stage and head.

    Args:
        student: whose maps come in.
        teacher: whose last stage and head come behind.
        trainable: whether they are a copy that learns, and not the teacher's own, frozen.
    """

    def __init__(self, student: GaitNetwork, teacher: GaitNetwork, *, trainable: bool) -> None:
        super().__init__()
        channels = stage_shapes(student)[2][0]
        wanted, *self._size = stage_shapes(teacher)[2]
        # Widths or sizes that agree already still pass it: the student's basis is its own.
        self.projection = nn.Sequential(
            nn.Conv2d(channels, wanted, 1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU()
        )
        self.stage: nn.Module | None = None
        self.head: nn.Module | None = None
        if trainable:
            self.stage = copy.deepcopy(teacher.backbone.last_stage).requires_grad_(True)
            self.head = copy.deepcopy(teacher.head).requires_grad_(True)
        # In a tuple, so that the teacher stays in eval mode and out of the run's state.
        self._teacher = (teacher,)

    def forward(self, maps: Tensor) -> GaitOutput:
        """Embeddings [n, c', p'] and logits [n, k, p'] from the maps [n, c, s, h, w] of stage 3."""
        (teacher,) = self._teacher
        stage = self.stage or teacher.backbone.last_stage
        head = self.head or teacher.head
        frames = maps.shape[2]
        projected = self.projection(as_frames(maps).float())
        if list(projected.shape[2:]) != self._size:
            projected = F.interpolate(
                projected, size=self._size, mode="bilinear", align_corners=False
            )
        with half_as(maps):
            if teacher.is_temporal:
                found = stage(as_clips(projected, frames))
            else:
                found = as_clips(stage(projected), frames)
        output: GaitOutput = head(teacher.strips(found.amax(dim=2)).float())
        return output


class Fuse(Method[FusionTerm]):
    """The term of a recipe: contrast and adaptive target of three pairs, each of which can be left.

    In a pair with the teacher the other learns. Between fusion and student the contrast moves both,
    and the fusion's distribution is the student's fixed target.
    """

    def __init__(self, term: FusionTerm, networks: Networks) -> None:
        super().__init__(term, networks)
        student, teachers = networks
        fused = set(term.pairs) != {"teacher-student"}
        self.fusions = nn.ModuleList(
            Fusion(student, teacher, trainable=term.trainable) for teacher in teachers if fused
        )
        self.log_temperature = nn.Parameter(torch.tensor(math.log(term.contrast_temperature)))

    def forward(self, lesson: Lesson) -> Tensor:
        """Contrast over the sequences of all processes, targets of this one's."""
        term, teacher = self.term, lesson.teacher
        student = GaitOutput(lesson.own(connector=term.connects), lesson.student.logits)
        fused = self.fusions[lesson.number](lesson.student.stages[2]) if len(self.fusions) else None
        total = student.logits.new_zeros(())
        for pair in term.pairs:
            if pair == "teacher-student":
                total = total + self._pair(lesson, teacher, student, fixed=True)
            elif fused is not None and pair == "teacher-fusion":
                total = total + self._pair(lesson, teacher, fused, fixed=True)
            elif fused is not None:
                total = total + self._pair(lesson, fused, student, fixed=False)
        return total

    def _pair(
        self, lesson: Lesson, source: GaitOutput, learner: GaitOutput, *, fixed: bool
    ) -> Tensor:
        """Loss of a learner [n, c, p] with a source, whose embeddings move too unless `fixed`."""
        term = self.term
        total = learner.logits.new_zeros(())
        if term.contrast_weight:
            taught = source.embeddings.detach() if fixed else source.embeddings
            own, other = lesson.aligned(learner.embeddings, taught)
            total = total + term.contrast_weight * part_contrast(
                lesson.everyone(own),
                lesson.everyone(other),
                lesson.everyone(lesson.labels),
                self.log_temperature.exp(),
                mask_same_identity=term.mask_same_identity,
            )
        if term.identity_weight:
            own, other = lesson.aligned(learner.logits, source.logits)
            total = total + term.identity_weight * adaptive_distillation(
                own,
                other,
                lesson.labels,
                gamma=term.gamma,
                temperature=term.temperature,
                scale=term.scale,
            )
        return total
