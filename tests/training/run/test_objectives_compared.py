"""`benchmarks.distillation`: objectives trained side by side."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import distillation
from benchmarks.distillation import ALONE, ARMS, Exam, compare, judge, recipe_of, train
from models import checkpoint
from models.card import read_card
from tests.training.runs import run, tiny, weights
from training.evaluation import Resampling
from training.recipe import Recipe, RecipeError
from training.run.distributed import Group

CPU = torch.device("cpu")
GROUP = Group(0, 1, CPU)
TAUGHT = "logit and ranking"


@pytest.fixture
def base(pack: Path, make_teacher: Callable[..., Path]) -> Recipe:
    return tiny("student-baseline", pack, "steps=3", teachers=(make_teacher(),))


def folder(out: Path, arm: str) -> Path:
    return distillation._folder(out, arm, 0)


def test_an_arm_beside_others_learns_what_it_learns_alone(base: Recipe, tmp_path: Path) -> None:
    train(base, [ALONE, TAUGHT], 0, tmp_path / "arms", GROUP)
    for arm in (ALONE, TAUGHT):
        run(recipe_of(base, arm, 0), tmp_path / arm)
        beside, _ = checkpoint.load(folder(tmp_path / "arms", arm), "cpu")
        for name, tensor in weights(tmp_path / arm).items():
            torch.testing.assert_close(beside.state_dict()[name], tensor, rtol=0, atol=0)


def test_only_an_arm_that_was_taught_names_a_teacher(base: Recipe, tmp_path: Path) -> None:
    train(base, [ALONE, TAUGHT], 0, tmp_path, GROUP)
    alone: Any = read_card(folder(tmp_path, ALONE)).training
    taught: Any = read_card(folder(tmp_path, TAUGHT)).training
    assert (len(alone["teachers"]), len(taught["teachers"])) == (0, 1)


def test_a_finished_arm_is_kept_and_one_of_another_run_is_refused(
    base: Recipe, tmp_path: Path
) -> None:
    train(base, [ALONE], 0, tmp_path, GROUP)
    made = read_card(folder(tmp_path, ALONE)).digest
    train(base, [ALONE, TAUGHT], 0, tmp_path, GROUP)
    assert read_card(folder(tmp_path, ALONE)).digest == made
    longer = base.model_copy(update={"steps": 4})
    with pytest.raises(RecipeError, match="another recipe"):
        train(longer, [ALONE], 0, tmp_path, GROUP)


def test_only_the_test_set_of_a_pack_is_judged(base: Recipe, pack: Path, tmp_path: Path) -> None:
    train(base, [ALONE], 0, tmp_path, GROUP)
    found = judge(folder(tmp_path, ALONE), Exam.parse(f"drawn={pack}:cross-view"), CPU)
    assert found.trials.subjects == ("s06", "s07", "s08", "s09")
    rows = compare({ALONE: [found, found], TAUGHT: [found, found]}, Resampling(replicates=20))
    assert rows[TAUGHT]["rank1"] == rows[ALONE]["rank1"]
    assert rows[TAUGHT]["gain over labels alone"] == [0, 0, 0]


@pytest.mark.slow
def test_all_arms_and_seeds_share_the_prototypes_of_a_teacher_of_other_people(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    settings = ("steps=3", "distillation.prototypes=true")
    base = tiny("student-baseline", pack, *settings, teachers=(make_teacher(subjects=7),))
    arms = [ALONE, "logit, T = 4", TAUGHT]
    first = train(base, arms, 0, tmp_path, GROUP)
    second = train(base, arms, 1, tmp_path, GROUP, first)
    assert first is not None
    assert second is not None
    assert first[0].prototypes
    assert first[0] is second[0]
    taught: Any = read_card(folder(tmp_path, TAUGHT)).training
    assert taught["teachers"][0]["prototypes"]


@pytest.mark.parametrize("test", ["a=none.pack:cross-view", "a={pack}:none", "a={pack}:grew"])
def test_a_test_that_cannot_be_made_is_refused_before_training(pack: Path, test: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        Exam.parse(test.format(pack=pack))


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_recipe(base: Recipe, arm: str) -> None:
    recipe = recipe_of(base, arm, 7)
    assert recipe.seed == 7
    assert recipe.distils == (arm != ALONE)
