"""Runs of the methods that have a course of their own: stages, turns, views."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.card import read_card
from models.networks.registry import build
from tests.training.runs import Listener, PowerCut, run, tiny, weights
from tests.training.walkers import make_pack
from training.data.augmentation import Stream, augment, generator, vary
from training.data.batches import BatchSource
from training.derive.export import export_checkpoint
from training.objective.lesson import MASKED, PLAIN, STRONG
from training.objective.teachers import run_teachers
from training.process.events import Progressed, SilentReporter, Started
from training.recipe import Recipe, RecipeError
from training.run import state
from training.run.distributed import Group
from training.run.preparation import prepare
from training.run.state import StateError
from training.run.trainer import Trainer

CPU = torch.device("cpu")
STAGES = ("stages.0.steps=6", "stages.0.warm_up=1", "steps=4", "log_every=1", "precision=fp32")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Walks of nobody in particular."""
    return make_pack(tmp_path_factory.mktemp("others") / "others.pack", subjects=5).path


def staged(pack: Path, teacher: Path, *settings: str) -> Recipe:
    return tiny("gkd", pack, "student.frozen_stages=4", *STAGES, *settings, teachers=(teacher,))


@pytest.mark.slow
@pytest.mark.parametrize(("cut_at", "goes_on_at"), [(4, 3), (6, 3), (8, 6), (10, 9)])
def test_a_run_killed_in_any_stage_ends_in_the_very_same_weights(
    pack: Path,
    others: Path,
    make_teacher: Callable[..., Path],
    tmp_path: Path,
    cut_at: int,
    goes_on_at: int,
) -> None:
    recipe = staged(
        pack, make_teacher(embedding_channels=6), f'stages.0.dataset="{others}"', "average=0.9"
    )
    told = run(recipe, tmp_path / "whole").events
    assert told[0] == Started(total_steps=10, step=0)
    assert [e.step for e in told if isinstance(e, Progressed)] == list(range(1, 11))
    with pytest.raises(PowerCut):
        run(recipe, tmp_path / "cut", Listener(cut_at=cut_at))
    assert run(recipe, tmp_path / "cut").events[0] == Started(total_steps=10, step=goes_on_at)
    whole, continued = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    for key, tensor in whole.items():
        assert torch.equal(tensor, continued[key]), key


