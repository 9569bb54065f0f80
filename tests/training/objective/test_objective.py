from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.networks.device import MixedPrecision
from models.networks.head import GaitOutput
from tests.training import goldens
from training.objective.distillation.boundary import activation_boundary
from training.objective.distillation.logit import logit_distillation
from training.objective.distillation.temperature import informative_temperature
from training.objective.losses import cross_entropy, triplet
from training.objective.objective import Objective
from training.objective.student import StudentOutput
from training.objective.teachers import Teacher, run_teachers
from training.recipe import RecipeError, load
from training.run.preparation import prepare

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 0, 1, 1])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(seed: int, channels: int = 6, parts: int = 4, identities: int = 5) -> GaitOutput:
    return GaitOutput(draw(seed, 4, channels, parts), draw(seed + 100, 4, identities, parts).tanh())


def student(seed: int = 0, **shape: int) -> StudentOutput:
    return StudentOutput(*outputs(seed, **shape), connected=())


def itself(rows: Tensor) -> Tensor:
    return rows


def objective(name: str, *settings: str) -> Objective:
    recipe = load(name, settings=settings)
    return Objective(recipe, itself)


def test_the_published_objective_is_the_sum_of_the_goldens() -> None:
    student = [goldens.given(name).requires_grad_() for name in ("emb_s", "logits_s")]
    teacher = GaitOutput(goldens.given("emb_t"), goldens.given("logits_t"))
    cases = {
        "triplet": ("triplet_m0.2_balanced", 1.0),
        "cross-entropy": ("ce_s16_ls", 1.0),
        "logit": ("kd_kl_T4_s16", 1.0),
        "boundary": ("kd_feat_ab", 0.003),
    }
    for teachers in (1, 2):
        loss = objective("gaitkd")(
            StudentOutput(student[0], student[1], ()),
            goldens.given("labels"),
            [teacher] * teachers,
            step=0,
        )
        total = 0.0
        for term, (case, weight) in cases.items():
            times = teachers if term in ("logit", "boundary") else 1
            expected = float(goldens.expected(case))
            assert float(loss.parts[term]) == pytest.approx(times * expected, rel=2e-6)
            total += weight * times * expected
        assert float(loss.total.detach()) == pytest.approx(total, rel=2e-6)
        gradients = torch.autograd.grad(loss.total, student)
        of_embeddings = goldens.expected("triplet_m0.2_balanced", "grad")
        of_embeddings = of_embeddings + teachers * 0.003 * goldens.expected("kd_feat_ab", "grad")
        of_logits = goldens.expected("ce_s16_ls", "grad")
        of_logits = of_logits + teachers * goldens.expected("kd_kl_T4_s16", "grad")
        for found, golden in zip(gradients, (of_embeddings, of_logits), strict=True):
            assert (found - golden).norm() <= 5e-6 * golden.norm()


def test_fewer_parts_of_a_teacher_are_met_by_index_in_the_published_objective() -> None:
    own, teacher = student(parts=4), outputs(1, parts=3)
    parts = objective("gaitkd")(own, LABELS, [teacher], step=0).parts
    expected = logit_distillation(own.logits[..., :3], teacher.logits, temperature=4.0)
    torch.testing.assert_close(parts["logit"], expected)
    torch.testing.assert_close(
        parts["boundary"], activation_boundary(own.embeddings[..., :3], teacher.embeddings)
    )


def test_adding_a_teacher_keeps_the_weight_of_distillation_unless_it_is_summed() -> None:
    own, teacher = student(), outputs(1)
    mean, total = objective("gaitkd", "distillation.teachers=mean"), objective("gaitkd")
    once, twice = ([teacher], [teacher, teacher])
    torch.testing.assert_close(
        mean(own, LABELS, once, step=0).total, mean(own, LABELS, twice, step=0).total
    )
    single = total(own, LABELS, once, step=0).parts["logit"]
    torch.testing.assert_close(total(own, LABELS, twice, step=0).parts["logit"], 2 * single)


