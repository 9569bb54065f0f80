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
    BaseModel,
    ConfigDict,
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
from training.data.options import Augmentation, Clip, OrderedClip

Share = Annotated[float, Field(ge=0, lt=1)]
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


class Section(BaseModel):
    """A part of a recipe: immutable, typed strictly, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Student(Section):
    """The network to train: built anew, or started from a checkpoint."""

    architecture: str | None = None
    config: dict[str, JsonValue] = {}
    checkpoint: Annotated[Path, Field(strict=False)] | None = None
    frozen_stages: int = Field(
        default=0,
        ge=0,
        le=3,
        description="The stem and so many first stages keep their weights and batch statistics.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        if self.architecture is None and self.checkpoint is None:
            raise ValueError("name an architecture, or a checkpoint to start from")
        if self.architecture is None and self.config:
            raise ValueError("config belongs to an architecture; a checkpoint brings its own")
        if self.frozen_stages and self.checkpoint is None:
            raise ValueError("frozen_stages needs a checkpoint, or what is random would stay so")
        return self


class Teacher(Section):
    """A frozen network to learn from."""

    checkpoint: Annotated[Path, Field(strict=False)]


class Data(Section):
    """Which walks, cut to which clips and varied how."""

    dataset: Annotated[Path, Field(strict=False)] | None = None
    clip: Clip = OrderedClip()
    augmentation: Augmentation = Augmentation()
    validation: Share = Field(
        default=0.0,
        description="Share of the training subjects held out, to watch a run and choose by; "
        "0 evaluates on the pack's test subjects, if it has any.",
    )


class Batch(Section):
    """Subjects x sequences of each, over all processes together."""

    subjects: Annotated[int, Field(ge=2)] = 8
    sequences: Annotated[int, Field(ge=1)] = 4


class Term(Section):
    """A weighted part of the objective."""

    weight: NonNegativeFloat = 1.0


class TripletTerm(Term):
    """Batch-all triplet loss on the embeddings."""

    kind: Literal["triplet"]
    margin: PositiveFloat = 0.2


class CrossEntropyTerm(Term):
    """Identity cross-entropy on the logits."""

    kind: Literal["cross-entropy"]
    scale: PositiveFloat = 16.0
    smoothing: Share = 0.1


class InformativeTemperature(Section):
    """A temperature that leaves half of the probability on the true identity."""

    gap: Annotated[float, Field(gt=0, le=2)] = 0.8


Temperature = PositiveFloat | InformativeTemperature


class LogitTerm(Term):
    """The teacher's softened identity distribution, part by part."""

    kind: Literal["logit"]
    temperature: Temperature = 4.0
    scale: PositiveFloat = 16.0


class LogitRegressionTerm(Term):
    """Squared difference of scaled logits."""

    kind: Literal["logit-regression"]
    scale: PositiveFloat = 16.0


class DecoupledTerm(Term):
    """Decoupled logit distillation."""

    kind: Literal["decoupled"]
    temperature: Temperature = 4.0
    target_weight: NonNegativeFloat = 1.0
    rest_weight: NonNegativeFloat = 8.0
    scale: PositiveFloat = 16.0


class BoundaryTerm(Term):
    """The side of zero on which the teacher's coordinates lie."""

    kind: Literal["boundary"]
    margin: PositiveFloat = 1.0
    relative: bool = Field(
        default=False, description="The margin counts in the teacher's own mean magnitudes."
    )
    connector: bool = Field(
        default=False,
        description="Compare behind a linear map per teacher and part. The margin then counts in "
        "units of the map's output, which starts with unit variance.",
    )

    @model_validator(mode="after")
    def _one_unit(self) -> BoundaryTerm:
        if self.relative and self.connector:
            raise ValueError(
                "behind a connector the margin is relative already: leave relative out"
            )
        return self


class HintTerm(Term):
    """The teacher's embedding itself."""

    kind: Literal["hint"]
    connector: bool = True


class RankingTerm(Term):
    """Whom the teacher finds near whom."""

    kind: Literal["ranking"]
    temperature: PositiveFloat = 0.1
    per_part: bool = True


class RelationTerm(Term):
    """The teacher's distances, balanced between pairs of one and of two identities."""

    kind: Literal["relation"]
    delta: PositiveFloat = 0.5


LabelTerm = TripletTerm | CrossEntropyTerm
IdentityTerm = LogitTerm | LogitRegressionTerm | DecoupledTerm
"""Terms on a teacher's logits of the same identities: its own, or `training.derive.prototypes`."""
CoordinateTerm = BoundaryTerm | HintTerm
"""Terms on a teacher's coordinates: they need its width, or a connector."""
DistanceTerm = RankingTerm | RelationTerm
"""Terms on distances: any teacher will do."""
DistillationTerm = IdentityTerm | CoordinateTerm | DistanceTerm
AnyTerm = Annotated[LabelTerm | DistillationTerm, Field(discriminator="kind")]


class Distillation(Section):
    """What holds for every term that has a teacher."""

    teachers: Literal["mean", "sum"] = Field(
        default="mean",
        description="mean keeps the total weight when a teacher is added; sum is published.",
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


class Recipe(Section):
    """The whole run."""

    description: str = ""
    seed: NonNegativeInt = 0
    steps: PositiveInt
    student: Student
    teachers: Annotated[tuple[Teacher, ...], Field(strict=False)] = ()
    data: Data = Data()
    batch: Batch = Batch()
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

    @property
    def distils(self) -> bool:
        """Whether any term has a teacher."""
        return any(isinstance(term, DistillationTerm) for term in self.terms)

    @property
    def connects(self) -> bool:
        """Whether any term compares behind a connector."""
        return any(isinstance(term, CoordinateTerm) and term.connector for term in self.terms)


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
    content = _read(name_or_path)
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
    if wanted and not recipe.teachers:
        raise RecipeError(
            [Problem("teachers", "distilling needs at least one (--teacher); without, use train")]
        )
    if wanted and not recipe.distils:
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
