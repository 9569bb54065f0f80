from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from models import checkpoint
from models.card import read_card
from models.networks.device import MixedPrecision
from tests.training.objective.test_objective import prepared
from tests.training.runs import Listener, PowerCut, run, tiny
from tests.training.walkers import make_pack
from training.data.pack import Pack
from training.derive.prototypes import with_prototypes
from training.objective.teachers import Teacher
from training.process.events import Progressed, Started
from training.run import preparation
from training.run.preparation import prepare

CPU = torch.device("cpu")
EXACT = MixedPrecision(CPU, half=False)
MakeTeacher = Callable[..., Path]


def clip(pack: Pack, walk: int) -> torch.Tensor:
    """A whole walk as a batch of one, `[1, s, 64, 44]`."""
    return torch.from_numpy(pack.silhouettes(walk)[None, :, :, 10:54] / np.float32(255))


@pytest.mark.slow
def test_logits_are_cosines_with_the_mean_walk_of_each_subject_behind_a_recentred_neck(
    pack: Path, make_teacher: MakeTeacher
) -> None:
    walks = Pack.open(pack)
    network = Teacher.load(make_teacher(subjects=3, mixing=True), CPU).network
    assert network.head.mixing is not None
    made = with_prototypes(network, walks, EXACT)
    with torch.no_grad():
        before = torch.cat([network(clip(walks, i)).embeddings for i in range(len(walks))])
        centred = (before - before.mean(0)).flatten(1)  # its variance is 1, as drawn
        mixed = centred @ network.head.mixing.weight.T / np.sqrt(1 + network.head.neck.eps)
        units = functional.normalize(mixed.view_as(before), dim=1)
        for i in range(len(walks)):
            found = made(clip(walks, i))
            torch.testing.assert_close(found.embeddings, before[i : i + 1])
            for subject in range(len(walks.subjects)):
                mean = functional.normalize(units[walks.labels == subject].sum(0), dim=0)
                cosines = (mean * units[i]).sum(0)
                torch.testing.assert_close(found.logits[0, subject], cosines, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_people_that_a_teacher_never_learnt_are_told_apart(
    pack: Path, make_teacher: MakeTeacher
) -> None:
    walks = Pack.open(pack)
    made = with_prototypes(Teacher.load(make_teacher(subjects=3), CPU).network, walks, EXACT)
    with torch.no_grad():
        guesses = [int(made(clip(walks, i)).logits.mean(2).argmax()) for i in range(len(walks))]
    right = np.mean(np.array(guesses) == walks.labels)
    assert right > 3 / len(walks.subjects), right


@pytest.mark.slow
def test_a_run_tells_how_far_they_are(
    pack: Path, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    many = make_pack(tmp_path / "many.pack", subjects=60, frames=8).path
    settings = ("distillation.prototypes=true", "data.validation=0")
    recipe = tiny("gaitkd", many, *settings, teachers=(make_teacher(subjects=3),))
    events = run(recipe, tmp_path / "run").events
    begun = events.index(Started(total_steps=6, step=0))
    shares = [e.metrics["prototypes"] for e in events[:begun] if isinstance(e, Progressed)]
    assert len(shares) > 1
    assert shares == sorted(set(shares))
    assert 0 < shares[0] < shares[-1] < 1


@pytest.mark.slow
def test_a_run_that_goes_on_finds_them_and_another_run_makes_its_own(
    pack: Path, make_teacher: MakeTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger, other = make_teacher(subjects=3), make_teacher(subjects=3, seed=5)
    settings = ("steps=20", "save_every=5", "log_every=1", "distillation.prototypes=true")
    recipe = tiny("gaitkd", pack, *settings, teachers=(stranger,))
    with pytest.raises(PowerCut):
        run(recipe, tmp_path, Listener(cut_at=7))
    first = checkpoint.load(tmp_path / "prototypes" / "0", "cpu")[0].head.classifier.weight
    with monkeypatch.context() as patched:
        patched.setattr(preparation, "with_prototypes", None)
        run(recipe, tmp_path)
        card = read_card(tmp_path / "checkpoint").training
    assert card["teachers"][0]["prototypes"] is True  # type: ignore[index, call-overload]
    kept = tmp_path / "prototypes"
    (new,) = prepare(tiny("gaitkd", pack, *settings, teachers=(other,)), CPU, kept=kept).teachers
    assert not torch.equal(new.network.head.classifier.weight, first)


def test_a_recipe_can_ask_for_them_and_a_card_says_so(
    pack: Path, make_teacher: MakeTeacher
) -> None:
    stranger, acquaintance = make_teacher(subjects=7, known=False), make_teacher()
    found = prepared(
        pack, "gaitkd", [stranger, acquaintance], "distillation.prototypes=true"
    ).teachers
    assert [teacher.prototypes for teacher in found] == [True, False]
    assert [teacher.network.identities for teacher in found] == [6, 6]
    assert not any(w.requires_grad for t in found for w in t.network.parameters())
    own = Teacher.load(acquaintance, CPU).network.head.classifier.weight
    assert torch.equal(found[1].network.head.classifier.weight, own)


def test_nothing_is_computed_for_a_teacher_that_no_term_asks_for_logits(
    pack: Path, make_teacher: MakeTeacher
) -> None:
    settings = ["terms=[{kind='triplet'}, {kind='ranking'}]", "distillation.prototypes=true"]
    (teacher,) = prepared(pack, "gaitkd", [make_teacher(subjects=7)], *settings).teachers
    assert (teacher.prototypes, teacher.network.identities) == (False, 7)
