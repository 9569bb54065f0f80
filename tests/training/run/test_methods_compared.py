"""`benchmarks.methods`: every method with the same budget, in one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import methods
from benchmarks.distillation import Exam
from benchmarks.methods import (
    ALONE,
    GAITKD,
    ROWS,
    SHIPS,
    Runner,
    figure,
    judged,
    markdown,
    recipe_of,
)
from models import checkpoint
from models.card import read_card
from tests.training.runs import run
from training.recipe import Recipe, RecipeError
from training.run import state as states
from training.run.distributed import Group
from training.run.loop import CHECKPOINT

ROOT = Path(methods.__file__).parents[1]
GROUP = Group(0, 1, torch.device("cpu"))


@pytest.fixture
def teachers(make_teacher: Callable[..., Path]) -> list[Path]:
    return [make_teacher(), make_teacher(seed=4)]


def recipes(
    names: list[str], pack: Path, teachers: list[Path], *settings: str
) -> dict[str, Recipe]:
    return {name: recipe_of(name, 0, "smoke", settings, pack, teachers) for name in names}


SOME = (
    ALONE, "patch swap", "OFA-KD", "CRLD", "GKD", GAITKD, SHIPS, "two teachers in turns (ASDT)",
)  # fmt: skip
"""A row with each kind of clips, with stages, and with none, one and two teachers."""


@pytest.mark.slow
def test_one_command_trains_and_judges_rows_and_draws_the_page(
    pack: Path, teachers: list[Path], tmp_path: Path
) -> None:
    page = tmp_path / "methods.md"
    (tmp_path / "images").mkdir()
    page.write_text(
        "before\n<!-- benchmarks.methods: begin -->\nold\n<!-- benchmarks.methods: end -->\nafter\n"
    )
    command = [
        sys.executable, "-m", "benchmarks.methods", "--size", "smoke", "--seeds", "0",
        "--dataset", pack, "--teacher", teachers[0], "--teacher", teachers[1],
        "--validation", f"{pack}:cross-view", "--test", f"drawn={pack}:cross-view",
        "--out", tmp_path / "runs", "--results", tmp_path / "found.json", "--page", page,
        "--rows", *SOME,
    ]  # fmt: skip
    for _ in range(2):  # the second time everything is there
        ended = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
    assert '"rows"' not in ended.stderr, "trained again"
    found: Any = json.loads((tmp_path / "found.json").read_text())
    assert found["left out"] == {}
    for exam in ("validation", "drawn"):
        rows = found["exams"][exam]["rows"]
        assert rows.keys() == set(SOME)
        for name, row in rows.items():
            assert len(row["rank1"]) == 3
            assert ("gain over no teacher" in row) == (name != ALONE)
            assert ("gain over GaitKD" in row) == (name != GAITKD)
            assert ("gain over what ships" in row) == (name != SHIPS)
    assert found["costs"][ALONE]["step, relative"] == 1
    assert found["costs"]["OFA-KD"]["kept_mb"] > found["costs"][ALONE]["kept_mb"] > 0
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    assert all(f"| {name} |" in text for name in SOME)
    drawn = ElementTree.parse(tmp_path / "images" / "methods.svg").getroot()  # noqa: S314
    assert len(drawn.findall("{*}circle")) == 2 * (len(SOME) - 1)


@pytest.mark.slow
def test_every_row_learns(pack: Path, teachers: list[Path], tmp_path: Path) -> None:
    runner = Runner(tmp_path, GROUP)
    runner.train(recipes(list(ROWS), pack, teachers, "save_every=3"), 0)
    assert runner.left_out == {}
    for name in ROWS:
        trained, card = checkpoint.load(runner.folder(name, 0) / CHECKPOINT, "cpu")
        assert card.training["steps"] == 3
        assert len(card.training["teachers"]) == ROWS[name].teachers  # type: ignore[arg-type]
        assert all(tensor.isfinite().all() for tensor in trained.state_dict().values())


def test_a_row_beside_others_learns_what_it_learns_alone(
    pack: Path, teachers: list[Path], tmp_path: Path
) -> None:
    names = [ALONE, "GDKD", "OFA-KD", "two teachers in turns (ASDT)"]
    runner = Runner(tmp_path / "rows", GROUP)
    wanted = recipes(names, pack, teachers)
    runner.train(wanted, 0)
    for name in names:
        run(wanted[name], tmp_path / "alone" / name)
        beside, _ = checkpoint.load(runner.folder(name, 0) / CHECKPOINT, "cpu")
        alone, _ = checkpoint.load(tmp_path / "alone" / name / CHECKPOINT, "cpu")
        for key, tensor in alone.state_dict().items():
            torch.testing.assert_close(beside.state_dict()[key], tensor, rtol=0, atol=0)


def test_rows_that_were_killed_go_on_and_finished_ones_of_other_runs_are_refused(
    pack: Path, teachers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [ALONE, "KD, T = 4"]
    wanted = recipes(names, pack, teachers)
    whole, cut = Runner(tmp_path / "whole", GROUP), Runner(tmp_path / "cut", GROUP)
    whole.train(wanted, 0)

    saves = 0

    def save(*arguments: Any, **named: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 4:  # the second row's second state
            raise KeyboardInterrupt
        keep(*arguments, **named)

    keep = states.save
    with monkeypatch.context() as patch:
        patch.setattr(states, "save", save)
        with pytest.raises(KeyboardInterrupt):
            cut.train(wanted, 0)
    cut.train(wanted, 0)
    for name in names:
        first, second = (
            checkpoint.load(runner.folder(name, 0) / CHECKPOINT, "cpu")[0].state_dict()
            for runner in (whole, cut)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(RecipeError, match="another recipe"):
        cut.train(recipes(names, pack, teachers, "steps=4"), 0)


def test_a_row_that_a_teacher_does_not_suit_is_named_with_the_reason(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    wide = [make_teacher(embedding_channels=12)]
    runner = Runner(tmp_path, GROUP)
    runner.train(recipes([ALONE, GAITKD, "ranking"], pack, wide), 0)
    assert runner.left_out.keys() == {GAITKD}
    assert "12 channels" in runner.left_out[GAITKD]
    assert read_card(runner.folder("ranking", 0) / CHECKPOINT).training["steps"] == 3


@pytest.mark.parametrize("size", methods.SIZES)
@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_one_budget_whatever_recipe_it_is_like(
    pack: Path, teachers: list[Path], name: str, size: str
) -> None:
    alone, row = (recipe_of(each, 0, size, (), pack, teachers) for each in (ALONE, name))
    assert row.total_steps == alone.total_steps
    for key in ("batch", "optimiser", "average", "clip_gradient", "metric", "mirror"):
        assert getattr(row, key) == getattr(alone, key), key
    assert row.student.config == alone.student.config
    assert row.data.clip == alone.data.clip
    assert len(row.teachers) == ROWS[name].teachers


def test_walks_embedded_mirrored_are_not_embedded_again_as_they_are(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_teacher().rename(tmp_path / CHECKPOINT)
    exam = Exam.parse(f"drawn={pack}:cross-view")
    both = replace(exam, rule=replace(exam.rule, mirror=True))  # type: ignore[type-var]
    alone = judged(tmp_path, exam, GROUP.device)
    (tmp_path / "embeddings").rename(tmp_path / "before")
    mirrored = judged(tmp_path, both, GROUP.device)
    monkeypatch.setattr(methods, "embedded_by", None)
    again = judged(tmp_path, exam, GROUP.device)
    assert len(list((tmp_path / "embeddings").iterdir())) == 1
    assert again.figures == alone.figures
    assert judged(tmp_path, both, GROUP.device).figures == mirrored.figures


def test_a_page_without_a_place_for_the_table_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="no place"):
        methods.publish_page({"exams": {}}, page)
    assert page.read_text() == "nothing\n"


def test_table_and_figure_are_in_the_order_of_validation() -> None:
    def rows(*gains: float) -> dict[str, Any]:
        names = (ALONE, "GDKD", "CRLD")
        found = {n: {"rank1": [50 + g]} for n, g in zip(names, (0.0, *gains), strict=True)}
        for name, gain in zip(names[1:], gains, strict=True):
            found[name]["gain over no teacher"] = [gain, gain - 1, gain + 1]
        return {"rows": found}

    result = {"exams": {"validation": rows(1.0, -2.0), "drawn": rows(-3.0, 4.0)}, "costs": {}}
    lines = markdown(result).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| GDKD", "| no teacher", "| CRLD"]
    assert "−3.0 [−4.0, −2.0]" in lines[0]
    drawn = ElementTree.fromstring(figure(result))  # noqa: S314
    labels = [text.text for text in drawn.findall("{*}text")]
    assert labels.index("GDKD") < labels.index("CRLD")
    assert {"-4.0", "+0.0", "+5.0"} <= set(labels)
    result["exams"] |= {name: rows(0.0, 1.0) for name in ("third", "fourth", "fifth")}
    drawn = ElementTree.fromstring(figure(result))  # noqa: S314
    assert len({circle.get("fill") for circle in drawn.findall("{*}circle")}) == 5
