"""Every call of the interface (docs/api.md), described once for both clients.

A new call is one method here and, where its answer is new, one record in `answers`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any

import httpx

from service.client import answers
from service.client.answers import (
    Enrolment,
    ErasureReceipt,
    Gallery,
    Health,
    Identification,
    Import,
    Job,
    Model,
    Page,
    Readiness,
    Subject,
    SubjectDetails,
    Verification,
)
from service.client.call import (
    Call,
    Download,
    Events,
    LargeFile,
    Lines,
    Pages,
    Transferred,
    Upload,
    answered,
    at,
    ignored,
    lined,
    paged,
    saved,
    streamed,
)

_DEFAULT_GALLERY = "default"
_PAGE = "200"  # items asked for at once

Metadata = Mapping[str, str | int | float | bool | None]
Filter = Mapping[str, Any]
Dataset = str | Mapping[str, str]
"""A pack of the deployment's by its name, or `{"gallery": NAME}`."""


class Calls:
    """The calls of both clients."""

    # People

    @answered
    def enroll(
        self,
        subject_id: str,
        walks: Sequence[Upload],
        *,
        gallery: str = _DEFAULT_GALLERY,
        metadata: Metadata | None = None,
        accept_conflict: bool = False,
        idempotency_key: str | None = None,
    ) -> Call[Enrolment]:
        """Enrol walks of one person: all of them, or none when one is refused.

        With `accept_conflict` also such as may be another person's.
        With the same `idempotency_key` the same walks are enrolled once in 24 hours, however often
        this is called.
        """
        return Call(
            method="POST",
            path="/enroll",
            read=Enrolment.of,
            form={
                "subject_id": subject_id,
                "gallery": gallery,
                "metadata": _json(metadata),
                "accept_conflict": "true" if accept_conflict else None,
            },
            files=[("sequence", walk) for walk in walks],
            key=idempotency_key,
        )

    @answered
    def identify(
        self,
        walk: Upload,
        *,
        gallery: str = _DEFAULT_GALLERY,
        top_k: int = 5,
        threshold: float | None = None,
        filter: Filter | None = None,
        explain: bool = False,
        display_names: bool = False,
    ) -> Call[Identification]:
        """Say who walks there; `filter` is metadata that candidates carry, a list any of it."""
        return Call(
            method="POST",
            path="/identify",
            changes=False,
            read=Identification.of,
            form={
                "gallery": gallery,
                "top_k": str(top_k),
                "threshold": None if threshold is None else str(threshold),
                "filter": _json(filter),
                "explain": "true" if explain else None,
                "display_names": "true" if display_names else None,
            },
            files=[("sequence", walk)],
        )

    @answered
    def verify(
        self,
        subject_id: str,
        walk: Upload,
        *,
        gallery: str = _DEFAULT_GALLERY,
        threshold: float | None = None,
        display_names: bool = False,
    ) -> Call[Verification]:
        """Say whether this is the person."""
        return Call(
            method="POST",
            path="/verify",
            changes=False,
            read=Verification.of,
            form={
                "subject_id": subject_id,
                "gallery": gallery,
                "threshold": None if threshold is None else str(threshold),
                "display_names": "true" if display_names else None,
            },
            files=[("sequence", walk)],
        )

    # What is enrolled

    @paged
    def galleries(self) -> Pages[Gallery]:
        """All galleries, by name."""
        return Pages(path="/galleries", page=Page[Gallery], query={"limit": _PAGE})

    @answered
    def gallery(self, name: str = _DEFAULT_GALLERY) -> Call[Gallery]:
        """One gallery."""
        return Call(method="GET", path=at("/galleries/{}", name), read=Gallery.of)

    @answered
    def create_gallery(
        self, name: str, *, metadata: Metadata | None = None, max_age_days: int | None = None
    ) -> Call[Gallery]:
        """Create an empty gallery, which erases what is older than `max_age_days`."""
        content: dict[str, Any] = {"name": name, "metadata": dict(metadata or {})}
        if max_age_days is not None:
            content["max_age_days"] = max_age_days
        return Call(method="POST", path="/galleries", read=Gallery.of, json=content)

    @answered
    def change_gallery(self, name: str, *, max_age_days: int | None) -> Call[Gallery]:
        """Set how long a gallery keeps its sequences; None for ever."""
        content = {"max_age_days": max_age_days}
        path = at("/galleries/{}", name)
        return Call(method="PATCH", path=path, read=Gallery.of, json=content)

    @saved
    def export_gallery(
        self,
        name: str,
        to: Path,
        *,
        embeddings: bool = True,
        transferred: Transferred = ignored,
    ) -> Download:
        """Bring a whole gallery home as one file, which appears when it is complete."""
        return Download(
            path=at("/galleries/{}/export", name),
            to=to,
            query={"embeddings": "true" if embeddings else "false"},
            transferred=transferred,
        )

    @answered
    def import_gallery(
        self, file: Path, name: str, *, transferred: Transferred = ignored
    ) -> Call[Import]:
        """Make a new gallery of an exported one."""
        return Call(
            method="PUT",
            path=at("/galleries/{}/import", name),
            read=Import.of,
            file=LargeFile(file, "application/zip", transferred),
        )

    @answered
    def erase_gallery(self, name: str) -> Call[ErasureReceipt]:
        """Erase a gallery with everything in it."""
        return Call(method="DELETE", path=at("/galleries/{}", name), read=ErasureReceipt.of)

    @paged
    def subjects(self, *, gallery: str = _DEFAULT_GALLERY) -> Pages[Subject]:
        """Everybody who is enrolled, by id."""
        query = {"gallery": gallery, "limit": _PAGE}
        return Pages(path="/subjects", page=Page[Subject], query=query)

    @answered
    def subject(self, subject_id: str, *, gallery: str = _DEFAULT_GALLERY) -> Call[SubjectDetails]:
        """One person with every sequence."""
        return Call(
            method="GET",
            path=at("/subjects/{}", subject_id),
            read=SubjectDetails.of,
            query={"gallery": gallery},
        )

    @answered
    def edit_subject(
        self,
        subject_id: str,
        *,
        gallery: str = _DEFAULT_GALLERY,
        display_name: str | EllipsisType | None = ...,
        new_id: str | None = None,
    ) -> Call[Subject]:
        """Set what people call a person (None: nothing), or give it another id."""
        content: dict[str, str | None] = {}
        if not isinstance(display_name, EllipsisType):
            content["display_name"] = display_name
        if new_id is not None:
            content["subject_id"] = new_id
        return Call(
            method="PATCH",
            path=at("/subjects/{}", subject_id),
            read=Subject.of,
            query={"gallery": gallery},
            json=content,
        )

    @answered
    def merge_subjects(
        self, subject_id: str, into: str, *, gallery: str = _DEFAULT_GALLERY
    ) -> Call[Subject]:
        """Give every sequence of a person to `into`, who is the same one."""
        return Call(
            method="POST",
            path=at("/subjects/{}/merge", subject_id),
            read=Subject.of,
            query={"gallery": gallery},
            json={"into": into},
        )

    @answered
    def erase_subject(
        self, subject_id: str, *, gallery: str = _DEFAULT_GALLERY
    ) -> Call[ErasureReceipt]:
        """Erase a person with every sequence."""
        return Call(
            method="DELETE",
            path=at("/subjects/{}", subject_id),
            read=ErasureReceipt.of,
            query={"gallery": gallery},
        )

    @answered
    def sequence(self, sequence_id: str) -> Call[answers.Sequence]:
        """One sequence, without its silhouettes."""
        path = at("/sequences/{}", sequence_id)
        return Call(method="GET", path=path, read=answers.Sequence.of)

    @answered
    def edit_sequence(
        self,
        sequence_id: str,
        *,
        metadata: Metadata | None = None,
        subject_id: str | None = None,
    ) -> Call[answers.Sequence]:
        """Replace a sequence's metadata, or give it to another person of its gallery."""
        content: dict[str, Any] = {} if metadata is None else {"metadata": dict(metadata)}
        if subject_id is not None:
            content["subject_id"] = subject_id
        path = at("/sequences/{}", sequence_id)
        return Call(method="PATCH", path=path, read=answers.Sequence.of, json=content)

    @answered
    def silhouettes(self, sequence_id: str) -> Call[bytes]:
        """A sequence's silhouettes as an .npz: `silhouettes`, uint8 [s, 64, 64]."""
        path = at("/sequences/{}/silhouettes.npz", sequence_id)
        return Call(method="GET", path=path, read=_content)

    @answered
    def film(self, sequence_id: str) -> Call[bytes]:
        """A sequence's silhouettes as an animated GIF."""
        path = at("/sequences/{}/silhouettes.gif", sequence_id)
        return Call(method="GET", path=path, read=_content)

    @answered
    def energy_image(self, sequence_id: str) -> Call[bytes]:
        """A sequence's gait energy image as a PNG, 44 x 64 pixels."""
        return Call(method="GET", path=at("/sequences/{}/gei.png", sequence_id), read=_content)

    @answered
    def erase_sequence(self, sequence_id: str) -> Call[ErasureReceipt]:
        """Erase a sequence, and its subject when it was the last one."""
        path = at("/sequences/{}", sequence_id)
        return Call(method="DELETE", path=path, read=ErasureReceipt.of)

    # Jobs

    @answered
    def distill(
        self,
        *,
        recipe: str,
        name: str,
        dataset: Dataset,
        teachers: Sequence[str],
        student: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        activate: str | None = None,
        activate_in: str | None = None,
    ) -> Call[Job]:
        """Start a distillation; `activate` is `never` or `if_better`, `activate_in` a gallery."""
        content = {
            "recipe": recipe,
            "name": name,
            "dataset": dataset,
            "teachers": list(teachers),
            "student": student,
            "overrides": dict(overrides or {}),
        }
        if activate is not None:
            content["activate"] = activate
        if activate_in is not None:
            content["gallery"] = activate_in
        return _job("/jobs/distill", content)

    @answered
    def evaluate(self, *, model: str, dataset: Dataset, protocol: str = "cross-view") -> Call[Job]:
        """Start the evaluation of a model."""
        return _job("/jobs/evaluate", {"model": model, "dataset": dataset, "protocol": protocol})

    @answered
    def calibrate(self, *, gallery: str = _DEFAULT_GALLERY, target_fpir: float = 0.01) -> Call[Job]:
        """Start the calibration of a gallery's threshold."""
        return _job("/jobs/calibrate", {"gallery": gallery, "target_fpir": target_fpir})

    @answered
    def audit_gallery(self, *, gallery: str = _DEFAULT_GALLERY) -> Call[Job]:
        """Start the audit of a gallery: what in it attracts other people."""
        return _job("/jobs/audit-gallery", {"gallery": gallery})

    @answered
    def reindex(self, *, gallery: str = _DEFAULT_GALLERY) -> Call[Job]:
        """Start making a gallery's embeddings and index anew."""
        return _job("/jobs/reindex", {"gallery": gallery})

    @paged
    def jobs(self, *, status: str | None = None) -> Pages[Job]:
        """All jobs, newest first."""
        return Pages(path="/jobs", page=Page[Job], query={"status": status, "limit": _PAGE})

    @answered
    def job(self, job_id: str) -> Call[Job]:
        """One job."""
        return Call(method="GET", path=at("/jobs/{}", job_id), read=Job.of)

    @answered
    def cancel(self, job_id: str) -> Call[Job]:
        """Ask for a job to be stopped."""
        return Call(method="POST", path=at("/jobs/{}/cancel", job_id), read=Job.of)

    @streamed
    def follow(self, job_id: str, *, after: int = 0) -> Events:
        """A job's events as they happen, to its end; goes on where a connection broke."""
        return Events(job_id, after)

    # Models

    @paged
    def models(self) -> Pages[Model]:
        """All registered models, by name."""
        return Pages(path="/models", page=Page[Model])

    @answered
    def model(self, name: str) -> Call[Model]:
        """One model with its card."""
        return Call(method="GET", path=at("/models/{}", name), read=Model.of)

    @answered
    def upload_model(self, name: str, *, weights: Upload, card: Upload) -> Call[Model]:
        """Register a checkpoint, its two files, as the model `name`."""
        return Call(
            method="POST",
            path="/models",
            read=Model.of,
            form={"name": name},
            files=[("weights", weights), ("card", card)],
        )

    @answered
    def remove_model(self, name: str) -> Call[None]:
        """Remove a model that no gallery uses or may go back to."""
        return Call(method="DELETE", path=at("/models/{}", name), read=_nothing)

    @answered
    def activate(self, name: str, *, gallery: str = _DEFAULT_GALLERY) -> Call[Job]:
        """Start serving a gallery with a model, once everything is embedded with it."""
        return _job(at("/models/{}/activate", name), {"gallery": gallery})

    @answered
    def rollback(self, *, gallery: str = _DEFAULT_GALLERY) -> Call[Job]:
        """Serve a gallery with the model before the last activation again."""
        return _job("/models/rollback", {"gallery": gallery})

    # The service itself

    @lined
    def audit(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        gallery: str | None = None,
        after: int = 0,
    ) -> Lines:
        """The record of who did what: lines of JSON, oldest first, numbered above `after`."""
        query = {"since": since, "until": until, "gallery": gallery, "cursor": str(after)}
        return Lines(path="/audit", query=query)

    @answered
    def health(self) -> Call[Health]:
        """Whether the process answers."""
        return Call(method="GET", path="/healthz", read=Health.of)

    @answered
    def readiness(self) -> Call[Readiness]:
        """Which model serves, once it does; raises `Unavailable` when that takes too long."""
        return Call(method="GET", path="/readyz", read=Readiness.of)

    @answered
    def metrics(self) -> Call[str]:
        """Metrics as Prometheus reads them."""
        return Call(method="GET", path="/metrics", read=_text)


def _job(path: str, content: Mapping[str, Any]) -> Call[Job]:
    return Call(method="POST", path=path, read=Job.of, json=content)


def _json(value: Mapping[str, Any] | None) -> str | None:
    return json.dumps(value) if value else None


def _content(response: httpx.Response) -> bytes:
    return response.content


def _nothing(_response: httpx.Response) -> None:
    return None


def _text(response: httpx.Response) -> str:
    return response.text
