from pathlib import Path

import pytest
from pydantic import ValidationError

from training.rendering.recipe import RenderRecipe

RECIPES = Path(__file__).parents[3] / "training/recipes"
WALKERS = [f"cmu-{number:02d}" for number in range(1, 140)]


def recipe(split: str, **changes: object) -> RenderRecipe:
    return RenderRecipe.model_validate({"seed": 1, "split": split, "identities": 2, **changes})


@pytest.mark.parametrize("path", sorted(RECIPES.glob("render-*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert RenderRecipe.load(path).identities >= 1


def test_every_walker_is_in_exactly_one_split() -> None:
    for walker in WALKERS:
        used = [recipe(split).uses(walker) for split in ("train", "validation", "test")]
        assert sum(used) == 1


def test_most_walkers_are_trained_on_and_all_splits_have_some() -> None:
    counts = {
        split: sum(recipe(split).uses(walker) for walker in WALKERS)
        for split in ("train", "validation", "test")
    }
    assert counts["train"] > 0.5 * len(WALKERS)
    assert min(counts.values()) > 0.08 * len(WALKERS)


def test_the_digest_changes_with_what_is_drawn_and_not_with_how_many() -> None:
    plain = recipe("train")
    assert plain.digest == recipe("train", identities=9, mocap="elsewhere").digest
    assert plain.digest != recipe("train", seed=2).digest
    assert plain.digest != recipe("train", severity=0.5).digest


def test_a_collection_that_is_not_named_is_not_used() -> None:
    for split in ("train", "validation", "test"):
        assert not recipe(split, collections=("cmu",)).uses("rueangsirarak-A1")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("identites", 5),
        ("identities", 0),
        ("split", "dev"),
        ("walks", {"fps": {"low": 30, "high": 12}}),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        recipe(**{"split": "train", key: value})  # type: ignore[arg-type]