def test_the_temperature_can_follow_from_the_number_of_identities() -> None:
    own, teacher = student(), outputs(1)
    found = objective("gaitkd", "terms.2.temperature={gap=0.5}")(own, LABELS, [teacher], step=0)
    temperature = informative_temperature(5, gap=0.5)
    expected = logit_distillation(own.logits, teacher.logits, temperature=temperature)
    torch.testing.assert_close(found.parts["logit"], expected)


def test_distillation_is_ramped_up_and_labels_are_not() -> None:
    own, teacher = student(), outputs(1)
    ramped = objective("gaitkd", "distillation.ramp=0.5")
    from_labels = triplet(own.embeddings, LABELS) + cross_entropy(own.logits, LABELS)
    full = objective("gaitkd")(own, LABELS, [teacher], step=0).total
    steps = load("gaitkd").steps
    for progress, share in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        loss = ramped(own, LABELS, [teacher], step=int(progress * steps)).total
        torch.testing.assert_close(loss, from_labels + share * (full - from_labels))


def test_a_kind_of_term_may_come_twice() -> None:
    terms = "terms=[{kind='triplet'}, {kind='triplet', margin=0.5}]"
    parts = objective("student-baseline", terms)(student(), LABELS, [], step=0).parts
    assert set(parts) == {"triplet", "triplet-2"}
    assert parts["triplet"] != parts["triplet-2"]


def test_every_output_takes_part_even_when_no_term_reads_it() -> None:
    logits = draw(1, 4, 5, 4).requires_grad_()
    only = objective("student-baseline", "terms=[{kind='triplet'}]")
    loss = only(StudentOutput(draw(0, 4, 6, 4), logits, ()), LABELS, [], step=0)
    (gradient,) = torch.autograd.grad(loss.total, logits)
    assert torch.equal(gradient, torch.zeros_like(logits))


SMALL = [
    'student={architecture="gaitbase", config={channels=[4, 4, 8, 8], parts=4, '
    "embedding_channels=8}}",
    "batch.subjects=3",
]


def prepared(pack: Path, name: str, teachers: list[Path], *settings: str) -> Any:
    recipe = load(name, settings=[*SMALL, *settings], dataset=pack, teachers=teachers)
    return prepare(recipe, CPU)


def test_a_teacher_of_the_same_identities_and_width_is_accepted(
    pack: Path, make_teacher: Callable[..., Path]
) -> None:
    assert len(prepared(pack, "gaitkd", [make_teacher()]).teachers) == 1


@pytest.mark.parametrize(
    ("teacher", "settings", "advice"),
    [
        ({"known": False}, [], "assume_same_identities"),
        ({"subjects": 7}, [], "ranking"),
        ({"embedding_channels": 12}, [], "connector = true"),
        ({"architecture": "deepgaitv2"}, ["data.clip={kind='unordered', frames=5}"], "ordered"),
    ],
)
def test_a_teacher_that_cannot_give_what_a_term_asks_is_refused_with_a_way_out(
    pack: Path,
    make_teacher: Callable[..., Path],
    teacher: dict[str, Any],
    settings: list[str],
    advice: str,
) -> None:
    with pytest.raises(RecipeError, match=advice):
        prepared(pack, "gaitkd", [make_teacher(**teacher)], *settings)


def test_identities_can_be_vouched_for(pack: Path, make_teacher: Callable[..., Path]) -> None:
    unproven = make_teacher(known=False)
    settings = "distillation.assume_same_identities=true"
    assert prepared(pack, "gaitkd", [unproven], settings).teachers


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_any_teacher_will_do_for_terms_that_need_no_common_identities_or_widths(
    pack: Path, make_teacher: Callable[..., Path], parts: int
) -> None:
    stranger = make_teacher(
        architecture="deepgaitv2", subjects=9, known=False, embedding_channels=12, parts=parts
    )
    assert prepared(pack, "demo", [stranger]).teachers


def test_asking_changes_nothing_in_a_teacher(make_teacher: Callable[..., Path]) -> None:
    teacher = Teacher.load(make_teacher(), CPU)
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    clips = torch.rand(4, 3, 64, 44)
    (output,) = run_teachers([teacher], clips, None, MixedPrecision(CPU, half=False))
    assert not output.logits.requires_grad
    assert not any(weight.requires_grad for weight in teacher.network.parameters())
    assert not teacher.network.training
    for name, tensor in teacher.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
