from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import recipe as recipes
from training.data.options import OrderedClip
from training.recipe import Recipe, RecipeError, load, missing_files, require_teachers, shipped
from training.recipe import terms as kinds

SMALLEST = 'steps = 5\nstudent.architecture = "gaitbase"\nterms = [{kind = "triplet"}]\n'


@pytest.fixture
def smallest(tmp_path: Path) -> str:
    path = tmp_path / "smallest.toml"
    path.write_text(SMALLEST)
    return str(path)


def where(error: RecipeError) -> list[str]:
    return [problem.where for problem in error.problems]


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert load(name).steps > 0


def test_the_published_objective_is_the_published_one() -> None:
    recipe = load("gaitkd")
    assert (recipe.distillation.teachers, recipe.distillation.parts) == ("sum", "truncate")
    terms = {term.kind: term for term in recipe.terms}
    assert set(terms) == {"triplet", "cross-entropy", "logit", "boundary"}
    assert terms["triplet"] == kinds.TripletTerm(kind="triplet", weight=1.0, margin=0.2)
    assert terms["cross-entropy"] == kinds.CrossEntropyTerm(
        kind="cross-entropy", weight=1.0, scale=16.0, smoothing=0.1
    )
    assert terms["logit"] == kinds.LogitTerm(kind="logit", weight=1.0, temperature=4.0, scale=16.0)
    assert terms["boundary"] == kinds.BoundaryTerm(
        kind="boundary", weight=0.003, margin=1.0, relative=False, connector=False
    )


