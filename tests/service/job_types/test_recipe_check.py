"""The program's own check of what `POST /jobs/distill` asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

import training
from models.card import CARD
from service.foundation.errors import Unavailable
from service.job_types import submission
from service.job_types.distillation import setting
from service.job_types.submission import RecipeCheck, _place

RECIPES = Path(training.__file__).parent / "recipes"
SHIPPED = RECIPES.parents[1] / "models" / "checkpoints"
TEACHER = next(SHIPPED.rglob(CARD)).parent


def arguments(name: str, teachers: int, overrides: dict[str, float]) -> list[str]:
    """As a request's."""
    taught = ["--teacher", str(TEACHER)] * teachers
    settings = [word for key, value in overrides.items() for word in ("--set", setting(key, value))]
    return [str(RECIPES / f"{name}.toml"), *taught, *settings]


@pytest.mark.parametrize(("name", "teachers"), [("gkd", 1), ("asdt", 2), ("patch-swap", 0)])
def test_a_method_is_a_recipe_that_a_job_can_run(name: str, teachers: int) -> None:
    check = RecipeCheck(timeout_s=120)
    assert not check(arguments(name, teachers, {"steps": 300}))


@pytest.mark.parametrize(
    ("name", "teachers", "overrides", "where"),
    [
        ("corsd", 0, {"terms.2.width": 10**8}, "overrides.terms.2.width"),
        ("gkd", 1, {"stages.0.steps": -1}, "overrides.stages.0.steps"),
        ("gdkd", 0, {}, "teachers"),
        ("asdt", 1, {}, "recipe"),
    ],
)
def test_what_a_method_cannot_bear_is_refused_by_name(
    name: str, teachers: int, overrides: dict[str, float], where: str
) -> None:
    (reason,) = RecipeCheck(timeout_s=120)(arguments(name, teachers, overrides))
    assert _place(reason, overrides) == where


def test_the_shipped_default_is_no_student_but_the_float_one_is() -> None:
    check = RecipeCheck(timeout_s=120)
    recipe = arguments("gkd", 1, {})
    (reason,) = check([*recipe, "--student", str(SHIPPED / "default")])
    assert (_place(reason, {}), "default-float" in reason.reason) == ("student", True)
    assert not check([*recipe, "--student", str(SHIPPED / "default-float")])


def test_a_student_whose_card_cannot_be_read_is_refused_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("{")
    asked = [*arguments("gkd", 1, {}), "--student", str(tmp_path)]
    (reason,) = RecipeCheck(timeout_s=120)(asked)
    assert _place(reason, {}) == "recipe.student.checkpoint"
    assert str(tmp_path) not in reason.reason


@pytest.mark.parametrize(
    ("command", "slug", "says"),
    [
        (("sh", "-c", "kill -9 $$"), "unavailable", "ended from outside"),
        (("sleep", "60"), "overloaded", "in time"),
    ],
)
def test_a_check_that_is_killed_or_takes_too_long_is_asked_for_again(
    command: tuple[str, ...], slug: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "program", lambda *_: command)
    with pytest.raises(Unavailable, match=says) as refused:
        RecipeCheck(timeout_s=0.2 if slug == "overloaded" else 60)(["recipe"])
    assert refused.value.problem_slug == slug
    assert refused.value.retry_after
