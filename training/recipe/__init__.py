"""A recipe: one validated file that fully describes a run.

Imports no torch, so that a recipe is checked quickly.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from models.card import Metric
from training.data.options import (
    Augmentation,
    Clip,
    Masking,
    OrderedClip,
    RandomLengthClip,
    Swap,
)
from training.recipe.terms import (
    AnyTerm,
    CrossEntropyTerm,
    MutualTerm,
    QueryTerm,
    Section,
    Share,
    TripletTerm,
    ViewsTerm,
)

_SEEDS_BETWEEN = 1_000_003
_RENDERING = "render-"  # recipes of rendered datasets lie in the same folder


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where in the recipe (dotted keys)."""

    where: str
    reason: str


class RecipeError(ValueError):
    """A recipe that cannot be run.

    Attributes:
        problems: everything found, not only the first.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "; ".join(f"{p.where}: {p.reason}" if p.where else p.reason for p in self.problems)
        )


class Student(Section):
    """The network to train: built anew, or started from a checkpoint."""

    architecture: str | None = None
    config: dict[str, JsonValue] = Field(default_factory=dict)
    checkpoint: Annotated[Path, Field(strict=False)] | None = None
    frozen_stages: int = Field(
        default=0,
        ge=0,
        le=4,
        description="The stem and so many first stages keep their weights and batch statistics.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        if self.architecture is None and self.checkpoint is None:
            raise ValueError("name an architecture, or a checkpoint to start from")
        if self.architecture is None and self.config:
            raise ValueError("config belongs to an architecture; a checkpoint brings its own")
        return self


class Teacher(Section):
    """A frozen network to learn from."""

    checkpoint: Annotated[Path, Field(strict=False)]


class Data(Section):
    """Which walks, cut to which clips and varied how."""

    dataset: Annotated[Path, Field(strict=False)] | None = None
    clip: Clip = OrderedClip()
    augmentation: Augmentation = Augmentation()
    strong: Augmentation | None = Field(
        default=None, description="A second view of each clip, which teachers see as well."
    )
    masked: Masking | None = Field(
        default=None,
        description="A view for the student alone: the first, parts of it gone.",
    )
    swap: Swap | None = Field(
        default=None, description="Before all of them: two walks of a person exchange parts."
    )
    validation: Share = Field(
        default=0.0,
        description="Share of the training subjects held out, to watch a run and choose by; "
        "0 evaluates on the pack's test subjects, if it has any.",
    )


class Batch(Section):
    """Subjects x sequences of each, over all processes together."""

    subjects: Annotated[int, Field(ge=2)] = 8
    sequences: Annotated[int, Field(ge=1)] = 4
    same_scene: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="Subjects of a batch who are filmed in one scene, each with walks from other "
        "scenes too; 1: scenes do not count.",
    )


class Distillation(Section):
    """What holds for every term that has a teacher."""

    teachers: Literal["mean", "sum", "alternate", "best", "random"] = Field(
        default="mean",
        description="mean keeps the total weight when a teacher is added; sum is GaitKD's. The "
        "others choose one: by a square wave over the steps, for each walk by the lowest "
        "cross-entropy, or by chance in each step.",
    )
    period: PositiveInt = Field(default=100, description="Steps of the square wave.")
    duty: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="Share of a period in which the first teacher teaches."
    )
    parts: Literal["overlap", "truncate"] = Field(
        default="overlap",
        description="Teachers' parts mixed by overlap, or cut to the first ones (published).",
    )
    assume_same_identities: bool = Field(
        default=False,
        description="Trust that a teacher whose card does not prove it lists the same identities "
        "in the same order.",
    )
    prototypes: bool = Field(
        default=False,
        description="A teacher that was not trained on the student's identities tells them apart "
        "by the mean of each one's walks.",
    )
    ramp: Share = Field(
        default=0.0, description="Share of the run over which the terms' weights rise from 0."
    )


class SGD(Section):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"]
    learning_rate: PositiveFloat = 0.1
    momentum: Share = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    nesterov: bool = False


class AdamW(Section):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"]
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.02


class MultiStep(Section):
    """The learning rate falls by a factor at each milestone."""

    kind: Literal["multistep"]
    milestones: Annotated[tuple[PositiveInt, ...], Field(strict=False)]
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    warm_up: NonNegativeInt = 0


class Cosine(Section):
    """The learning rate falls along half a cosine to a share of where it began."""

    kind: Literal["cosine"]
    final: Share = 0.01
    warm_up: NonNegativeInt = 0


class Evaluation(Section):
    """How held-out walks are judged during the run and at its end."""

    protocol: str = Field(
        default="auto", description="A protocol's name, or auto: the one that fits the walks."
    )
    every: NonNegativeInt = Field(default=0, description="Steps; 0 evaluates only at the end.")
    enrolled: tuple[str, ...] = Field(
        default=(), strict=False, description="Instead of a protocol: conditions, as patterns."
    )
    asked: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = Field(
        default={}, description="And those that are asked, by the name that their figures get."
    )
    apart: Annotated[float, Field(ge=0, le=180)] = Field(
        default=0.0, description="Degrees up to which views count as the same."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Evaluation:
        own = bool(self.enrolled) and bool(self.asked) and all(self.asked.values())
        if (self.enrolled or self.asked) and not own:
            raise ValueError("enrolled and asked belong together, each with a condition")
        if own and self.protocol != "auto":
            raise ValueError("give either a protocol, or enrolled and asked")
        if self.apart and not own:
            raise ValueError("apart belongs to enrolled and asked")
        return self


class Stage(Section):
    """Steps before the run's own: without labels, on any walks."""

    steps: PositiveInt
    dataset: Annotated[Path, Field(strict=False)] | None = Field(
        default=None, description="A pack whose identities do not matter; None: the run's."
    )
    terms: Annotated[tuple[AnyTerm, ...], Field(strict=False, min_length=1)]
    warm_up: NonNegativeInt = 0

    @model_validator(mode="after")
    def _without_labels(self) -> Stage:
        for index, term in enumerate(self.terms):
            if term.asks_labels or term.asks_identities or not term.taught:
                raise ValueError(
                    f"terms.{index}: {term.kind} needs identities, and a stage has none; it can "
                    "have boundary, hint, ranking and query"
                )
        if self.warm_up >= self.steps:
            raise ValueError("warm_up must be shorter than the stage")
        return self


