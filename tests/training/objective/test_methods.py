"""What holds of every kind of term, over the registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch

from models.networks.device import MixedPrecision
from models.networks.head import GaitOutput
from models.networks.registry import build
from tests.training.methods import (
    EXAMPLES,
    batch_of,
    gradients_of,
    itself,
    learner_of,
    recipe_of,
    student_network,
    teacher_network,
)
from tests.training.runs import Listener, PowerCut, run, tiny, weights
from training.objective.lesson import Networks
from training.objective.objective import Objective
from training.objective.registry import METHODS
from training.objective.student import StudentOutput
from training.recipe import Recipe
from training.recipe.terms import DistillationTerm, OwnTerm

CPU = torch.device("cpu")
PARTS = (15, 16, 31, 62, 64)
KINDS = {
    get_args(term.model_fields["kind"].annotation)[0]: term
    for term in (*get_args(OwnTerm), *get_args(DistillationTerm))
}


def test_every_kind_that_a_recipe_can_name_has_a_method_and_an_example() -> None:
    assert METHODS.keys() == KINDS.keys() == EXAMPLES.keys()


@pytest.fixture
def networks() -> Networks:
    torch.manual_seed(0)
    return Networks(student_network(), [teacher_network()])


@pytest.mark.parametrize("kind", METHODS)
def test_a_term_teaches_the_student_and_its_own_modules_and_never_a_teacher(
    networks: Networks, kind: str
) -> None:
    learner = learner_of(kind, networks).train()
    batch = batch_of(kind, parts=8, channels=6)
    outputs = GaitOutput(*(tensor.requires_grad_() for tensor in batch.teacher_outputs[0]))
    before = {name: t.clone() for name, t in networks.teachers[0].state_dict().items()}
    loss, _ = learner(batch._replace(teacher_outputs=(outputs,)), 390)
    gradients = gradients_of(learner, loss.total)
    assert outputs.embeddings.grad is None
    assert outputs.logits.grad is None
    learnt = dict(learner.named_parameters())
    assert gradients.keys() == learnt.keys(), "a process that waits for a gradient waits for ever"
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    taught = {name for name, gradient in gradients.items() if gradient.abs().sum() > 0}
    assert any(name.startswith("student.student.backbone") for name in taught)
    assert {name for name in learnt if name.startswith("objective")} <= taught
    for name, tensor in networks.teachers[0].state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not networks.teachers[0].training


@pytest.mark.parametrize("kind", [kind for kind in METHODS if not KINDS[kind].asks_stages])
def test_parts_of_any_number_meet_parts_of_any_other_at_any_width(kind: str) -> None:
    recipe = recipe_of(kind)
    batch = batch_of(kind, parts=4, channels=6)
    n = len(batch.clips)
    draw = torch.Generator().manual_seed(2)
    for parts in PARTS:
        torch.manual_seed(0)
        network = student_network(parts=16)
        objective = Objective(recipe, itself, Networks(network, [teacher_network()]))
        for teacher_parts in PARTS:
            embeddings, connected, logits = (
                torch.randn(n, c, parts, generator=draw).requires_grad_() for c in (8, 6, 4)
            )
            (outputs,) = batch_of(kind, parts=teacher_parts, channels=6).teacher_outputs
            loss = objective(
                StudentOutput(embeddings, logits.tanh(), (connected,)),
                batch.labels,
                [outputs],
                step=390,
                views=batch.views,
                partners=batch.partners,
                lost=batch.lost,
            )
            inputs = (embeddings, connected, logits)
            found = torch.autograd.grad(loss.total, inputs, materialize_grads=True)
            assert loss.total.isfinite()
            assert all(gradient.isfinite().all() for gradient in found)
            assert sum(float(gradient.abs().sum()) for gradient in found) > 0


@pytest.mark.parametrize("kind", [kind for kind in METHODS if KINDS[kind].asks_stages])
@pytest.mark.parametrize("parts", [16, 64])
def test_what_reads_maps_suits_students_of_many_parts_and_teachers_of_others(
    kind: str, parts: int
) -> None:
    torch.manual_seed(0)
    learner = learner_of(kind, Networks(student_network(parts), [teacher_network()])).train()
    for teacher_parts in PARTS:
        loss, _ = learner(batch_of(kind, parts=teacher_parts, channels=6, subjects=4), 390)
        gradients = gradients_of(learner, loss.total)
        assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("kind", METHODS)
def test_a_term_is_finite_in_bfloat16_and_near_what_it_is_in_float32(
    networks: Networks, kind: str
) -> None:
    learner = learner_of(kind, networks).train()
    batch = batch_of(kind, parts=8, channels=6)
    full, _ = learner(batch, 390)
    learner._precision = MixedPrecision(CPU, half=True)
    half, _ = learner(batch, 390)
    assert half.total.dtype == torch.float32
    assert all(g.isfinite().all() for g in gradients_of(learner, half.total).values())
    torch.testing.assert_close(half.total, full.total, rtol=0.1, atol=0.02)


def small(kind: str, pack: Path, teacher: Path, *settings: str) -> Recipe:
    """A run of eight steps whose state is saved after the third and sixth."""
    term, *others = EXAMPLES[kind]
    own = (f"terms=[{term}, {{kind='cross-entropy', weight=0.1}}]", "steps=8", "log_every=1")
    teachers = (teacher,) if KINDS[kind].taught else ()
    return tiny("student-baseline", pack, *own, *others, *settings, teachers=teachers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
def test_a_run_killed_in_the_middle_of_a_terms_state_goes_on_as_if_it_had_not_been(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    recipe = small(kind, pack, make_teacher(embedding_channels=6), "average=0.9")
    run(recipe, tmp_path / "whole")
    with pytest.raises(PowerCut):
        run(recipe, tmp_path / "cut", Listener(cut_at=5))
    run(recipe, tmp_path / "cut")
    whole, continued = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    config = {"channels": [4, 4, 8, 8], "parts": 4, "embedding_channels": 8, "identities": 6}
    assert whole.keys() == build("gaitbase", config).state_dict().keys(), "nothing but a student"
    for key, tensor in whole.items():
        assert torch.equal(tensor, continued[key]), key


@pytest.mark.slow
def test_all_kinds_of_terms_compose_with_two_teachers_of_other_architectures_and_parts(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    terms = ", ".join(term for term, *_ in EXAMPLES.values())
    others = {setting for _, *settings in EXAMPLES.values() for setting in settings}
    teachers = (
        make_teacher(embedding_channels=6, parts=16),
        make_teacher(
            architecture="deepgaitv2", layers=[1, 1, 1, 1], embedding_channels=10, parts=8, seed=2
        ),
    )
    for combined in ("mean", "alternate", "random"):
        settings = (f"terms=[{terms}]", *others, f"distillation={{teachers='{combined}'}}")
        recipe = tiny("student-baseline", pack, *settings, "precision=bf16", teachers=teachers)
        run(recipe, tmp_path / combined)
        assert all(tensor.isfinite().all() for tensor in weights(tmp_path / combined).values())