def test_the_first_stage_learns_the_backbone_and_the_last_only_the_head(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = staged(pack, make_teacher(embedding_channels=6))
    preparation = prepare(recipe, CPU)
    first, last = recipe.in_stages()
    group = Group(0, 1, CPU)

    def steps(trainer: Trainer, part: Recipe, number: int) -> dict[str, torch.Tensor]:
        source = BatchSource(
            preparation.packs[number], subjects=3, sequences=2, clip=part.data.clip, seed=part.seed
        )
        for batch in source.iterate(0, 2):
            trainer.train(batch)
        return {name: t.clone() for name, t in preparation.student.state_dict().items()}

    begun = {name: t.clone() for name, t in preparation.student.state_dict().items()}
    trainer = Trainer(first, preparation, group)
    steps(trainer, first, 0)
    following = trainer.followed_by(last, preparation)  # from the moving average
    represented = {name: t.clone() for name, t in preparation.student.state_dict().items()}
    ended = steps(following, last, 1)
    for name in begun:
        if name.startswith("backbone") and name.endswith("weight"):
            assert not torch.equal(begun[name], represented[name]), name
        if name.startswith("backbone"):
            assert torch.equal(represented[name], ended[name]), name
    before, after, learnt = (
        torch.nn.functional.normalize(weights["head.classifier.weight"], dim=1)
        for weights in (begun, represented, ended)
    )
    torch.testing.assert_close(before, after)  # it only decays, and cosines do not see that
    assert not torch.allclose(after, learnt)


@pytest.mark.slow
def test_the_walks_of_a_stage_are_on_the_card_and_part_of_what_a_run_is(
    pack: Path, others: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = make_teacher(embedding_channels=6)
    run(staged(pack, teacher, f'stages.0.dataset="{others}"'), tmp_path)
    training = read_card(tmp_path / "checkpoint").training
    assert [stage["name"] for stage in training["stages"]] == ["others.pack"]  # type: ignore[union-attr,index,call-overload]
    assert training["steps"] == 10
    assert str(others.parent) not in json.dumps(training)
    with pytest.raises(StateError, match="another"):
        run(staged(pack, teacher), tmp_path)


def test_a_stage_never_sees_people_who_are_to_be_tested(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    teacher = make_teacher()
    everybody = staged(pack, teacher, f'stages.0.dataset="{pack}"')
    assert set(prepare(everybody, CPU).packs[0].subjects) == {f"s0{i}" for i in range(6)}
    tested = make_pack(tmp_path / "tested.pack", subjects=3, test_subjects=3)
    with pytest.raises(RecipeError, match="left to train on"):
        prepare(staged(pack, teacher, f'stages.0.dataset="{tested.path}"'), CPU)
    few = make_pack(tmp_path / "few.pack", subjects=2)
    with pytest.raises(RecipeError, match="3 subjects a batch, but it has 2"):
        prepare(staged(pack, teacher, f'stages.0.dataset="{few.path}"'), CPU)


@pytest.mark.slow
def test_a_run_of_alternating_teachers_killed_within_a_period_goes_on_with_the_right_one(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    teachers = (make_teacher(embedding_channels=6), make_teacher(seed=3, parts=8))
    settings = ("steps=9", "log_every=1", "distillation.period=4", "distillation.duty=0.3")
    recipe = tiny("asdt", pack, *settings, "precision=fp32", teachers=teachers)
    run(recipe, tmp_path / "whole")
    with pytest.raises(PowerCut):
        run(recipe, tmp_path / "cut", Listener(cut_at=8))
    run(recipe, tmp_path / "cut")
    for key, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "cut")[key]), key


METHODS = {
    "gdkd": ("terms.2.top=2",),
    "dkd": (),
    "crld": (),
    "ofa": (),
    "fuse-before-transfer": (),
    "asdt": ("distillation.period=2",),
    "patch-swap": (),
    "corsd": (),
    "gkd": ("stages.0.steps=2", "stages.0.warm_up=0", "student.frozen_stages=4"),
    "gaitkd-corrected": (),
}
"""Recipes, with what makes them small."""


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_nothing_of_its_own_in_a_checkpoint(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    count = {"patch-swap": 0, "corsd": 0, "asdt": 2}.get(name, 1)
    teachers = tuple(make_teacher(seed=seed) for seed in range(count))
    run(tiny(name, pack, "steps=2", *METHODS[name], teachers=teachers), tmp_path)
    made = tmp_path / "checkpoint"
    student = build("gaitbase", read_card(made).config).state_dict()
    assert {key: t.shape for key, t in weights(tmp_path).items()} == {
        key: t.shape for key, t in student.items()
    }
    export_checkpoint(made, tmp_path / "served", SilentReporter())
    served = load_file(tmp_path / "served" / "weights.safetensors")
    assert served.keys() == student.keys()
    assert served["head.classifier.weight"].numel() == 0


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["best", "random"])
def test_a_teacher_may_be_chosen_for_each_walk_or_step(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path, choice: str
) -> None:
    teachers = (make_teacher(embedding_channels=6), make_teacher(seed=3, parts=8))
    terms = "terms=[{kind='triplet'}, {kind='logit'}, {kind='generalised', top=2}, {kind='hint'}]"
    recipe = tiny(
        "gaitkd-corrected", pack, terms, f"distillation.teachers={choice}", teachers=teachers
    )
    run(recipe, tmp_path)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_the_best_teacher_must_know_the_students_identities(
    pack: Path, make_teacher: Callable[..., Path]
) -> None:
    terms = "terms=[{kind='triplet'}, {kind='hint'}]"
    recipe = tiny(
        "gaitkd-corrected", pack, terms, "distillation={teachers='best'}",
        teachers=(make_teacher(subjects=9), make_teacher()),
    )  # fmt: skip
    with pytest.raises(RecipeError, match="the teacher knows 9 identities"):
        prepare(recipe, CPU)


@pytest.mark.parametrize(
    ("term", "reason"),
    [
        ("{kind='generalised', top=6}", "of 6 identities, the 6 likeliest leave no rest"),
        ("{kind='views', connector=false}", "coordinate by coordinate"),
        ("{kind='fusion', connector=false}", "coordinate by coordinate"),
    ],
)
def test_what_data_and_teachers_cannot_give_is_refused_before_the_first_step(
    pack: Path, make_teacher: Callable[..., Path], term: str, reason: str
) -> None:
    recipe = tiny(
        "gaitkd-corrected", pack, f"terms=[{term}]", "data.strong={}",
        teachers=(make_teacher(embedding_channels=12),),
    )  # fmt: skip
    with pytest.raises(RecipeError, match=reason):
        prepare(recipe, CPU)


def test_maps_of_clips_that_are_cut_into_windows_are_refused(
    pack: Path, make_teacher: Callable[..., Path]
) -> None:
    recipe = tiny("ofa", pack, "student.config.window=2", teachers=(make_teacher(),))
    with pytest.raises(RecipeError, match="windows of 2; take fewer frames"):
        prepare(recipe, CPU)


@pytest.mark.parametrize("name", ["crld", "gkd", "patch-swap"])
def test_views_are_drawn_alike_for_student_and_teacher_and_on_every_call(
    pack: Path, make_teacher: Callable[..., Path], name: str
) -> None:
    teachers = () if name == "patch-swap" else (make_teacher(),)
    recipe = tiny(name, pack, "precision=fp32", "student.frozen_stages=0", teachers=teachers)
    part = recipe.in_stages()[0]
    preparation = prepare(recipe, CPU)
    trainer = Trainer(part, preparation, Group(0, 1, CPU))
    source = BatchSource(preparation.packs[0], subjects=3, sequences=2, clip=part.data.clip, seed=0)
    batch = source.batch(5)
    taught, again = trainer.teach(batch), trainer.teach(batch)
    assert torch.equal(taught.clips, again.clips)
    assert taught.views == {
        "crld": (PLAIN, STRONG), "gkd": (PLAIN, MASKED), "patch-swap": (PLAIN,)
    }[name]  # fmt: skip
    assert len(taught.clips) == 6 * len(taught.views)
    seen = [view for view in taught.views if view != MASKED]
    expected = run_teachers(
        preparation.teachers, taught.clips[: 6 * len(seen)], None, trainer.precision
    )
    for output, wanted in zip(taught.teacher_outputs, expected, strict=True):
        assert torch.equal(output.embeddings, wanted.embeddings)
    if name == "crld":
        assert part.data.strong is not None
        weak = augment(batch.silhouettes, part.data.augmentation, generator(0, 5))
        strong = vary(batch.silhouettes, part.data.strong, generator(0, 5, 0, Stream.STRONG))
        assert torch.equal(taught.clips, torch.cat([weak, strong.views]))
        assert taught.lost is not None
        assert torch.equal(taught.lost, strong.lost)
    if name == "patch-swap":
        assert taught.partners is not None
        assert torch.equal(taught.labels[taught.partners], taught.labels)
        assert (taught.partners != torch.arange(6)).all()


def test_a_state_of_before_methods_had_modules_goes_on(
    pack: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = tiny("gaitkd-corrected", pack, teachers=(make_teacher(),))
    run(recipe, tmp_path)
    kept = torch.load(tmp_path / state.NAME, weights_only=True)
    for added in ("objective", "stage"):
        del kept[added]
    torch.save(kept, tmp_path / state.NAME)
    before = (tmp_path / "checkpoint" / "weights.safetensors").read_bytes()
    assert run(recipe, tmp_path).events[0] == Started(total_steps=6, step=6)
    assert (tmp_path / "checkpoint" / "weights.safetensors").read_bytes() == before
    assert load_file(tmp_path / "checkpoint" / "weights.safetensors")
