"""The bodies of requests and answers, made from the records of the use cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from models.footage.segmentation import SegmenterName
from service.gallery.coverage import Advice
from service.gallery.fields import (
    METADATA_SCHEMA,
    DisplayName,
    GalleryName,
    MaxAgeDays,
    SubjectId,
)
from service.gallery.operating_point import OperatingPoint
from service.gallery.ranking import Candidate
from service.gallery.records import (
    Description,
    ErasureReceipt,
    GalleryRecord,
    Metadata,
    Walk,
)
from service.recognition.conflict import ConflictingWalk, ConflictReason
from service.recognition.identification import Identified, Searched, Verified
from service.serving.thresholds import ModelInUse
from service.transfer.importing import Imported


def _rfc3339(value: datetime) -> str:
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str)]


class Schema(BaseModel):
    """Frozen; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)

    @classmethod
    def of(cls, record: Any) -> Self:
        """Read the fields from the attributes of a record that has the same names."""
        return cls.model_validate(record)


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


class QualityAnswer(Schema):
    """How good a sequence is: a score in [0, 1] and codes of what could be better."""

    score: float
    issues: list[str]


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


class ResemblanceAnswer(Schema):
    """How alike a walk is to a subject, by the most similar sequence."""

    subject_id: str
    similarity: float | None = Field(description="null when there is nothing to compare with")
    sequence_id: str | None = Field(description="null for another walk of the same request")


class ConflictAnswer(Schema):
    """A walk that may be another subject's, or is enrolled as another's already."""

    where: str
    reason: ConflictReason
    own: ResemblanceAnswer
    other: ResemblanceAnswer

    @model_validator(mode="before")
    @classmethod
    def _from_conflict(cls, value: Any) -> Any:
        if not isinstance(value, ConflictingWalk):
            return value
        nothing = {"subject_id": value.subject_id, "similarity": None, "sequence_id": None}
        return {
            "where": value.name,
            "reason": value.reason,
            "own": value.own or nothing,
            "other": value.other,
        }


class EnrolConflictProblem(Problem):
    """A 409 of POST /enroll; `conflicts` and `threshold` are those of an enrolment conflict."""

    conflicts: list[ConflictAnswer] = []
    threshold: float | None = None


class OutlineAnswer(Schema):
    """Where a person's mask is in one picture of footage."""

    at_s: float = Field(description="seconds of the footage")
    points: list[int] = Field(
        description="column and row of each corner of a polygon, one after the other, in pixels"
    )


class TrackAnswer(Schema):
    """One of several people in footage."""

    track: int = Field(description="what to send to choose this person")
    from_s: float
    to_s: float
    box: tuple[float, float, float, float] = Field(
        description="left, top, width and height where the walk begins, in pixels"
    )
    outlines: list[OutlineAnswer] = Field(
        description="the mask in each picture, or in every second, third … of many"
    )
    thumbnail: str = Field(description="a `data:` URL of a JPEG")


class RefusedWalkProblem(Problem):
    """A 422 for what was sent; `tracks` when several people walk in footage."""

    tracks: list[TrackAnswer] = []


REFUSED_FOOTAGE: dict[int | str, dict[str, Any]] = {
    422: {
        "model": RefusedWalkProblem,
        "description": "A field is invalid, the walk is too poor, nobody walks in the footage, or "
        "several people do.",
    }
}


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


class ProbeSequenceAnswer(Schema):
    """One sequence that was searched for, after decoding."""

    frames: int
    quality: QualityAnswer
    input: Literal["silhouettes", "footage"]
    segmenter: SegmenterName | None = Field(description="what made silhouettes of footage")
    track: int | None = Field(description="of the footage")
    from_s: float | None = Field(description="seconds of the footage at which the walk begins")
    to_s: float | None

    @classmethod
    def of(cls, walk: Walk) -> Self:
        """Make it from the walk."""
        origin = walk.origin
        return cls(
            frames=len(walk.silhouettes),
            quality=QualityAnswer.of(walk.quality),
            input="footage" if origin else "silhouettes",
            segmenter=origin and origin.segmenter,
            track=origin and origin.track,
            from_s=origin and origin.from_s,
            to_s=origin and origin.to_s,
        )


