"""`gaitid demo`: a real service enrols, identifies and distils, with walkers that ship with it.

It starts a service of its own (uvicorn, SQLite, FAISS, a worker) on a free loopback port, with a
temporary data folder, and uses it over HTTP as any client would. The service ends with the demo,
even if the demo is killed.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import IO, cast

from rich.console import Console
from rich.table import Table

from service.cli.progress import figures, follow
from service.client import Client, ClientError, Identification, Job
from service.job_types.commands import program
from service.jobs.kill_with_parent import command_line

_START_S = 120.0
_STOP_S = 20.0
_ROUNDS = 3  # each probe is sent this often, to measure latency
_LEAST_RANK1 = 0.75
_STUDENT = "demo-student"


class DemoFailed(Exception):
    """A part of the demo did not work; the text says which."""


@dataclass(frozen=True, slots=True)
class Cast:
    """The walks of the demo: files by person."""

    enrolled: Mapping[str, Sequence[Path]]
    probes: Sequence[tuple[str, Path]]
    strangers: Sequence[Path]


@dataclass(frozen=True, slots=True)
class Answers:
    """How the service answered.

    Attributes:
        rank1: share of probes whose best candidate is the right person.
        matched: share of probes that are also matched.
        strangers: the answers for the strangers.
        latencies_ms: time of each identification, in milliseconds.
    """

    rank1: float
    matched: float
    strangers: Sequence[Identification]
    latencies_ms: Sequence[float]


def run(console: Console | None = None, *, environment: Mapping[str, str] | None = None) -> None:
    """Run the demo and print the results; raises `DemoFailed`.

    The service gets `environment` in place of this process's GAITID_* variables, which are for
    another deployment.
    """
    from service.cli.demo_walks import WALKS

    console = console or Console()
    begin = time.perf_counter()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="gaitid-demo-") as folder,
            _service(Path(folder), environment or {}) as url,
            Client(url, api_key="", timeout_s=120.0) as client,
        ):
            console.print(f"The service listens on {url}")
            people = choose(WALKS)
            _enrol(client, people, console)
            answers = _identify(client, people, console)
            job = _distil(client, console)
        _summarise(console, answers, job, time.perf_counter() - begin)
    except ClientError as error:
        raise DemoFailed(str(error)) from error
    judge(answers, job)


def choose(walks: Path) -> Cast:
    """Choose what is enrolled and what is probed among `walks/PERSON/*`.

    The last person is the stranger. Of everybody else the last walk is the probe, and the others
    are enrolled.
    """
    people = {
        folder.name: sorted(path for path in folder.iterdir() if path.is_file())
        for folder in sorted(walks.iterdir())
        if folder.is_dir() and not folder.name.startswith(("_", "."))
    }
    *known, stranger = people
    return Cast(
        enrolled={person: people[person][:-1] for person in known},
        probes=[(person, people[person][-1]) for person in known],
        strangers=people[stranger],
    )


def _enrol(client: Client, people: Cast, console: Console) -> None:
    for person, walks in people.enrolled.items():
        client.enroll(person, walks)
    total = sum(len(walks) for walks in people.enrolled.values())
    console.print(f"Enrolled {len(people.enrolled)} people with {total} walks")


def _identify(client: Client, people: Cast, console: Console) -> Answers:
    latencies: list[float] = []

    def ask(walk: Path) -> Identification:
        begin = time.perf_counter()
        answer = client.identify(walk)
        latencies.append(1000 * (time.perf_counter() - begin))
        return answer

    right = matched = 0
    for person, walk in people.probes:
        answer = ask(walk)
        best = answer.candidates[0]
        right += best.subject_id == person
        matched += best.subject_id == person and answer.decision == "match"
        console.print(
            f"  another walk of {person}: {best.subject_id} at {best.similarity:.3f}, "
            f"{answer.decision}"
        )
    strangers = [ask(walk) for walk in people.strangers]
    for answer in strangers:
        best = answer.candidates[0]
        console.print(
            f"  a stranger: nearest is {best.subject_id} at {best.similarity:.3f}, "
            f"threshold {answer.threshold:.3f}, {answer.decision}"
        )
    for _ in range(_ROUNDS - 1):
        for _, walk in people.probes:
            ask(walk)
    total = len(people.probes)
    return Answers(right / total, matched / total, strangers, latencies)


def _distil(client: Client, console: Console) -> Job:
    """Distil a student from the shipped teacher on the enrolled walks, without activating it."""
    job = client.distill(
        recipe="demo", name=_STUDENT, dataset={"gallery": "default"}, teachers=["teacher"]
    )
    console.print(f"POST /jobs/distill: job {job.id}")
    job = follow(client, job.id, console=console)
    if job.status == "succeeded" and _STUDENT not in [model.name for model in client.models()]:
        raise DemoFailed("the distilled student is not among the models")
    return job


def _summarise(console: Console, answers: Answers, job: Job, seconds: float) -> None:
    decisions = [answer.decision for answer in answers.strangers]
    p95 = quantiles(answers.latencies_ms, n=20)[-1]
    table = Table(title="What happened", show_header=False)
    table.add_row("rank-1", f"{answers.rank1:.0%}")
    table.add_row("matched at the model's threshold", f"{answers.matched:.0%}")
    table.add_row(
        "strangers told apart (no_match)", f"{decisions.count('no_match')} of {len(decisions)}"
    )
    table.add_row("POST /identify, p50 / p95", f"{median(answers.latencies_ms):.0f} / {p95:.0f} ms")
    table.add_row("distillation", f"{job.status}, {job.progress.step} steps")
    table.add_row("its metrics", figures(job.metrics, most=6) or "none")
    table.add_row("activated", "nothing")
    table.add_row("the whole demo", f"{seconds:.0f} s")
    console.print(table)


def judge(answers: Answers, job: Job) -> None:
    """Raise `DemoFailed` unless people were identified, strangers not, and the job succeeded."""
    if job.status != "succeeded":
        raise DemoFailed(f"the distillation {job.status}: {job.error}")
    if answers.rank1 < _LEAST_RANK1:
        raise DemoFailed(f"only {answers.rank1:.0%} of the probes were identified")
    if any(answer.decision != "no_match" for answer in answers.strangers):
        raise DemoFailed("a stranger was matched")


@contextmanager
def _service(folder: Path, changes: Mapping[str, str]) -> Iterator[str]:
    """Run a service until the block, or this process, ends; yields its URL."""
    inherited = {name: value for name, value in os.environ.items() if name[:7] != "GAITID_"}
    command = program("service", "serve", "--port", "0", "--data-dir", str(folder / "data"))
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(
            command_line(command),
            stdin=subprocess.PIPE,  # the service ends when it closes, even if we are killed
            stdout=subprocess.PIPE,
            stderr=log,
            env={**inherited, **changes},
            start_new_session=True,
        )
        try:
            url = _announced(cast(IO[bytes], process.stdout), folder / "service.log")
            with Client(url, api_key="") as client:
                deadline = time.monotonic() + _START_S
                while not client.ready():
                    if time.monotonic() > deadline:
                        raise DemoFailed("the service did not become ready")
                    time.sleep(0.1)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for pipe in (process.stdin, process.stdout):
                cast(IO[bytes], pipe).close()


def _announced(output: IO[bytes], log: Path) -> str:
    """Return the URL that the service prints when it listens."""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        if not selector.select(_START_S):
            raise DemoFailed(f"the service did not start within {_START_S:.0f} s")
        line = output.readline().decode()
    if "http" not in line:
        raise DemoFailed(f"the service did not start: {log.read_text()[-1000:]}")
    return line.split()[-1]
