"""The methods' losses, value by value and slope by slope."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.objective.distillation.angles import relational_distillation
from training.objective.distillation.correlation import correlation_distillation
from training.objective.distillation.decoupled import decoupled_distillation
from training.objective.distillation.exits import adaptive_distillation
from training.objective.distillation.fusion import part_contrast
from training.objective.distillation.generalised import generalised_distillation
from training.objective.distillation.logit import logit_distillation
from training.objective.distillation.mutual import mutual_distillation
from training.objective.distillation.query import Reconstruction, mean_part_error, rebuilt_error
from training.objective.distillation.relation_networks import (
    Relations,
    relational_loss,
    triples,
)
from training.objective.distillation.views import (
    confident,
    embedding_consistency,
    gated_distillation,
    whole_parts,
)
from training.recipe.terms import RelationNetworksTerm

N, K, P, C = 6, 7, 3, 5
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
PARTNERS = torch.tensor([1, 0, 2, 4, 3, 5])  # two pairs, and two without partners


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosines(seed: int) -> Tensor:
    return draw(seed, N, K, P).tanh()


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(values)) for value in values]
    return [e / sum(exponentials) for e in exponentials]


def kl(teacher: list[float], student: list[float]) -> float:
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))


def row(logits: Tensor, n: int, p: int, scale: float) -> list[float]:
    return [scale * float(value) for value in logits[n, :, p]]


@pytest.mark.parametrize("shared", [True, False])
def test_generalised_distillation_equals_a_loop_over_groups(shared: bool) -> None:
    student, teacher, top, temperature = cosines(0), cosines(1), 3, 1.5
    total = 0.0
    for n in range(N):
        for p in range(P):
            judged = teacher[n].mean(dim=1) if shared else teacher[n, :, p]
            likeliest = sorted(range(K), key=lambda k: -float(judged[k]))[:top]
            rest = [k for k in range(K) if k not in likeliest]
            q = row(student, n, p, 16 / temperature)
            t = row(teacher, n, p, 16 / temperature)
            whole_q, whole_t = softmax(q), softmax(t)
            groups = [
                [sum(whole[k] for k in group) for group in (likeliest, rest)]
                for whole in (whole_t, whole_q)
            ]
            inside = [
                kl(softmax([t[k] for k in group]), softmax([q[k] for k in group]))
                for group in (likeliest, rest)
            ]
            total += 0.5 * kl(*groups) + 2.0 * inside[0] + 4.0 * inside[1]
    loss = generalised_distillation(
        student, teacher, top=top, shared=shared, temperature=temperature,
        group_weight=0.5, top_weight=2.0, rest_weight=4.0,
    )  # fmt: skip
    assert float(loss) == pytest.approx(temperature**2 * total / (N * P), rel=1e-4)


def test_generalised_by_the_true_identity_alone_is_decoupled_distillation() -> None:
    student, teacher = cosines(0), cosines(1)
    sure = teacher + 3 * F.one_hot(LABELS, K).unsqueeze(2)  # the likeliest is the true one
    generalised = generalised_distillation(
        student, sure, top=1, shared=False, temperature=2.0, top_weight=5.0, rest_weight=8.0
    )
    torch.testing.assert_close(
        generalised, decoupled_distillation(student, sure, LABELS, temperature=2.0)
    )


@pytest.mark.parametrize("top", [0, K, K + 1])
def test_likeliest_identities_that_leave_no_rest_are_refused(top: int) -> None:
    with pytest.raises(ValueError, match="leave no rest"):
        generalised_distillation(cosines(0), cosines(1), top=top, shared=True, temperature=1.0)


def test_generalised_distillation_stays_finite_where_the_teacher_is_certain() -> None:
    certain = torch.full((N, K, P), -1.0)
    certain[:, 0] = 1.0
    student = cosines(0).requires_grad_()
    loss = generalised_distillation(student, 60 * certain, top=2, shared=True, temperature=0.5)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_gated_distillation_equals_a_loop_over_the_rows_it_lets_through() -> None:
    student, teacher = cosines(0), cosines(1)
    gate = confident(teacher, 0.8)
    assert 0 < gate.sum() < N * P
    total = 0.0
    for n in range(N):
        for p in range(P):
            if max(softmax(row(teacher, n, p, 16))) >= 0.8:
                t, q = softmax(row(teacher, n, p, 4)), softmax(row(student, n, p, 4))
                total += kl(t, q)
    loss = gated_distillation(student, teacher, gate, temperature=4.0)
    assert float(loss) == pytest.approx(16 * total / (N * P), rel=1e-4)


def test_an_open_gate_is_plain_distillation_and_a_closed_one_teaches_nothing() -> None:
    student, teacher = cosines(0).requires_grad_(), cosines(1)
    open_gate = gated_distillation(student, teacher, torch.ones(N, P), temperature=4.0)
    torch.testing.assert_close(open_gate, logit_distillation(student, teacher, temperature=4.0))
    closed = gated_distillation(student, teacher, torch.zeros(N, P), temperature=4.0)
    (gradient,) = torch.autograd.grad(closed, student)
    assert not gradient.any()


def test_embedding_consistency_equals_a_loop_over_parts() -> None:
    student, teacher = draw(0, N, C, P), draw(1, N, C, P)
    gate = (draw(2, N, P) > 0).float()
    total = 0.0
    for n in range(N):
        for p in range(P):
            s, t = student[n, :, p], teacher[n, :, p]
            total += float(gate[n, p]) * float(((s / s.norm() - t / t.norm()) ** 2).sum())
    loss = embedding_consistency(student, teacher, gate)
    assert float(loss) == pytest.approx(total / (N * P), rel=1e-5)


@pytest.mark.parametrize("parts", [15, 16, 31, 62, 64])
def test_a_part_is_whole_exactly_where_none_of_its_rows_is_lost(parts: int) -> None:
    lost = torch.zeros(2, 64, dtype=torch.bool)
    lost[1, 20:23] = True
    found = whole_parts(lost, parts)
    for part in range(parts):
        rows = range(math.floor(part * 64 / parts), math.ceil((part + 1) * 64 / parts))
        assert float(found[1, part]) == float(not any(lost[1, r] for r in rows)), part
    assert found[0].all()


@pytest.mark.parametrize("stop", [False, True])
def test_mutual_distillation_equals_a_loop_over_pairs(stop: bool) -> None:
    logits, temperature = cosines(0), 2.0
    total = 0.0
    for a, b in ((0, 1), (3, 4)):
        for p in range(P):
            q, r = softmax(row(logits, a, p, 8)), softmax(row(logits, b, p, 8))
            total += kl(q, r) + kl(r, q)
    loss = mutual_distillation(logits, PARTNERS, temperature=temperature, stop_gradient=stop)
    assert float(loss) == pytest.approx(temperature**2 * total / (N * P), rel=1e-4)


def test_a_fixed_target_has_no_gradient_in_mutual_distillation() -> None:
    logits = cosines(0).requires_grad_()
    gradients = []
    for stop in (False, True):
        loss = mutual_distillation(logits, PARTNERS, temperature=2.0, stop_gradient=stop)
        gradients.append(torch.autograd.grad(loss, logits)[0])
    assert not gradients[0][2].any(), "a walk without a partner"
    assert not torch.allclose(gradients[0], gradients[1])


@pytest.mark.parametrize("gamma", [1.0, 1.25, 2.0])
def test_the_adaptive_target_equals_a_loop_over_identities(gamma: float) -> None:
    student, teacher = cosines(0), cosines(1)
    total = 0.0
    for n in range(N):
        for p in range(P):
            t, q = softmax(row(teacher, n, p, 16)), softmax(row(student, n, p, 16))
            for k in range(K):
                true = float(LABELS[n] == k)
                total -= ((t[k] + true) ** gamma - true) * math.log(q[k])
    loss = adaptive_distillation(student, teacher, LABELS, gamma=gamma)
    assert float(loss) == pytest.approx(total / (N * P), rel=1e-4)


def test_gamma_raises_the_true_identitys_weight_most_where_the_teacher_is_sure() -> None:
    # the worked example of the notes: p = 0.97 and gamma 1.5 give 1.77
    assert pytest.approx(1.77, abs=0.01) == (0.97 + 1) ** 1.5 - 1
    sure = torch.tensor([0.97, 0.03]).log().reshape(1, 2, 1)
    student = torch.zeros(1, 2, 1)
    loss = adaptive_distillation(
        student, sure, torch.tensor([0]), gamma=1.5, temperature=1.0, scale=1.0
    )
    assert float(loss) == pytest.approx(math.log(2) * (1.97**1.5 - 1 + 0.03**1.5), rel=1e-4)


@pytest.mark.parametrize("masked", [True, False])
def test_the_contrast_equals_a_loop_over_candidates(masked: bool) -> None:
    own, other, temperature = draw(0, N, C, P), draw(1, N, C, P), 0.3
    total = 0.0
    for n in range(N):
        for p in range(P):
            similarities = []
            for m in range(N):
                if masked and m != n and LABELS[m] == LABELS[n]:
                    continue
                cosine = F.cosine_similarity(own[n, :, p], other[m, :, p], dim=0)
                similarities.append((m, float(cosine) / temperature))
            whole = sum(math.exp(s) for _, s in similarities)
            total -= math.log(math.exp(dict(similarities)[n]) / whole)
    loss = part_contrast(own, other, LABELS, torch.tensor(temperature), mask_same_identity=masked)
    assert float(loss) == pytest.approx(total / (N * P), rel=1e-4)


def test_a_reconstruction_equals_attention_by_hand() -> None:
    torch.manual_seed(0)
    rebuild = Reconstruction(C, 4, 2).requires_grad_(False)
    student, teacher = draw(0, 2, C, P), draw(1, 2, 4, 5)
    found = rebuild(student, teacher)
    for n in range(2):
        for asked in range(5):
            query = rebuild.query.weight @ teacher[n, :, asked]
            scores = [
                float(query @ (rebuild.key.weight @ student[n, :, p])) / math.sqrt(2)
                for p in range(P)
            ]
            values = [rebuild.value.weight @ student[n, :, p] for p in range(P)]
            expected = sum(
                (a * v for a, v in zip(softmax(scores), values, strict=True)),
                start=torch.zeros(4),
            )
            torch.testing.assert_close(found[n, :, asked], expected, rtol=1e-4, atol=1e-5)


def test_errors_of_a_reconstruction_are_blind_to_the_teachers_size() -> None:
    rebuilt, teacher = draw(0, N, C, P), draw(1, N, C, P)
    unit = teacher.square().mean()
    expected = float((rebuilt - teacher).square().sum() / teacher.square().sum())
    assert float(rebuilt_error(rebuilt, teacher, unit)) == pytest.approx(expected, rel=1e-5)
    scaled = rebuilt_error(7 * rebuilt, 7 * teacher, 49 * unit)
    assert float(scaled) == pytest.approx(expected, rel=1e-5)
    assert float(mean_part_error(3 * teacher, teacher)) == pytest.approx(0, abs=1e-6)


def test_standardised_logits_are_compared_whatever_their_size() -> None:
    student, teacher = cosines(0), cosines(1)
    total = 0.0
    for n in range(N):
        for p in range(P):
            rows = []
            for logits in (teacher, student):
                z = [float(v) for v in logits[n, :, p]]
                mean = sum(z) / K
                spread = math.sqrt(sum((v - mean) ** 2 for v in z) / K)
                rows.append(softmax([(v - mean) / spread / 2.0 for v in z]))
            total += kl(*rows)
    loss = logit_distillation(student, teacher, temperature=2.0, standardise=True)
    assert float(loss) == pytest.approx(4 * total / (N * P), rel=1e-4)
    sharper = logit_distillation(5 * student, teacher, temperature=2.0, standardise=True)
    torch.testing.assert_close(sharper, loss)


def test_correlation_equals_a_loop_over_rows_and_columns() -> None:
    student, teacher = cosines(0), cosines(1)
    own, taught = (
        [[softmax(row(z, n, p, 4)) for p in range(P)] for n in range(N)] for z in (student, teacher)
    )

    def pearson(a: list[float], b: list[float]) -> float:
        x, y = ([v - sum(values) / len(values) for v in values] for values in (a, b))
        norms = math.sqrt(sum(v * v for v in x) * sum(v * v for v in y))
        return sum(v * w for v, w in zip(x, y, strict=True)) / norms

    between = sum(pearson(own[n][p], taught[n][p]) for n in range(N) for p in range(P)) / (N * P)
    within = sum(
        pearson([own[n][p][k] for n in range(N)], [taught[n][p][k] for n in range(N)])
        for k in range(K)
        for p in range(P)
    ) / (K * P)
    loss = correlation_distillation(student, teacher, temperature=4.0, within_weight=3.0)
    assert float(loss) == pytest.approx(16 * (2 * (1 - between) + 3 * (1 - within)), rel=1e-3)


def test_distances_and_angles_equal_a_loop_over_pairs_and_triples() -> None:
    student, teacher = draw(0, N, C, P), draw(1, N, 4, P)

    def huber(x: float) -> float:
        return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5

    distances = angles = 0.0
    for p in range(P):
        found = []
        for e in (student[..., p], teacher[..., p]):
            d = [[float((e[i] - e[j]).norm()) for j in range(N)] for i in range(N)]
            mean = sum(map(sum, d)) / (N * (N - 1))
            found.append([[v / mean for v in r] for r in d])
        own, taught = found
        distances += sum(
            huber(own[i][j] - taught[i][j]) for i in range(N) for j in range(N) if i != j
        ) / (N * (N - 1))
        for i in range(N):
            for j in range(N):
                for k in range(N):
                    cosines_at_i = []
                    for e in (student[..., p], teacher[..., p]):
                        a, b = e[j] - e[i], e[k] - e[i]
                        whole = float(a.norm() * b.norm())
                        cosines_at_i.append(float(a @ b) / whole if whole else 0.0)
                    angles += huber(cosines_at_i[0] - cosines_at_i[1]) / N**3
    loss = relational_distillation(student, teacher)
    assert float(loss) == pytest.approx((25 * distances + 50 * angles) / P, rel=1e-4)


TERM = RelationNetworksTerm(kind="relation-networks")


def relations(seed: int) -> Relations:
    return Relations(
        torch.sigmoid(draw(seed, N)),
        torch.sigmoid(draw(seed + 1, N)),
        draw(seed + 2, N, K),
        draw(seed + 3, N, K),
    )


def test_the_loss_of_relations_equals_a_loop_over_stages_and_anchors() -> None:
    stages = [relations(0), relations(10), relations(20)]
    negatives = torch.tensor([3, 4, 0, 0, 1, 1])
    rows = torch.tensor([1.0, 1, 1, 0, 1, 1])
    deepest, temperature = stages[0], 3.0
    total = 0.0
    for n in range(N):
        if not rows[n]:
            continue
        for depth, stage in enumerate(stages):
            positive, negative = stage.positive_logits[n], stage.negative_logits[n]
            total -= 0.04 * math.log(softmax(positive.tolist())[int(LABELS[n])])
            softened = softmax((negative / temperature).tolist())
            for whose in (LABELS[n], negatives[n]):
                total -= 0.01 * 0.5 * math.log(softened[int(whose)])
            total += 0.01 * max(0.0, float(stage.positive[n] - stage.negative[n]) + 1.0)
            if depth:
                for mine, taught, weight in (
                    (positive, deepest.positive_logits[n], 0.16),
                    (negative, deepest.negative_logits[n], 0.04),
                ):
                    t = softmax((taught / temperature).tolist())
                    q = softmax((mine / temperature).tolist())
                    total += weight * temperature**2 * kl(t, q)
                total += 0.01 * float((stage.positive[n] - deepest.positive[n]) ** 2)
                total += 0.01 * float((stage.negative[n] - deepest.negative[n]) ** 2)
    loss = relational_loss(stages, LABELS, negatives, rows, TERM)
    assert float(loss) == pytest.approx(total / N, rel=1e-4)


def test_the_deepest_stage_learns_from_labels_alone() -> None:
    stages = [relations(0), relations(10)]
    for tensor in (t for stage in stages for t in stage):
        tensor.requires_grad_()
    none = {"positive_label_weight": 0.0, "negative_label_weight": 0.0, "triplet_weight": 0.0}
    term = RelationNetworksTerm(kind="relation-networks", **none)  # type: ignore[arg-type]
    loss = relational_loss(stages, LABELS, LABELS.roll(2), torch.ones(N), term)
    inputs = [*stages[0], *stages[1]]
    found = torch.autograd.grad(loss, inputs, materialize_grads=True)
    assert not any(gradient.any() for gradient in found[:4])
    assert all(gradient.any() for gradient in found[4:])


def test_triples_are_of_one_and_of_another_identity_and_take_turns() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    seen: set[tuple[int, int, int]] = set()
    for turn in range(12):
        positive, negative, rows = triples(labels, 0, len(labels), turn)
        assert rows.tolist() == [1, 1, 1, 1, 1, 0], "the last has no other walk"
        for anchor in range(5):
            p, n = int(positive[anchor]), int(negative[anchor])
            assert p != anchor
            assert labels[p] == labels[anchor] != labels[n]
            seen.add((anchor, p, n))
    positive, negative, _ = triples(labels, 3, 2, 1)
    assert (positive.tolist(), set(labels[negative].tolist()) & {1}) == ([4, 3], set())
    assert len({p for anchor, p, _ in seen if anchor == 0}) == 2
    assert len({n for anchor, _, n in seen if anchor == 0}) == 3


SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "generalised": (
        lambda z: generalised_distillation(z, cosines(1), top=3, shared=True, temperature=1.5),
        (N, K, P),
    ),
    "gated": (
        lambda z: gated_distillation(z, cosines(1), confident(cosines(1), 0.8), temperature=4.0),
        (N, K, P),
    ),
    "embeddings": (
        lambda e: embedding_consistency(e, draw(1, N, C, P), torch.ones(N, P)),
        (N, C, P),
    ),
    "mutual": (lambda z: mutual_distillation(z, PARTNERS, temperature=2.0), (N, K, P)),
    "adaptive": (
        lambda z: adaptive_distillation(z, cosines(1), LABELS, gamma=1.25),
        (N, K, P),
    ),
    "contrast": (
        lambda e: part_contrast(e, draw(1, N, C, P), LABELS, torch.tensor(0.3)),
        (N, C, P),
    ),
    "rebuilt": (
        lambda r: rebuilt_error(r, draw(1, N, C, P), torch.tensor(2.0)),
        (N, C, P),
    ),
    "standardised": (
        lambda z: logit_distillation(z, cosines(1), temperature=2.0, standardise=True),
        (N, K, P),
    ),
    "correlation": (
        lambda z: correlation_distillation(z, cosines(1), temperature=4.0),
        (N, K, P),
    ),
    "angles": (lambda e: relational_distillation(e, draw(1, N, 4, P)), (N, C, P)),
    "mean part": (lambda r: mean_part_error(r, draw(1, N, C, P)), (N, C, P)),
    "relations": (
        lambda z: relational_loss(
            [relations(0), relations(10)._replace(positive_logits=z)],
            LABELS,
            LABELS.roll(2),
            torch.ones(N),
            TERM,
        ),
        (N, K),
    ),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_a_gradient_is_the_slope_of_its_loss(name: str) -> None:
    loss, shape = SMOOTH[name]
    where = (draw(5, *shape).tanh()).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(where), where)
    direction = gradient / gradient.norm()
    step = 1e-2
    with torch.no_grad():
        slope = (loss(where + step * direction) - loss(where - step * direction)) / (2 * step)
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=2e-2)
