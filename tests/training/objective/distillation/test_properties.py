"""What the distillation terms promise beyond equality with the published ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.objective.distances import part_distances
from training.objective.distillation.alignment import align_parts, overlap_matrix, truncate_parts
from training.objective.distillation.boundary import activation_boundary, relative_boundary
from training.objective.distillation.decoupled import decoupled_distillation
from training.objective.distillation.hint import Connector, hint
from training.objective.distillation.logit import logit_distillation, logit_regression
from training.objective.distillation.ranking import ranking_distillation
from training.objective.distillation.relation import relation_distillation
from training.objective.distillation.temperature import informative_temperature

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosines(seed: int, n: int = 6, k: int = 9, p: int = 4) -> Tensor:
    return draw(seed, n, k, p).tanh()


def rotation(seed: int, c: int) -> Tensor:
    orthogonal, _ = torch.linalg.qr(draw(seed, c, c))
    assert isinstance(orthogonal, Tensor)
    return orthogonal


@pytest.mark.parametrize("parts", [15, 16, 31, 62])
@pytest.mark.parametrize("teacher_parts", [15, 16, 31, 62])
def test_every_row_of_the_overlap_sums_to_one_and_equal_parts_give_the_identity(
    parts: int, teacher_parts: int
) -> None:
    overlap = overlap_matrix(parts, teacher_parts)
    torch.testing.assert_close(overlap.sum(dim=1), torch.ones(parts))
    if parts == teacher_parts:
        assert torch.equal(overlap, torch.eye(parts))


def test_the_overlap_is_the_length_strips_share() -> None:
    torch.testing.assert_close(
        overlap_matrix(2, 3), torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])
    )


def test_a_pyramids_strips_are_met_by_all_strips_that_see_them() -> None:
    own = overlap_matrix(16, 62)
    # 16, 8, 4, 2 and 1 strips, twice; the feet are in the last of each
    levels = torch.tensor([15, 23, 27, 29, 30])
    assert own[15].nonzero().flatten().tolist() == [*levels, *(levels + 31)]
    torch.testing.assert_close(own[15][own[15] > 0], torch.full((10,), 0.1))
    taught = overlap_matrix(62, 16)
    torch.testing.assert_close(taught[30], torch.full((16,), 1 / 16))  # the whole height
    assert torch.equal(taught[:16], torch.eye(16))
    assert torch.equal(taught[31:], taught[:31])


def test_mixed_logits_are_the_normalised_geometric_mean_of_the_parts_distributions() -> None:
    logits = cosines(0, p=3)
    mixed = F.softmax(align_parts(logits, 2) * 16 / 3, dim=1)
    log_parts = F.log_softmax(logits * 16 / 3, dim=1)
    geometric = (log_parts[..., 0] * 2 / 3 + log_parts[..., 1] / 3).exp()
    torch.testing.assert_close(mixed[..., 0], geometric / geometric.sum(dim=1, keepdim=True))


def test_truncation_keeps_the_first_parts_of_both() -> None:
    student, teacher = truncate_parts(draw(0, 2, 3, 16), draw(1, 2, 3, 15))
    assert student.shape == teacher.shape == (2, 3, 15)


@pytest.mark.parametrize("teacher_parts", [15, 16, 31, 62])
def test_relations_between_networks_of_any_width_and_parts_are_finite_and_teach(
    teacher_parts: int,
) -> None:
    student, teacher = draw(0, 6, 8, 16).requires_grad_(), draw(1, 6, 20, teacher_parts)
    for loss in (
        ranking_distillation(student, teacher),
        relation_distillation(student, teacher, LABELS),
    ):
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


def test_equal_logits_cost_nothing() -> None:
    logits = cosines(0)
    assert float(logit_distillation(logits, logits, temperature=4.0)) == pytest.approx(0, abs=1e-6)
    assert float(logit_regression(logits, logits)) == 0
    decoupled = decoupled_distillation(logits, logits, LABELS, temperature=4.0)
    assert float(decoupled) == pytest.approx(0, abs=1e-5)


def test_an_equal_embedding_costs_nothing_in_hint_ranking_and_relation() -> None:
    e = draw(0, 6, 8, 4)
    assert float(hint(e, e)) == 0
    assert float(ranking_distillation(e, e)) == pytest.approx(0, abs=1e-6)
    assert float(relation_distillation(e, e, LABELS)) == pytest.approx(0, abs=1e-6)


def test_logit_distillation_equals_a_loop_over_sequences_and_parts() -> None:
    student, teacher = cosines(0), cosines(1)
    total = 0.0
    for n in range(6):
        for p in range(4):
            q = [math.exp(16 * float(z) / 2) for z in student[n, :, p]]
            t = [math.exp(16 * float(z) / 2) for z in teacher[n, :, p]]
            total += sum(
                a / sum(t) * math.log(a / sum(t) * sum(q) / b) for a, b in zip(t, q, strict=True)
            )
    loss = logit_distillation(student, teacher, temperature=2.0)
    assert float(loss) == pytest.approx(4 * total / 24, rel=1e-5)


def test_the_boundary_equals_its_definition_coordinate_by_coordinate() -> None:
    student = torch.tensor([[[-2.0], [0.5], [-0.5], [2.0]]])
    teacher = torch.tensor([[[-1.0], [0.0], [1.0], [1.0]]])
    # beyond the margin; (0.5 + 1)²; (-0.5 - 1)²; beyond the margin
    assert float(activation_boundary(student, teacher)) == pytest.approx(2.25 + 2.25)


def test_summed_teachers_are_their_mean_ensemble_times_their_number_plus_a_constant() -> None:
    teachers = [cosines(1), cosines(2)]
    sharpness = 16 / 4.0
    ensemble = torch.stack([F.softmax(t * sharpness, dim=1) for t in teachers]).mean(dim=0)
    gaps = []
    for student in (cosines(3), cosines(4)):
        log_student = F.log_softmax(student * sharpness, dim=1)
        summed = sum(float(logit_distillation(student, t, temperature=4.0)) / 16 for t in teachers)
        mean = (ensemble * (ensemble.log() - log_student)).sum(dim=1).mean()
        gaps.append(summed - 2 * float(mean))
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-5)


def test_plain_distillation_weighs_the_rest_of_decoupled_distillation_by_its_probability() -> None:
    # one sequence, one part: there the weight 1 - p(true) is a single number
    student, teacher, label = cosines(0, n=1, p=1), cosines(1, n=1, p=1), torch.tensor([2])
    rest = 1 - float(F.softmax(teacher * 16 / 4.0, dim=1)[0, 2, 0])
    plain = logit_distillation(student, teacher, temperature=4.0)
    decoupled = decoupled_distillation(
        student, teacher, label, temperature=4.0, target_weight=1.0, rest_weight=rest
    )
    assert float(plain) == pytest.approx(float(decoupled), rel=1e-5)


def test_decoupled_distillation_stays_finite_when_the_teacher_is_certain() -> None:
    certain = torch.full((2, 5, 1), -1.0)
    certain[:, 0] = 1.0
    student = torch.zeros(2, 5, 1, requires_grad=True)
    loss = decoupled_distillation(
        student, certain * 50, torch.tensor([0, 0]), temperature=1.0, rest_weight=8.0
    )
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_the_ranking_is_blind_to_rotation_scale_and_order_of_the_teachers_coordinates() -> None:
    student, teacher = draw(0, 6, 8, 4), draw(1, 6, 10, 4)
    loss = ranking_distillation(student, teacher)
    rotated = torch.einsum("ncp,cd->ndp", teacher, rotation(2, 10))
    for same in (
        rotated,
        teacher * 7.0,
        teacher[:, torch.randperm(10, generator=torch.Generator().manual_seed(3))],
    ):
        torch.testing.assert_close(ranking_distillation(student, same), loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            relation_distillation(student, same, LABELS),
            relation_distillation(student, teacher, LABELS),
            rtol=1e-4,
            atol=1e-5,
        )
    torch.testing.assert_close(
        ranking_distillation(student * 3.0, teacher), loss, rtol=1e-4, atol=0
    )


def test_the_boundary_is_not_blind_to_rotation() -> None:
    student, teacher = draw(0, 6, 8, 4), draw(1, 6, 8, 4)
    rotated = torch.einsum("ncp,cd->ndp", teacher, rotation(2, 8))
    assert float(activation_boundary(student, teacher)) != pytest.approx(
        float(activation_boundary(student, rotated)), rel=1e-3
    )


def test_the_ranking_equals_a_loop_over_anchors() -> None:
    student, teacher = draw(0, 5, 3, 2), draw(1, 5, 4, 2)

    def rankings(embeddings: Tensor) -> list[dict[int, float]]:
        d = part_distances(embeddings).mean(dim=0)
        mean = sum(float(d[i, j]) for i in range(5) for j in range(5) if i != j) / 20
        rows = []
        for i in range(5):
            e = {j: math.exp(-float(d[i, j]) / (0.1 * mean)) for j in range(5) if j != i}
            rows.append({j: v / sum(e.values()) for j, v in e.items()})
        return rows

    expected = sum(
        t[j] * math.log(t[j] / s[j])
        for t, s in zip(rankings(teacher), rankings(student), strict=True)
        for j in t
    )
    loss = ranking_distillation(student, teacher, temperature=0.1, per_part=False)
    assert float(loss) == pytest.approx(expected / 5, rel=1e-4)


def test_the_relation_weighs_pairs_of_one_identity_as_much_as_all_others() -> None:
    student, teacher = draw(0, 6, 3, 1), draw(1, 6, 4, 1)
    s, t = (d * 30 / d.sum() for d in (part_distances(student)[0], part_distances(teacher)[0]))
    groups: dict[bool, list[float]] = {True: [], False: []}
    for i in range(6):
        for j in range(6):
            if i != j:
                x = abs(float(s[i, j] - t[i, j]))
                huber = 0.5 * x * x if x < 0.5 else 0.5 * (x - 0.25)
                groups[bool(LABELS[i] == LABELS[j])].append(huber)
    expected = sum(sum(values) / len(values) for values in groups.values())
    assert float(relation_distillation(student, teacher, LABELS)) == pytest.approx(
        expected, rel=1e-4
    )


def test_the_relative_boundary_does_not_depend_on_the_teachers_size() -> None:
    student, teacher = draw(0, 6, 8, 4), draw(1, 6, 8, 4)
    torch.testing.assert_close(
        relative_boundary(student * 0.01, teacher * 0.01), relative_boundary(student, teacher)
    )


@pytest.mark.parametrize(
    ("identities", "expected"), [(100, 2.8), (250, 2.3), (3000, 1.6), (20000, 1.3)]
)
def test_the_temperature_leaves_about_half_on_the_true_identity(
    identities: int, expected: float
) -> None:
    temperature = informative_temperature(identities)
    assert temperature == pytest.approx(expected, abs=0.05)
    true = math.exp(16 * 0.8 / temperature)
    assert true / (true + identities - 1) == pytest.approx(0.5, abs=1e-6)


def test_two_identities_have_no_such_temperature() -> None:
    with pytest.raises(ValueError, match="needs 3"):
        informative_temperature(2)


def test_a_connector_brings_a_width_to_another_and_keeps_its_size() -> None:
    torch.manual_seed(0)
    mapped = Connector(16, 64, 256)(draw(0, 32, 64, 16))
    assert mapped.shape == (32, 256, 16)
    assert float(mapped.detach().std()) == pytest.approx(1.0, abs=0.05)


TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logit": lambda s, t: logit_distillation(s, t, temperature=4.0),
    "regression": logit_regression,
    "decoupled": lambda s, t: decoupled_distillation(s, t, LABELS, temperature=4.0),
    "boundary": activation_boundary,
    "relative boundary": relative_boundary,
    "hint": hint,
    "ranking": ranking_distillation,
    "relation": lambda s, t: relation_distillation(s, t, LABELS),
}


@pytest.mark.parametrize("term", TERMS)
def test_no_gradient_reaches_the_teacher(term: str) -> None:
    student = cosines(0).requires_grad_()
    teacher = cosines(1).requires_grad_()
    own, taught = torch.autograd.grad(
        TERMS[term](student, teacher), (student, teacher), allow_unused=True
    )
    assert taught is None
    assert own.abs().sum() > 0


@pytest.mark.parametrize("term", TERMS)
def test_half_precision_inputs_are_computed_in_full(term: str) -> None:
    student, teacher = cosines(0).half(), cosines(1).half()
    loss = TERMS[term](student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, TERMS[term](student.float(), teacher.float()))


@pytest.mark.parametrize("term", ["logit", "regression", "decoupled", "boundary", "hint"])
def test_widths_that_differ_are_refused_with_the_cure(term: str) -> None:
    with pytest.raises(ValueError, match="connector"):
        TERMS[term](cosines(0, k=5), cosines(1, k=6))
