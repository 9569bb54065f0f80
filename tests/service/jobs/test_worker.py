import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.exc import OperationalError

from service.jobs.job import Job, Status
from service.jobs.output import last_error_line, public_reason
from service.jobs.queue import JobQueue
from service.jobs.tables import JobRow
from service.jobs.worker import Worker
from tests.e2e.deployment import children, gone, until
from tests.service.jobs.fake_worker import fake_worker
from tests.service.jobs.workers import write_lock

OpenQueue = Callable[..., JobQueue]
FAKE_WORKER = Path(__file__).parent / "fake_worker.py"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def worker(queue: JobQueue, folders: Path) -> Worker:
    return fake_worker(queue, folders)


@pytest.fixture
def start_worker(
    database_url: str, folders: Path
) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    with ExitStack() as stack:

        @contextmanager
        def running() -> Iterator[subprocess.Popen[bytes]]:
            process = subprocess.Popen([sys.executable, FAKE_WORKER, database_url, folders])
            yield process
            process.kill()
            process.wait()

        yield lambda: stack.enter_context(running())


def run(worker: Worker, queue: JobQueue, **options: object) -> Job:
    job = queue.enqueue("fake", options)
    assert worker.run_one()
    return queue.get(job.id)


def test_a_job_runs_to_its_end_and_its_events_are_relayed(
    worker: Worker, queue: JobQueue, folders: Path
) -> None:
    job = run(worker, queue)
    assert (job.status, job.error) == (Status.SUCCEEDED, None)
    assert job.result == {"finished": job.id}
    assert job.metrics["rank1"] == 0.8
    assert (job.progress.step, job.progress.total_steps) == (3, 3)
    assert str(folders) not in str(queue.events(job.id))
    kinds = [event.kind for event in queue.events(job.id)]
    assert kinds[:3] == ["status", "status", "start"]
    assert kinds[-3:] == ["evaluation", "done", "status"]
    assert not (folders / job.id / "scratch").exists()


def test_lines_that_are_no_events_go_to_the_log_and_nan_becomes_null(
    worker: Worker, queue: JobQueue, folders: Path
) -> None:
    job = run(worker, queue, behave="babble")
    assert job.status is Status.SUCCEEDED
    log = (folders / job.id / "log.txt").read_text()
    assert "stdout: Downloading... 100%" in log
    assert '"step": "three"' in log
    assert "NaN" not in log


def test_bad_input_fails_the_job_at_once_with_its_reason_and_without_paths(
    worker: Worker, queue: JobQueue
) -> None:
    job = run(worker, queue, behave="bad input")
    assert (job.status, job.attempts) == (Status.FAILED, 1)
    assert job.error == "run failed: no teacher at teacher"


def test_an_exception_of_the_child_becomes_a_reason_without_paths_or_escapes(
    worker: Worker, queue: JobQueue
) -> None:
    job = run(worker, queue, behave="raise")
    assert job.status is Status.FAILED
    assert job.error == "run failed: RuntimeError: cannot read frames.bin"


def test_a_child_that_crashes_is_tried_again(worker: Worker, queue: JobQueue) -> None:
    job = run(worker, queue, behave="crash once")
    assert job.status is Status.QUEUED
    assert worker.run_one()
    job = queue.get(job.id)
    assert (job.status, job.attempts) == (Status.SUCCEEDED, 2)


def test_a_child_whose_database_is_busy_is_tried_again(worker: Worker, queue: JobQueue) -> None:
    job = run(worker, queue, behave="busy once")
    assert job.status is Status.QUEUED
    told = [event.data.get("reason") for event in queue.events(job.id)]
    assert told[-1] == "gaitid: The database is busy with other work."
    assert worker.run_one()
    assert queue.get(job.id).status is Status.SUCCEEDED


def test_a_child_that_always_crashes_fails_the_job_in_the_end(
    worker: Worker, queue: JobQueue, folders: Path
) -> None:
    job = run(worker, queue, behave="crash")
    while worker.run_one():
        pass
    job = queue.get(job.id)
    assert (job.status, job.attempts) == (Status.FAILED, 3)
    assert job.error == "gave up after 3 attempts: run was ended by signal 9"
    assert not (folders / job.id / "scratch").exists()


def test_a_bug_in_a_job_type_fails_the_job_and_the_worker_lives(
    worker: Worker, queue: JobQueue
) -> None:
    broken, good = queue.enqueue("fake", {"behave": "bug"}), queue.enqueue("fake", {})
    while worker.run_one():
        pass
    assert queue.get(good.id).status is Status.SUCCEEDED
    seen = queue.get(broken.id)
    assert seen.status is Status.FAILED
    assert seen.error == "gave up after 3 attempts: the worker met an error that its log has"


def test_a_disk_that_takes_no_folder_costs_the_job_an_attempt_and_not_the_worker(
    worker: Worker, queue: JobQueue, folders: Path
) -> None:
    folders.write_text("a file where the folder should be")
    job = run(worker, queue)
    assert (job.status, job.attempts) == (Status.QUEUED, 1)
    folders.unlink()
    assert worker.run_one()
    assert queue.get(job.id).status is Status.SUCCEEDED


