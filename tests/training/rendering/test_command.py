import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.rendering.recorded import write_walkers
from training.data import Pack, PackWriter
from training.rendering.body import BodyModel
from training.rendering.command import load_walkers, render
from training.rendering.recipe import RenderRecipe

RECIPE = """
seed = 3
split = "train"
identities = 3
[walks]
normal = 1
bag = 1
coat = 1
frames = { low = 16, high = 18 }
tall = { low = 50, high = 60 }
"""


@pytest.fixture
def mocap(tmp_path: Path) -> Path:
    return write_walkers(tmp_path / "mocap", 8)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The made-up people are of no collection: let the recipe take those the deal gives it.
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace('"train"\n', '"train"\ncollections = ["rueangsirarak"]\n'))
    return path


@pytest.fixture
def pack(recipe: Path, mocap: Path, tmp_path: Path, bodies: BodyModel) -> Pack:
    return render(recipe, tmp_path / "one.pack", workers=1, mocap=mocap)


def test_a_pack_has_every_identity_and_condition(pack: Pack) -> None:
    assert len(pack.subjects) == 3
    assert {record.condition for record in pack.sequences} == {"nm-01", "bg-01", "cl-01"}
    assert pack.partition is not None
    assert pack.partition.train == pack.subjects
    assert pack.partition.test == ()
    for record in pack.sequences:
        assert int(record.view) % 15 == 0
        assert record.metadata["walker"].startswith("rueangsirarak-")
        assert 8 <= record.frames <= 18


def test_silhouettes_are_normalised_people(pack: Pack) -> None:
    silhouettes = np.concatenate([pack.silhouettes(index) for index in range(len(pack))])
    assert set(np.unique(silhouettes)) == {0, 255}
    share = (silhouettes > 0).mean(axis=(1, 2))
    assert share.min() > 0.05
    assert share.max() < 0.7
    # The person reaches from the first row to the last.
    assert (silhouettes[:, :2].any(axis=(1, 2)) & silhouettes[:, -2:].any(axis=(1, 2))).mean() > 0.9


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_pack_and_another_seed_another(
    pack: Pack, recipe: Path, mocap: Path, tmp_path: Path
) -> None:
    again = render(recipe, tmp_path / "two.pack", workers=1, mocap=mocap)
    assert again.content_hash == pack.content_hash
    recipe.write_text(recipe.read_text().replace("seed = 3", "seed = 4"))
    other = render(recipe, tmp_path / "three.pack", workers=1, mocap=mocap)
    assert other.content_hash != pack.content_hash


@pytest.mark.slow
def test_an_interrupted_rendering_goes_on_and_ends_up_the_same(
    pack: Pack, recipe: Path, mocap: Path, tmp_path: Path
) -> None:
    out = tmp_path / "resumed.pack"
    with PackWriter(out, "binary") as writer:  # killed after four of nine sequences
        for index, record in enumerate(pack.sequences[:4]):
            writer.add(
                record.subject,
                record.condition,
                record.view,
                pack.silhouettes(index),
                record.metadata,
            )
    assert not out.exists()
    resumed = render(recipe, out, workers=1, mocap=mocap)
    assert resumed.content_hash == pack.content_hash


def test_a_rendering_is_not_finished_with_another_recipe(
    pack: Pack, recipe: Path, mocap: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mixed.pack"
    with PackWriter(out, "binary") as writer:
        record = pack.sequences[0]
        silhouettes = pack.silhouettes(0)
        writer.add(
            record.subject, record.condition, record.view, silhouettes, {"recipe": "another"}
        )
    with pytest.raises(ValueError, match="another recipe"):
        render(recipe, out, workers=1, mocap=mocap)


def test_a_rendering_is_not_finished_with_fewer_identities_than_it_has(
    recipe: Path, mocap: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fewer.pack"
    made = {"recipe": RenderRecipe.load(recipe).digest}
    with PackWriter(out, "binary") as writer:
        for subject in ("train-00000", "train-00001"):
            writer.add(subject, "nm-01", "090", np.zeros((8, 64, 64), np.uint8), made)
    with pytest.raises(ValueError, match="begun with 2 identities"):
        render(recipe, out, workers=1, mocap=mocap, limit=1)


def test_progress_is_json_lines_for_machines(
    recipe: Path,
    mocap: Path,
    tmp_path: Path,
    bodies: BodyModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    render(recipe, tmp_path / "json.pack", workers=1, limit=1, json=True, mocap=mocap)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["start", "progress", "done"]
    assert events[-1]["metrics"]["sequences"] == 3


def test_progress_is_lines_where_nobody_watches(
    recipe: Path,
    mocap: Path,
    tmp_path: Path,
    bodies: BodyModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    render(recipe, tmp_path / "log.pack", workers=1, limit=1, mocap=mocap)
    progress, done = capsys.readouterr().err.splitlines()
    assert progress.startswith("1/1 identities, ")
    assert done.startswith(f"{tmp_path / 'log.pack'}: 3 sequences, ")


@pytest.mark.slow
def test_two_processes_render_what_one_does(
    pack: Pack, recipe: Path, mocap: Path, tmp_path: Path
) -> None:
    parallel = render(recipe, tmp_path / "parallel.pack", workers=2, mocap=mocap)
    assert parallel.content_hash == pack.content_hash


def test_no_recordings_named_or_none_that_fit_is_refused(
    recipe: Path, mocap: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--mocap"):
        render(recipe, tmp_path / "out.pack")
    with pytest.raises(ValueError, match="limit"):
        render(recipe, tmp_path / "out.pack", limit=0, mocap=mocap)
    with pytest.raises(FileNotFoundError):
        render(tmp_path / "none.toml", tmp_path / "out.pack", mocap=mocap)
    plan = RenderRecipe.load(recipe).model_copy(update={"collections": ("cmu",)})
    with pytest.raises(ValueError, match="no walker of the train split"):
        load_walkers(plan, mocap)
    assert not (tmp_path / "out.pack").exists()
