"""Load on a cluster, and books of it: who must be found, who must be gone, what was answered."""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar

import httpx

from service.client import Client, ClientError, Job, NotFound, Refused, Retries
from tests.service.walkers import walk

PEOPLE: Final = "default"
"""The gallery that is enrolled in, searched, erased from and given other models."""

LEARNED: Final = "learned"
"""The gallery that models are distilled from; nobody is erased from it, which would end the job."""

SAME: Final = 0.999
"""Below it the similarity of a walk to itself says that two models were compared."""

_FRAMES: Final = 24
_PATIENCE_S: Final = 90.0  # that a caller tries the same call again
_MODELS: Final = ("default", "default-float")

T = TypeVar("T")
State = Literal["enrolling", "enrolled", "erasing", "erased", "unknown"]


@dataclass
class Person:
    """Somebody whose only walk is drawn from a number."""

    subject: str
    seed: int
    state: State = "enrolling"

    def walk(self) -> tuple[str, bytes]:
        """The walk, as an upload."""
        phase = (self.seed % 997) / 997
        return "walk.npz", walk(self.seed, phase=phase, frames=_FRAMES)


@dataclass
class Call:
    """One request and its answer; `status` 0 is a connection that broke."""

    at: float
    until: float
    call: str
    status: int
    slug: str | None = None
    retry_after: bool = False


@dataclass
class Books:
    """What was acknowledged, and what was seen that must not be. Any thread may write."""

    people: dict[str, Person] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    digests: set[str] = field(default_factory=set)
    violations: list[dict[str, object]] = field(default_factory=list)
    searches: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def violate(self, rule: str, **what: object) -> None:
        """Note that something happened that must not."""
        with self.lock:
            self.violations.append({"at": round(time.time(), 2), "rule": rule, **what})

    def move(self, person: Person, state: State) -> None:
        """Note what is known of a person now."""
        with self.lock:
            person.state = state

    def those(self, state: State) -> list[Person]:
        """The people in a state, in the order of their enrolment."""
        with self.lock:
            return [person for person in self.people.values() if person.state == state]


class _Watched(httpx.HTTPTransport):
    """Keeps a record of every answer before anybody acts upon it."""

    def __init__(self, books: Books, trust: ssl.SSLContext) -> None:
        super().__init__(verify=trust)
        self._books = books

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        at, path = time.time(), request.url.path.split("/")
        call = f"{request.method} {'/'.join(path[2:4])}"  # without the prefix and ids
        try:
            response = super().handle_request(request)
        except httpx.TransportError:
            self._note(Call(at, time.time(), call, 0))
            raise
        slug = None
        if response.status_code >= 500:
            response.read()
            problem = response.json() if "json" in response.headers["content-type"] else {}
            slug = problem.get("type", "").rpartition("/")[2]
        told = "retry-after" in response.headers
        self._note(Call(at, time.time(), call, response.status_code, slug, told))
        return response

    def _note(self, call: Call) -> None:
        with self._books.lock:
            self._books.calls.append(call)


