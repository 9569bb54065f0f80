"""What goes over the wire: one model an answer, made from the records of the use cases."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from service.gallery.coverage import Advice, Coverage
from service.gallery.fields import (
    METADATA_SCHEMA,
    DisplayName,
    GalleryName,
    MaxAgeDays,
    SubjectId,
)
from service.gallery.operating_point import OperatingPoint
from service.gallery.records import (
    ErasureReceipt,
    GalleryRecord,
    Metadata,
    ModelPin,
    SequenceQuality,
    SequenceRecord,
    SubjectRecord,
)
from service.recognition.conflict import ConflictingWalk, ConflictReason, Resemblance
from service.recognition.enrolment import Enrolled
from service.recognition.identification import Identified
from service.recognition.intake import EmbeddedWalk
from service.recognition.verification import Verified
from service.serving.model_in_use import ModelInUse
from service.transfer.importing import Imported


def _rfc3339(value: datetime) -> str:
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str)]


class Schema(BaseModel):
    """Frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProblemReason(Schema):
    """One thing that is wrong."""

    where: str
    reason: str


class Problem(Schema):
    """An error, as application/problem+json (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[ProblemReason]


class ModelReference(Schema):
    """The checkpoint that made the embeddings."""

    name: str
    digest: str

    @classmethod
    def of(cls, model: ModelInUse | ModelPin) -> Self:
        """From the model in use."""
        return cls(name=model.name, digest=model.digest)


class QualityAnswer(Schema):
    """How good a sequence is: a score in [0, 1] and codes of what could be better."""

    score: float
    issues: list[str]

    @classmethod
    def of(cls, quality: SequenceQuality) -> Self:
        """From a sequence's quality."""
        return cls(score=quality.score, issues=list(quality.issues))


class EnrolledSequenceAnswer(Schema):
    """One sequence that was enrolled, or had been already."""

    sequence_id: str
    frames: int
    quality: QualityAnswer
    already_enrolled: bool = Field(
        description="the subject had this very walk; it was not added again"
    )


class CoverageAnswer(Schema):
    """In which views and conditions a subject is enrolled, and what is missing."""

    sequences: int
    views: list[str]
    conditions: list[str]
    missing_views: list[str] = Field(description="in use in the gallery, most used first")
    missing_conditions: list[str] = Field(description="in use in the gallery, most used first")
    advice: list[Advice]

    @classmethod
    def of(cls, covered: Coverage) -> Self:
        """From a subject's coverage."""
        return cls(
            sequences=covered.sequences,
            views=list(covered.views),
            conditions=list(covered.conditions),
            missing_views=list(covered.missing_views),
            missing_conditions=list(covered.missing_conditions),
            advice=list(covered.advice),
        )


class ResemblanceAnswer(Schema):
    """How alike a walk is to a subject, by the most similar sequence."""

    subject_id: str
    similarity: float | None = Field(description="null when there is nothing to compare with")
    sequence_id: str | None = Field(description="null for another walk of the same request")

    @classmethod
    def of(cls, subject_id: str, found: Resemblance | None) -> Self:
        """From what was found, if anything was."""
        if found is None:
            return cls(subject_id=subject_id, similarity=None, sequence_id=None)
        return cls(
            subject_id=subject_id, similarity=found.similarity, sequence_id=found.sequence_id
        )


class ConflictAnswer(Schema):
    """A walk that may be another subject's, or is enrolled as another's already."""

    where: str
    reason: ConflictReason
    own: ResemblanceAnswer
    other: ResemblanceAnswer

    @classmethod
    def of(cls, conflict: ConflictingWalk) -> Self:
        """From a conflict."""
        return cls(
            where=conflict.name,
            reason=conflict.reason,
            own=ResemblanceAnswer.of(conflict.subject_id, conflict.own),
            other=ResemblanceAnswer.of(conflict.other.subject_id, conflict.other),
        )


class EnrolConflictProblem(Problem):
    """A 409 of POST /enroll; `conflicts` and `threshold` are those of an enrolment conflict."""

    conflicts: list[ConflictAnswer] = []
    threshold: float | None = None


class EnrolAnswer(Schema):
    """What POST /enroll added, and how the subject is covered now."""

    gallery: str
    subject_id: str
    sequences: list[EnrolledSequenceAnswer]
    conflicts: list[ConflictAnswer] = Field(
        description="that were accepted, or (`matches_another`) are no reason to refuse"
    )
    coverage: CoverageAnswer
    model: ModelReference

    @classmethod
    def of(cls, enrolled: Enrolled) -> Self:
        """From the use case's result."""
        return cls(
            gallery=enrolled.gallery,
            subject_id=enrolled.subject_id,
            sequences=[
                EnrolledSequenceAnswer(
                    sequence_id=item.sequence_id,
                    frames=item.frames,
                    quality=QualityAnswer.of(item.quality),
                    already_enrolled=item.already_enrolled,
                )
                for item in enrolled.sequences
            ],
            conflicts=[ConflictAnswer.of(item) for item in enrolled.conflicts],
            coverage=CoverageAnswer.of(enrolled.coverage),
            model=ModelReference.of(enrolled.model),
        )


