"""What a recipe can ask of an objective: weighted terms and their options.

Imports no torch, so that a recipe is checked quickly. `training.objective.registry` has what each
kind computes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

Share = Annotated[float, Field(ge=0, lt=1)]
Scale = PositiveFloat  # multiplies cosine logits before any softmax


class Section(BaseModel):
    """A part of a recipe: immutable, typed strictly, finite, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Term(Section):
    """A weighted part of the objective.

    Attributes:
        taught: whether it has a teacher.
        asks_labels: whether it reads the student's identities.
        asks_identities: whether it reads a teacher's logits of the same identities: its own, or
            `training.derive.prototypes`.
        asks_stages: whether it reads the maps between the student's stages.
        by_sequence: whether it is a mean over sequences, so that each can have its own teacher.
        reads_views: whether it compares the views of a clip; others are summed over the views.
    """

    taught: ClassVar[bool] = True
    asks_labels: ClassVar[bool] = False
    asks_identities: ClassVar[bool] = False
    asks_stages: ClassVar[bool] = False
    by_sequence: ClassVar[bool] = False
    reads_views: ClassVar[bool] = False

    weight: NonNegativeFloat = 1.0

    @property
    def compares_coordinates(self) -> bool:
        """Whether it compares with a teacher coordinate by coordinate: of one width."""
        return False

    @property
    def connects(self) -> bool:
        """Whether it compares behind a connector, which brings the student to any width."""
        return False


class InformativeTemperature(Section):
    """A temperature that leaves half of the probability on the true identity."""

    gap: Annotated[float, Field(gt=0, le=2)] = 0.8


Temperature = PositiveFloat | InformativeTemperature


class TripletTerm(Term):
    """Batch-all triplet loss on the embeddings."""

    taught: ClassVar[bool] = False
    asks_labels: ClassVar[bool] = True

    kind: Literal["triplet"]
    margin: PositiveFloat = 0.2


class CrossEntropyTerm(Term):
    """Identity cross-entropy on the logits."""

    taught: ClassVar[bool] = False
    asks_labels: ClassVar[bool] = True

    kind: Literal["cross-entropy"]
    scale: Scale = 16.0
    smoothing: Share = 0.1


class MutualTerm(Term):
    """Two walks of one person, parts of them swapped, agree on who it is."""

    taught: ClassVar[bool] = False
    asks_labels: ClassVar[bool] = True

    kind: Literal["mutual"]
    temperature: Temperature = InformativeTemperature()
    stop_gradient: bool = Field(
        default=False, description="Each of the two is a fixed target for the other."
    )
    scale: Scale = 16.0


class RelationNetworksTerm(Term):
    """What the deepest stage finds of pairs of walks, taught to the stages before."""

    taught: ClassVar[bool] = False
    asks_labels: ClassVar[bool] = True
    asks_stages: ClassVar[bool] = True

    kind: Literal["relation-networks"]
    width: Annotated[int, Field(ge=1, le=1024)] = 64
    temperature: PositiveFloat = 3.0
    margin: PositiveFloat = 1.0
    score_weight: NonNegativeFloat = 0.01
    positive_weight: NonNegativeFloat = 0.16
    positive_label_weight: NonNegativeFloat = 0.04
    negative_weight: NonNegativeFloat = 0.04
    negative_label_weight: NonNegativeFloat = 0.01
    triplet_weight: NonNegativeFloat = 0.01
    average_weight: NonNegativeFloat = Field(
        default=0.01, description="Of the relation to each identity's average of distributions."
    )
    average_decay: Share = 0.9


class LogitTerm(Term):
    """The teacher's softened identity distribution, part by part."""

    asks_identities: ClassVar[bool] = True
    by_sequence: ClassVar[bool] = True

    kind: Literal["logit"]
    temperature: Temperature = 4.0
    standardise: bool = Field(
        default=False, description="Logits of mean 0 and variance 1 instead of the scale."
    )
    scale: Scale = 16.0