def test_files_that_cannot_be_removed_do_not_take_the_worker_along(
    queue: JobQueue, folders: Path
) -> None:
    def refuse(_folder: Path) -> None:
        raise PermissionError(errno.EACCES, "not yours")

    worker = fake_worker(queue, folders, remove_scratch=refuse)
    assert run(worker, queue).status is Status.SUCCEEDED


@pytest.mark.usefixtures("impatient")
def test_a_database_that_is_busy_for_long_costs_a_running_job_nothing(
    worker: Worker, queue: JobQueue, engine: Engine, folders: Path
) -> None:
    job = queue.enqueue("fake", {"steps": 20, "seconds": 0.05})
    running = threading.Thread(target=worker.run_one)
    running.start()
    until(lambda: queue.get(job.id).progress.step, "the first step")
    with write_lock(engine):
        time.sleep(1.5)  # the run has ended by now
        assert queue.get(job.id).status is Status.RUNNING
    running.join(10)
    ended = queue.get(job.id)
    assert (ended.status, ended.attempts) == (Status.SUCCEEDED, 1)
    assert (folders / job.id / "run" / "starts").read_text() == "start\n"
    told = [event.data["step"] for event in queue.events(job.id) if event.kind == "progress"]
    assert told == sorted(set(told))
    assert told[-1] == 20


@pytest.mark.usefixtures("impatient")
def test_an_idle_worker_outlives_a_database_that_is_busy(
    open_queue: OpenQueue, engine: Engine, folders: Path
) -> None:
    queue = open_queue(lease_seconds=0.3)
    worker = fake_worker(queue, folders)
    job = queue.enqueue("fake", {})
    with write_lock(engine):
        assert not worker.run_one()
    assert worker.run_one()
    assert queue.get(job.id).status is Status.SUCCEEDED


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_is_stopped_while_the_database_is_busy_lets_the_run_save_its_state(
    worker: Worker, queue: JobQueue, engine: Engine, folders: Path
) -> None:
    job = queue.enqueue("fake", {"behave": "saves", "steps": 1000, "seconds": 0.02})
    raised: list[Exception] = []

    def work() -> None:
        try:
            worker.run_one()
        except OperationalError as error:
            raised.append(error)

    running = threading.Thread(target=work)
    running.start()
    until(lambda: queue.get(job.id).progress.step, "the first step")
    with write_lock(engine):
        time.sleep(0.3)
        worker.stop()
        running.join(10)
        assert len(raised) == 1
    assert (folders / job.id / "run" / "saved").exists()
    assert queue.get(job.id).status is Status.RUNNING  # until its lease has run out


def test_a_type_the_worker_does_not_know_fails_the_job(worker: Worker, queue: JobQueue) -> None:
    job = queue.enqueue("unheard-of", {})
    assert worker.run_one()
    assert queue.get(job.id).error == "this worker cannot run jobs of type 'unheard-of'"


@pytest.mark.parametrize("behave", ["well", "deaf", "parent"])
def test_cancel_ends_the_child_and_all_it_started_within_seconds(
    worker: Worker, queue: JobQueue, folders: Path, behave: str
) -> None:
    job = queue.enqueue("fake", {"steps": 1000, "seconds": 0.05, "behave": behave})
    thread = threading.Thread(target=worker.run_one)
    thread.start()
    until(lambda: queue.get(job.id).progress.step > 0, "progress")
    out = folders / job.id / "run"
    pids = [
        int((out / name).read_text()) for name in ("pid", "grandchild") if (out / name).exists()
    ]
    assert len(pids) == (2 if behave == "parent" else 1)

    begin = time.monotonic()
    queue.cancel(job.id)
    until(lambda: queue.get(job.id).status is Status.CANCELLED, "cancelled")
    assert time.monotonic() - begin < 3
    assert all(gone(pid) for pid in pids)
    thread.join()


def test_a_worker_killed_in_the_middle_takes_its_child_along_and_another_one_resumes(
    queue: JobQueue,
    folders: Path,
    start_worker: Callable[[], subprocess.Popen[bytes]],
) -> None:
    job = queue.enqueue("fake", {"steps": 30, "seconds": 0.05, "behave": "parent"})
    first = start_worker()
    until(lambda: queue.get(job.id).progress.step >= 5, "the first worker's progress")
    out = folders / job.id / "run"
    pids = [int((out / name).read_text()) for name in ("pid", "grandchild")]

    first.send_signal(signal.SIGKILL)
    first.wait()
    until(lambda: all(gone(pid) for pid in pids), "the end of the orphans")
    kept = int((out / "state").read_text())

    start_worker()
    until(lambda: queue.get(job.id).status.final, "the second worker's end")
    job = queue.get(job.id)
    assert (job.status, job.attempts, job.progress.step) == (Status.SUCCEEDED, 2, 30)
    starts = [event.data["step"] for event in queue.events(job.id) if event.kind == "start"]
    assert starts == [0, kept]  # resumed, not begun again
    assert kept >= 5


