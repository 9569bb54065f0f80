"""A typed client of the REST interface, for the command line, the demo and other programs.

ServiceUnreachable   nothing answers at the URL
Refused              the service answered with a problem: status, slug, detail, errors
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

Walk = Path | tuple[str, bytes]
"""One walk to upload: a file, or a name and its bytes."""

_RECONNECTS = 10
_PIECE = 2**18
_Page = TypeVar("_Page", bound="_Model")


class ServiceUnreachable(Exception):
    """Nothing answers at the URL, or the connection broke."""


class _Model(BaseModel):
    # A newer service may say more than this client knows.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Fault(_Model):
    """One thing that is wrong with a request: where, and why."""

    where: str
    reason: str


class Resemblance(_Model):
    """How alike a walk is to a subject."""

    subject_id: str
    similarity: float | None
    sequence_id: str | None


class EnrolmentConflict(_Model):
    """A walk that may be another subject's."""

    where: str
    reason: str
    own: Resemblance
    other: Resemblance


class Problem(_Model):
    """RFC 9457 problem details; `conflicts` where an enrolment was refused for them."""

    type: str = "about:blank"
    title: str = ""
    status: int
    detail: str = ""
    errors: list[Fault] = []
    conflicts: list[EnrolmentConflict] = []


class Refused(Exception):
    """The service refused a request."""

    def __init__(self, problem: Problem) -> None:
        lines = [problem.detail or problem.title or f"status {problem.status}"]
        lines += [f"  {fault.where}: {fault.reason}" for fault in problem.errors]
        super().__init__("\n".join(lines))
        self.problem = problem


class Quality(_Model):
    """How good a sequence is."""

    score: float
    issues: list[str] = []


class EnrolledSequence(_Model):
    """One sequence that was enrolled."""

    sequence_id: str
    frames: int
    quality: Quality
    already_enrolled: bool = False


class Coverage(_Model):
    """In which views and conditions a subject is enrolled, and what is missing."""

    sequences: int
    views: list[str]
    conditions: list[str]
    missing_views: list[str]
    missing_conditions: list[str]
    advice: list[str]


class Enrolment(_Model):
    """What an enrolment added, and which conflicts it did in spite of."""

    gallery: str
    subject_id: str
    sequences: list[EnrolledSequence]
    conflicts: list[EnrolmentConflict] = []
    coverage: Coverage | None = None


class Candidate(_Model):
    """One enrolled subject who may be the probe."""

    rank: int
    subject_id: str
    similarity: float
    sequence_id: str


class Identification(_Model):
    """The answer to `identify`."""

    search_id: str
    gallery: str
    decision: str
    threshold: float
    threshold_source: str
    candidates: list[Candidate]
    took_ms: float


class Verification(_Model):
    """The answer to `verify`."""

    verified: bool
    similarity: float
    threshold: float
    threshold_source: str


class Subject(_Model):
    """One enrolled subject, in a list."""

    subject_id: str
    sequences: int


class JobProgress(_Model):
    """How far a job is."""

    fraction: float
    step: int
    total_steps: int | None
    eta_s: float | None


class Job(_Model):
    """One job."""

    id: str
    type: str
    status: str
    progress: JobProgress
    metrics: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None

    @property
    def ended(self) -> bool:
        """Whether the job will not change any more."""
        return self.status in ("succeeded", "failed", "cancelled")


class JobEvent(_Model):
    """One entry of a job's history."""

    sequence: int
    kind: str
    data: dict[str, Any]


class Model(_Model):
    """One registered model."""

    name: str
    source: str
    digest: str
    metrics: dict[str, Any]
    card: dict[str, Any] = {}


class ImportedGallery(_Model):
    """One gallery, as an import has made it."""

    name: str
    subjects: int
    sequences: int


class Import(_Model):
    """What an import has made; `sequence_ids` are "kept" or "new"."""

    gallery: ImportedGallery
    sequence_ids: str
    embeddings: dict[str, int]


Transferred = Callable[[int], object]
"""Told how many more bytes have gone over the wire."""


