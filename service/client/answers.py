"""Answers of the service as typed records; unknown fields of a newer service are ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def of(cls, response: httpx.Response) -> Self:
        """Parse a successful response; raises `pydantic.ValidationError` if it does not fit."""
        return cls.model_validate_json(response.content)


class Page(Answer, Generic[T]):
    """One page of a list, and the cursor of the next."""

    items: list[T]
    next_cursor: str | None


class ModelReference(Answer):
    """The checkpoint that made the embeddings."""

    name: str
    digest: str


class Quality(Answer):
    """How good a sequence is: a score in [0, 1] and codes of what could be better."""

    score: float
    issues: list[str]


class EnrolledSequence(Answer):
    """One enrolled sequence; the same walk may have been enrolled before."""

    sequence_id: str
    frames: int
    quality: Quality
    already_enrolled: bool = False


class Resemblance(Answer):
    """How alike a walk is to a subject."""

    subject_id: str
    similarity: float | None
    sequence_id: str | None


class EnrolmentConflict(Answer):
    """A walk that may be another subject's."""

    where: str
    reason: str
    own: Resemblance
    other: Resemblance


class Coverage(Answer):
    """The views and conditions in which a subject is enrolled, and those that are missing."""

    sequences: int
    views: list[str]
    conditions: list[str]
    missing_views: list[str]
    missing_conditions: list[str]
    advice: list[str]


class Enrolment(Answer):
    """What an enrolment added, and which conflicts were accepted."""

    gallery: str
    subject_id: str
    sequences: list[EnrolledSequence]
    model: ModelReference
    conflicts: list[EnrolmentConflict] = []
    coverage: Coverage | None = None
    replayed: bool = False
    """Whether this is the answer to an earlier request with the same key."""

    @classmethod
    def of(cls, response: httpx.Response) -> Self:
        """Parse a response, whose header says whether it is replayed."""
        replayed = response.headers.get("Idempotency-Replayed") == "true"
        return super().of(response).model_copy(update={"replayed": replayed})


class ProbeSequence(Answer):
    """One walk that was searched for."""

    frames: int
    quality: Quality
    input: str
    segmenter: str | None
    track: int | None
    from_s: float | None
    to_s: float | None


class Probe(ProbeSequence):
    """The walks that were searched for: their frames together, the lowest quality, and each."""

    sequences: list[ProbeSequence] = []


class Candidate(Answer):
    """An enrolled subject who may be the probe; `parts`, head to feet, only when explained.

    `display_name` and `metadata` only with `include="metadata"`; `gallery` and its `threshold` only
    where several galleries were searched.
    """

    rank: int
    gallery: str | None = None
    subject_id: str
    similarity: float
    margin: float | None
    threshold: float | None = None
    sequence_id: str
    seen_from_this_view: bool | None = None
    parts: list[float] | None = None
    display_name: str | None = None
    metadata: dict[str, Any] = {}


class Search(Answer):
    """What the answers to `identify` and `verify` share."""

    search_id: str
    gallery: str
    threshold: float
    threshold_source: Literal["request", "gallery", "model"]
    operating_point: dict[str, Any] | None
    probe: Probe
    model: ModelReference
    took_ms: float


class SearchedGallery(Answer):
    """One of several galleries that were searched, and what decides in it."""

    gallery: str
    threshold: float
    threshold_source: Literal["request", "gallery", "model"]
    operating_point: dict[str, Any] | None
    model: ModelReference


class Identification(Search):
    """The answer to `identify`.

    Of several galleries, `gallery`, its threshold and model are those of the first candidate, and
    `galleries` lists all.
    """

    decision: Literal["match", "no_match"]
    galleries: list[SearchedGallery] = []
    candidates: list[Candidate]


class Verification(Search):
    """The answer to `verify`; `display_name` and `metadata` only with `include="metadata"`."""

    subject_id: str
    verified: bool
    similarity: float
    sequence_id: str
    seen_from_this_view: bool | None = None
    display_name: str | None = None
    metadata: dict[str, Any] = {}