def processes_of(worker: subprocess.Popen[bytes]) -> list[int]:
    """The worker, its watchdog and the run."""
    found = [worker.pid]
    for pid in found:
        found += children(pid)
    return found


@pytest.mark.parametrize("whole", [False, True], ids=["the worker", "its children, too"])
def test_a_worker_that_was_only_paused_costs_the_job_no_attempt_that_did_not_run(
    queue: JobQueue,
    engine: Engine,
    folders: Path,
    start_worker: Callable[[], subprocess.Popen[bytes]],
    whole: bool,
) -> None:
    job = queue.enqueue("fake", {"steps": 60, "seconds": 0.05})
    first = start_worker()
    until(lambda: queue.get(job.id).progress.step, "the first worker's progress")
    paused = processes_of(first)
    assert len(paused) == 3
    start_worker()
    with write_lock(engine):  # not while it writes itself: then nobody else could
        for pid in paused if whole else paused[:1]:
            os.kill(pid, signal.SIGSTOP)
    try:
        if whole:  # the other one takes over and waits for the folder
            until((folders / job.id / "lease").exists, "the other worker waits")
            time.sleep(0.5)
            assert queue.get(job.id).attempts == 1
        else:
            until(lambda: queue.get(job.id).attempts == 2, "the other worker's attempt")
            assert all(gone(pid) for pid in paused[1:])
    finally:
        for pid in paused[:1] if not whole else paused:
            os.kill(pid, signal.SIGCONT)
    until(lambda: queue.get(job.id).status.final, "the end")
    ended = queue.get(job.id)
    assert (ended.status, ended.attempts, ended.error) == (Status.SUCCEEDED, 2, None)
    assert (folders / job.id / "run" / "starts").read_text() == "start\nstart\n"
    history = [event.data for event in queue.events(job.id) if event.kind == "status"]
    assert [data.get("attempt") for data in history] == [None, 1, None, 2, None]
    until(lambda: len(processes_of(first)) == 1, "the paused worker has no child any more")
    assert not gone(first.pid)


def test_a_worker_asked_to_stop_gives_its_job_back(
    queue: JobQueue, folders: Path, start_worker: Callable[[], subprocess.Popen[bytes]]
) -> None:
    job = queue.enqueue("fake", {"steps": 1000, "seconds": 0.05})
    process = start_worker()
    until(lambda: queue.get(job.id).progress.step > 0, "progress")
    pid = int((folders / job.id / "run" / "pid").read_text())
    process.terminate()
    assert process.wait(timeout=5) == 0
    seen = queue.get(job.id)
    assert (seen.status, seen.attempts) == (Status.QUEUED, 0)
    assert gone(pid)


def test_a_worker_that_lost_its_lease_kills_its_child_and_goes_on(
    worker: Worker, queue: JobQueue, folders: Path, engine: Engine
) -> None:
    job = queue.enqueue("fake", {"steps": 1000, "seconds": 0.05})
    thread = threading.Thread(target=worker.run_one)
    thread.start()
    until(lambda: queue.get(job.id).progress.step > 0, "progress")
    pid = int((folders / job.id / "run" / "pid").read_text())
    with engine.begin() as connection:  # what another worker does once it took it back
        connection.execute(update(JobRow).values(lease_number=JobRow.lease_number + 1))
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert gone(pid)


def test_two_attempts_never_run_in_one_folder_at_once(
    worker: Worker, queue: JobQueue, folders: Path
) -> None:
    job = queue.enqueue("fake", {})
    folder = folders / job.id
    folder.mkdir(parents=True)
    script = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(1); open(sys.argv[2], 'w').close()"
    )
    released = folder / "released"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, folder / "lock", released], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert worker.run_one()
    assert released.exists()
    assert queue.get(job.id).status is Status.SUCCEEDED
    holder.wait()
    holder.stdout.close()


def test_scratch_left_by_a_killed_worker_is_removed_once_its_job_has_ended(
    worker: Worker, queue: JobQueue, folders: Path
) -> None:
    ended, waiting = queue.enqueue("fake", {}), queue.enqueue("fake", {"steps": 1000})
    queue.cancel(ended.id)
    for job in (ended, waiting):
        (folders / job.id / "scratch" / "dataset.pack").mkdir(parents=True)
    worker.stop()
    worker.run()
    assert not (folders / ended.id / "scratch").exists()
    assert (folders / waiting.id / "scratch").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open '/a/b/c.toml': no such file", "cannot open 'c.toml': no such file"),
        ("loss was 3/4 of nan", "loss was 3/4 of nan"),
        ("first\nsecond\x00\x1b[1mthird", "first second third"),
        ("~/secret/x and ../up", "x and up"),
        ("é" * 500, "é" * 399 + "…"),
    ],
)
def test_reasons_are_one_plain_line(text: str, expected: str) -> None:
    assert public_reason(text) == expected


def test_a_reason_of_the_training_program_is_not_said_to_have_failed_twice(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("step 1/2\nfailed: gallery.zip: nobody is enrolled in it\n\nstdout: bye\n")
    assert last_error_line(log, 0) == "gallery.zip: nobody is enrolled in it"
