"""A real worker over the fake run, in a process that a test may kill: fake_worker.py DB FOLDERS."""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def main(database: str, folders: str) -> None:
    queue = JobQueue(open_database(database), lease_seconds=1.0, max_attempts=3)
    worker = fake_worker(queue, Path(folders))
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
