from __future__ import annotations

import pytest
import torch

from tests.training.goldens import check, given
from training.objective.distillation.boundary import activation_boundary
from training.objective.distillation.decoupled import decoupled_distillation
from training.objective.distillation.hint import hint
from training.objective.distillation.logit import logit_distillation, logit_regression


@pytest.mark.parametrize(
    ("case", "temperature", "scale"),
    [("kd_kl_T4_s16", 4.0, 16), ("kd_kl_T1_s16", 1.0, 16), ("kd_kl_T4_s1", 4.0, 1)],
)
def test_logit_distillation_equals_the_published_one(
    case: str, temperature: float, scale: float
) -> None:
    student = given("logits_s").requires_grad_()
    loss = logit_distillation(student, given("logits_t"), temperature=temperature, scale=scale)
    check(case, loss, student)


def test_logit_regression_equals_the_published_one() -> None:
    student = given("logits_s").requires_grad_()
    check("kd_mse", logit_regression(student, given("logits_t")), student)


@pytest.mark.parametrize(("case", "rest_weight"), [("kd_dkd_a1b1", 1.0), ("kd_dkd_a1b8", 8.0)])
def test_decoupled_distillation_equals_the_published_one(case: str, rest_weight: float) -> None:
    student = given("logits_s").requires_grad_()
    loss = decoupled_distillation(
        student, given("logits_t"), given("labels"), temperature=4.0, rest_weight=rest_weight
    )
    check(case, loss, student)


@pytest.mark.parametrize(("case", "margin"), [("kd_feat_ab", 1.0), ("kd_feat_ab_m2", 2.0)])
def test_the_boundary_term_equals_the_published_one(case: str, margin: float) -> None:
    student = given("emb_s").requires_grad_()
    check(case, activation_boundary(student, given("emb_t"), margin=margin), student)


def test_the_boundary_term_of_an_embedding_and_a_map_equals_the_published_one() -> None:
    embedding, feature_map = given("emb_s").requires_grad_(), given("map_s").requires_grad_()
    each = (
        0.5 * activation_boundary(embedding, given("emb_t")),
        1.0 * activation_boundary(feature_map, given("map_t")),
    )
    check("kd_feat_ab_2maps", torch.stack(each).mean(), embedding, feature_map)


def test_the_hint_equals_the_published_one() -> None:
    student = given("emb_s").requires_grad_()
    check("kd_feat_mse", hint(student, given("emb_t")), student)