class ProbeAnswer(ProbeSequenceAnswer):
    """The sequences that were searched for, after decoding.

    Of several, `frames` are of all, `quality` has the lowest score and every issue, `input` is
    `footage` if any is, and what follows it is null.
    """

    sequences: list[ProbeSequenceAnswer] = Field(description="each, as they were sent")

    @classmethod
    def of_all(cls, walks: Sequence[Walk]) -> Self:
        """Make it from the probes."""
        each = [ProbeSequenceAnswer.of(walk) for walk in walks]
        issues = {issue: None for one in each for issue in one.quality.issues}  # in their order
        score = min(one.quality.score for one in each)
        one = each[0] if len(each) == 1 else None
        return cls(
            frames=sum(one.frames for one in each),
            quality=QualityAnswer(score=score, issues=list(issues)),
            input="footage" if any(one.input == "footage" for one in each) else "silhouettes",
            segmenter=one and one.segmenter,
            track=one and one.track,
            from_s=one and one.from_s,
            to_s=one and one.to_s,
            sequences=each,
        )


_FoundMetadata = Annotated[
    Metadata, Field(description="of the sequence found, with the subject's own over it")
]


_SeenFromThisView = Annotated[
    bool | None,
    Field(
        description="whether the subject is enrolled in the `view` of the request; null where none "
        "was given, or some sequence of the subject has none in its metadata"
    ),
]


class CandidateAnswer(Schema):
    """A subject, by its most similar sequence.

    `parts` (head to feet) only when explained, `display_name` and `metadata` only when asked for;
    `gallery` and its `threshold` only where several galleries are searched.
    """

    rank: int
    gallery: str | None = None
    subject_id: str
    display_name: str | None = None
    metadata: _FoundMetadata = {}
    similarity: float
    margin: float | None = Field(
        description="similarity less that of the gallery's best other subject; null when there is "
        "none"
    )
    threshold: float | None = Field(default=None, description="of this candidate's gallery")
    seen_from_this_view: _SeenFromThisView
    sequence_id: str
    parts: list[float] | None = None


class SearchedGallery(Schema):
    """One of several galleries that were searched, and what decides in it."""

    gallery: str
    threshold: float
    threshold_source: Literal["request", "gallery", "model"]
    operating_point: dict[str, Any] | None
    model: ModelReference

    @classmethod
    def of(cls, searched: Searched) -> Self:
        """Make it from the use case's."""
        return cls(
            gallery=searched.gallery,
            threshold=searched.threshold.value,
            threshold_source=searched.threshold.source,
            operating_point=searched.threshold.operating_point,
            model=ModelReference.of(searched.model),
        )


class IdentifyAnswer(Schema):
    """Who the walk resembles, and whether that is a match.

    Of several galleries, `gallery`, its threshold and model are those of the first candidate, and
    `galleries` lists all.
    """

    search_id: str
    gallery: str
    galleries: list[SearchedGallery] = []
    decision: Literal["match", "no_match"]
    threshold: float
    threshold_source: Literal["request", "gallery", "model"]
    operating_point: dict[str, Any] | None
    candidates: list[CandidateAnswer]
    probe: ProbeAnswer
    model: ModelReference
    took_ms: float

    @classmethod
    def beside(cls, said: Mapping[str, Description], identified: Identified) -> Self:
        """Make it from the use case's result; `said` is what is said of sequences, by id."""
        thresholds = {one.gallery: one.threshold.value for one in identified.searched}
        return cls(
            decision="match" if identified.match else "no_match",
            galleries=[SearchedGallery.of(one) for one in identified.searched],
            candidates=[
                CandidateAnswer(
                    rank=item.rank,
                    gallery=item.gallery,
                    subject_id=item.candidate.subject_id,
                    similarity=item.candidate.similarity,
                    margin=item.margin,
                    threshold=thresholds[item.gallery],
                    seen_from_this_view=item.candidate.seen_from_this_view,
                    sequence_id=item.candidate.sequence_id,
                    **_described(item.candidate, said),
                    parts=None if item.candidate.parts is None else list(item.candidate.parts),
                )
                for item in identified.candidates
            ],
            **_decided(identified),
        )


