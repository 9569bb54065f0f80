"""A real worker over the fake run, in a process that a test may kill.

fake_worker.py DB FOLDERS [CUT]: with CUT it is one of several hosts, and while the file CUT exists
its database is away: `refused` at once, or `hung`, as the file says.
"""

import signal
import sqlite3
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from service.jobs.job import Job
from service.jobs.job_type import JobType, Outcome, Step
from service.jobs.leases import LeaseObserver
from service.jobs.queue import JobQueue
from service.jobs.worker import Worker
from service.storage.database import open_database

RUN = Path(__file__).parent / "fake_run.py"


class FakeJob:
    """A job type whose command is the fake run; its request holds the run's options."""

    def steps(self, job: Job, folder: Path) -> Sequence[Step]:
        if job.request.get("behave") == "bug":
            raise KeyError("a bug of ours")
        options = [part for key, value in job.request.items() for part in (f"--{key}", str(value))]
        run = (sys.executable, str(RUN), str(folder / "run"), *options)
        return [Step("run", run, state=folder / "run" / "state")]

    def complete(self, job: Job, folder: Path) -> Outcome:
        return Outcome({"finished": job.id})


def fake_worker(
    queue: JobQueue, folders: Path, types: Mapping[str, JobType] | None = None, **options: Any
) -> Worker:
    options.setdefault("observer", LeaseObserver(queue.lease_seconds))
    types = types or {"fake": FakeJob()}
    return Worker(queue, types, folders=folders, grace_s=0.5, poll_s=0.05, **options)


def main(database: str, folders: str, cut: str = "") -> None:
    engine = open_database(database)
    queue = JobQueue(
        engine, lease_seconds=1.5 if cut else 1.0, max_attempts=3, several_hosts=bool(cut)
    )
    if cut:
        file = Path(cut)

        @event.listens_for(engine, "checkout")
        def fail(*_: object) -> None:
            while file.exists():
                if file.read_text() == "refused":
                    away = sqlite3.OperationalError("the host cannot be reached")
                    away.sqlite_errorcode = sqlite3.SQLITE_IOERR
                    raise OperationalError("BEGIN", None, away)
                time.sleep(0.05)

    worker = fake_worker(queue, Path(folders))
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
