from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests.training.rendering.recorded import write_walkers
from training.data import Pack
from training.rendering.body import BodyModel
from training.rendering.clothing import Outfit, draw_fashion, draw_outfit, in_fashion
from training.rendering.command import render
from training.rendering.faults import Faults, draw_faults, faults_again
from training.rendering.recipe import RenderRecipe
from training.rendering.scenes import draw_scene, scenes_of

RECIPES = Path(__file__).parents[3] / "training/recipes"
RECIPE = """
seed = 3
split = "train"
collections = ["rueangsirarak"]
identities = 4
[walks]
normal = 2
bag = 1
coat = 1
frames = { low = 16, high = 18 }
tall = { low = 50, high = 60 }
[scenes]
people = 2
each = 2
"""


def recipe(**changes: object) -> RenderRecipe:
    given = {"seed": 1, "split": "train", "identities": 9, "scenes": {"people": 3, "each": 4}}
    return RenderRecipe.model_validate({**given, **changes})


def test_shipped_recipes_are_named_as_before_there_were_scenes() -> None:
    digests = {
        path.stem: RenderRecipe.load(path).digest for path in sorted(RECIPES.glob("render-*.toml"))
    }
    assert digests["render-train"] == "8a8d4097b7e0"
    assert digests["render-validation"] == "bfac8994de2e"
    assert digests["render-test"] == "64d21331acdf"


def test_scenes_change_what_a_recipe_is_named() -> None:
    digests = {
        recipe(scenes=scenes).digest
        for scenes in (None, {}, {"people": 3}, {"people": 3, "each": 2})
    }
    assert len(digests) == 4


def test_the_same_people_meet_in_the_same_scenes_and_others_in_none_of_them() -> None:
    names = [[scene.name for scene in scenes_of(recipe(), number)] for number in range(9)]
    assert names[0] == names[1] == names[2]
    assert names[3] == names[5]
    assert len(set(names[0])) == 4
    assert not set(names[0]) & set(names[3])
    assert not set(names[3]) & set(names[6])


def test_without_scenes_nobody_is_in_one() -> None:
    assert scenes_of(recipe(scenes=None), 3) == []


def test_a_scene_follows_from_seed_split_and_number() -> None:
    scene = draw_scene(recipe(), 7)
    assert scene == draw_scene(recipe(identities=2, scenes={"people": 1, "each": 9}), 7)
    assert scene != draw_scene(recipe(), 8)
    assert scene.camera != draw_scene(recipe(seed=2), 7).camera
    assert scene.camera != draw_scene(recipe(split="test"), 7).camera


def test_walks_of_a_scene_go_to_and_fro_past_one_camera() -> None:
    scene, rng = draw_scene(recipe(), 0), np.random.default_rng(0)
    cameras = [scene.camera_of(rng) for _ in range(40)]
    apart = np.array([(camera.azimuth - scene.camera.azimuth) % 180 for camera in cameras])
    assert np.all(np.minimum(apart, 180 - apart) < 20)
    assert len({round((c.azimuth - scene.camera.azimuth) % 360 / 180) % 2 for c in cameras}) == 2
    for fixed in ("height", "roll", "aim", "lens", "width"):
        assert {getattr(camera, fixed) for camera in cameras} == {getattr(scene.camera, fixed)}


def test_scenes_differ_in_the_strength_of_their_faults_more_than_their_walks_do() -> None:
    rng = np.random.default_rng(0)
    lost: dict[int, list[float]] = defaultdict(list)
    for number in range(40):
        scene = draw_scene(recipe(), number)
        for _ in range(6):
            faults = scene.faults_of(rng, frames=25)
            assert (faults.shadow > 0) == (scene.faults.shadow > 0)
            assert (faults.lost == 0) == (scene.faults.lost == 0)
            assert faults.missing == scene.faults.missing
            lost[number].append(faults.lost)
    within = np.mean([np.std(values) for values in lost.values()])
    between = np.std([np.mean(values) for values in lost.values()])
    assert between > 2 * within


@pytest.mark.parametrize("frames", [3, 12, 80])
def test_faults_again_fit_into_walks_of_any_length(frames: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        usual = draw_faults(rng, frames=30, severity=1.5)
        faults = faults_again(usual, 30, rng, frames=frames)
        for (first, count), (_, before) in (
            (faults.missing_frames, usual.missing_frames),
            (faults.merged_frames, usual.merged_frames),
        ):
            assert 0 <= first <= first + count <= frames
            assert (count > 0) == (before > 0)
            assert count == frames or before < 30
        assert 0 <= faults.specks <= 1
        assert 0 <= faults.dropped <= 0.5


def test_where_there_are_no_faults_there_are_none_again_but_a_hair_of_thickness() -> None:
    faults = faults_again(Faults(), 30, np.random.default_rng(0), frames=30)
    assert abs(faults.grow) < 0.005
    for kind in ("ragged", "opening", "lost", "shadow", "merged", "occluder", "specks", "dropped"):
        assert getattr(faults, kind) == 0
    assert faults.missing_frames[1] == faults.merged_frames[1] == 0


def test_a_season_moves_the_clothes_of_all_who_are_filmed_in_it_the_same_way() -> None:
    rng = np.random.default_rng(0)
    people = [draw_outfit(rng) for _ in range(30)]
    warm = max((draw_fashion(rng) for _ in range(50)), key=lambda fashion: fashion.warm)
    worn = [in_fashion(outfit, warm, rng) for outfit in people]
    assert all(new.shirt > old.shirt for new, old in zip(worn, people, strict=True))
    assert np.argmax([new.shirt for new in worn]) == np.argmax([old.shirt for old in people])
    cool = min((draw_fashion(rng) for _ in range(50)), key=lambda fashion: fashion.warm)
    thin = in_fashion(Outfit(shirt=0.0, sleeves=0.0, trousers=0.0, legs=0.0), cool, rng)
    assert min(thin.shirt, thin.trousers, thin.legs) > 0
    assert thin.sleeves >= 0


def test_every_walk_of_a_pack_says_its_scene(tmp_path: Path, bodies: BodyModel) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    pack: Pack = render(
        path, tmp_path / "scenes.pack", workers=1, mocap=write_walkers(tmp_path / "mocap", 8)
    )
    people: dict[str, set[str]] = defaultdict(set)
    kinds: dict[str, set[str]] = defaultdict(set)
    for record in pack.sequences:
        people[record.metadata["scene"]].add(record.subject)
        kinds[record.metadata["scene"]].add(record.condition[:2])
    assert people == {
        f"train-scene-{number:05d}": {f"train-{person:05d}" for person in pair}
        for number, pair in ((0, (0, 1)), (1, (0, 1)), (2, (2, 3)), (3, (2, 3)))
    }
    assert kinds["train-scene-00000"] >= {"nm", "bg"}
    assert kinds["train-scene-00001"] >= {"nm", "cl"}
