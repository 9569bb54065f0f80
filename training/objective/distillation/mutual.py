"""Intra-class patch swap (2505.14124): two walks of one person that exchanged parts agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objective.distillation.alignment import require_positive
from training.objective.lesson import Lesson, Method, temperature_of
from training.objective.losses import LOGIT_SCALE
from training.recipe.terms import MutualTerm


def mutual_distillation(
    logits: Tensor,
    partners: Tensor,
    *,
    temperature: float,
    stop_gradient: bool = False,
    scale: float = LOGIT_SCALE,
) -> Tensor:
    """Half of KL(a ‖ b) + KL(b ‖ a) between the softened identities of every pair, part by part.

    Args:
        logits: [n, k, p].
        partners: int64 [n], the other of the pair; itself for a sequence without one, which
            counts 0.
        temperature: softening, > 0.
        stop_gradient: each of a pair is a fixed target of the other.
        scale: multiplies the logits.

    Returns:
        A scalar: the mean over pairs and parts if all have partners, times temperature².

    Raises:
        ValueError: the temperature is not positive.
    """
    require_positive(temperature, "temperature")
    own = F.log_softmax(logits.float() * (scale / temperature), dim=1)
    target = own[partners].detach() if stop_gradient else own[partners]
    # A pair appears as both of its sequences: the mean over sequences is the mean over pairs of
    # half the sum, and no process needs to know how many pairs the others have.
    divergence = (target.exp() * (target - own)).sum(dim=1)
    paired = partners != torch.arange(len(partners), device=partners.device)
    return (divergence * paired.unsqueeze(1)).mean() * temperature**2


class Mutual(Method[MutualTerm]):
    """The term of a recipe. Pairs count whether or not chance let them exchange anything."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Of this process's sequences.

        Raises:
            ValueError: nobody was paired.
        """
        if lesson.partners is None:
            raise ValueError("mutual needs data.swap: without it walks have no partners")
        term, logits = self.term, lesson.student.logits
        return mutual_distillation(
            logits,
            lesson.partners,
            temperature=temperature_of(term.temperature, logits, term.scale),
            stop_gradient=term.stop_gradient,
            scale=term.scale,
        )
