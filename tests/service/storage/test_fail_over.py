"""A primary that dies, a standby that takes over, and a former primary that comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from service.gallery.store import GalleryStore
from service.jobs.job import Status
from service.jobs.queue import JobQueue
from service.storage.database import open_database
from service.storage.failures import storage_trouble
from tests.e2e.deployment import until
from tests.service.jobs.fake_worker import fake_worker
from tests.service.postgresql import PostgreSQL, connections_closed, running, standby
from tests.service.requests import contents, identify, problem
from tests.service.server import serving, settings_for
from tests.service.walkers import walk

LEASE_S = 10.0


@dataclass
class Caller:
    """Enrols one after another, each until it is acknowledged, as clients should."""

    name: str
    client: httpx.Client
    acknowledged: list[str] = field(default_factory=list)
    refused: int = 0
    error: Exception | None = None

    def enrol(self) -> None:
        subject = f"{self.name}-{len(self.acknowledged)}"
        while True:
            answer = self.client.post(
                "/enroll",
                data={"subject_id": subject, "accept_conflict": "true"},
                files={"sequence": ("walk.npz", walk(len(self.acknowledged), frames=24))},
                headers={"Idempotency-Key": subject},
            )
            if answer.status_code == 201:
                self.acknowledged.append(subject)
                return
            # 409: its key is locked until the replica that could not unlock it gets a call.
            problem(answer, 409 if answer.status_code == 409 else 503)
            assert int(answer.headers["retry-after"]) > 0
            self.refused += answer.status_code == 503
            time.sleep(0.1)

    @contextmanager
    def calling(self) -> Iterator[None]:
        done = threading.Event()

        def call() -> None:
            try:
                while not done.wait(0.05):
                    self.enrol()
            except Exception as error:
                self.error = error

        thread = threading.Thread(target=call)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(60)
        if self.error is not None:
            raise self.error

    def await_a_refusal(self) -> None:
        until(lambda: self.error or self.refused, f"{self.name} is refused")

    def await_more(self, count: int) -> None:
        wanted = len(self.acknowledged) + count
        until(lambda: self.error or len(self.acknowledged) >= wanted, f"{self.name} goes on")


@pytest.fixture
def primary(postgres_programs: Path) -> Iterator[PostgreSQL]:
    with running(postgres_programs) as server:
        yield server


@pytest.fixture
def follower(postgres_programs: Path, primary: PostgreSQL) -> Iterator[PostgreSQL]:
    """A standby that has what the primary acknowledges."""
    with standby(postgres_programs, primary) as server:
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.execute("SELECT pg_reload_conf()")
        state = "SELECT sync_state FROM pg_stat_replication"
        until(lambda: primary.execute(state) == [("sync",)], "the standby is synchronous")
        yield server


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    engine = open_database(url)
    yield engine
    engine.dispose()


def timeline(engine: Engine) -> str:
    with engine.connect() as connection:
        at = connection.exec_driver_sql("SELECT pg_walfile_name(pg_current_wal_lsn())")
        return str(at.scalar_one())[:8]


def test_after_a_fail_over_all_goes_on_and_a_former_primary_is_not_written(
    primary: PostgreSQL, follower: PostgreSQL, models: Path, tmp_path: Path
) -> None:
    name = primary.create()
    url = primary.url(name, follower)
    with ExitStack() as stack:
        stack.enter_context(connections_closed())
        replicas = [
            stack.enter_context(
                serving(settings_for(tmp_path / str(number), models, database_url=url))
            )
            for number in range(2)
        ]
        for replica in replicas:  # FastAPI prepares routes when asked, and not in two threads
            problem(replica.get("/nothing"), 404)
        engine = stack.enter_context(opened(url))
        queue = JobQueue(engine, lease_seconds=LEASE_S, max_attempts=3, several_hosts=True)
        worker = fake_worker(queue, tmp_path / "jobs")
        working = threading.Thread(target=worker.run)
        working.start()
        stack.callback(working.join)
        stack.callback(worker.stop)
        callers = [Caller(f"caller{number}", one) for number, one in enumerate(replicas)]
        with ExitStack() as calls:
            for caller in callers:
                calls.enter_context(caller.calling())
                caller.await_more(2)
            witness = tmp_path / "witness"
            job = queue.enqueue("fake", {"steps": 40, "seconds": 0.1, "witness": str(witness)})
            run = tmp_path / "jobs" / job.id / "run"
            until((run / "state").exists, "the job runs")

            primary.kill()
            for caller in callers:
                caller.await_a_refusal()
            for replica in replicas:
                problem(replica.get("/readyz"), 503)
            follower.execute("SELECT pg_promote()")
            for caller in callers:
                caller.await_more(2)

        ended = until(lambda: (now := queue.get(job.id)).status.final and now, "the job has ended")
        assert (ended.status, ended.attempts) == (Status.SUCCEEDED, 1)
        assert (run / "starts").read_text() == "start\n"
        assert witness.read_text() == ""

        primary.start()  # nobody keeps it from taking writes
        primary.execute("ALTER SYSTEM RESET synchronous_standby_names")
        primary.execute("SELECT pg_reload_conf()")
        follower.end_connections(name)
        for caller in callers:
            caller.enrol()
        with opened(url) as new:  # as of a process that has seen nothing
            assert timeline(engine) == timeline(new) == "00000002"
        who = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'gaitid'"
        assert primary.execute(who) == [(0,)]

        acknowledged = {subject for caller in callers for subject in caller.acknowledged}
        for replica in replicas:
            found = contents(replica)
            assert set(found) - {""} == acknowledged
            assert all(len(found[subject]["sequences"]) == 1 for subject in acknowledged)
            answer = identify(replica, walk(0, frames=24), top_k="100").json()
            assert {one["subject_id"] for one in answer["candidates"]} == acknowledged

        follower.kill()
        with pytest.raises(OperationalError, match="only a former primary answers") as caught:
            GalleryStore(engine).check()
        assert storage_trouble(caught.value) is not None
        for replica in replicas:
            problem(identify(replica, walk(0, frames=24)), 503)
