"""The client: one method for each call of the REST interface (docs/api.md).

A new call is one method here and, if its answer is new, one record in `answers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal, TypeVar

from service.client import answers
from service.client.answers import (
    Answer,
    Cohort,
    Enrolment,
    ErasureReceipt,
    Gallery,
    Health,
    Identification,
    Import,
    Job,
    JobEvent,
    Model,
    ModelSummary,
    Page,
    Readiness,
    Subject,
    SubjectDetails,
    Verification,
)
from service.client.connection import Connection, Transferred, Upload, at, given

A = TypeVar("A", bound=Answer)

Metadata = Mapping[str, str | int | float | bool | None]
Filter = Mapping[str, Any]
Include = Literal["metadata"]
Input = Literal["auto", "silhouettes", "footage"]
Dataset = str | Mapping[str, str]
"""The name of one of the deployment's packs, or `{"gallery": NAME}`."""


class Client(Connection):
    """A client of one service. Close it, or use it in a `with`; any number of threads may call it.

    Calls raise `ClientError`, see `failures`.
    """

    # People

    def enroll(
        self,
        subject_id: str,
        walks: Sequence[Upload] = (),
        *,
        walk: str | None = None,
        gallery: str = "default",
        metadata: Metadata | None = None,
        accept_conflict: bool = False,
        input: Input = "auto",
        track: int | None = None,
        frame_rate: float | None = None,
        idempotency_key: str | None = None,
    ) -> Enrolment:
        """Enrol walks of one person: all of them, or none if one is refused.

        `walk` is the id of one that a footage job lists, instead of `walks`. With
        `accept_conflict` also walks that may be another person's. `input` says what is sent;
        of footage with several people, `track` chooses one, and of footage as images `frame_rate`
        says how many are a second. Calls with equal walks and an equal `idempotency_key` within 24
        hours enrol them once.
        """
        return self._ask(
            Enrolment,
            "POST",
            "/enroll",
            form={
                "subject_id": subject_id,
                "walk": walk,
                "gallery": gallery,
                "metadata": _json(metadata),
                "accept_conflict": "true" if accept_conflict else None,
                "input": None if walk else input,
                "track": None if track is None else str(track),
                "frame_rate": None if frame_rate is None else str(frame_rate),
            },
            files=[("sequence", walk) for walk in walks],
            key=idempotency_key,
        )

    def identify(
        self,
        walk: Upload,
        *others: Upload,
        gallery: str = "default",
        galleries: Sequence[str] = (),
        top_k: int = 5,
        threshold: float | None = None,
        filter: Filter | None = None,
        explain: bool = False,
        view: str | None = None,
        include: Include | None = None,
        input: Input = "auto",
        track: int | None = None,
        frame_rate: float | None = None,
    ) -> Identification:
        """Find who walks; `filter` is metadata of candidates, and a list means any of its items.

        Other walks of the same person, up to nine, are fused with the first. Where `view` says from
        where they were filmed, candidates say whether they are enrolled in it. With
        `include="metadata"` candidates have their display name and metadata. `input` says what is
        sent; of footage with several people, `track` chooses one, and of footage as images
        `frame_rate` says how many are a second. Up to ten `galleries` are searched instead of
        `gallery`; candidates then name theirs.
        """
        return self._search(
            Identification, "/identify", (walk, *others), None if galleries else gallery, threshold,
            galleries=",".join(galleries) or None,
            top_k=str(top_k), filter=_json(filter), explain="true" if explain else None,
            view=view, include=include, input=input, track=None if track is None else str(track),
            frame_rate=None if frame_rate is None else str(frame_rate),
        )  # fmt: skip

    def verify(
        self,
        subject_id: str,
        walk: Upload,
        *others: Upload,
        gallery: str = "default",
        threshold: float | None = None,
        view: str | None = None,
        include: Include | None = None,
        input: Input = "auto",
        track: int | None = None,
        frame_rate: float | None = None,
    ) -> Verification:
        """Check whether the walk is this person's; see `identify` for the rest."""
        return self._search(
            Verification, "/verify", (walk, *others), gallery, threshold,
            subject_id=subject_id, view=view, include=include,
            input=input, track=None if track is None else str(track),
            frame_rate=None if frame_rate is None else str(frame_rate),
        )  # fmt: skip

    # What is enrolled

    def galleries(self) -> Iterator[Gallery]:
        """Yield all galleries, by name."""
        return self._list(Page[Gallery], "/galleries")

    def gallery(self, name: str = "default") -> Gallery:
        """Return one gallery."""
        return self._ask(Gallery, "GET", at("galleries", name))

    def create_gallery(
        self, name: str, *, metadata: Metadata | None = None, max_age_days: int | None = None
    ) -> Gallery:
        """Create an empty gallery, which erases sequences older than `max_age_days`."""
        content: dict[str, Any] = {"name": name, "metadata": dict(metadata or {})}
        if max_age_days is not None:
            content["max_age_days"] = max_age_days
        return self._ask(Gallery, "POST", "/galleries", json=content)

    def change_gallery(self, name: str, *, max_age_days: int | None) -> Gallery:
        """Set how many days a gallery keeps its sequences; None keeps them for ever."""
        content = {"max_age_days": max_age_days}
        return self._ask(Gallery, "PATCH", at("galleries", name), json=content)

    def add_to_cohort(self, name: str, walks: Sequence[Upload]) -> Cohort:
        """Add walks of whoever passed to a gallery's sums; nothing else of them is kept."""
        files = [("sequence", walk) for walk in walks]
        return self._ask(Cohort, "POST", at("galleries", name, "cohort"), files=files)

    def forget_cohort(self, name: str) -> None:
        """Delete a gallery's sums of whoever passed."""
        self._request("DELETE", at("galleries", name, "cohort"))

    def export_gallery(
        self,
        name: str,
        to: Path,
        *,
        embeddings: bool = True,
        transferred: Transferred | None = None,
    ) -> None:
        """Download a whole gallery as one file, which appears at `to` when it is complete."""
        query = {"embeddings": "true" if embeddings else "false"}
        self._save(at("galleries", name, "export"), to, query, transferred)

    def import_gallery(
        self, file: Path, name: str, *, transferred: Transferred | None = None
    ) -> Import:
        """Create a gallery from an export."""
        path = at("galleries", name, "import")
        return self._ask(Import, "PUT", path, file=file, transferred=transferred)

    def erase_gallery(self, name: str) -> ErasureReceipt:
        """Erase a gallery with everything in it."""
        return self._ask(ErasureReceipt, "DELETE", at("galleries", name))

    def subjects(self, *, gallery: str = "default") -> Iterator[Subject]:
        """Yield everybody who is enrolled, by id."""
        return self._list(Page[Subject], "/subjects", gallery=gallery)

    def subject(self, subject_id: str, *, gallery: str = "default") -> SubjectDetails:
        """Return one person with every sequence."""
        query = {"gallery": gallery}
        return self._ask(SubjectDetails, "GET", at("subjects", subject_id), query=query)

    def edit_subject(
        self,
        subject_id: str,
        *,
        gallery: str = "default",
        display_name: str | EllipsisType | None = ...,
        metadata: Metadata | None = None,
        merge_into: str | None = None,
        new_id: str | None = None,
    ) -> Subject:
        """Correct a person, and return them as they are now; what is left out stays as it is.

        Args:
            subject_id: the person.
            gallery: of the person.
            display_name: what people call them; None removes it.
            metadata: replaces all of it.
            merge_into: another subject who is the same person, gets every walk, and remains;
                `display_name` and `metadata` are then set there.
            new_id: another id; not together with `merge_into`.
        """
        content = _changes(metadata, merge_into=merge_into, subject_id=new_id)
        if not isinstance(display_name, EllipsisType):
            content["display_name"] = display_name
        path, query = at("subjects", subject_id), {"gallery": gallery}
        return self._ask(Subject, "PATCH", path, query=query, json=content)

    def erase_subject(self, subject_id: str, *, gallery: str = "default") -> ErasureReceipt:
        """Erase a person with every sequence."""
        query = {"gallery": gallery}
        return self._ask(ErasureReceipt, "DELETE", at("subjects", subject_id), query=query)

    def sequence(self, sequence_id: str) -> answers.Sequence:
        """Return one sequence, without its silhouettes."""
        return self._ask(answers.Sequence, "GET", at("sequences", sequence_id))

    def edit_sequence(
        self,
        sequence_id: str,
        *,
        metadata: Metadata | None = None,
        subject_id: str | None = None,
    ) -> answers.Sequence:
        """Replace a sequence's metadata, or give it to another person of its gallery."""
        content = _changes(metadata, subject_id=subject_id)
        return self._ask(answers.Sequence, "PATCH", at("sequences", sequence_id), json=content)

    def silhouettes(self, sequence_id: str) -> bytes:
        """Return a sequence's silhouettes as an .npz: `silhouettes`, uint8 [s, 64, 64]."""
        return self._request("GET", at("sequences", sequence_id, "silhouettes.npz")).content

    def film(self, sequence_id: str) -> bytes:
        """Return a sequence's silhouettes as an animated GIF."""
        return self._request("GET", at("sequences", sequence_id, "silhouettes.gif")).content

    def energy_image(self, sequence_id: str) -> bytes:
        """Return a sequence's gait energy image as a PNG, 44 x 64 pixels."""
        return self._request("GET", at("sequences", sequence_id, "gei.png")).content

    def erase_sequence(self, sequence_id: str) -> ErasureReceipt:
        """Erase a sequence, and its subject with the last one."""
        return self._ask(ErasureReceipt, "DELETE", at("sequences", sequence_id))

    # Jobs

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
        needs: Mapping[str, float] | None = None,
    ) -> Job:
        """Start a distillation; `activate` is `never` or `if_better`, `activate_in` a gallery.

        `needs` are labels that a worker must have to take the job.
        """
        target = {"activate": activate, "gallery": activate_in, "needs": needs}
        content = {
            "recipe": recipe,
            "name": name,
            "dataset": dataset,
            "teachers": list(teachers),
            "student": student,
            "overrides": dict(overrides or {}),
            **given(target),
        }
        return self._start("/jobs/distill", content)

    def evaluate(
        self,
        *,
        model: str,
        dataset: Dataset,
        protocol: str | None = None,
        conditions: Mapping[str, Any] | None = None,
        needs: Mapping[str, float] | None = None,
    ) -> Job:
        """Start the evaluation of a model, by a protocol or by conditions of one's own.

        `conditions` has `enrolled` (patterns of names of conditions), `asked` (the same, by the
        name that the figures get) and perhaps `apart` (degrees). `needs` as for `distill`.
        """
        content: dict[str, Any] = {"model": model, "dataset": dataset, **given({"needs": needs})}
        if protocol is not None:
            content["protocol"] = protocol
        if conditions is not None:
            content["conditions"] = dict(conditions)
        return self._start("/jobs/evaluate", content)

    def calibrate(self, *, gallery: str = "default", target_fpir: float = 0.01) -> Job:
        """Start the calibration of a gallery's threshold."""
        return self._start("/jobs/calibrate", {"gallery": gallery, "target_fpir": target_fpir})

    def adapt(self, *, gallery: str = "default") -> Job:
        """Start fitting a gallery's scene transform, which is used if it helps."""
        return self._start("/jobs/adapt", {"gallery": gallery})

    def audit_gallery(self, *, gallery: str = "default") -> Job:
        """Start the audit of a gallery: what in it attracts other people."""
        return self._start("/jobs/audit-gallery", {"gallery": gallery})

    def reindex(self, *, gallery: str = "default") -> Job:
        """Start making a gallery's embeddings and index anew."""
        return self._start("/jobs/reindex", {"gallery": gallery})

    def footage(
        self,
        clip: Path,
        *,
        gallery: str = "default",
        top_k: int = 5,
        filter: Filter | None = None,
        keep_minutes: int = 60,
    ) -> Job:
        """Start finding the walks of everybody in a long clip, and who they are.

        Each walk is an event of the kind `walk` as it ends. The walks are kept until `keep_minutes`
        after the job's end; see `enroll`. For `filter` see `identify`.
        """
        form = {
            "gallery": gallery,
            "top_k": str(top_k),
            "filter": _json(filter),
            "keep_minutes": str(keep_minutes),
        }
        return self._ask(Job, "POST", "/jobs/footage", form=form, large=("footage", clip))

    def jobs(self, *, status: str | None = None) -> Iterator[Job]:
        """Yield all jobs, newest first."""
        return self._list(Page[Job], "/jobs", status=status)

    def job(self, job_id: str) -> Job:
        """Return one job."""
        return self._ask(Job, "GET", at("jobs", job_id))

    def cancel(self, job_id: str) -> Job:
        """Ask for a job to be stopped."""
        return self._ask(Job, "POST", at("jobs", job_id, "cancel"))

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Yield a job's events as they happen, to its end; a broken connection is made again."""
        return self._events(at("jobs", job_id, "events"), after)

    # Models

    def models(self) -> Iterator[ModelSummary]:
        """Yield all registered models, by name, without their cards."""
        return self._list(Page[ModelSummary], "/models", limit=None)

    def model(self, name: str) -> Model:
        """Return one model with its card."""
        return self._ask(Model, "GET", at("models", name))

    def upload_model(self, name: str, *, weights: Upload, card: Upload) -> Model:
        """Register a checkpoint, given by its two files, as the model `name`."""
        files = [("weights", weights), ("card", card)]
        return self._ask(Model, "POST", "/models", form={"name": name}, files=files)

    def remove_model(self, name: str) -> None:
        """Remove a model that no gallery uses or may go back to."""
        self._request("DELETE", at("models", name))

    def activate(self, name: str, *, gallery: str = "default") -> Job:
        """Start re-embedding a gallery with a model, which serves it afterwards."""
        return self._start(at("models", name, "activate"), {"gallery": gallery})

    def rollback(self, *, gallery: str = "default") -> Job:
        """Start going back to the model that served a gallery before its last activation."""
        return self._start("/models/rollback", {"gallery": gallery})

    # The service itself

    def audit(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        gallery: str | None = None,
        after: int = 0,
    ) -> Iterator[str]:
        """Yield the record of who did what: lines of JSON, oldest first, numbered above `after`."""
        query = {"since": since, "until": until, "gallery": gallery, "cursor": str(after)}
        return self._lines("/audit", query)

    def health(self) -> Health:
        """Return whether the process answers."""
        return self._ask(Health, "GET", "/healthz")

    def readiness(self) -> Readiness:
        """Return the model that serves; raises `Unavailable` if it is not ready in time."""
        return self._ask(Readiness, "GET", "/readyz")

    def metrics(self) -> str:
        """Return metrics in Prometheus's text format."""
        return self._request("GET", "/metrics").text

    def _search(
        self,
        answer: type[A],
        path: str,
        walks: Sequence[Upload],
        gallery: str | None,
        threshold: float | None,
        **fields: str | None,
    ) -> A:
        text = None if threshold is None else str(threshold)
        form = {"gallery": gallery, "threshold": text, **fields}
        files = [("sequence", walk) for walk in walks]
        return self._ask(answer, "POST", path, form=form, files=files, changes=False)

    def _start(self, path: str, content: Mapping[str, Any]) -> Job:
        return self._ask(Job, "POST", path, json=content)


def _changes(metadata: Metadata | None, **ids: str | None) -> dict[str, Any]:
    """Return the body of a PATCH; what is None stays as it is."""
    content: dict[str, Any] = dict(given(ids))
    if metadata is not None:
        content["metadata"] = dict(metadata)
    return content


def _json(value: Mapping[str, Any] | None) -> str | None:
    return json.dumps(value) if value else None