class Recipe(Section):
    """The whole run."""

    description: str = ""
    needs: dict[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")],
        Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)],
    ] = Field(
        default={},
        exclude=True,  # no part of what is learnt: a run goes on elsewhere
        description="What a service's worker must have to run it: gpu, cpu, GiB of memory, …",
    )
    seed: NonNegativeInt = 0
    steps: PositiveInt
    student: Student
    teachers: Annotated[tuple[Teacher, ...], Field(strict=False)] = ()
    data: Data = Data()
    batch: Batch = Batch()
    stages: Annotated[tuple[Stage, ...], Field(strict=False, max_length=8)] = ()
    terms: Annotated[tuple[AnyTerm, ...], Field(strict=False)]
    distillation: Distillation = Distillation()
    optimiser: Annotated[SGD | AdamW, Field(discriminator="kind")] = SGD(kind="sgd")
    schedule: Annotated[MultiStep | Cosine, Field(discriminator="kind")] = Cosine(kind="cosine")
    metric: Metric = Field(
        default="euclidean", description="How embeddings of the result are compared."
    )
    mirror: bool = Field(
        default=False,
        description="Whether the result compares a walk together with its mirror image.",
    )
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    average: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Decay of the moving average of weights that is evaluated and saved.",
    )
    clip_gradient: PositiveFloat | None = None
    compile: bool = False
    log_every: PositiveInt = 20
    save_every: PositiveInt = 200
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if not self.terms:
            raise ValueError("terms: a run needs at least one")
        if isinstance(self.schedule, MultiStep):
            late = [m for m in self.schedule.milestones if m >= self.steps]
            if late or list(self.schedule.milestones) != sorted(set(self.schedule.milestones)):
                raise ValueError("schedule.milestones must rise and lie before the last step")
        if self.schedule.warm_up >= self.steps:
            raise ValueError("schedule.warm_up must be shorter than the run")
        if self.optimiser.kind == "sgd" and self.optimiser.nesterov and not self.optimiser.momentum:
            raise ValueError("optimiser.nesterov needs momentum")
        return self

    @model_validator(mode="after")
    def _views_suit_the_terms(self) -> Recipe:
        data = self.data
        terms = self._all_terms
        if data.strong is None and any(isinstance(term, ViewsTerm) for term in terms):
            raise ValueError(
                "data.strong: the term views compares two views; say what the second one is"
            )
        masking = [term for term in terms if isinstance(term, QueryTerm) and term.masked_weight]
        if data.masked is None and masking:
            raise ValueError(
                "data.masked: the term query reads a masked view; say what is masked, or set its "
                "masked_weight to 0"
            )
        if data.masked is not None and not masking:
            raise ValueError("data.masked: no term reads it; add query, or leave it out")
        if data.swap is None and any(isinstance(term, MutualTerm) for term in terms):
            raise ValueError("data.swap: the term mutual compares walks that exchanged parts")
        if data.swap is not None and self.batch.sequences < 2:
            raise ValueError("batch.sequences: data.swap takes two walks of a person")
        if isinstance(data.clip, RandomLengthClip):
            for term in terms:
                if term.asks_stages:
                    raise ValueError(
                        f"data.clip: {term.kind} reads the student's maps, which needs clips of "
                        "one length"
                    )
        return self

    @model_validator(mode="after")
    def _teachers_suit_the_terms(self) -> Recipe:
        choice = self.distillation.teachers
        if choice == "alternate" and self.teachers and len(self.teachers) != 2:
            raise ValueError(
                f"distillation.teachers: alternating takes two teachers, not {len(self.teachers)}"
            )
        if choice == "best":
            for term in self._all_terms:
                if term.taught and not term.by_sequence:
                    raise ValueError(
                        f"distillation.teachers: {term.kind} is not taken walk by walk, so a "
                        "walk cannot have its own best teacher; leave the term out, or choose mean"
                    )
            if self.stages:
                raise ValueError(
                    "distillation.teachers: the best of a walk is judged by its label, and stages "
                    "have none; choose mean"
                )
        if self.student.frozen_stages and self.student.checkpoint is None and not self.stages:
            raise ValueError(
                "student.frozen_stages needs a checkpoint, or stages before, or what is random "
                "would stay so"
            )
        return self

    @property
    def _all_terms(self) -> tuple[AnyTerm, ...]:
        return (*(term for stage in self.stages for term in stage.terms), *self.terms)

    @property
    def distils(self) -> bool:
        """Whether any term has a teacher."""
        return any(term.taught for term in self._all_terms)

    @property
    def teaches_itself(self) -> bool:
        """Whether any term distils without a teacher."""
        return any(
            not isinstance(term, TripletTerm | CrossEntropyTerm) and not term.taught
            for term in self.terms
        )

    @property
    def connects(self) -> bool:
        """Whether any term compares behind a connector."""
        return any(term.connects for term in self.terms)

    @property
    def total_steps(self) -> int:
        """Steps of the stages and of the run's own terms."""
        return self.steps + sum(stage.steps for stage in self.stages)

    def in_stages(self) -> tuple[Recipe, ...]:
        """A recipe for each stage, and last the one of the run's own terms.

        A stage learns with the whole student. Its batches are drawn by a seed of its own, so that
        the stages do not see the same ones.
        """
        return (
            *(
                self.model_copy(
                    update={
                        "seed": self.seed + _SEEDS_BETWEEN * number,
                        "steps": stage.steps,
                        "stages": (),
                        "terms": stage.terms,
                        "schedule": Cosine(kind="cosine", warm_up=stage.warm_up),
                        "student": self.student.model_copy(update={"frozen_stages": 0}),
                        "data": self._data_for(stage.terms).model_copy(update={"swap": None}),
                    }
                )
                for number, stage in enumerate(self.stages, start=1)
            ),
            self.model_copy(update={"stages": (), "data": self._data_for(self.terms)}),
        )

    def _data_for(self, terms: Sequence[AnyTerm]) -> Data:
        """The data, without the masked view where no term reads it."""
        if any(isinstance(term, QueryTerm) and term.masked_weight for term in terms):
            return self.data
        return self.data.model_copy(update={"masked": None})


