"""What the service answers, as typed records; what a newer service says beside that is ignored."""

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
        """From a successful response; raises `pydantic.ValidationError` when it is none."""
        return cls.model_validate_json(response.content)


class Page(Answer, Generic[T]):
    """Some items of a list, and where it goes on."""

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
    """One sequence that was enrolled, now or (the very same walk) before."""

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
    """In which views and conditions a subject is enrolled, and what is missing."""

    sequences: int
    views: list[str]
    conditions: list[str]
    missing_views: list[str]
    missing_conditions: list[str]
    advice: list[str]


class Enrolment(Answer):
    """What an enrolment added, and which conflicts it did in spite of."""

    gallery: str
    subject_id: str
    sequences: list[EnrolledSequence]
    model: ModelReference
    conflicts: list[EnrolmentConflict] = []
    coverage: Coverage | None = None
    replayed: bool = False
    """Whether this is the answer that an earlier request with the same key had."""

    @classmethod
    def of(cls, response: httpx.Response) -> Self:
        """From a response: a header says whether it is replayed."""
        replayed = response.headers.get("Idempotency-Replayed") == "true"
        return super().of(response).model_copy(update={"replayed": replayed})


class Probe(Answer):
    """What was made of the walk that was asked about."""

    frames: int
    quality: Quality


class Candidate(Answer):
    """One enrolled subject who may be the probe.

    `parts`, head to feet, are there only when explained, `display_name` only when asked for.
    """

    rank: int
    subject_id: str
    similarity: float
    margin: float | None
    sequence_id: str
    parts: list[float] | None = None
    display_name: str | None = None


ThresholdSource = Literal["request", "gallery", "model"]


class Identification(Answer):
    """The answer to `identify`."""

    search_id: str
    gallery: str
    decision: Literal["match", "no_match"]
    threshold: float
    threshold_source: ThresholdSource
    operating_point: dict[str, Any] | None
    candidates: list[Candidate]
    probe: Probe
    model: ModelReference
    took_ms: float


class Verification(Answer):
    """The answer to `verify`."""

    search_id: str
    gallery: str
    subject_id: str
    verified: bool
    similarity: float
    threshold: float
    threshold_source: ThresholdSource
    operating_point: dict[str, Any] | None
    sequence_id: str
    probe: Probe
    model: ModelReference
    took_ms: float
    display_name: str | None = None


class Gallery(Answer):
    """A gallery and how much is in it."""

    name: str
    subjects: int
    sequences: int
    model: ModelReference
    operating_point: dict[str, Any] | None
    metadata: dict[str, Any]
    created_at: datetime
    previous_model: ModelReference | None = None
    max_age_days: int | None = None


class Import(Answer):
    """What an import has made; `sequence_ids` are "kept" or "new", embeddings "taken" or "left"."""

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


class ErasureReceipt(Answer):
    """What an erasure took away: `erased` counts subjects, sequences and embeddings.

    `models` learned from an erased subject; `jobs` were cancelled because they were about to.
    """

    receipt_id: str
    gallery: str
    subject_id: str | None
    erased: dict[str, int]
    sequence_ids: list[str]
    erased_at: datetime
    models: list[str] = []
    jobs: list[str] = []


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
    progress: JobProgress
    metrics: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether the job will not change any more."""
        return self.status in ENDED


ENDED = ("succeeded", "failed", "cancelled")
"""The statuses of a job that will not change any more."""


class JobEvent(Answer):
    """One entry of a job's history."""

    sequence: int
    kind: str
    data: dict[str, Any]

    @property
    def last(self) -> bool:
        """Whether the job has ended with it."""
        return self.kind == "status" and self.data["status"] in ENDED


class Model(Answer):
    """One registered model, its card, and the galleries that use it or may go back to it."""

    name: str
    source: str
    digest: str
    metrics: dict[str, Any]
    card: dict[str, Any]
    job_id: str | None
    created_at: datetime | None
    active_in: list[str] = []
    previous_in: list[str] = []


class Health(Answer):
    """The process answers."""

    status: str


class Readiness(Answer):
    """The service is ready, and this model serves."""

    status: str
    model: ModelReference