class LogitRegressionTerm(Term):
    """Squared difference of scaled logits."""

    asks_identities: ClassVar[bool] = True
    by_sequence: ClassVar[bool] = True

    kind: Literal["logit-regression"]
    scale: Scale = 16.0


class DecoupledTerm(Term):
    """Decoupled logit distillation."""

    asks_labels: ClassVar[bool] = True
    asks_identities: ClassVar[bool] = True
    by_sequence: ClassVar[bool] = True

    kind: Literal["decoupled"]
    temperature: Temperature = 4.0
    target_weight: NonNegativeFloat = 1.0
    rest_weight: NonNegativeFloat = 8.0
    warm_up: Share = Field(default=0.0, description="Share of the run in which it rises from 0.")
    scale: Scale = 16.0


class GeneralisedTerm(Term):
    """Logit distillation decoupled by the teacher's likeliest identities."""

    asks_identities: ClassVar[bool] = True
    by_sequence: ClassVar[bool] = True

    kind: Literal["generalised"]
    top: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    shared: bool = Field(
        default=True, description="One set a walk, of its parts' mean, and not one a part."
    )
    temperature: Temperature = 1.5
    group_weight: NonNegativeFloat = 1.0
    top_weight: NonNegativeFloat = 1.0
    rest_weight: NonNegativeFloat = 4.0
    warm_up: Share = Field(default=0.08, description="Share of the run in which it rises from 0.")
    scale: Scale = 16.0


class ViewsTerm(Term):
    """Weak and strong views of a clip: each of the student's learns from both of the teacher's."""

    asks_identities: ClassVar[bool] = True
    reads_views: ClassVar[bool] = True

    kind: Literal["views"]
    temperature: Temperature = 4.0
    within_weight: NonNegativeFloat = 2.0
    across_weight: NonNegativeFloat = 0.5
    weak_gate: Annotated[float, Field(ge=0, le=1)] = 0.9
    strong_gate: Annotated[float, Field(ge=0, le=1)] = 0.2
    embedding_weight: NonNegativeFloat = 1.0
    connector: bool = False
    scale: Scale = 16.0

    @property
    def compares_coordinates(self) -> bool:
        """Its embeddings, unless they have no weight."""
        return self.embedding_weight > 0

    @property
    def connects(self) -> bool:
        """As chosen."""
        return self.connector and self.compares_coordinates


class ExitsTerm(Term):
    """Classifiers behind the student's stages, each taught the adaptive target."""

    asks_labels: ClassVar[bool] = True
    asks_identities: ClassVar[bool] = True
    asks_stages: ClassVar[bool] = True

    kind: Literal["exits"]
    stages: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4)], ...], Field(strict=False, max_length=4)
    ] = (2, 3, 4)
    heads: Literal["own", "tied"] = Field(
        default="own", description="tied: an exit's classifier is the teacher's, frozen."
    )
    gamma: Annotated[float, Field(ge=1, le=8)] = 1.25
    final_weight: NonNegativeFloat = Field(
        default=1.0, description="Of the same loss of the student's own logits."
    )
    exit_weight: NonNegativeFloat = 0.5
    temperature: PositiveFloat = 1.0
    scale: Scale = 16.0

    @model_validator(mode="after")
    def _each_stage_once(self) -> ExitsTerm:
        if len(set(self.stages)) != len(self.stages):
            raise ValueError("a stage has one exit: name each once")
        return self


FusionPair = Literal["teacher-student", "teacher-fusion", "fusion-student"]


