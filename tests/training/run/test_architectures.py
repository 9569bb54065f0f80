"""Every architecture learns, and teaches a student of other parts and another width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import checkpoint
from models.networks.registry import ARCHITECTURES
from tests.training.runs import Listener, PowerCut, run, tiny, weights
from training.process.events import Progressed
from training.recipe import RecipeError
from training.run.preparation import prepare

CPU = torch.device("cpu")
MakeTeacher = Callable[..., Path]
PackFor = Callable[[str], Path]
PARTS = {"gaitset": 62, "gaitgl": 16, "swingait": 5}  # of others 4


def narrow(architecture: str) -> str:
    return (
        f'student={{architecture="{architecture}", config={{channels=[4, 4, 8, 8], '
        f"layers=[1, 1, 1, 1], parts={PARTS.get(architecture, 4)}, embedding_channels=8}}}}"
    )


def progress(listener: Listener) -> list[Mapping[str, float]]:
    return [event.metrics for event in listener.events if isinstance(event, Progressed)]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns_and_is_saved(
    pack_for: PackFor, tmp_path: Path, architecture: str, precision: str
) -> None:
    settings = (narrow(architecture), "steps=3", "log_every=1", f"precision={precision}")
    listener = run(tiny("student-baseline", pack_for(architecture), *settings), tmp_path)
    losses = [metrics["loss"] for metrics in progress(listener)]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    network, card = checkpoint.load(tmp_path / "checkpoint")
    assert (card.architecture, card.identities) == (architecture, 6)
    assert all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_teaches_a_student_of_other_parts_and_width(
    pack_for: PackFor, make_teacher: MakeTeacher, tmp_path: Path, architecture: str
) -> None:
    teacher = make_teacher(
        architecture=architecture,
        subjects=9,
        known=False,
        embedding_channels=12,
        parts=PARTS.get(architecture, 2),
    )
    pack = pack_for(architecture)
    recipe = tiny("gaitkd-corrected", pack, "steps=2", "log_every=1", teachers=(teacher,))
    before = checkpoint.load(teacher)[0].state_dict()
    (metrics, *_) = progress(run(recipe, tmp_path))
    for term in ("logit", "boundary", "ranking"):
        assert np.isfinite(metrics[term]), term
        assert metrics[term] > 0, term
    for key, tensor in checkpoint.load(teacher)[0].state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_clips_in_no_order_are_refused_where_a_teacher_reads_their_order(
    pack_for: PackFor, make_teacher: MakeTeacher, architecture: str
) -> None:
    teacher = make_teacher(architecture=architecture, parts=PARTS.get(architecture, 4))
    pack = pack_for(architecture)
    recipe = tiny("demo", pack, "data.clip={kind='unordered', frames=5}", teachers=(teacher,))
    if architecture in ("gaitbase", "gaitset"):
        assert prepare(recipe, CPU).teachers
    else:
        with pytest.raises(RecipeError, match="clips must be 'ordered'"):
            prepare(recipe, CPU)


ITS_FIRST_HEAD: dict[str, Any] = {
    "architecture": "gaitgl",
    "projection_norm": True,
    "classifier": "product",
    "parts": 16,
}


def test_logits_that_are_no_cosines_are_no_lesson_but_prototypes_are(
    pack: Path, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    teacher = make_teacher(**ITS_FIRST_HEAD)
    with pytest.raises(RecipeError, match=r"no cosines.* set distillation\.prototypes = true"):
        prepare(tiny("gaitkd", pack, teachers=(teacher,)), CPU)
    taught = prepare(tiny("gaitkd-corrected", pack, teachers=(teacher,)), CPU, kept=tmp_path)
    (network,) = (teacher.network for teacher in taught.teachers)
    clips = torch.rand(2, 4, 64, 44, generator=torch.Generator().manual_seed(0))
    original = checkpoint.load(teacher)[0]
    with torch.no_grad():
        output = network(clips)
        torch.testing.assert_close(output.embeddings, original(clips).embeddings)
    assert output.logits.abs().max() <= 1 + 1e-6


def test_a_student_that_begins_with_such_a_head_gets_cosines(
    pack: Path, make_teacher: MakeTeacher
) -> None:
    start = make_teacher(**ITS_FIRST_HEAD)
    recipe = tiny("student-baseline", pack, f'student={{checkpoint="{start}"}}')
    student = prepare(recipe, CPU).student
    assert (student.config.classifier, student.config.projection_norm) == ("cosine", True)
    wanted = checkpoint.load(start)[0].state_dict()
    for key, tensor in student.state_dict().items():
        assert torch.equal(tensor, wanted[key]) == (key != "head.classifier.weight"), key


def test_a_new_student_has_cosines(pack: Path) -> None:
    settings = narrow("gaitgl").replace("parts", 'classifier="product", parts')
    with pytest.raises(RecipeError, match=r"student\.config\.classifier: only a network of"):
        prepare(tiny("student-baseline", pack, settings), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ofa", "fuse-before-transfer", "corsd", "crld", "patch-swap"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_methods_that_read_stages_or_views_teach_every_architecture_or_are_refused(
    pack_for: PackFor, make_teacher: MakeTeacher, tmp_path: Path, architecture: str, method: str
) -> None:
    pack = pack_for(architecture)
    teacher = make_teacher(architecture="deepgaitv2", layers=[1, 1, 1, 1], embedding_channels=12)
    teachers = () if method in ("corsd", "patch-swap") else (teacher,)
    recipe = tiny(method, pack, narrow(architecture), "steps=2", "log_every=1", teachers=teachers)
    if method == "ofa" and architecture not in ("gaitbase", "deepgaitv2", "skeletongaitpp"):
        with pytest.raises(RecipeError, match=f"not a {architecture}'s"):
            prepare(recipe, CPU)
        return
    (metrics, *_) = progress(run(recipe, tmp_path))
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.slow
def test_what_a_swingait_leaves_out_by_chance_is_the_same_after_a_power_cut(
    pack: Path, tmp_path: Path
) -> None:
    chance = narrow("swingait").replace("parts", "stochastic_depth=0.5, parts")
    settings = (chance, "steps=6", "save_every=2", "log_every=1", "precision=fp32")
    recipe = tiny("student-baseline", pack, *settings)
    run(recipe, tmp_path / "whole")
    with pytest.raises(PowerCut):
        run(recipe, tmp_path / "cut", Listener(cut_at=5))
    run(recipe, tmp_path / "cut")
    whole, continued = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for key, tensor in whole.items():
        assert torch.equal(tensor, continued[key]), key


def test_a_network_that_reads_pose_maps_is_refused_walks_without(
    pack: Path, make_teacher: MakeTeacher
) -> None:
    teacher = make_teacher(architecture="skeletongaitpp", layers=[1, 1, 1, 1])
    with pytest.raises(RecipeError, match=r"teacher 't' reads pose maps, which .* does not have"):
        prepare(tiny("gaitkd-corrected", pack, teachers=(teacher,)), CPU)
    student = tiny("student-baseline", pack, narrow("skeletongaitpp"))
    with pytest.raises(RecipeError, match="the student reads pose maps"):
        prepare(student, CPU)


def test_a_student_of_silhouettes_learns_the_same_beside_pose_maps_that_it_does_not_read(
    pack: Path, posed: Path, tmp_path: Path
) -> None:
    for walks in (pack, posed):
        run(tiny("student-baseline", walks, "steps=2", "save_every=2"), tmp_path / walks.name)
    plain, beside = weights(tmp_path / pack.name), weights(tmp_path / posed.name)
    assert all(torch.equal(tensor, beside[key]) for key, tensor in plain.items())