class Gain(Answer):
    """How much more often people are told apart who took no part in a fit, with its interval."""

    value: float
    interval: tuple[float, float]


class Scene(Answer):
    """What the newest fit of a gallery's scene transform came to, and whether it is in use."""

    used: bool
    fitted_at: datetime
    revision: int
    gain: Gain


class Cohort(Answer):
    """How many walks of whoever passed are in a gallery's sums."""

    walks_seen: int


class Gallery(Answer):
    """A gallery and its size."""

    name: str
    subjects: int
    sequences: int
    model: ModelReference
    operating_point: dict[str, Any] | None
    metadata: dict[str, Any]
    created_at: datetime
    previous_model: ModelReference | None = None
    max_age_days: int | None = None
    scene: Scene | None = None


class Import(Answer):
    """A gallery imported; `sequence_ids` are "kept" or "new", embeddings "taken" or "left"."""

    gallery: Gallery
    sequence_ids: str
    embeddings: dict[str, int]


class Subject(Answer):
    """One enrolled subject, in a list: `sequences` counts."""

    subject_id: str
    gallery: str
    sequences: int
    created_at: datetime
    display_name: str | None = None
    metadata: dict[str, Any] = {}


class Sequence(Answer):
    """An enrolled sequence, without its silhouettes."""

    sequence_id: str
    gallery: str
    subject_id: str
    frames: int
    quality: Quality
    metadata: dict[str, Any]
    created_at: datetime


class SubjectDetails(Answer):
    """One enrolled subject with every sequence, oldest first."""

    subject_id: str
    gallery: str
    sequences: list[Sequence]
    created_at: datetime
    coverage: Coverage | None = None
    display_name: str | None = None
    metadata: dict[str, Any] = {}


class ErasureReceipt(Answer):
    """What was erased: `erased` counts subjects, sequences and embeddings.

    `models` learned from an erased subject; `jobs` were cancelled because they were about to.
    `scene` is "dropped" if a scene transform was that those erased had a share in. `vectors` says
    what Milvus has of them, if galleries are searched there. `traces` in the database's files are
    "cleared", or "left" until the next sweep. `keys` of their walks are "ended", or "pending" until
    the next sweep, where walks have keys of their own.
    """

    receipt_id: str
    gallery: str
    subject_id: str | None
    erased: dict[str, int]
    sequence_ids: list[str]
    erased_at: datetime
    models: list[str] = []
    jobs: list[str] = []
    scene: Literal["dropped"] | None = None
    vectors: Literal["deleted", "pending"] | None = None
    traces: Literal["cleared", "left"] = "left"
    keys: Literal["ended", "pending"] | None = None


class JobProgress(Answer):
    """How far a job is; `fraction` in [0, 1], `eta_s` in seconds."""

    fraction: float
    step: int
    total_steps: int | None
    eta_s: float | None


class Job(Answer):
    """One job."""

    id: str
    type: str
    status: Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
    needs: dict[str, float] = {}
    waiting_for: str | None = None
    progress: JobProgress
    metrics: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.status in ENDED


ENDED = ("succeeded", "failed", "cancelled")
"""The statuses of a job that has ended."""


class JobEvent(Answer):
    """One event of a job."""

    sequence: int
    kind: str
    data: dict[str, Any]

    @property
    def last(self) -> bool:
        """Whether it ends the job."""
        return self.kind == "status" and self.data["status"] in ENDED


class ModelSummary(Answer):
    """One registered model, and the galleries that use it or may go back to it.

    `headline` has the rank-1 of each evaluation on its card.
    """

    name: str
    source: str
    digest: str
    architecture: str | None = None
    parameters: int | None = None
    weights_bytes: int | None = None
    headline: dict[str, float] = {}
    active_in: list[str] = []
    previous_in: list[str] = []
    job_id: str | None
    created_at: datetime | None


class Model(ModelSummary):
    """One registered model with its whole card."""

    metrics: dict[str, Any]
    card: dict[str, Any]


class Health(Answer):
    """The process answers."""

    status: str


class Readiness(Answer):
    """The service is ready, and this model serves."""

    status: str
    model: ModelReference
