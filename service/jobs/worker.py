"""Leases one job at a time, runs its commands as child processes and relays what they report.

A worker may be killed at any moment. Its child dies with it (see `service.jobs.guard`), another
worker notices its silence, and the next one leases the job and runs the same commands in the same
folder, which resumes them. A worker that was only paused finds its lease lost and touches nothing.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from service.jobs.child import Child
from service.jobs.guard import TRY_AGAIN, Attempt
from service.jobs.job import LEASE_VARIABLE, Job, Status
from service.jobs.lane import Lane
from service.jobs.lock import announce, announced, try_lock
from service.jobs.plan import JobRefused, JobType, Step, partial, remove_folder, scratch
from service.jobs.queue import JobQueue, Lease, LeaseLost
from service.jobs.reasons import last_error_line, plain
from service.jobs.relay import Relay, Tenure
from service.jobs.scratch import remove_leftovers
from service.jobs.watch import Watch
from service.storage.failures import storage_trouble

_log = logging.getLogger(__name__)
Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


class _Cancelled(Exception):
    """The job was cancelled while its child ran."""


class _Stopping(Exception):
    """The worker was asked to stop while a child ran."""


class _Crashed(Exception):
    """The child ended in a way that trying again may mend."""


class Worker:
    """Runs jobs of the given types, one at a time.

    A command may end its own job, in the transaction that does the job's work (an activation's swap
    does), and go on tidying up: it is then awaited like any other.

    A database that is busy, full or out of reach is waited for: it passes, and nobody else can take
    a lease meanwhile. So is what an earlier attempt has left running. Only a worker that is asked
    to stop does not wait.
    """

    def __init__(
        self,
        queue: JobQueue,
        types: Mapping[str, JobType],
        *,
        folders: Path,
        watch: Watch,
        grace_s: float,
        poll_s: float = 0.25,
        lane: Lane | None = None,
    ) -> None:
        """Run jobs of `types` in subfolders of `folders`; of one lane only, or of all.

        `watch` is the one of the workers of this process, `grace_s` the time that a child has
        between SIGTERM and SIGKILL, `poll_s` the time between two looks at the database.
        """
        self._watch = watch
        self._lane = lane
        self._queue = queue
        self._types = types
        self._folders = folders
        self._grace_s = grace_s
        self._poll_s = poll_s
        self._stop = threading.Event()

    def stop(self) -> None:
        """Make `run` return soon; the running job goes back to the queue. For signal handlers."""
        self._stop.set()

    def run(self) -> None:
        """Run jobs until `stop` is called."""
        remove_leftovers(self._queue, self._folders)
        while not self._stop.is_set():
            if not self.run_one():
                self._stop.wait(self._poll_s)

    def run_one(self) -> bool:
        """Run the oldest queued job, if there is one, and say whether there was.

        Jobs whose worker is dead are taken back before.
        """
        try:
            for silent in self._watch.silent(self._queue.beats()):
                self._queue.take_back(silent)
            lease = self._queue.lease(self._lane)
        except SQLAlchemyError as error:
            if storage_trouble(error) is None:
                raise
            _log.warning("no job can be taken: %s", error)
            # Those that run one renew their leases first, which may have run out meanwhile.
            self._stop.wait(self._queue.lease_seconds / 3)
            return False
        if lease is None:
            return False
        _log.info("job %s (%s): lease %d", lease.job.id, lease.job.type, lease.number)
        try:
            with self._watch.running(lease):
                job = self._run(lease)
        except LeaseLost:
            _log.warning("job %s: the lease was lost, another worker has it", lease.job.id)
        except OSError:  # of clearing away; how the job ended is recorded, and sweeps clear too
            _log.exception("job %s has ended, and files of it are left", lease.job.id)
        else:
            _log.info("job %s: %s", job.id, job.status)
        return True

    def _run(self, lease: Lease) -> Job:
        folder = self._folders / lease.job.id
        job = self._attempt(lease, folder)
        # Only now: an attempt that is killed before its end is recorded is made again from these.
        if job.status.final:
            remove_folder(scratch(folder))
        return job

    def _attempt(self, lease: Lease, folder: Path) -> Job:
        job = lease.job
        tenure = Tenure(self._queue, lease)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._alone(lease, tenure, folder):
                scratch(folder).mkdir(exist_ok=True)
                job = self._patiently(self._queue.begin, lease)
            kind = self._types.get(job.type)
            if kind is None:
                raise JobRefused(f"this worker cannot run jobs of type {job.type!r}")
            for step in kind.steps(job, folder):
                self._run_step(lease, tenure, job, step, folder)
            job = self._patiently(self._queue.get, job.id)
            if job.status.final:  # a command ended its own job
                return job
            outcome = kind.complete(job, folder)
            if outcome.first is not None:
                self._patiently(self._queue.under, lease, outcome.first)
            ended = self._patiently(
                self._queue.succeed,
                lease,
                outcome.result,
                records=outcome.records,
                also=outcome.also,
            )
        except JobRefused as refusal:
            return self._patiently(self._queue.fail, lease, plain(str(refusal)))
        except _Cancelled:
            return self._patiently(self._queue.stopped, lease)
        except _Stopping:
            return self._patiently(self._queue.release, lease)
        except _Crashed as crash:
            return self._patiently(self._queue.retry, lease, str(crash))
        except LeaseLost:
            ended = self._patiently(self._queue.get, job.id)
            if ended.status is Status.SUCCEEDED:  # by its own command, with the work it did
                return ended
            raise
        except SQLAlchemyError:
            raise
        except Exception as error:  # one bad job must not take the worker along
            _log.exception("job %s", job.id)
            told = isinstance(error, OSError)  # a full disk, say
            reason = plain(str(error)) if told else "the worker met an error that its log has"
            return self._patiently(self._queue.retry, lease, reason)
        for path in outcome.spent:
            _remove(path)
        return ended

    def _patiently(
        self, ask: Callable[Asked, Answer], *args: Asked.args, **kwargs: Asked.kwargs
    ) -> Answer:
        """What the queue answers, once its database can be used."""
        waiting = False
        while True:
            try:
                return ask(*args, **kwargs)
            except SQLAlchemyError as error:
                if storage_trouble(error) is None or self._stop.is_set():
                    raise
                if not waiting:
                    _log.warning("waiting for the database: %s", error)
                waiting = True
                self._stop.wait(self._poll_s)

    @contextmanager
    def _alone(self, lease: Lease, tenure: Tenure, folder: Path) -> Iterator[int]:
        """KeyLock the folder's lock, with a lease that is still good; yields its descriptor.

        Raises `_Cancelled`, `_Stopping` or `LeaseLost` while it waits for an earlier attempt's end.
        """
        waiting = False
        while True:
            with try_lock(folder) as lock:
                if lock is not None:
                    self._patiently(self._queue.heartbeat, lease)
                    yield lock
                    return
            if not waiting:
                _log.warning("job %s: waiting for the end of an earlier attempt", lease.job.id)
            waiting = True
            announce(folder, lease.number)
            stopping = self._stop.wait(self._poll_s)
            if self._patiently(tenure.status) is Status.CANCELLING:
                raise _Cancelled
            if stopping:
                raise _Stopping

    def _start(self, lease: Lease, lock: int, folder: Path, step: Step, log: IO[bytes]) -> Child:
        attempt = Attempt(lock, str(announced(folder).absolute()), lease.number)
        if step.output is not None:
            _remove(partial(step.output))
            attempt = attempt._replace(
                partial=str(partial(step.output).absolute()), output=str(step.output.absolute())
            )
        environment = {**step.environment, LEASE_VARIABLE: str(lease.number)}
        return Child(step.command, attempt=attempt, log=log, environment=environment)

    def _run_step(self, lease: Lease, tenure: Tenure, job: Job, step: Step, folder: Path) -> None:
        """Run one command; raises `JobRefused`, `_Crashed`, `_Cancelled` or `_Stopping`."""
        if step.output is not None and step.output.exists():
            return
        with (folder / "log.txt").open("ab") as log:
            relay = Relay(tenure, log)
            with self._alone(lease, tenure, folder) as lock:
                log.write(f"== {step.name}, attempt {job.attempts}\n".encode())
                log.flush()
                begin = log.tell()
                if step.prepare is not None:
                    step.prepare()
                child = self._start(lease, lock, folder, step, log)
            try:
                while not child.ended():
                    stopping = self._stop.wait(self._poll_s)
                    try:
                        relay.read(child.lines(0.0))
                        self._patiently(relay.send)
                        status_now = self._patiently(tenure.status)
                    except LeaseLost:
                        self._leave_alone(child, lease)
                        raise
                    except SQLAlchemyError:  # the worker stops, and cannot give the job back
                        child.stop(self._grace_s)
                        raise
                    if status_now is Status.CANCELLING:
                        child.stop(self._grace_s)
                        raise _Cancelled
                    if stopping:
                        child.stop(self._grace_s)
                        raise _Stopping
            finally:
                status, last = child.close()
            relay.read(last)
            self._patiently(relay.send)
        if status != 0:
            why = relay.failure or last_error_line(folder / "log.txt", begin)
            raise _verdict(step, status, plain(why))

    def _leave_alone(self, child: Child, lease: Lease) -> None:
        """Let a command that has ended its own job tidy up."""
        ended = self._queue.get(lease.job.id).status is Status.SUCCEEDED
        while ended and not child.ended() and not self._stop.wait(self._poll_s):
            child.lines(0.0)


def _verdict(step: Step, status: int, reason: str) -> JobRefused | _Crashed:
    """What a child's end with a status other than 0 means for the job."""
    said = f": {reason}" if reason else ""
    if status == TRY_AGAIN:
        return _Crashed(reason or f"{step.name} could not go on")  # a full disk takes no reason
    if status > 128:
        return _Crashed(f"{step.name} was ended by signal {status - 128}{said}")
    return JobRefused(f"{step.name} failed{said or f' with status {status}'}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