class ProbeAnswer(Schema):
    """What was made of the sequence that was asked about."""

    frames: int
    quality: QualityAnswer

    @classmethod
    def of(cls, walk: EmbeddedWalk) -> Self:
        """From the probe."""
        return cls(frames=len(walk.silhouettes), quality=QualityAnswer.of(walk.quality))


class CandidateAnswer(Schema):
    """A subject, by its most similar sequence.

    `parts` (head to feet) are there only when explained, `display_name` only when asked for.
    """

    rank: int
    subject_id: str
    display_name: str | None = None
    similarity: float
    margin: float | None = Field(
        description="similarity less that of the best other subject; null when there is none"
    )
    sequence_id: str
    parts: list[float] | None = None


class IdentifyAnswer(Schema):
    """Who the walk resembles, and whether that is a match."""

    search_id: str
    gallery: str
    decision: Literal["match", "no_match"]
    threshold: float
    threshold_source: Literal["request", "gallery", "model"]
    operating_point: dict[str, Any] | None
    candidates: list[CandidateAnswer]
    probe: ProbeAnswer
    model: ModelReference
    took_ms: float

    @classmethod
    def of(cls, identified: Identified, names: Mapping[str, str]) -> Self:
        """From the use case's result, and display names by subject."""
        return cls(
            search_id=identified.search_id,
            gallery=identified.gallery,
            decision="match" if identified.match else "no_match",
            threshold=identified.threshold.value,
            threshold_source=identified.threshold.source,
            operating_point=identified.threshold.operating_point,
            candidates=[
                CandidateAnswer(
                    rank=item.rank,
                    subject_id=item.candidate.subject_id,
                    display_name=names.get(item.candidate.subject_id),
                    similarity=item.candidate.similarity,
                    margin=item.margin,
                    sequence_id=item.candidate.sequence_id,
                    parts=None if item.candidate.parts is None else list(item.candidate.parts),
                )
                for item in identified.candidates
            ],
            probe=ProbeAnswer.of(identified.probe),
            model=ModelReference.of(identified.model),
            took_ms=round(identified.seconds * 1000, 1),
        )


class VerifyAnswer(Schema):
    """Whether the walk is the subject's, by the subject's most similar sequence.

    `display_name` is there only when asked for.
    """

    search_id: str
    gallery: str
    subject_id: str
    display_name: str | None = None
    verified: bool
    similarity: float
    threshold: float
    threshold_source: Literal["request", "gallery", "model"]
    operating_point: dict[str, Any] | None
    sequence_id: str
    probe: ProbeAnswer
    model: ModelReference
    took_ms: float

    @classmethod
    def of(cls, verified: Verified, names: Mapping[str, str]) -> Self:
        """From the use case's result, and display names by subject."""
        return cls(
            search_id=verified.search_id,
            gallery=verified.gallery,
            subject_id=verified.closest.subject_id,
            display_name=names.get(verified.closest.subject_id),
            verified=verified.verified,
            similarity=verified.closest.similarity,
            threshold=verified.threshold.value,
            threshold_source=verified.threshold.source,
            operating_point=verified.threshold.operating_point,
            sequence_id=verified.closest.sequence_id,
            probe=ProbeAnswer.of(verified.probe),
            model=ModelReference.of(verified.model),
            took_ms=round(verified.seconds * 1000, 1),
        )


class GalleryRequest(Schema):
    """The body of POST /galleries."""

    name: GalleryName
    metadata: Annotated[dict[str, Any], WithJsonSchema(METADATA_SCHEMA)] = Field(
        default={}, description="A flat object of scalars."
    )
    max_age_days: MaxAgeDays | None = None


class GalleryChange(Schema):
    """The body of PATCH /galleries/{gallery}."""

    max_age_days: MaxAgeDays | None


class GalleryAnswer(Schema):
    """A gallery and how much is in it."""

    name: str
    subjects: int
    sequences: int
    model: ModelReference = Field(description="the active one")
    previous_model: ModelReference | None = Field(description="what a rollback goes back to")
    operating_point: dict[str, Any] | None
    metadata: Metadata
    max_age_days: int | None = Field(
        description="Days after which a sequence is erased by itself; null: never."
    )
    created_at: Timestamp

    @classmethod
    def of(cls, record: GalleryRecord, own: ModelInUse) -> Self:
        """From a gallery's record and the deployment's own model."""
        point = OperatingPoint.of(record.operating_point)
        model = record.active or own
        return cls(
            name=record.name,
            subjects=record.subjects,
            sequences=record.sequences,
            model=ModelReference.of(model),
            previous_model=None if record.previous is None else ModelReference.of(record.previous),
            operating_point=None
            if point is None
            else {
                "threshold": point.threshold,
                "digest": point.digest,
                "curve": [item.model_dump(mode="json") for item in point.curve],
                **point.shown(model.digest, record.subjects),
            },
            metadata=record.metadata,
            max_age_days=record.max_age_days,
            created_at=record.created_at,
        )