class FusionTerm(Term):
    """A third model, of the student's first stages and the teacher's last, between the two."""

    asks_labels: ClassVar[bool] = True
    asks_identities: ClassVar[bool] = True
    asks_stages: ClassVar[bool] = True

    kind: Literal["fusion"]
    pairs: Annotated[tuple[FusionPair, ...], Field(strict=False, min_length=1, max_length=3)] = (
        "teacher-student",
        "teacher-fusion",
        "fusion-student",
    )
    contrast_weight: NonNegativeFloat = 1.0
    contrast_temperature: PositiveFloat = Field(default=0.07, description="Where learning starts.")
    mask_same_identity: bool = True
    identity_weight: NonNegativeFloat = 1.0
    gamma: Annotated[float, Field(ge=1, le=8)] = 1.5
    temperature: PositiveFloat = 1.0
    trainable: bool = Field(
        default=False, description="Whether its copy of the teacher's last stage and head learns."
    )
    connector: bool = True
    scale: Scale = 16.0

    @model_validator(mode="after")
    def _each_pair_once(self) -> FusionTerm:
        if len(set(self.pairs)) != len(self.pairs):
            raise ValueError("name each pair once")
        return self

    @property
    def compares_coordinates(self) -> bool:
        """The student's with the teacher's or the fusion's, which has the teacher's width."""
        return self.contrast_weight > 0 and self.pairs != ("teacher-fusion",)

    @property
    def connects(self) -> bool:
        """As chosen."""
        return self.connector and self.compares_coordinates


class CorrelationTerm(Term):
    """Probabilities that rise and fall with the teacher's."""

    asks_identities: ClassVar[bool] = True

    kind: Literal["correlation"]
    temperature: Temperature = 4.0
    between_weight: NonNegativeFloat = 2.0
    within_weight: NonNegativeFloat = 2.0
    scale: Scale = 16.0


class BoundaryTerm(Term):
    """The side of zero on which the teacher's coordinates lie."""

    by_sequence: ClassVar[bool] = True

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

    @property
    def compares_coordinates(self) -> bool:
        """Always."""
        return True

    @property
    def connects(self) -> bool:
        """As chosen."""
        return self.connector


class HintTerm(Term):
    """The teacher's embedding itself."""

    by_sequence: ClassVar[bool] = True

    kind: Literal["hint"]
    connector: bool = True

    @property
    def compares_coordinates(self) -> bool:
        """Always."""
        return True

    @property
    def connects(self) -> bool:
        """As chosen."""
        return self.connector


class RankingTerm(Term):
    """Whom the teacher finds near whom."""

    kind: Literal["ranking"]
    temperature: PositiveFloat = 0.1
    per_part: bool = True


class RelationTerm(Term):
    """The teacher's distances, balanced between pairs of one and of two identities."""

    asks_labels: ClassVar[bool] = True

    kind: Literal["relation"]
    delta: PositiveFloat = 0.5


class AnglesTerm(Term):
    """The teacher's distances and angles, all alike."""

    kind: Literal["angles"]
    distance_weight: NonNegativeFloat = 25.0
    angle_weight: NonNegativeFloat = 50.0


class QueryTerm(Term):
    """The teacher's parts ask the student's parts for themselves, also where some are masked."""

    reads_views: ClassVar[bool] = True

    kind: Literal["query"]
    width: Annotated[int, Field(ge=1, le=1024)] = 64
    part_weight: NonNegativeFloat = 1.0
    masked_weight: NonNegativeFloat = 1.0
    mean_weight: NonNegativeFloat = 1.0


OwnTerm = TripletTerm | CrossEntropyTerm | MutualTerm | RelationNetworksTerm
"""Terms without a teacher."""
DistillationTerm = (
    LogitTerm
    | LogitRegressionTerm
    | DecoupledTerm
    | GeneralisedTerm
    | CorrelationTerm
    | ViewsTerm
    | ExitsTerm
    | FusionTerm
    | BoundaryTerm
    | HintTerm
    | RankingTerm
    | RelationTerm
    | AnglesTerm
    | QueryTerm
)
"""Terms with a teacher."""
AnyTerm = Annotated[OwnTerm | DistillationTerm, Field(discriminator="kind")]