def shipped() -> tuple[str, ...]:
    """Names of the recipes of training runs that come with the package."""
    files = [Path(f.name) for f in (resources.files("training") / "recipes").iterdir()]
    toml = [f.stem for f in files if f.suffix == ".toml"]
    return tuple(sorted(name for name in toml if not name.startswith(_RENDERING)))


def load(
    name_or_path: str,
    *,
    settings: Sequence[str] = (),
    dataset: Path | None = None,
    teachers: Sequence[Path] = (),
    student: Path | None = None,
) -> Recipe:
    """Read a recipe and what the command line changes in it.

    Args:
        name_or_path: a TOML file, or the name of a shipped recipe.
        settings: `key.of.it=value` with the value in TOML; a bare word is a string. Numbers step
            into lists.
        dataset: replaces `data.dataset`.
        teachers: replace `teachers`.
        student: replaces `student.checkpoint`.

    Raises:
        RecipeError: naming every key that is wrong.
    """
    content = _whole(_read(name_or_path))
    for setting in settings:
        _apply(content, setting)
    if dataset is not None:
        _put(content, ("data", "dataset"), str(dataset))
    if teachers:
        content["teachers"] = [{"checkpoint": str(path)} for path in teachers]
    if student is not None:
        _put(content, ("student", "checkpoint"), str(student))
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(
            Problem(_key(content, e["loc"]), _sentence(e["type"], e["msg"]))
            for e in error.errors(include_url=False)
        ) from None


