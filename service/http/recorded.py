"""Makes the entry of each call for the audit record.

An entry names the subject that the call is about, and nobody if the call erases somebody. It has no
silhouettes, embeddings, metadata or names of files.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from service.access.audit.entries import Entry, model_named
from service.gallery.editing import Corrected
from service.gallery.records import ErasureReceipt, GalleryRecord, SequenceRecord, SubjectRecord
from service.jobs.job import Job
from service.recognition.enrolment import Enrolled
from service.recognition.identification import Identified, Verified
from service.serving.thresholds import ModelInUse, Threshold


def identification(answer: Identified, *, top_k: int, filtered: bool) -> list[Entry]:
    """A search, an entry a gallery. Its subject is the gallery's first candidate in the answer.

    That is so whatever the decision: the answer names that candidate in any case. If only matches
    were recorded, a search with a threshold of 1 would leave no trace of whom it found. The
    decision of several galleries is that of the one whose candidate comes first; in the others
    nobody matches.
    """
    entries = []
    for searched in answer.searched:
        found = [one.candidate for one in answer.candidates if one.gallery == searched.gallery]
        decided = answer.match and searched == answer.decided
        details = {
            "search_id": answer.search_id,
            "sequences": len(answer.probes),
            "decision": "match" if decided else "no_match",
            "similarity": found[0].similarity if found else None,
            "candidates": len(found),
            "top_k": top_k,
            "filtered": filtered,
            **_decided_by(searched.threshold, searched.model, answer.seconds),
        }
        if len(answer.searched) > 1:
            details["galleries"] = len(answer.searched)
        who = found[0].subject_id if found else None
        entries.append(Entry("identify", searched.gallery, who, details))
    return entries


def verification(answer: Verified) -> Entry:
    """A verification of one subject."""
    return Entry(
        "verify",
        answer.gallery,
        answer.closest.subject_id,
        {
            "search_id": answer.search_id,
            "sequences": len(answer.probes),
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
        {"sequences": len(enrolled.sequences), "model": model_named(enrolled.model)},
    )


def new_gallery(gallery: GalleryRecord) -> Entry:
    """A gallery that was created."""
    return Entry("create_gallery", gallery.name)


def export(gallery: str, *, embeddings: bool) -> Entry:
    """A whole gallery that was exported."""
    return Entry("export_gallery", gallery, details={"embeddings": embeddings})


def imported(gallery: GalleryRecord) -> Entry:
    """A whole gallery that was imported."""
    return Entry("import_gallery", gallery.name, details={"sequences": gallery.sequences})


def erasure(what: Literal["subject", "sequence", "gallery"], receipt: ErasureReceipt) -> Entry:
    """An erasure, in numbers: nothing says who it was."""
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


def sequence_edit(made: Corrected[SequenceRecord], given: Collection[str]) -> list[Entry]:
    """A walk that was corrected, and a line each for whom it was taken from and given to."""
    entries = []
    if "metadata" in given:
        entries.append(Entry("edit_sequence", made.gallery, made.record.subject_id))
    if (handover := made.handover) is not None:
        entries += [
            Entry("move_sequence", made.gallery, handover.subject_id, {"subject": "former"}),
            Entry("move_sequence", made.gallery, handover.to, {"subject": "present"}),
        ]
    return entries


def subject_edit(made: Corrected[SubjectRecord], given: Collection[str]) -> list[Entry]:
    """A subject that was merged into another, renamed or described; not what it was called, or is.

    `given` are the fields of the request.
    """
    gallery, subject_id = made.gallery, made.record.subject_id
    entries = []
    if "merge_into" in given and (handover := made.handover) is not None:
        details = {"sequences": len(handover.sequence_ids), "same": len(handover.erased)}
        entries.append(Entry("merge_subjects", gallery, subject_id, details))
    if changed := sorted(set(given) - {"merge_into"}):
        entries.append(Entry("edit_subject", gallery, subject_id, {"changed": changed}))
    return entries


def silhouettes(sequence: SequenceRecord, form: str) -> Entry:
    """A walk's silhouettes, or an image made of them, that were given out."""
    return Entry("read_silhouettes", sequence.gallery, sequence.subject_id, {"as": form})


def job(queued: Job) -> Entry:
    """A job that was queued: a training, a calibration, an activation."""
    request = queued.request
    dataset = request.get("dataset")
    gallery = dataset.get("gallery") if isinstance(dataset, dict) else request.get("gallery")
    details = {name: request[name] for name in ("name", "model") if name in request}
    return Entry(f"job_{queued.type}", gallery, None, {"job_id": queued.id} | details)


def model(action: Literal["add_model", "remove_model"], name: str, **details: str) -> Entry:
    """A model that was uploaded or removed."""
    return Entry(action, details={"name": name, **details})


def _decided_by(threshold: Threshold, model: ModelInUse, seconds: float) -> dict[str, Any]:
    return {
        "threshold": threshold.value,
        "threshold_source": threshold.source,
        "model": model_named(model),
        "took_ms": round(seconds * 1000, 1),
    }