class VerifyAnswer(Schema):
    """Whether the walk is the subject's, by the subject's most similar sequence.

    `display_name` and `metadata` only when asked for.
    """

    search_id: str
    gallery: str
    subject_id: str
    display_name: str | None = None
    metadata: _FoundMetadata = {}
    verified: bool
    similarity: float
    threshold: float
    threshold_source: Literal["request", "gallery", "model"]
    operating_point: dict[str, Any] | None
    seen_from_this_view: _SeenFromThisView
    sequence_id: str
    probe: ProbeAnswer
    model: ModelReference
    took_ms: float

    @classmethod
    def beside(cls, said: Mapping[str, Description], verified: Verified) -> Self:
        """Make it from the use case's result; `said` is what is said of sequences, by id."""
        return cls(
            subject_id=verified.closest.subject_id,
            verified=verified.verified,
            similarity=verified.closest.similarity,
            seen_from_this_view=verified.closest.seen_from_this_view,
            sequence_id=verified.closest.sequence_id,
            **_described(verified.closest, said),
            **_decided(verified),
        )


def _described(candidate: Candidate, said: Mapping[str, Description]) -> dict[str, Any]:
    """Return what is said of a candidate; nothing if the sequence changed hands meanwhile."""
    one = said.get(candidate.sequence_id)
    if one is None or one.subject_id != candidate.subject_id:
        return {}
    return {"display_name": one.display_name, "metadata": one.metadata}


def _decided(found: Identified | Verified) -> dict[str, Any]:
    """Return the fields that both answers to a probe have."""
    return {
        "search_id": found.search_id,
        "gallery": found.gallery,
        "threshold": found.threshold.value,
        "threshold_source": found.threshold.source,
        "operating_point": found.threshold.operating_point,
        "probe": ProbeAnswer.of_all(found.probes),
        "model": ModelReference.of(found.model),
        "took_ms": round(found.seconds * 1000, 1),
    }


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


class GainAnswer(Schema):
    """How much more often people are told apart rightly who took no part in a fit.

    That is: a walk is nearer to one other walk of the person's than to a walk of somebody else.
    """

    value: float
    interval: tuple[float, float] = Field(
        description="at 80 % (95 % of more than 16 people), by drawing people"
    )


class SceneAnswer(Schema):
    """What the newest fit of a gallery's scene transform came to."""

    used: bool = Field(description="whether the gallery is compared by a transform")
    fitted_at: Timestamp
    revision: int = Field(description="of the gallery, of which it was fitted")
    gain: GainAnswer

    @classmethod
    def of_model(cls, record: GalleryRecord, digest: str) -> Self | None:
        """Make it from a gallery's record, for a model; None if there is none."""
        for found in record.scenes:
            if found.digest == digest:
                return cls(
                    used=found.used,
                    fitted_at=found.fitted_at,
                    revision=found.revision,
                    gain=GainAnswer(value=found.gain, interval=found.interval),
                )
        return None


class GalleryAnswer(Schema):
    """A gallery and how much is in it."""

    name: str
    subjects: int
    sequences: int
    model: ModelReference = Field(description="the active one")
    previous_model: ModelReference | None = Field(description="what a rollback goes back to")
    operating_point: dict[str, Any] | None
    scene: SceneAnswer | None = Field(
        description="null where none was fitted under this model, or what it was fitted with is "
        "erased and it is to be fitted again"
    )
    metadata: Metadata
    max_age_days: int | None = Field(
        description="Days after which a sequence is erased by itself; null: never."
    )
    created_at: Timestamp

    @classmethod
    def beside(cls, own: ModelInUse, record: GalleryRecord) -> Self:
        """Make it from a gallery's record; `own` is the model that galleries start with."""
        point = OperatingPoint.of(record.operating_point)
        model = record.active or own
        return cls(
            name=record.name,
            subjects=record.subjects,
            sequences=record.sequences,
            model=ModelReference.of(model),
            previous_model=record.previous and ModelReference.of(record.previous),
            operating_point=None
            if point is None
            else {
                "threshold": point.threshold,
                "digest": point.digest,
                "curve": [item.model_dump(mode="json") for item in point.curve],
                **point.shown(model.digest, record.subjects),
            },
            scene=SceneAnswer.of_model(record, model.digest),
            metadata=record.metadata,
            max_age_days=record.max_age_days,
            created_at=record.created_at,
        )


class CohortAnswer(Schema):
    """How many walks of whoever passed are in a gallery's sums."""

    walks_seen: int