def test_the_baseline_differs_from_the_corrected_objective_in_nothing_but_distillation() -> None:
    baseline, corrected = load("student-baseline"), load("gaitkd-corrected")
    different = {
        name for name in Recipe.model_fields if getattr(baseline, name) != getattr(corrected, name)
    }
    assert different == {"description", "terms", "distillation"}
    assert not baseline.distils
    assert corrected.distils


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("stepz=3", "stepz"),
        ("steps=0", "steps"),
        ("steps=2.5", "steps"),
        ("steps=yes", "steps"),
        ('steps="5"', "steps"),
        ("student.architekture=x", "student.architekture"),
        ("terms.0.margin=-1", "terms.0.margin"),
        ("terms.0.kind=quadruplet", "terms.0"),
        ("data.validation=1.0", "data.validation"),
        ("data.clip.kind=shuffled", "data.clip"),
        ("optimiser.kind=lion", "optimiser"),
        ("precision=fp8", "precision"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_key(
    smallest: str, setting: str, key: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load(smallest, settings=[setting])
    assert where(caught.value) == [key]


def test_every_wrong_key_is_named_not_only_the_first(smallest: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(smallest, settings=["steps=-1", "sead=3"])
    assert sorted(where(caught.value)) == ["sead", "steps"]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("schedule={kind='multistep', milestones=[3, 5]}", "rise and lie before the last step"),
        ("schedule={kind='multistep', milestones=[3, 2]}", "rise and lie before the last step"),
        ("schedule={kind='cosine', warm_up=5}", "shorter than the run"),
        ("optimiser={kind='sgd', momentum=0.0, nesterov=true}", "needs momentum"),
        ("student={config={parts=4}}", "name an architecture, or a checkpoint"),
        ("student={architecture='gaitbase', frozen_stages=1}", "frozen_stages needs a checkpoint"),
        ("student={architecture='gaitbase', frozen_stages=5}", "less than or equal to 4"),
        ("terms=[]", "a run needs at least one"),
        ("terms=[{kind='boundary', relative=true, connector=true}]", "leave relative out"),
        ("steps", "is written key=value"),
        ("=3", "is written key=value"),
        ("terms.7.margin=1", "not an index into 1 entries"),
        ("steps.of.what=1", "nothing lies below 'steps'"),
    ],
)
def test_a_setting_that_contradicts_another_or_leads_nowhere_is_refused(
    smallest: str, setting: str, reason: str
) -> None:
    with pytest.raises(RecipeError, match=reason):
        load(smallest, settings=[setting])


def test_settings_step_into_tables_and_lists_and_take_bare_words(smallest: str) -> None:
    recipe = load(
        smallest,
        settings=[
            "terms.0.margin=0.3",
            "data.clip.kind=ordered",
            "data.clip.frames=9",
            "student.config.channels=[4, 8, 8, 8]",
            "precision=fp32",
        ],
    )
    (term,) = recipe.terms
    assert isinstance(term, kinds.TripletTerm)
    assert term.margin == 0.3
    assert recipe.data.clip == OrderedClip(frames=9)
    assert recipe.student.config["channels"] == [4, 8, 8, 8]
    assert recipe.precision == "fp32"


@pytest.mark.slow
@given(st.text(max_size=30), st.text(max_size=30))
def test_no_setting_raises_anything_but_a_recipe_error(key: str, value: str) -> None:
    content = tomllib.loads(SMALLEST)
    try:
        recipes._apply(content, f"{key}={value}")
    except RecipeError:
        return
    assert content != tomllib.loads(SMALLEST) or value


def test_what_is_no_recipe_is_refused_with_the_names_of_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="gaitkd"):
        load("gait-kd")
    (tmp_path / "broken.toml").write_text("steps = = 3")
    with pytest.raises(RecipeError, match="not TOML"):
        load(str(tmp_path / "broken.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        load(str(tmp_path / "binary.toml"))


def test_the_command_line_replaces_dataset_teachers_and_student(smallest: str) -> None:
    recipe = load(
        smallest, dataset=Path("d.pack"), teachers=[Path("a"), Path("b")], student=Path("c")
    )
    assert recipe.data.dataset == Path("d.pack")
    assert [teacher.checkpoint for teacher in recipe.teachers] == [Path("a"), Path("b")]
    assert recipe.student.checkpoint == Path("c")
    assert [problem.where for problem in missing_files(recipe)] == [
        "data.dataset",
        "teachers.0.checkpoint",
        "teachers.1.checkpoint",
        "student.checkpoint",
    ]


def test_teachers_belong_to_distilling_and_only_to_it(smallest: str) -> None:
    plain = load(smallest)
    require_teachers(plain, wanted=False)
    with pytest.raises(RecipeError, match="--teacher"):
        require_teachers(load("gaitkd"), wanted=True)
    with pytest.raises(RecipeError, match="no term has a teacher"):
        require_teachers(load(smallest, teachers=[Path("a")]), wanted=True)
    with pytest.raises(RecipeError, match="use distill"):
        require_teachers(load("gaitkd"), wanted=False)


def test_a_method_without_teacher_refuses_terms_that_have_one() -> None:
    terms = "terms=[{kind='triplet'}, {kind='mutual'}, {kind='exits'}]"
    for wanted, said in ((True, "needs at least one"), (False, "use distill")):
        with pytest.raises(RecipeError, match=said):
            require_teachers(load("patch-swap", settings=[terms]), wanted=wanted)


def test_a_recipe_is_checked_without_torch() -> None:
    code = (
        "import sys, training.cli.commands, training.recipe; training.recipe.load('gaitkd');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


METHODS = {
    "gdkd": 1, "dkd": 1, "asdt": 2, "crld": 1, "patch-swap": 0, "corsd": 0, "ofa": 1,
    "fuse-before-transfer": 1, "gkd": 1,
}  # fmt: skip


@pytest.mark.parametrize(("name", "teachers"), METHODS.items())
def test_a_method_has_the_budget_and_the_batches_of_the_baseline(name: str, teachers: int) -> None:
    recipe = load(name, teachers=[Path("t")] * teachers)
    require_teachers(recipe, wanted=True)
    baseline = load("student-baseline")
    assert recipe.total_steps == baseline.total_steps
    assert recipe.batch == baseline.batch
    assert recipe.optimiser == baseline.optimiser
    assert recipe.student.config == baseline.student.config
    assert recipe.distils == (teachers > 0)


@pytest.mark.parametrize(
    ("name", "setting", "key"),
    [
        ("gdkd", "terms.2.top=0", "terms.2.top"),
        ("gdkd", "terms.2.top=1_000_000_000", "terms.2.top"),
        ("gdkd", "terms.2.weight=inf", "terms.2.weight"),
        ("gdkd", "terms.2.rest_weight=nan", "terms.2.rest_weight"),
        ("crld", "terms.2.weak_gate=1.5", "terms.2.weak_gate"),
        ("crld", "data.strong.rotate=2.0", "data.strong.rotate"),
        ("asdt", "distillation.period=0", "distillation.period"),
        ("asdt", "distillation.duty=1.0", "distillation.duty"),
        ("asdt", "distillation.teachers=worst", "distillation.teachers"),
        ("corsd", "terms.2.width=100_000_000", "terms.2.width"),
        ("ofa", "terms.2.gamma=1e9", "terms.2.gamma"),
        ("ofa", "terms.2.stages=[2, 9]", "terms.2.stages.1"),
        ("ofa", "terms.2.stages=[2, 2]", "terms.2.exits"),
        ("fuse-before-transfer", "terms.2.pairs=[]", "terms.2.pairs"),
        ("gkd", "stages.0.steps=-1", "stages.0.steps"),
        ("gkd", "stages.0.warm_up=4000", "stages.0"),
        ("patch-swap", "data.swap.rows=1_000_000", "data.swap.rows"),
        ("patch-swap", "data.swap={rows=1, columns=1}", "data.swap"),
        ("patch-swap", "data.swap.share=[0.5, 0.2]", "data.swap"),
        ("patch-swap", "like=gaitkd", "like"),
    ],
)
def test_a_setting_that_no_method_could_bear_is_refused_by_name(
    name: str, setting: str, key: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load(name, settings=[setting])
    assert where(caught.value) == [key]


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("gdkd", ["terms.2={kind='views'}"], "data.strong: the term views compares two views"),
        ("gdkd", ["terms.2={kind='mutual'}"], "data.swap: the term mutual"),
        ("gdkd", ["terms.2={kind='query'}"], "data.masked: the term query reads a masked view"),
        ("gdkd", ["data.masked={}"], "data.masked: no term reads it"),
        ("patch-swap", ["batch.sequences=1"], "two walks of a person"),
        ("ofa", ["data.clip={kind='random_length'}"], "clips of one length"),
        ("gaitkd-corrected", ["distillation.teachers=best"], "ranking is not taken walk by walk"),
        ("gkd", ["distillation.teachers=best"], "query is not taken walk by walk"),
        ("ofa", ["distillation.teachers=best"], "exits is not taken walk by walk"),
        ("gkd", ["stages.0.terms.2={kind='exits'}"], "exits needs identities, and a stage"),
        ("corsd", ["student.frozen_stages=4"], "frozen_stages needs a checkpoint, or stages"),
        ("gkd", ["stages.0.terms.2={kind='relation'}"], "relation needs identities, and a stage"),
        ("gkd", ["stages.0.terms.2={kind='triplet'}"], "triplet needs identities"),
        ("gkd", ["stages=[]", "data={}"], "frozen_stages needs a checkpoint, or stages before"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_the_reason(
    name: str, settings: list[str], reason: str
) -> None:
    with pytest.raises(RecipeError, match=reason):
        load(name, settings=settings)


@pytest.mark.parametrize("teachers", [1, 3])
def test_alternating_takes_two_teachers(teachers: int) -> None:
    with pytest.raises(RecipeError, match=f"two teachers, not {teachers}"):
        load("asdt", teachers=[Path("t")] * teachers)


def test_a_recipe_like_another_sets_only_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "gdkd"\nseed = 4\n[distillation]\nramp = 0.25\n')
    mine, base = load(str(path)), load("gdkd")
    changed = base.distillation.model_copy(update={"ramp": 0.25})
    assert mine == base.model_copy(update={"seed": 4, "distillation": changed})
    path.write_text('like = "/etc/passwd"\n')
    with pytest.raises(RecipeError, match="no shipped recipe"):
        load(str(path))


def test_stages_come_before_the_runs_own_terms_with_batches_of_their_own() -> None:
    recipe = load("gkd", settings=["stages.0.steps=300"], dataset=Path("d.pack"))
    first, last = recipe.in_stages()
    assert (first.steps, last.steps, recipe.total_steps) == (300, 2000, 2300)
    assert (first.student.frozen_stages, last.student.frozen_stages) == (0, 4)
    assert (first.data.masked is not None, last.data.masked) == (True, None)
    assert first.seed != last.seed == recipe.seed
    assert not first.stages + last.stages