def missing_files(recipe: Recipe) -> tuple[Problem, ...]:
    """Datasets and checkpoints that the recipe names and that do not exist."""
    named = [("data.dataset", recipe.data.dataset, "index.json", "packed dataset")]
    named += [
        (f"teachers.{i}.checkpoint", teacher.checkpoint, "card.json", "checkpoint")
        for i, teacher in enumerate(recipe.teachers)
    ]
    named += [
        (f"stages.{i}.dataset", stage.dataset, "index.json", "packed dataset")
        for i, stage in enumerate(recipe.stages)
    ]
    named.append(("student.checkpoint", recipe.student.checkpoint, "card.json", "checkpoint"))
    return tuple(
        Problem(where, f"there is no {what} at {path}")
        for where, path, proof, what in named
        if path is not None and not (path / proof).is_file()
    )


def require_teachers(recipe: Recipe, *, wanted: bool) -> None:
    """Refuse a distillation without teachers, and plain training with what only teachers give.

    Raises:
        RecipeError: naming the other command.
    """
    if wanted and not recipe.teachers and (recipe.distils or not recipe.teaches_itself):
        raise RecipeError(
            [Problem("teachers", "distilling needs at least one (--teacher); without, use train")]
        )
    if wanted and recipe.teachers and not recipe.distils:
        raise RecipeError(
            [Problem("terms", "no term has a teacher; add one (logit, ranking, …), or use train")]
        )
    if not wanted and (recipe.teachers or recipe.distils):
        raise RecipeError(
            [Problem("teachers", "this recipe has teachers or their terms; use distill")]
        )


def _key(content: Any, location: tuple[int | str, ...]) -> str:
    """The dotted key of an error, without the names of choices that pydantic puts in between."""
    keys: list[str] = []
    place = content
    for depth, part in enumerate(location):
        try:
            place = place[part]
        except (KeyError, TypeError):
            if depth < len(location) - 1:
                continue  # the choice that was made: no key of the file
        keys.append(str(part))
    return ".".join(keys)


def _sentence(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "no such key"
    return message.removeprefix("Value error, ")


def _whole(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe that is `like` a shipped one has all of its keys that it does not set itself."""
    if "like" not in content:
        return content
    like = content.pop("like")
    if like not in shipped():
        raise RecipeError([Problem("like", f"no shipped recipe {like!r}")])
    base = _whole(_read(like))
    tables = {
        key: {**base[key], **value}
        for key, value in content.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return {**base, **content, **tables}


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    if name_or_path in shipped():
        text = (resources.files("training") / "recipes" / f"{name_or_path}.toml").read_text("utf-8")
    elif path.is_file():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            raise RecipeError([Problem("", f"{path} is not UTF-8 text")]) from None
    else:
        raise RecipeError(
            [
                Problem(
                    "",
                    f"no recipe {name_or_path!r}: neither a file nor one of {', '.join(shipped())}",
                )
            ]
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError([Problem("", f"{name_or_path} is not TOML: {error}")]) from None


def _apply(content: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise RecipeError([Problem(setting, "a setting is written key=value")])
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word, as a shell user writes it; the field's type decides
    _put(content, tuple(part.strip() for part in key.split(".")), value)


def _put(content: dict[str, Any], keys: tuple[str, ...], value: object) -> None:
    place: Any = content
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                raise RecipeError(
                    [Problem(".".join(keys), f"{key!r} is not an index into {len(place)} entries")]
                )
            index = int(key)
            if last:
                place[index] = value
            else:
                place = place[index]
        elif isinstance(place, dict):
            if last:
                place[key] = value
            else:
                place = place.setdefault(key, {})
        else:
            raise RecipeError([Problem(".".join(keys), f"nothing lies below {keys[depth - 1]!r}")])
