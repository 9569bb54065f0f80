"""Leases one job at a time, runs its commands as child processes and records what they report.

A worker may be killed at any moment. Its child dies with it (see `service.jobs.kill_with_parent`),
another worker notices that its lease expires, and the next one leases the job and runs the same
commands in the same folder, which resumes them. A worker that was only paused finds its lease lost
and changes nothing.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial as bound
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from service.foundation.errors import ServiceError, Unavailable
from service.foundation.tracing import TRACEPARENT_VARIABLE, span, traceparent
from service.jobs.child import Child
from service.jobs.job import LEASE_VARIABLE, Job, Status
from service.jobs.job_files import GoOn, JobFiles
from service.jobs.job_type import JobRefused, JobType, Step, partial
from service.jobs.kill_with_parent import TRY_AGAIN, Attempt
from service.jobs.labels import Labels
from service.jobs.leases import LeaseKeeper, LeaseObserver
from service.jobs.lock import later_lease_file, try_lock, write_later_lease
from service.jobs.output import ChildOutput, last_error_line, public_reason
from service.jobs.queue import JobClass, JobQueue, Lease, LeaseLost
from service.jobs.scratch import remove_folder, remove_scratch_of_ended, scratch
from service.storage.failures import is_away, storage_trouble
from service.storage.objects import StoreUnavailable

_log = logging.getLogger(__name__)
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class _Cancelled(Exception):
    """The job was cancelled while its child ran."""


class _Stopping(Exception):
    """The worker was asked to stop while a child ran."""


class _Overdue(Exception):
    """The child was ended because the lease could not be renewed in time."""


class _Crashed(Exception):
    """The child ended in a way that another attempt may not."""


class Worker:
    """Runs jobs of the given types, one at a time.

    A command may end its own job, in the transaction that does the job's work (an activation does),
    and then tidy up: the worker waits for its end as for any other.

    The worker waits for a database that is busy, full or out of reach; its child may go on as long
    as the lease is certain to hold (see `LeaseKeeper`). It also waits for the processes of an
    earlier attempt to end. Only a worker that is asked to stop does not wait.
    """

    def __init__(
        self,
        queue: JobQueue,
        types: Mapping[str, JobType],
        *,
        folders: Path,
        observer: LeaseObserver,
        grace_s: float,
        poll_s: float = 0.25,
        job_class: JobClass | None = None,
        labels: Labels | None = None,
        remove_scratch: Callable[[Path], None] = remove_folder,
        files: JobFiles | None = None,
    ) -> None:
        """Run jobs of `types`, of one class or of all, in subfolders of `folders`.

        It takes those whose needs its `labels` have; None has everything.

        `observer` is shared by all workers of this process, `grace_s` is the time that a child has
        between SIGTERM and SIGKILL, `poll_s` the time between two looks at the database.
        """
        self._queue = queue
        self._types = types
        self._folders = folders
        self._observer = observer
        self._grace_s = grace_s
        self._poll_s = poll_s
        self._job_class = job_class
        self._labels = labels
        self._remove_scratch = remove_scratch
        self._files = files or JobFiles(None)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Make `run` return soon; the running job goes back to the queue. For signal handlers."""
        self._stop.set()

    def run(self) -> None:
        """Run jobs until `stop` is called."""
        self._wait_for_database(remove_scratch_of_ended, self._queue, self._folders)
        while not self._stop.is_set():
            if not self.run_one():
                self._stop.wait(self._poll_s)

    def run_one(self) -> bool:
        """Reclaim the jobs of dead workers, then run the oldest queued job; False without one."""
        try:
            for heartbeat in self._observer.expired(self._queue.heartbeats()):
                self._queue.reclaim(heartbeat)
            lease = self._queue.lease(self._job_class, self._labels)
        except SQLAlchemyError as error:
            if storage_trouble(error) is None:
                raise
            if not is_away(error):
                _log.warning("no job can be leased: %s", error)
            # Workers that run a job renew first: their leases may have expired meanwhile.
            self._stop.wait(self._queue.lease_seconds / 3)
            return False
        if lease is None:
            return False
        _log.info("job %s (%s): lease %d", lease.job.id, lease.job.type, lease.number)
        try:
            name, parent = f"job {lease.job.type}", lease.job.traceparent
            with self._observer.holding(lease), span(name, parent=parent, job=lease.job.id):
                job = self._run(lease)
        except LeaseLost:
            _log.warning("job %s: the lease was lost, another worker has it", lease.job.id)
        except OSError:  # while removing files; the job's end is recorded, and sweeps remove too
            _log.exception("job %s has ended, and files of it are left", lease.job.id)
        else:
            _log.info("job %s: %s", job.id, job.status)
        return True

    def _run(self, lease: Lease) -> Job:
        folder = self._folders / lease.job.id
        with LeaseKeeper(self._queue, lease) as keeper:
            job = self._attempt(lease, keeper, folder)
        # Only now: an attempt that is killed before its end is recorded starts again from these.
        if job.status.final:
            self._remove_scratch(scratch(folder))
            try:
                self._files.delete([job.id])
            except Unavailable:  # sweeps delete it too
                _log.exception("job %s has ended, and files of it are left in the store", job.id)
        return job

    def _attempt(self, lease: Lease, keeper: LeaseKeeper, folder: Path) -> Job:
        job, queue, wait = lease.job, self._queue, self._wait_for_database
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked(lease, keeper, folder):
                scratch(folder).mkdir(exist_ok=True)
                job = wait(queue.begin, lease)
                self._keeping(keeper, bound(self._files.fetch, lease, folder))
            kind = self._types.get(job.type)
            if kind is None:
                raise JobRefused(f"this worker cannot run jobs of type {job.type!r}")
            for step in self._keeping(keeper, lambda _: kind.steps(job, folder)):
                with span(f"step {step.name}"):
                    self._run_step(lease, keeper, job, step, folder)
            job = wait(queue.get, job.id)
            if job.status.final:  # a command ended its own job
                return job
            outcome = self._keeping(keeper, lambda _: kind.complete(job, folder))
            if outcome.before is not None:
                wait(queue.write, lease, outcome.before)
            ended = wait(queue.succeed, lease, outcome.result, outcome.in_transaction)
        except JobRefused as refusal:
            return wait(queue.fail, lease, public_reason(str(refusal)))
        except _Cancelled:
            return wait(queue.stopped, lease)
        except _Stopping:
            return wait(queue.release, lease)
        except _Overdue:
            return wait(queue.release, lease, "the worker could not renew its lease in time")
        except _Crashed as crash:
            return wait(queue.retry, lease, str(crash))
        except LeaseLost:
            ended = wait(queue.get, job.id)
            if ended.status is Status.SUCCEEDED:  # by its own command, with the work it did
                return ended
            raise
        except SQLAlchemyError:
            raise
        except Exception as error:  # one bad job must not end the worker
            _log.exception("job %s", job.id)
            shown = isinstance(error, OSError | ServiceError)  # a full disk, say
            reason = "the worker met an error that its log has"
            return wait(queue.retry, lease, public_reason(str(error)) if shown else reason)
        for path in outcome.spent:
            _remove(path)
        return ended

    def _wait_for_database(
        self, ask: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Answer:
        """What the queue answers, once its database can be used."""
        waiting = False
        while True:
            try:
                return ask(*args, **kwargs)
            except SQLAlchemyError as error:
                if storage_trouble(error) is None or self._stop.is_set():
                    raise
                if not waiting and not is_away(error):
                    _log.warning("waiting for the database: %s", error)
                waiting = True
                self._stop.wait(self._poll_s)

    def _keeping(self, keeper: LeaseKeeper, work: Callable[[GoOn], Answer]) -> Answer:
        """What work answers that may take long or need the store; the lease is kept meanwhile.

        A store that is away is waited for. Raises `_Cancelled`, `_Stopping` or `LeaseLost`, when
        the work has ended, and what it raises.
        """
        given_up = threading.Event()

        def go_on() -> None:
            if given_up.is_set():
                raise _Stopping

        with ThreadPoolExecutor(1) as thread:
            while True:
                working = thread.submit(work, go_on)
                try:
                    while not wait([working], self._poll_s).done:
                        self._require_wanted(keeper)
                    return working.result()
                except StoreUnavailable:
                    _log.warning("waiting for the store")
                except BaseException:
                    given_up.set()
                    raise
                self._stop.wait(self._poll_s)
                self._require_wanted(keeper)

    def _require_wanted(self, keeper: LeaseKeeper) -> None:
        if self._wait_for_database(keeper.status) is Status.CANCELLING:
            raise _Cancelled
        if self._stop.is_set():
            raise _Stopping

    @contextmanager
    def _locked(self, lease: Lease, keeper: LeaseKeeper, folder: Path) -> Iterator[int]:
        """Hold the folder's lock under a lease that is still held; yields its descriptor.

        Raises `_Cancelled`, `_Stopping` or `LeaseLost` while it waits for an earlier attempt's end.
        """
        waiting = False
        while True:
            with try_lock(folder) as lock:
                if lock is not None:
                    self._wait_for_database(keeper.renew)
                    yield lock
                    return
            if not waiting:
                _log.warning("job %s: waiting for the end of an earlier attempt", lease.job.id)
            waiting = True
            write_later_lease(folder, lease.number)
            stopping = self._stop.wait(self._poll_s)
            if self._wait_for_database(keeper.status) is Status.CANCELLING:
                raise _Cancelled
            if stopping:
                raise _Stopping

    def _start(
        self,
        lease: Lease,
        keeper: LeaseKeeper,
        lock: int,
        folder: Path,
        step: Step,
        log: IO[bytes],
    ) -> Child:
        grace_s = min(self._grace_s, keeper.last_grace_s)
        later = str(later_lease_file(folder).absolute())
        attempt = Attempt(lock, later, lease.number, keeper.ends_at, grace_s)
        if step.output is not None:
            _remove(partial(step.output))
            attempt = attempt._replace(
                partial=str(partial(step.output).absolute()), output=str(step.output.absolute())
            )
        environment = {**step.environment, LEASE_VARIABLE: str(lease.number)}
        if (trace := traceparent()) is not None:
            environment[TRACEPARENT_VARIABLE] = trace
        return Child(step.command, attempt=attempt, log=log, environment=environment)

    def _run_step(
        self, lease: Lease, keeper: LeaseKeeper, job: Job, step: Step, folder: Path
    ) -> None:
        """Run one command; raises `JobRefused`, `_Crashed`, `_Cancelled` or `_Stopping`."""
        if step.output is not None and step.output.exists():
            return
        with (folder / "log.txt").open("ab") as log:
            output = ChildOutput(keeper, log)
            with self._locked(lease, keeper, folder) as lock:
                log.write(f"== {step.name}, attempt {job.attempts}\n".encode())
                log.flush()
                begin = log.tell()
                if step.prepare is not None:
                    step.prepare()
                child = self._start(lease, keeper, lock, folder, step, log)
            with self._files.saving(lease, folder, step.state):
                try:
                    with keeper.telling(child.extend):
                        self._follow(lease, keeper, child, output)
                finally:
                    overdue = child.overdue
                    status, last = child.close()
            output.read(last)
            self._wait_for_database(output.send)
        if status != 0 and overdue:
            raise _Overdue
        if status != 0:
            reason = output.failure or last_error_line(folder / "log.txt", begin)
            raise _failure(step, status, public_reason(reason))
        if step.output is not None:
            self._keeping(keeper, bound(self._files.keep, lease, folder, step.output))

    def _follow(self, lease: Lease, keeper: LeaseKeeper, child: Child, output: ChildOutput) -> None:
        """Record what a child reports until it ends; stop it when the job must not go on."""
        while not child.ended():
            stopping = self._stop.wait(self._poll_s)
            try:
                output.read(child.lines(0.0))
                self._wait_for_database(output.send)
                status = self._wait_for_database(keeper.status)
            except LeaseLost:
                self._let_tidy_up(child, lease)
                raise
            except SQLAlchemyError:  # the worker stops, and cannot give the job back
                child.stop(self._grace_s)
                raise
            if status is Status.CANCELLING or stopping:
                child.stop(self._grace_s)
                raise _Cancelled if status is Status.CANCELLING else _Stopping

    def _let_tidy_up(self, child: Child, lease: Lease) -> None:
        """Wait for the end of a command that has ended its own job."""
        ended = self._queue.get(lease.job.id).status is Status.SUCCEEDED
        while ended and not child.ended() and not self._stop.wait(self._poll_s):
            child.lines(0.0)


def _failure(step: Step, status: int, reason: str) -> JobRefused | _Crashed:
    """What a child's end with a status other than 0 means for the job."""
    suffix = f": {reason}" if reason else ""
    if status == TRY_AGAIN:
        return _Crashed(reason or f"{step.name} could not go on")  # a full disk takes no reason
    if status > 128:
        return _Crashed(f"{step.name} was ended by signal {status - 128}{suffix}")
    return JobRefused(f"{step.name} failed{suffix or f' with status {status}'}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
