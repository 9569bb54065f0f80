"""What goes over the wire: one model an answer, made from the records of the use cases."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from service.enrolment import Enrolled
from service.fields import METADATA_SCHEMA, GalleryName
from service.gallery.records import (
    ErasureReceipt,
    GalleryRecord,
    Metadata,
    SequenceQuality,
    SequenceRecord,
    SubjectRecord,
)
from service.identification import Identified
from service.intake import EmbeddedWalk
from service.model_in_use import ModelInUse
from service.operating_point import OperatingPoint
from service.verification import Verified


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
    def of(cls, model: ModelInUse) -> Self:
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
    """One sequence that was enrolled."""

    sequence_id: str
    frames: int
    quality: QualityAnswer


class EnrolAnswer(Schema):
    """What POST /enroll added."""

    gallery: str
    subject_id: str
    sequences: list[EnrolledSequenceAnswer]
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
                )
                for item in enrolled.sequences
            ],
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
    """A subject, by its most similar sequence; `parts` (head to feet) only when explained."""

    rank: int
    subject_id: str
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
    def of(cls, identified: Identified) -> Self:
        """From the use case's result."""
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
    """Whether the walk is the subject's, by the subject's most similar sequence."""

    search_id: str
    gallery: str
    subject_id: str
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
    def of(cls, verified: Verified) -> Self:
        """From the use case's result."""
        return cls(
            search_id=verified.search_id,
            gallery=verified.gallery,
            subject_id=verified.closest.subject_id,
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


class GalleryAnswer(Schema):
    """A gallery and how much is in it."""

    name: str
    subjects: int
    sequences: int
    model: ModelReference
    operating_point: dict[str, Any] | None
    metadata: Metadata
    created_at: Timestamp

    @classmethod
    def of(cls, record: GalleryRecord, model: ModelInUse) -> Self:
        """From a gallery's record and the model that serves it."""
        point = OperatingPoint.of(record.operating_point)
        return cls(
            name=record.name,
            subjects=record.subjects,
            sequences=record.sequences,
            model=ModelReference.of(model),
            operating_point=None
            if point is None
            else {
                "threshold": point.threshold,
                "digest": point.digest,
                **point.shown(model.digest, record.subjects),
            },
            metadata=record.metadata,
            created_at=record.created_at,
        )


class GalleryPage(Schema):
    """Some galleries, by name."""

    items: list[GalleryAnswer]
    next_cursor: str | None


class SubjectAnswer(Schema):
    """An enrolled person."""

    subject_id: str
    gallery: str
    sequences: int
    created_at: Timestamp

    @classmethod
    def of(cls, record: SubjectRecord) -> Self:
        """From a subject's record."""
        return cls(
            subject_id=record.subject_id,
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
    gallery: str
    sequences: list[SequenceAnswer]
    created_at: Timestamp


class ReceiptAnswer(Schema):
    """What an erasure took away."""

    receipt_id: str
    gallery: str
    subject_id: str | None
    erased: dict[Literal["subjects", "sequences", "embeddings"], int]
    sequence_ids: list[str]
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
            erased_at=receipt.erased_at,
        )