class Load:
    """Threads that call the service through the proxy until they are told to stop."""

    def __init__(self, url: str, trust: Path, books: Books, seed: int) -> None:
        """`url` is the proxy's, with its prefix; `trust` has the certificate that it shows."""
        self.books = books
        self._url = url
        self._trust = ssl.create_default_context(cafile=str(trust))
        self._random = random.Random(seed)  # noqa: S311 - repeatable, hides nothing
        self._stop = threading.Event()
        self._distilled: list[str] = []
        self._active = _MODELS[0]
        self._threads = [
            threading.Thread(target=self._repeat, args=(turn, pause), name=turn.__name__)
            for turn, pause in (
                (self.enrol, 0.5),
                (self.enrol, 0.7),
                (self.identify, 0.2),
                (self.identify, 0.3),
                (self.erase, 3.0),
                (self.activate, 5.0),
                (self.distil, 5.0),
            )
        ]

    def client(self, url: str | None = None) -> Client:
        """A client whose answers are written into the books."""
        return Client(
            url or self._url,
            api_key="",
            timeout_s=30,
            transport=_Watched(self.books, self._trust),
            retries=Retries(attempts=3, longest_wait_s=12),
        )

    def prepare(self) -> None:
        """Enrol whom models are distilled from, and a few to begin with."""
        with self.client() as client:
            client.create_gallery(LEARNED)
            for person in range(1, 7):
                walks = [
                    ("walk.npz", walk(person, phase=phase, frames=_FRAMES))
                    for phase in (0.0, 0.5, 1.0)
                ]
                client.enroll(f"l{person}", walks, gallery=LEARNED, accept_conflict=True)
            self.books.digests.add(client.readiness().model.digest)
            for _ in range(5):
                self.enrol(client)

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing new, and wait until what was begun has come to an end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(6 * _PATIENCE_S)
            if thread.is_alive():
                raise RuntimeError(f"{thread.name} does not come to an end")

    def enrol(self, client: Client) -> None:
        """Enrol somebody new; the same call is repeated until it is answered."""
        with self.books.lock:
            number = len(self.books.people) + 1
            person = Person(f"person-{number:05d}-x", 1000 + number)
            self.books.people[person.subject] = person
        answer = self._persist(
            "enroll",
            lambda: client.enroll(
                person.subject,
                [person.walk()],
                accept_conflict=True,
                idempotency_key=f"enrol-{person.subject}",
            ),
        )
        self.books.move(person, "unknown" if answer is None else "enrolled")

    def identify(self, client: Client) -> None:
        """Search for somebody who is enrolled: found, by one model, and nobody who is erased."""
        enrolled = self.books.those("enrolled")
        if not enrolled:
            return
        with self.books.lock:
            person = self._random.choice(enrolled)
        self.look_for(client, person)

    def look_for(self, client: Client, person: Person) -> None:
        """Search for one person, and write down what must not be."""
        begun = time.time()
        gone = {other.subject for other in self.books.those("erased")}
        try:
            answer = client.identify(person.walk(), top_k=20, threshold=0.5)
        except ClientError as error:
            self._expected("identify", error)
            return
        with self.books.lock:
            self.books.searches += 1
            state, digests = person.state, set(self.books.digests)
        found = {one.subject_id: one.similarity for one in answer.candidates}
        what = {"subject": person.subject, "begun": begun, "model": answer.model.digest[:12]}
        if answer.model.digest not in digests:
            self.books.violate("answered by a model that was never active", **what)
        if state == "enrolled" and found.get(person.subject, 0.0) < SAME:
            similarity = found.get(person.subject)
            self.books.violate("an enrolled person is not found", similarity=similarity, **what)
        if seen := sorted(gone & found.keys()):
            self.books.violate("an erased person is found", seen=seen, **what)

    def erase(self, client: Client) -> None:
        """Erase somebody; that nobody is there any more is as good as a receipt."""
        enrolled = self.books.those("enrolled")
        if len(enrolled) < 5:
            return
        with self.books.lock:
            person = self._random.choice(enrolled)
            person.state = "erasing"

        def erase() -> bool:
            with suppress(NotFound):  # an earlier call was carried out, but not answered
                client.erase_subject(person.subject)
            return True

        gone = self._persist("erase", erase)
        self.books.move(person, "erased" if gone else "unknown")

    def activate(self, client: Client) -> None:
        """Give the gallery another model, and wait until it has it."""
        with self.books.lock:
            others = {*_MODELS, *self._distilled} - {self._active}
            name = self._random.choice(sorted(others))
        digest = self._persist("model", lambda: client.model(name).digest)
        if digest is None:
            return
        with self.books.lock:
            self.books.digests.add(digest)
        job = self._persist("activate", lambda: client.activate(name, gallery=PEOPLE))
        if job and (ended := self._see_through(client, job)) and ended.status == "succeeded":
            self._active = name

    def distil(self, client: Client) -> None:
        """Distil a tiny student, and wait for it."""
        with self.books.lock:
            name = f"student-{len(self.books.jobs)}"
        job = self._persist(
            "distil",
            lambda: client.distill(
                recipe="demo",
                name=name,
                dataset={"gallery": LEARNED},
                teachers=["default-float"],
                overrides={"steps": 12, "save_every": 4, "batch.sequences": 2},
            ),
        )
        if job and (ended := self._see_through(client, job)) and ended.status == "succeeded":
            with self.books.lock:
                self._distilled.append(name)

    def _see_through(self, client: Client, job: Job) -> Job | None:
        """Wait for a job's end, as long as one whose workers die again and again may take."""
        with self.books.lock:
            self.books.jobs[job.id] = job
        deadline = time.monotonic() + 5 * _PATIENCE_S
        while time.monotonic() < deadline:
            time.sleep(1.0)
            now = self._persist("job", lambda: client.job(job.id))
            if now is not None and now.ended:
                with self.books.lock:
                    self.books.jobs[job.id] = now
                return now
        self.books.violate("a job does not end", job=job.id, type=job.type)
        return None

    def _repeat(self, turn: Callable[[Client], None], pause: float) -> None:
        with self.client() as client:
            while not self._stop.wait(pause):
                try:
                    turn(client)
                except Exception as error:  # a thread that ends is a load that nobody sees is gone
                    self.books.violate("the load failed", call=turn.__name__, error=repr(error))

    def _persist(self, call: str, attempt: Callable[[], T]) -> T | None:
        """Repeat a call while it fails as it may; None if that takes too long, or it may not."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            try:
                return attempt()
            except ClientError as error:
                if not self._expected(call, error):
                    return None
            time.sleep(1.0)
        return None

    def _expected(self, call: str, error: ClientError) -> bool:
        """Whether a call may fail so and be sent again; whatever else it is, is written down."""
        if not isinstance(error, Refused):
            return True
        if error.status in (429, 503, 504) or error.slug == "idempotency-key-in-flight":
            return True
        self.books.violate(
            "refused", call=call, status=error.status, slug=error.slug, detail=error.detail
        )
        return False
