"""OFA-KD (2310.19444): exits behind the student's stages, taught an adaptive target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.head import PartLinear
from models.networks.network import GaitNetwork
from models.networks.pooling import strip_pool
from training.objective.distillation.alignment import align_parts, require_equal, require_positive
from training.objective.lesson import Lesson, Method, Networks
from training.objective.losses import LOGIT_SCALE
from training.recipe.terms import ExitsTerm


def adaptive_distillation(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    gamma: float,
    temperature: float = 1.0,
    scale: float = LOGIT_SCALE,
) -> Tensor:
    """Cross-entropy with a target that leans on the label the more, the surer the teacher is of it.

    The target of identity i is (p_i + [i = y])^gamma - [i = y], p the teacher's distribution. Gamma
    1 leaves p; above 1 the true identity's weight grows and that of doubtful others shrinks. Unlike
    KL it is not 0 for a perfect student.

    Args:
        student: logits [n, k, p].
        teacher: logits [n, k, p]; no gradient flows into them.
        labels: [n] integer identities.
        gamma: at least 1.
        temperature: softening of both, > 0.
        scale: multiplies both logits.

    Returns:
        A scalar: the mean over sequences and parts.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.
    """
    require_equal(student, teacher, "logits")
    require_positive(temperature, "temperature")
    sharpness = scale / temperature
    taught = F.softmax(teacher.detach().float() * sharpness, dim=1)
    true = F.one_hot(labels, student.shape[1]).unsqueeze(2).to(taught.dtype)
    target = (taught + true) ** gamma - true
    return -(target * F.log_softmax(student.float() * sharpness, dim=1)).sum(dim=1).mean()


class SeparableConv(nn.Module):
    """Two depthwise-separable convolutions; the first halves rows and columns."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, channels_in, 3, 2, 1, groups=channels_in, bias=False),
            nn.Conv2d(channels_in, channels_in, 1, bias=False),
            nn.BatchNorm2d(channels_in),
            nn.ReLU(),
            nn.Conv2d(channels_in, channels_in, 3, 1, 1, groups=channels_in, bias=False),
            nn.Conv2d(channels_in, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [n, c, h, w] to [n, c', h / 2, w / 2], rounded up."""
        halved: Tensor = self.layers(maps)
        return halved


def stage_shapes(network: GaitNetwork) -> list[tuple[int, int, int]]:
    """Channels, rows and columns of the maps behind each stage, for silhouettes of 64 x 44."""
    training = network.training
    weight = next(network.parameters())
    network.eval()
    with torch.no_grad():
        frames = torch.zeros(1, 1, *network.frame_shape(64, 44), device=weight.device)
        maps = network.backbone.stage_maps(frames)
    network.train(training)
    return [(found.shape[1], found.shape[3], found.shape[4]) for found in maps]


class Exit(nn.Module):
    """From the maps behind a stage to part embeddings behind a neck.

    The maximum over time, separable convolutions down to the rows of the last stage, strips, a
    projection and a neck for each part: what the student's own head does to its last maps.

    Args:
        shape: channels, rows and columns of the maps.
        last: those of the student's last stage.
        parts: p, of the student.
        channels: c of the embeddings.
    """

    def __init__(
        self, shape: tuple[int, int, int], last: tuple[int, int, int], parts: int, channels: int
    ) -> None:
        super().__init__()
        width, rows, _ = shape
        layers: list[nn.Module] = []
        while rows > last[1]:
            rows = -(-rows // 2)
            layers.append(SeparableConv(width, last[0] if rows <= last[1] else width))
            width = last[0] if rows <= last[1] else width
        self.layers = nn.Sequential(*layers)
        self.parts = parts
        self.projection = PartLinear(parts, width, channels)
        self.neck = nn.BatchNorm1d(channels * parts)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of clips [n, c, s, h, w] to embeddings behind the neck [n, c', p], float32."""
        pooled = strip_pool(self.layers(maps.float().amax(dim=2)), self.parts)
        embeddings = self.projection(pooled)
        behind: Tensor = self.neck(embeddings.flatten(1)).view_as(embeddings)
        return behind


class Exits(Method[ExitsTerm]):
    """The term of a recipe: the exits' loss and, with its own weight, the final logits'.

    Own heads classify for themselves and are shared by all teachers. Tied exits speak a teacher's
    language: they are as wide as it, mixed into its parts, and classified by its frozen classifier.
    """

    def __init__(self, term: ExitsTerm, networks: Networks) -> None:
        super().__init__(term, networks)
        student, teachers = networks
        shapes = stage_shapes(student)
        tied = term.heads == "tied"
        widths = [teacher.channels for teacher in teachers] if tied else [student.channels]

        # One after the other: all exits of the first teacher, of the second, …
        self.exits = nn.ModuleList(
            Exit(shapes[stage - 1], shapes[-1], student.parts, channels)
            for channels in widths
            for stage in term.stages
        )
        self.classifiers = nn.ModuleList()
        if not tied:
            self.classifiers.extend(
                PartLinear(student.parts, student.channels, student.identities, cosine=True)
                for _ in term.stages
            )
        # In a tuple, so that teachers' weights are neither trained nor kept with the run's state.
        self._frozen = tuple(teacher.head.classifier for teacher in teachers) if tied else ()

    def forward(self, lesson: Lesson) -> Tensor:
        """Of this process's sequences."""
        term, student, teacher = self.term, lesson.student, lesson.teacher
        total = student.logits.new_zeros(())
        if term.final_weight:
            total = total + term.final_weight * self._loss(lesson, student.logits)
        for index, stage in enumerate(term.stages):
            maps = student.stages[stage - 1]
            if self._frozen:
                embeddings = self.exits[lesson.number * len(term.stages) + index](maps)
                embeddings = align_parts(embeddings, teacher.logits.shape[-1])
                logits = self._frozen[lesson.number](embeddings)
                loss = self._adaptive(logits, teacher.logits, lesson.labels)
            else:
                loss = self._loss(lesson, self.classifiers[index](self.exits[index](maps)))
            total = total + term.exit_weight * loss
        return total

    def _loss(self, lesson: Lesson, logits: Tensor) -> Tensor:
        return self._adaptive(*lesson.aligned(logits, lesson.teacher.logits), lesson.labels)

    def _adaptive(self, own: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
        term = self.term
        return adaptive_distillation(
            own, taught, labels, gamma=term.gamma, temperature=term.temperature, scale=term.scale
        )
