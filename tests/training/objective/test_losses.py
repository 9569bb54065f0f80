from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training import goldens
from training.objective.losses import accuracy, cross_entropy, triplet


@pytest.mark.parametrize(
    ("case", "embeddings"),
    [
        ("triplet_m0.2_balanced", "emb_s"),
        ("triplet_m0.2_small", "emb_s_small"),
        ("triplet_m0.2_all_inactive", "emb_s_separated"),
    ],
)
def test_the_triplet_loss_equals_the_fields_in_value_and_gradient(
    case: str, embeddings: str
) -> None:
    student = goldens.given(embeddings).requires_grad_()
    labels = goldens.given("labels")
    goldens.check(case, triplet(student, labels), student)
    each = torch.stack([triplet(student[:, :, p : p + 1], labels) for p in range(16)])
    torch.testing.assert_close(
        each.detach(), goldens.expected(case, "value_per_part"), rtol=5e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("case", "scale", "smoothing"),
    [("ce_s16_ls", 16, 0.1), ("ce_s16_nols", 16, 0.0), ("ce_s1_nols", 1, 0.0)],
)
def test_cross_entropy_equals_the_fields_in_value_and_gradient(
    case: str, scale: float, smoothing: float
) -> None:
    student = goldens.given("logits_s").requires_grad_()
    loss = cross_entropy(student, goldens.given("labels"), scale=scale, smoothing=smoothing)
    goldens.check(case, loss, student)


def naive_triplet(embeddings: Tensor, labels: list[int], margin: float) -> float:
    parts = []
    for p in range(embeddings.shape[2]):
        hinges = []
        for a, i, j in itertools.product(range(len(labels)), repeat=3):
            if labels[a] == labels[i] and labels[a] != labels[j]:
                near = torch.dist(embeddings[a, :, p], embeddings[i, :, p])
                far = torch.dist(embeddings[a, :, p], embeddings[j, :, p])
                hinges.append(max(0.0, float(near - far + margin)))
        violated = [h for h in hinges if h > 0]
        parts.append(sum(violated) / max(len(violated), 1))
    return sum(parts) / len(parts)


@settings(max_examples=25, deadline=None)
@drawn(labels=st.lists(st.integers(0, 3), min_size=1, max_size=7), seed=st.integers(0, 1000))
def test_the_triplet_loss_equals_a_loop_for_classes_of_any_sizes(
    labels: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(labels), 5, 2, generator=generator) * 0.3
    loss = triplet(embeddings, torch.tensor(labels), margin=0.2)
    assert float(loss) == pytest.approx(naive_triplet(embeddings, labels, 0.2), abs=2e-5)


def test_gradients_stay_finite_when_two_walks_have_the_same_embedding() -> None:
    embeddings = torch.ones(4, 3, 2).requires_grad_()
    loss = triplet(embeddings, torch.tensor([0, 0, 1, 1]))
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert torch.isfinite(gradient).all()


def test_a_label_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="as many labels"):
        triplet(torch.zeros(4, 3, 2), torch.tensor([0, 1]))


def test_accuracy_counts_sequences_and_parts() -> None:
    logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]])  # [n, k, p]
    assert float(accuracy(logits, torch.tensor([0, 1]))) == 0.75
