"""What is written into the record: one entry for each kind of thing that is recorded.

Of people it names the subject that the action is about, and nobody where somebody is erased. No
silhouettes, no embeddings, no metadata, no names of files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from service.audit.chain import FORGETTING

if TYPE_CHECKING:  # a command that records one line need not load what decodes walks
    from service.auth import ApiKey
    from service.decision import Threshold
    from service.enrolment import Enrolled
    from service.gallery.records import ErasureReceipt, GalleryRecord, ModelPin, SequenceRecord
    from service.identification import Identified
    from service.jobs.job import Job
    from service.model_in_use import ModelInUse
    from service.verification import Verified


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: a key, anyone (a service without keys), a command on the machine, or nobody."""

    kind: Literal["key", "anyone", "command", "service"]
    key_id: str | None = None
    key_name: str | None = None

    @classmethod
    def of(cls, key: ApiKey | None) -> Self:
        """The caller of a request."""
        return cls("anyone") if key is None else cls("key", key.key_id, key.name)


COMMAND = Actor("command")
SERVICE = Actor("service")


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened, in which gallery, to whom; `details` is JSON."""

    action: str
    gallery: str | None = None
    subject_id: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


def identification(answer: Identified, *, top_k: int, filtered: bool) -> Entry:
    """A search. Its subject is the first candidate, whatever the decision.

    The answer shows who that is in any case; were only matches recorded, a search with a threshold
    of 1 would leave no trace of whom it found.
    """
    first = answer.candidates[0].candidate if answer.candidates else None
    return Entry(
        "identify",
        answer.gallery,
        None if first is None else first.subject_id,
        {
            "search_id": answer.search_id,
            "decision": "match" if answer.match else "no_match",
            "similarity": None if first is None else first.similarity,
            "candidates": len(answer.candidates),
            "top_k": top_k,
            "filtered": filtered,
            **_decided_by(answer.threshold, answer.model, answer.seconds),
        },
    )


def verification(answer: Verified) -> Entry:
    """A verification of one subject."""
    return Entry(
        "verify",
        answer.gallery,
        answer.closest.subject_id,
        {
            "search_id": answer.search_id,
            "decision": "verified" if answer.verified else "not_verified",
            "similarity": answer.closest.similarity,
            **_decided_by(answer.threshold, answer.model, answer.seconds),
        },
    )


def enrolment(enrolled: Enrolled) -> Entry:
    """Walks that were added to a subject."""
    return Entry(
        "enroll",
        enrolled.gallery,
        enrolled.subject_id,
        {"sequences": len(enrolled.sequences), "model": _model(enrolled.model)},
    )


def new_gallery(gallery: GalleryRecord) -> Entry:
    """A gallery that was created."""
    return Entry("create_gallery", gallery.name)


def export(gallery: str, *, embeddings: bool) -> Entry:
    """A whole gallery that was given out."""
    return Entry("export_gallery", gallery, details={"embeddings": embeddings})


def imported(gallery: GalleryRecord) -> Entry:
    """A whole gallery that was taken in."""
    return Entry("import_gallery", gallery.name, details={"sequences": gallery.sequences})


def erasure(what: Literal["subject", "sequence", "gallery"], receipt: ErasureReceipt) -> Entry:
    """What went, by number: who it was is not to be found any more."""
    return Entry(
        f"erase_{what}",
        receipt.gallery,
        None,
        {
            "receipt_id": receipt.receipt_id,
            "subjects": receipt.subjects,
            "sequences": len(receipt.sequence_ids),
            "embeddings": receipt.embeddings,
        },
    )


def forgotten(gallery: str, lines: int) -> Entry:
    """From how many lines of the record erased subjects were taken, and not from which."""
    return Entry(FORGETTING, gallery, None, {"lines": lines})


def silhouettes(sequence: SequenceRecord, form: str) -> Entry:
    """That somebody was given a walk's silhouettes or what is made of them."""
    return Entry("read_silhouettes", sequence.gallery, sequence.subject_id, {"as": form})


def job(queued: Job) -> Entry:
    """A job that was queued: a training, a calibration, an activation."""
    request = queued.request
    dataset = request.get("dataset")
    gallery = dataset.get("gallery") if isinstance(dataset, dict) else request.get("gallery")
    details = {name: request[name] for name in ("name", "model") if name in request}
    return Entry(f"job_{queued.type}", gallery, None, {"job_id": queued.id} | details)


def model_change(
    action: Literal["activate_model", "rollback_model"],
    gallery: str,
    job_id: str,
    *,
    old: ModelPin,
    new: ModelPin,
) -> Entry:
    """A gallery that is searched with another model from now on."""
    return Entry(action, gallery, None, {"job_id": job_id, "from": _model(old), "to": _model(new)})


def model(action: Literal["add_model", "remove_model"], name: str, **details: str) -> Entry:
    """A model that was uploaded or removed."""
    return Entry(action, details={"name": name, **details})


def key_change(action: Literal["add_key", "revoke_key"], key: ApiKey) -> Entry:
    """A key that was made or revoked; never its secret."""
    details = {"key_id": key.key_id, "name": key.name, "scopes": sorted(key.scopes)}
    if key.expires_at is not None:
        details["expires_at"] = key.expires_at.isoformat(timespec="seconds")
    return Entry(action, details=details)


def _decided_by(threshold: Threshold, model: ModelInUse, seconds: float) -> dict[str, Any]:
    return {
        "threshold": threshold.value,
        "threshold_source": threshold.source,
        "model": _model(model),
        "took_ms": round(seconds * 1000, 1),
    }


def _model(model: ModelInUse | ModelPin) -> dict[str, str]:
    return {"name": model.name, "digest": model.digest}