class ImportAnswer(Schema):
    """What an import has made.

    `sequence_ids` are `new` when any of those in the file is taken here. Of the embeddings `left`
    is what no model here has made; what is missing is made when it is first needed.
    """

    gallery: GalleryAnswer
    sequence_ids: Literal["kept", "new"]
    embeddings: dict[Literal["taken", "left"], int]

    @classmethod
    def of(cls, imported: Imported, model: ModelInUse) -> Self:
        """From the use case's result."""
        return cls(
            gallery=GalleryAnswer.of(imported.gallery, model),
            sequence_ids="kept" if imported.ids_kept else "new",
            embeddings={"taken": imported.embeddings, "left": imported.embeddings_left},
        )


class GalleryPage(Schema):
    """Some galleries, by name."""

    items: list[GalleryAnswer]
    next_cursor: str | None


Change = TypeVar("Change", bound=BaseModel)


def _at_least_one(change: Change) -> Change:
    if not change.model_fields_set:
        raise ValueError("must have at least one field, or nothing is changed")
    return change


def _absent() -> Any:
    """What a field holds that was left out, and that takes no null; `model_fields_set` says so."""


class SequenceChange(Schema):
    """The body of PATCH /sequences/{sequence_id}: what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    metadata: Annotated[dict[str, Any], WithJsonSchema(METADATA_SCHEMA)] = Field(
        default_factory=_absent, description="Replaces all of it."
    )
    subject_id: SubjectId = Field(default_factory=_absent)

    _something = model_validator(mode="after")(_at_least_one)


class SubjectChange(Schema):
    """The body of PATCH /subjects/{subject_id}: what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    display_name: DisplayName | None = Field(default_factory=_absent)
    subject_id: SubjectId = Field(default_factory=_absent)

    _something = model_validator(mode="after")(_at_least_one)


class MergeRequest(Schema):
    """The body of POST /subjects/{subject_id}/merge: whose the walks become."""

    into: SubjectId


class SubjectAnswer(Schema):
    """An enrolled person."""

    subject_id: str
    display_name: str | None
    gallery: str
    sequences: int
    created_at: Timestamp

    @classmethod
    def of(cls, record: SubjectRecord) -> Self:
        """From a subject's record."""
        return cls(
            subject_id=record.subject_id,
            display_name=record.display_name,
            gallery=record.gallery,
            sequences=record.sequences,
            created_at=record.created_at,
        )


class SubjectPage(Schema):
    """Some subjects of a gallery, by id."""

    items: list[SubjectAnswer]
    next_cursor: str | None


class SequenceAnswer(Schema):
    """An enrolled sequence; its silhouettes are at addresses of their own."""

    sequence_id: str
    gallery: str
    subject_id: str
    frames: int
    quality: QualityAnswer
    metadata: Metadata
    created_at: Timestamp

    @classmethod
    def of(cls, record: SequenceRecord) -> Self:
        """From a sequence's record."""
        return cls(
            sequence_id=record.sequence_id,
            gallery=record.gallery,
            subject_id=record.subject_id,
            frames=record.frames,
            quality=QualityAnswer.of(record.quality),
            metadata=record.metadata,
            created_at=record.created_at,
        )


class SubjectWithSequences(Schema):
    """An enrolled person with every sequence, oldest first."""

    subject_id: str
    display_name: str | None
    gallery: str
    sequences: list[SequenceAnswer]
    coverage: CoverageAnswer
    created_at: Timestamp


class ReceiptAnswer(Schema):
    """What an erasure took away, and what it could not reach."""

    receipt_id: str
    gallery: str
    subject_id: str | None
    erased: dict[Literal["subjects", "sequences", "embeddings"], int]
    sequence_ids: list[str]
    models: list[str] = Field(
        description="Models that learned from an erased subject, directly or through a teacher."
    )
    jobs: list[str] = Field(
        description="Jobs that were cancelled because they worked on walks of the gallery."
    )
    erased_at: Timestamp

    @classmethod
    def of(cls, receipt: ErasureReceipt) -> Self:
        """From an erasure's receipt."""
        return cls(
            receipt_id=receipt.receipt_id,
            gallery=receipt.gallery,
            subject_id=receipt.subject_id,
            erased={
                "subjects": receipt.subjects,
                "sequences": len(receipt.sequence_ids),
                "embeddings": receipt.embeddings,
            },
            sequence_ids=list(receipt.sequence_ids),
            models=list(receipt.models),
            jobs=list(receipt.jobs),
            erased_at=receipt.erased_at,
        )


class AuditLine(Schema):
    """One line of the audit record; `hash` covers everything but `subject_id` and `salt`."""

    number: int
    at: Timestamp
    action: str
    actor: Literal["key", "anyone", "command", "service"]
    key_id: str | None
    key_name: str | None
    request_id: str | None
    gallery: str | None
    subject_id: str | None = Field(description="null also where the subject was erased")
    salt: str | None
    subject_commitment: str | None = Field(description="SHA-256 of `SALT SUBJECT_ID`")
    details: dict[str, Any]
    previous: str = Field(description="`hash` of the line before")
    hash: str