class Client:
    """A connection to one service. To be closed, or used in a `with`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Speak to the service at `url`, with an API key where it wants one."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_s, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    # People

    def enroll(
        self,
        subject_id: str,
        walks: Sequence[Walk],
        *,
        gallery: str = "default",
        metadata: Mapping[str, Any] | None = None,
        accept_conflict: bool = False,
    ) -> Enrolment:
        """Enrol walks of one person; with `accept_conflict` also such as may be another's."""
        fields = {"subject_id": subject_id, "gallery": gallery}
        if accept_conflict:
            fields["accept_conflict"] = "true"
        if metadata:
            fields["metadata"] = json.dumps(metadata)
        files = [_upload(walk) for walk in walks]
        return Enrolment.model_validate(self._post("/enroll", data=fields, files=files))

    def identify(
        self,
        walk: Walk,
        *,
        gallery: str = "default",
        top_k: int = 5,
        threshold: float | None = None,
    ) -> Identification:
        """Say who walks there."""
        fields = {"gallery": gallery, "top_k": str(top_k)}
        if threshold is not None:
            fields["threshold"] = str(threshold)
        content = self._post("/identify", data=fields, files=[_upload(walk)])
        return Identification.model_validate(content)

    def verify(
        self,
        subject_id: str,
        walk: Walk,
        *,
        gallery: str = "default",
        threshold: float | None = None,
    ) -> Verification:
        """Say whether this is the person."""
        fields = {"subject_id": subject_id, "gallery": gallery}
        if threshold is not None:
            fields["threshold"] = str(threshold)
        content = self._post("/verify", data=fields, files=[_upload(walk)])
        return Verification.model_validate(content)

    def subjects(self, *, gallery: str = "default") -> Iterator[Subject]:
        """Everybody who is enrolled."""
        return self._pages("/subjects", {"gallery": gallery}, Subject)

    # Whole galleries

    def export_gallery(
        self,
        gallery: str,
        path: Path,
        *,
        embeddings: bool = True,
        transferred: Transferred = lambda _count: None,
    ) -> None:
        """Bring a whole gallery home as one file, which appears when it is complete."""
        partial = path.with_name(f".{path.name}.part")
        params = {"embeddings": str(embeddings).lower()}
        try:
            with self._http.stream("GET", f"/galleries/{gallery}/export", params=params) as answer:
                if answer.is_error:
                    answer.read()
                _raise_for_problem(answer)
                # Biometric data: for this user only, from the first byte.
                with _private(partial) as file:
                    for piece in answer.iter_bytes():
                        file.write(piece)
                        transferred(len(piece))
            partial.replace(path)
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"{self._http.base_url}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)

    def import_gallery(
        self, path: Path, gallery: str, *, transferred: Transferred = lambda _count: None
    ) -> Import:
        """Make a new gallery of an exported one."""
        with path.open("rb") as file:
            content = self._answer(
                "PUT",
                f"/galleries/{gallery}/import",
                content=_pieces(file, transferred),
                headers={
                    "Content-Type": "application/zip",
                    "Content-Length": str(path.stat().st_size),
                },
                # The whole file is looked through before the answer comes.
                timeout=httpx.Timeout(self._http.timeout.write, read=None),
            )
        return Import.model_validate(content)

    # Jobs and models

    def distill(
        self,
        *,
        recipe: str,
        name: str,
        dataset: str | Mapping[str, str],
        teachers: Sequence[str],
        student: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Job:
        """Start a distillation; `dataset` is a pack's name or `{"gallery": NAME}`."""
        content = {
            "recipe": recipe,
            "name": name,
            "dataset": dataset,
            "teachers": list(teachers),
            "student": student,
            "overrides": dict(overrides or {}),
        }
        return Job.model_validate(self._post("/jobs/distill", json=content))

    def evaluate(self, *, model: str, dataset: str | Mapping[str, str], protocol: str) -> Job:
        """Start the evaluation of a model."""
        content = {"model": model, "dataset": dataset, "protocol": protocol}
        return Job.model_validate(self._post("/jobs/evaluate", json=content))

    def calibrate(self, *, gallery: str = "default", target_fpir: float = 0.01) -> Job:
        """Start the calibration of a gallery's threshold."""
        content = {"gallery": gallery, "target_fpir": target_fpir}
        return Job.model_validate(self._post("/jobs/calibrate", json=content))

    def audit_gallery(self, *, gallery: str = "default") -> Job:
        """Start the audit of a gallery."""
        return Job.model_validate(self._post("/jobs/audit-gallery", json={"gallery": gallery}))

    def jobs(self, *, status: str | None = None) -> Iterator[Job]:
        """All jobs, newest first."""
        return self._pages("/jobs", {"status": status} if status else {}, Job)

    def job(self, job_id: str) -> Job:
        """One job."""
        return Job.model_validate(self._get(f"/jobs/{job_id}"))

    def cancel(self, job_id: str) -> Job:
        """Ask for a job to be stopped."""
        return Job.model_validate(self._post(f"/jobs/{job_id}/cancel"))

    def follow(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """A job's events as they happen, to its end; reconnects where it was cut off."""
        failures = 0
        while True:
            try:
                for event in self._stream(job_id, after):
                    after, failures = event.sequence, 0
                    yield event
                return
            except ServiceUnreachable:
                failures += 1
                if failures > _RECONNECTS:
                    raise
                time.sleep(0.5)

    def models(self) -> list[Model]:
        """All registered models."""
        return TypeAdapter(list[Model]).validate_python(self._get("/models")["items"])

    def model(self, name: str) -> Model:
        """One model with its card."""
        return Model.model_validate(self._get(f"/models/{name}"))

    # The record of who did what

    def audit(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        gallery: str | None = None,
        after: int = 0,
    ) -> Iterator[str]:
        """Lines of JSON, oldest first: those whose number is above `after`."""
        wanted = {"since": since, "until": until, "gallery": gallery, "cursor": str(after)}
        params = {name: value for name, value in wanted.items() if value is not None}
        try:
            with self._http.stream("GET", "/audit", params=params) as response:
                if response.is_error:
                    response.read()
                _raise_for_problem(response)
                yield from response.iter_lines()
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"{self._http.base_url}: {error}") from error

    def ready(self) -> bool:
        """Whether the service answers and is ready."""
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _get(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        return self._answer("GET", path, params=params)

    def _post(self, path: str, **content: Any) -> Any:
        return self._answer("POST", path, **content)

    def _answer(self, method: str, path: str, **content: Any) -> Any:
        try:
            response = self._http.request(method, path, **content)
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"{self._http.base_url}: {error}") from error
        _raise_for_problem(response)
        return response.json()

    def _pages(self, path: str, params: Mapping[str, str], kind: type[_Page]) -> Iterator[_Page]:
        cursor: dict[str, str] = {}
        while True:
            page = self._get(path, {**params, **cursor})
            for item in page["items"]:
                yield kind.model_validate(item)
            if page["next_cursor"] is None:
                return
            cursor = {"cursor": page["next_cursor"]}

    def _stream(self, job_id: str, after: int) -> Iterator[JobEvent]:
        headers = {"Accept": "text/event-stream"}
        if after:
            headers["Last-Event-ID"] = str(after)
        try:
            with self._http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as response:
                if response.is_error:
                    response.read()
                _raise_for_problem(response)
                yield from _events(response.iter_lines())
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"{self._http.base_url}: {error}") from error


def _upload(walk: Walk) -> tuple[str, tuple[str, bytes]]:
    name, content = (walk.name, walk.read_bytes()) if isinstance(walk, Path) else walk
    return "sequence", (name, content)


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _pieces(file: IO[bytes], transferred: Transferred) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece
        transferred(len(piece))


def _raise_for_problem(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        problem = Problem(status=response.status_code, detail=response.reason_phrase)
    raise Refused(problem)


def _events(lines: Iterator[str]) -> Iterator[JobEvent]:
    """Read server-sent events: fields until an empty line; a line with an empty name is a ping."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        else:
            if "data" in fields:
                data = json.loads(fields["data"])
                yield JobEvent(sequence=int(fields["id"]), kind=fields["event"], data=data)
            fields = {}
