from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from typer.testing import CliRunner

from models import checkpoint
from models.card import read_card
from tests.training.runs import TINY
from training.cli.commands import app
from training.data import Pack
from training.process.events import ConsoleReporter, Failed, Packed, Skipped
from training.recipe import load, shipped
from training.run.checking import recipe_problems

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def call(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
    """The exit status and the events of a command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


def small(*more: str) -> list[str]:
    return [f"--set={setting}" for setting in (*TINY, *more)]


class Started:
    """A command in a process of its own, whose events are read as they come."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "training", *map(str, arguments)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def until(self, step: int) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "progress" and event["step"] >= step:
                return
        raise AssertionError("the run ended before that step")

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_run_goes_on_where_it_was(
    pack: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    run = [
        "train", "student-baseline", "--out", tmp_path, "--dataset", pack, "--json",
        *small("steps=4000", "log_every=5", "save_every=5"),
    ]  # fmt: skip
    with Started(*run) as first:
        first.until(10)
        assert first.end(number) == status
    assert not (tmp_path / "checkpoint").exists()
    with Started(*run) as second:
        assert second.process.stdout is not None
        start = json.loads(second.process.stdout.readline())
        assert start["event"] == "start"
        # killed outright it may have lost what came after the last regular saving
        assert start["step"] >= (10 if number is signal.SIGTERM else 5)
        assert second.end(signal.SIGTERM) == 143


def test_distilling_by_command_ends_with_a_checkpoint(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    status, events = call(
        "distill", "demo", "--out", tmp_path, "--dataset", pack, "--teacher", make_teacher(),
        "--student", make_teacher(known=False), "--json", *small(),
    )  # fmt: skip
    assert status == 0
    kinds = [event["event"] for event in events]
    assert kinds == ["start", "progress", "progress", "progress", "evaluation", "done"]
    assert events[1].keys() == {"event", "step", "total_steps", "eta_s", "metrics"}
    assert events[1]["metrics"].keys() >= {"loss", "triplet", "ranking", "boundary"}
    assert Path(events[-1]["checkpoint"]) == tmp_path / "checkpoint"
    checkpoint.load(tmp_path / "checkpoint", "cpu")


@pytest.mark.parametrize(
    "arguments",
    [
        ("distill", "demo", "--dataset", "PACK"),
        ("distill", "demo", "--dataset", "PACK", "--teacher", "nowhere"),
        ("distill", "demo", "--dataset", "nowhere", "--teacher", "TEACHER"),
        ("distill", "demo", "--teacher", "TEACHER"),
        ("distill", "no-such-recipe", "--dataset", "PACK", "--teacher", "TEACHER"),
        ("distill", "demo", "--dataset", "PACK", "--teacher", "TEACHER", "--student", "nowhere"),
        ("distill", "demo", "--dataset", "PACK", "--teacher", "TEACHER", "--set", "stepz=1"),
        ("distill", "gaitkd", "--dataset", "PACK", "--teacher", "TEACHER"),
        ("train", "gaitkd", "--dataset", "PACK"),
        ("train", "student-baseline", "--dataset", "PACK", "--set", "batch.subjects=99"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_sentence(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    places = {"PACK": str(pack), "TEACHER": str(make_teacher(subjects=7))}
    named = [places.get(argument, argument) for argument in arguments]
    status, events = call(*named, "--out", tmp_path / "out", "--json")
    assert status == 2
    assert [event["event"] for event in events] == ["failed"]
    assert events[0]["reason"]
    assert not (tmp_path / "out").exists()


def test_a_damaged_teacher_is_bad_input(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = make_teacher(seed=9)
    weights = teacher / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    status, events = call(
        "distill", "demo", "--out", tmp_path, "--dataset", pack, "--teacher", teacher, "--json"
    )
    assert (status, events[-1]["event"]) == (2, "failed")


def test_a_run_that_diverges_ends_with_status_1_and_a_sentence(pack: Path, tmp_path: Path) -> None:
    status, events = call(
        "train", "student-baseline", "--out", tmp_path, "--dataset", pack, "--json",
        *small("optimiser.learning_rate=1e30", "clip_gradient=1e30", "schedule.warm_up=0"),
    )  # fmt: skip
    assert status == 1
    assert "learning_rate" in events[-1]["reason"]


def test_validate_answers_in_json_and_by_its_status() -> None:
    assert call("validate", "gaitkd") == (0, [{"errors": []}])
    status, (answer,) = call("validate", "gaitkd", "--set", "stepz=1", "--set", "seed=-1")
    assert status == 2
    assert {error["where"] for error in answer["errors"]} == {"stepz", "seed"}
    status, (answer,) = call("validate", "gaitkd", "--teacher", "nowhere")
    assert status == 2
    assert answer["errors"][0]["where"] == "teachers.0.checkpoint"


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_asks_for_what_there_can_be(name: str) -> None:
    assert recipe_problems(load(name)) == ()


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("student.architecture=os.system", "student.architecture"),
        ("student.config.parts=7", "student.config.parts"),
        ("student.config.chanels=7", "student.config.chanels"),
        ("student.config.identities=3", "student.config.identities"),
        ("evaluation.protocol=../x", "evaluation.protocol"),
    ],
)
def test_what_no_data_could_mend_is_found_without_data(setting: str, where: str) -> None:
    (problem,) = recipe_problems(load("demo", settings=[setting]))
    assert problem.where == where
    status, (answer,) = call("validate", "demo", "--set", setting)
    assert (status, answer) == (2, {"errors": [vars(problem)]})


def test_validate_for_a_command_refuses_a_recipe_for_the_other(
    make_teacher: Callable[..., Path],
) -> None:
    taught = ("--teacher", make_teacher())
    for recipe, command, where in (
        (("student-baseline", *taught), "distill", ["terms"]),
        (("gaitkd",), "distill", ["teachers"]),
        (("gaitkd", *taught), "train", ["teachers"]),
        (("gaitkd", *taught), "distill", []),
        (("student-baseline",), "train", []),
        (("gaitkd", *taught, "--dataset", "nowhere"), "train", ["data.dataset", "teachers"]),
    ):
        status, (answer,) = call("validate", *recipe, "--for", command)
        assert [error["where"] for error in answer["errors"]] == where
        assert status == (2 if where else 0)


def test_an_exported_checkpoint_is_smaller_and_embeds_the_same(
    make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    import torch

    source, out = make_teacher(subjects=500), tmp_path / "exported"
    assert call("export", source, "--out", out, "--name", "slim", "--json")[0] == 0
    whole, _ = checkpoint.load(source, "cpu")
    slim, card = checkpoint.load(out, "cpu")
    assert (card.name, card.identities, slim.identities) == ("slim", 0, 0)
    size = [(path / "weights.safetensors").stat().st_size for path in (out, source)]
    assert size[0] < 0.6 * size[1]
    walk = torch.rand(2, 4, 64, 44)
    torch.testing.assert_close(slim(walk).embeddings, whole(walk).embeddings, rtol=0.02, atol=0.02)


def evaluation(protocol: str, *, mirrored: bool, threshold: float) -> dict[str, Any]:
    """What `evaluate --out` writes, as far as the export reads it."""
    return {
        "protocol": protocol,
        "dataset": "walkers.pack",
        "dataset_hash": "0123456789abcdef",
        "subjects": 5,
        "sequences": 20,
        "resampling": {"seed": 0, "replicates": 10, "confidence": 0.95},
        "rows": [
            {
                "name": "student",
                "mirrored": mirrored,
                "figures": [
                    {
                        "name": "any view rank-1",
                        "estimate": {"value": 0.75, "low": 0.5, "high": None},
                        "detail": False,
                    }
                ],
                "open_set": {
                    "thresholds": [
                        {
                            "gallery_subjects": 100,
                            "target_fpir": 0.01,
                            "threshold": {"value": threshold},
                        }
                    ]
                },
            }
        ],
    }


def test_an_exported_card_takes_figures_and_thresholds_from_an_evaluation(
    make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    written, out = tmp_path / "result.json", tmp_path / "exported"
    written.write_text(json.dumps(evaluation("cross-view", mirrored=False, threshold=0.61234)))
    source = make_teacher()
    status, _ = call(
        "export", source, "--out", out, "--evaluation", written, "--notes", "rendered", "--json"
    )
    assert status == 0
    card = read_card(out)
    figures = card.metrics["cross-view on walkers.pack 0123456789ab"]
    assert isinstance(figures, dict)
    assert figures["rows"] == {"student": {"any view rank-1": [0.75, 0.5, None]}}
    assert (card.threshold, card.notes) == (0.6123, "rendered")
    kept, moved = tmp_path / "kept", tmp_path / "moved"
    assert call("export", out, "--out", kept, "--json")[0] == 0
    assert read_card(kept).threshold == 0.6123
    for *changed, configured in (
        ("--metric", "cosine", "--embedding-source", "neck", {"embedding_source": "neck"}),
        ("--window", 30, {"window": 30}),
    ):
        assert call("export", out, "--out", moved, *changed, "--json")[0] == 0
        card = read_card(moved)
        assert card.config.items() >= configured.items()
        assert (card.threshold, card.thresholds) == (None, ())  # they were on another scale
    written.write_text("{}")
    status, (failed,) = call("export", source, "--out", out, "--evaluation", written, "--json")
    assert status == 2
    assert "result.json is not a result" in failed["reason"]


def test_an_exported_card_decides_at_another_rate_and_size(
    make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    written = tmp_path / "result.json"
    result = evaluation("cross-view", mirrored=False, threshold=0.6)
    result["rows"][0]["open_set"]["thresholds"].append(
        {"gallery_subjects": 1000, "target_fpir": 0.001, "threshold": {"value": 0.7}}
    )
    written.write_text(json.dumps(result))
    taken, chosen, none = (tmp_path / name for name in ("taken", "chosen", "none"))
    source = make_teacher()
    assert call("export", source, "--out", taken, "--evaluation", written, "--json")[0] == 0
    assert read_card(taken).threshold == 0.6
    # also of a card that has its thresholds already
    assert call("export", taken, "--out", chosen, "--decides-at", 0.001, 1000, "--json")[0] == 0
    card = read_card(chosen)
    assert (card.threshold, len(card.thresholds)) == (0.7, 2)
    status, (failed,) = call("export", taken, "--out", none, "--decides-at", 0.1, 1000, "--json")
    assert (status, none.exists()) == (2, False)
    assert "no threshold for an FPIR of 0.1 with 1,000 enrolled" in failed["reason"]


def test_thresholds_are_not_taken_from_probes_that_were_tried_mirrored_as_well(
    make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    mirrored, plain = tmp_path / "mirrored.json", tmp_path / "plain.json"
    mirrored.write_text(json.dumps(evaluation("nine-pairs", mirrored=True, threshold=0.9)))
    plain.write_text(json.dumps(evaluation("cross-view", mirrored=False, threshold=0.6)))
    for number, (results, threshold) in enumerate((((mirrored, plain), 0.6), ((mirrored,), None))):
        out = tmp_path / str(number)
        asked = [part for path in results for part in ("--evaluation", path)]
        assert call("export", make_teacher(), "--out", out, *asked, "--json")[0] == 0
        card = read_card(out)
        assert (card.threshold, len(card.metrics)) == (threshold, len(results))


def test_an_exported_gallery_is_packed_by_command(tmp_path: Path) -> None:
    source, out = tmp_path / "gallery.zip", tmp_path / "gallery.pack"
    silhouettes = np.zeros((8, 64, 64), np.uint8)
    silhouettes[:, 5:60, 25:40] = 255
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("gallery.json", "{}")
        lines = [
            {"subject_id": f"p{i % 3}", "sequence_id": f"q{i}", "metadata": {}} for i in range(6)
        ]
        archive.writestr("sequences.jsonl", "\n".join(map(json.dumps, lines)))
        for i in range(6):
            with archive.open(f"silhouettes/q{i}.npy", "w") as file:
                np.save(file, silhouettes)
    listing = {"TRAIN_SET": ["p0"], "TEST_SET": ["p1"], "PROBE_SET": ["p1-unknown-unknown"]}
    partition = tmp_path / "field.json"
    partition.write_text(json.dumps(listing))
    more = ("--format", "gallery", "--partition", partition, "--workers", 2, "--json")
    status, events = call("pack", source, "--out", out, *more)
    assert status == 0, events
    assert json.loads((out / "partition.json").read_text()) == listing
    assert (events[-1]["event"], events[-1]["dataset"]) == ("done", str(out))
    assert "checkpoint" not in events[-1]
    assert events[-1]["metrics"] == {"subjects": 3, "sequences": 6, "frames": 48, "skipped": 0}
    status, events = call("pack", source, "--out", out, "--json")
    assert (status, events[-1]["event"]) == (2, "failed")
    missing = ("--partition", tmp_path / "nowhere.json", "--json")
    status, events = call("pack", source, "--out", tmp_path / "other.pack", *missing)
    assert (status, events[-1]["event"]) == (2, "failed")
    assert "nowhere.json" in events[-1]["reason"]


def test_what_is_not_packed_is_named_in_text_and_in_json(tmp_path: Path) -> None:
    source = tmp_path / "CCPG-pkl"
    folder = source / "000/U0_D0/00_0"
    folder.mkdir(parents=True)
    for kind in ("aligned-sils", "sils"):
        (folder / f"00_0-{kind}.pkl").write_bytes(
            pickle.dumps(np.full((8, 64, 64), 255 if kind == "sils" else 7, np.uint8))
        )
    broken = source / "001/U0_D0/00_0/00_0.pkl"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no pickle")
    status, events = call("pack", source, "--out", tmp_path / "out.pack", "--json")
    assert status == 0, events
    skipped = [event for event in events if event["event"] == "skipped"]
    assert [(event["name"], event["reason"]) for event in skipped] == [
        ("*-sils.pkl", "*-aligned-sils.pkl beside it is read (1 file)"),
        (str(broken), "broken pickle (KeyError)"),
    ]
    assert events[-1]["metrics"] == {"subjects": 1, "sequences": 1, "frames": 8, "skipped": 2}
    assert Pack.open(tmp_path / "out.pack").silhouettes(0).max() == 7
    asked = [
        "pack",
        str(source),
        "--out",
        str(tmp_path / "plain.pack"),
        "--silhouettes",
        "*0-sils.*",
    ]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "skipped: *-aligned-sils.pkl: *-sils.pkl beside it is read (1 file)\n" in result.stderr
    assert f"skipped: {broken.parent}: no .pkl in it is named *0-sils.*\n" in result.stderr
    assert Pack.open(tmp_path / "plain.pack").silhouettes(0).max() == 255


OF_TWO_STEPS = {
    "gdkd": ("terms.2.top=2",),
    "gkd": ("stages.0.steps=2", "stages.0.warm_up=0", "student.frozen_stages=4"),
    "asdt": ("distillation.period=2",),
}
"""What makes recipes small beside `TINY`."""


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_validated_and_takes_its_steps_by_command(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    recipe = load(name)
    count = 2 if recipe.distillation.teachers == "alternate" else int(recipe.distils)
    taught = [word for i in range(count) for word in ("--teacher", make_teacher(seed=i))]
    asked = (name, "--dataset", pack, *taught, *small("steps=2", *OF_TWO_STEPS.get(name, ())))
    command = "distill" if count or name in ("corsd", "patch-swap") else "train"
    assert call("validate", *asked, "--for", command) == (0, [{"errors": []}])
    status, events = call(command, *asked, "--out", tmp_path, "--json")
    assert (status, events[-1]["event"]) == (0, "done"), events
    *_, last = (event for event in events if event["event"] == "progress")
    assert last["step"] == last["total_steps"]
    assert np.isfinite(last["metrics"]["loss"])
    assert read_card(Path(events[-1]["checkpoint"])).parts == 4


def test_heat_maps_are_packed_by_command(tmp_path: Path) -> None:
    source, maps, out = (tmp_path / name for name in ("silhouettes", "maps", "out.pack"))
    frames = np.full((6, 64, 64), 255, np.uint8)
    for place, content in ((source, frames), (maps, np.stack([frames, frames], axis=1))):
        file = place / "001/nm/090/090.pkl"
        file.parent.mkdir(parents=True)
        file.write_bytes(pickle.dumps(content))
    (maps / "002/nm/090").mkdir(parents=True)
    nowhere = ("pack", source, "--out", out, "--pose-maps", tmp_path / "nowhere", "--json")
    status, events = call(*nowhere)
    assert (status, events[-1]["event"]) == (2, "failed")
    assert "nowhere: no folder of pose maps" in events[-1]["reason"]
    status, events = call("pack", source, "--out", out, "--pose-maps", maps, "--json")
    assert status == 0, events
    skipped = [(e["name"], e["reason"]) for e in events if e["event"] == "skipped"]
    reason = "no .pkl in it, where one of pose maps is"
    assert skipped == [(str(maps / "002/nm/090"), reason)]
    assert Pack.open(out).has_pose


def test_a_checkpoint_is_evaluated_by_command(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    asked = ("evaluate", "--checkpoint", make_teacher(), "--dataset", pack, "--json")
    status, events = call(*asked, "--protocol", "cross-view", "--out", tmp_path / "r.json")
    assert status == 0, events
    assert [e["event"] for e in events if e["event"] != "progress"] == [
        "start",
        "evaluation",
        "done",
    ]
    assert 0 <= events[-1]["metrics"]["rank1"] <= 1
    assert json.loads((tmp_path / "r.json").read_text())["protocol"] == "cross-view"
    assert call(*asked, "--protocol", "best-view")[0] == 2


def test_own_conditions_are_enrolled_and_asked_by_command(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    asked = ("evaluate", "--checkpoint", make_teacher(), "--dataset", pack, "--json")
    own = ("--enrolled", "normal-01", "--asked", "late=normal-0[2-9]", "--asked", "coat-*")
    status, events = call(*asked, *own, "--no-baselines", "--out", tmp_path / "r.json")
    assert status == 0, events
    assert {"late_rank1", "coat_rank1"} <= events[-1]["metrics"].keys()
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["protocol"] == "normal-01 enrolled, asked: late=normal-0[2-9]; coat-*"
    for wrong, reason in (
        (("--enrolled", "nm-01"), "--asked"),
        (("--asked", "nm-01"), "--enrolled"),
        (("--asked", "late=", "--enrolled", "nm-01"), "--asked"),
        (("--apart", "15"), "--apart"),
        ((*own, "--protocol", "cross-view"), "either a protocol"),
        (("--enrolled", "nm-9?", "--asked", "coat-*"), "would run on these walks: cross-view"),
        (("--protocol", "casia-e"), "would run on these walks: cross-view"),
        (("--protocol", "best-view"), "would run on these walks: cross-view"),
    ):
        status, (failed,) = call(*asked, *wrong)
        assert (status, failed["event"]) == (2, "failed")
        assert reason in failed["reason"]


def test_an_evaluation_takes_mirror_baselines_device_and_seed(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    asked = ("evaluate", "--checkpoint", make_teacher(), "--dataset", pack, "--json", "--out")
    chosen = ("--mirror", "--no-baselines", "--device", "cpu", "--seed", 7)
    assert call(*asked, tmp_path / "chosen.json", *chosen)[0] == 0
    result = json.loads((tmp_path / "chosen.json").read_text())
    assert [row["mirrored"] for row in result["rows"]] == [True]
    assert result["resampling"]["seed"] == 7


def test_people_get_sentences_on_stderr_and_nothing_on_stdout(pack: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        ["train", "student-baseline", "--out", str(tmp_path), "--dataset", str(pack), *small()],
    )
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "step 6/6" in result.stderr
    assert "checkpoint:" in result.stderr


def test_people_are_told_where_a_dataset_lies(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter() as reporter:
        reporter.report(Packed("walks.pack", {"sequences": 6}))
    assert "dataset: walks.pack  sequences 6" in capsys.readouterr().err


def test_what_people_read_of_a_name_is_the_name_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = f"[bold]x.pack: no such dataset [/x]; {'known: a.pack, ' * 20}"
    with ConsoleReporter() as reporter:
        reporter.report(Failed(reason))
        reporter.report(Skipped("a\nstep 6/6\x1b[31m\udcff", "an empty folder"))
    told = "skipped: a?step 6/6?[31m?: an empty folder"
    assert capsys.readouterr().err == f"failed: {reason}\n{told}\n"
