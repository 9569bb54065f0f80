from __future__ import annotations

import math

import pytest
import torch

from models.networks.head import GaitOutput
from training.objective.choice import best_teacher, shares, square_wave
from training.recipe import Distillation


def settings(teachers: str, **others: object) -> Distillation:
    return Distillation.model_validate({"teachers": teachers, **others})


def test_a_square_wave_teaches_with_the_first_for_its_duty_in_every_period() -> None:
    wave = [square_wave(step, period=10, duty=0.3) for step in range(40)]
    assert wave == ([True] * 3 + [False] * 7) * 4
    odd = [square_wave(step, period=3, duty=0.5) for step in range(6)]
    assert odd == [True, True, False] * 2


def test_exactly_one_of_two_alternating_teachers_teaches_in_every_step() -> None:
    alternating = settings("alternate", period=4, duty=0.25)
    found = [shares(alternating, 2, step, seed=0) for step in range(8)]
    assert found == [[1.0, 0.0], *[[0.0, 1.0]] * 3] * 2
    with pytest.raises(ValueError, match="two teachers"):
        shares(alternating, 3, 0, seed=0)


def test_mean_keeps_the_weight_and_sum_does_not() -> None:
    assert shares(settings("mean"), 4, 0, seed=0) == [0.25] * 4
    assert shares(settings("sum"), 4, 0, seed=0) == [1.0] * 4


def test_chance_is_a_function_of_seed_and_step_and_is_fair() -> None:
    found = [shares(settings("random"), 3, step, seed=5) for step in range(900)]
    assert found == [shares(settings("random"), 3, step, seed=5) for step in range(900)]
    assert found != [shares(settings("random"), 3, step, seed=6) for step in range(900)]
    assert all(sum(each) == 1 for each in found)
    for teacher in range(3):  # 900 draws: six standard deviations
        assert sum(each[teacher] for each in found) == pytest.approx(300, abs=6 * math.sqrt(200))


def test_the_best_teacher_of_a_walk_is_surest_of_its_identity_over_all_its_parts() -> None:
    labels = torch.tensor([0, 1])
    first, second = torch.zeros(2, 3, 4), torch.zeros(2, 3, 2)
    first[0, 0] = 1.0  # sure and right
    first[1, 0] = 1.0  # sure and wrong
    outputs = [GaitOutput(torch.zeros(2, 1, 4), first), GaitOutput(torch.zeros(2, 1, 2), second)]
    assert best_teacher(outputs, labels).tolist() == [0, 1]