class ImportAnswer(Schema):
    """What an import has made.

    `sequence_ids` are `new` when any of those in the file is taken here. Of the embeddings `left`
    is what no model here has made; what is missing is made when it is first needed.
    """

    gallery: GalleryAnswer
    sequence_ids: Literal["kept", "new"]
    embeddings: dict[Literal["taken", "left"], int]

    @classmethod
    def beside(cls, own: ModelInUse, imported: Imported) -> Self:
        """Make it from the use case's result; `own` is the deployment's model."""
        return cls(
            gallery=GalleryAnswer.beside(own, imported.gallery),
            sequence_ids="kept" if imported.ids_kept else "new",
            embeddings={"taken": imported.embeddings, "left": imported.embeddings_left},
        )


class GalleryPage(Schema):
    """Some galleries, by name."""

    items: list[GalleryAnswer]
    next_cursor: str | None


class _Change(Schema):
    """The body of a PATCH: what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("must have at least one field, or nothing is changed")
        return self


def _absent() -> Any:
    """Return the value of a field that was left out and takes no null."""


_MetadataField = Annotated[
    dict[str, Any],
    WithJsonSchema(METADATA_SCHEMA),
    Field(default_factory=_absent, description="Replaces all of it."),
]


class SequenceChange(_Change):
    """The body of PATCH /sequences/{sequence_id}: what is left out stays as it is."""

    metadata: _MetadataField
    subject_id: SubjectId = Field(default_factory=_absent)


class SubjectChange(_Change):
    """The body of PATCH /subjects/{subject_id}: what is left out stays as it is."""

    model_config = ConfigDict(
        json_schema_extra={"minProperties": 1, "not": {"required": ["subject_id", "merge_into"]}}
    )

    display_name: DisplayName | None = Field(default_factory=_absent)
    metadata: _MetadataField
    subject_id: SubjectId = Field(default_factory=_absent)
    merge_into: SubjectId = Field(
        default_factory=_absent, description="Who is the same person, and remains."
    )

    @model_validator(mode="after")
    def _renames_or_merges(self) -> Self:
        if {"subject_id", "merge_into"} <= self.model_fields_set:
            raise ValueError("must have only one of subject_id and merge_into")
        return self


class SubjectAnswer(Schema):
    """An enrolled person."""

    subject_id: str
    display_name: str | None
    metadata: Metadata = Field(description="of the person, beside that of each sequence")
    gallery: str
    sequences: int
    created_at: Timestamp


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


class SubjectWithSequences(Schema):
    """An enrolled person with every sequence, oldest first."""

    subject_id: str
    display_name: str | None
    metadata: Metadata
    gallery: str
    sequences: list[SequenceAnswer]
    coverage: CoverageAnswer
    created_at: Timestamp


class ReceiptAnswer(Schema):
    """What an erasure removed, and which models had learned from it."""

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
    scene: Literal["dropped"] | None = Field(
        description="`dropped`: the gallery's scene transform, in which those erased had a share, "
        "is gone; a job fits another one of those who remain. null: there was none."
    )
    vectors: Literal["deleted", "pending"] | None = Field(
        default=None,
        description="Of their vectors in Milvus. `deleted`: no search reads them, and its storage "
        "lets go of them when it has compacted. `pending`: deleted as soon as it can be reached. "
        "null: galleries are not searched there.",
    )
    traces: Literal["cleared", "left"] = Field(
        description="`cleared`: the database was rid of what deleted rows leave in its files (the "
        "write-ahead log of SQLite, dead rows of PostgreSQL). `left`: something older still reads "
        "there; the next sweep does it."
    )
    keys: Literal["ended", "pending"] | None = Field(
        default=None,
        description="Of their walks' own keys. `ended`: silhouettes and embeddings of them in "
        "backups, replicas and logs of the database cannot be read any more. `pending`: the next "
        "sweep ends them. null: walks are not sealed with keys of their own.",
    )
    erased_at: Timestamp

    @classmethod
    def of(cls, receipt: ErasureReceipt) -> Self:
        """Make it from an erasure's receipt."""
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
            scene="dropped" if receipt.scene_dropped else None,
            vectors=receipt.vectors,
            traces="cleared" if receipt.traces_cleared else "left",
            keys=receipt.keys,
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
