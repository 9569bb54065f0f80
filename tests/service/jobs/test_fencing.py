"""Workers on hosts that share nothing but the database: no job has two commands at once.

Each test runs on one database, because each takes seconds; `fake_worker` can cut off SQLite's.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest
from sqlalchemy import Engine, make_url

from service.jobs.child import Child
from service.jobs.job import Job, Status
from service.jobs.kill_with_parent import Attempt
from service.jobs.leases import LeaseKeeper
from service.jobs.queue import JobQueue
from service.storage.database import writing
from tests.e2e.deployment import children, gone, until
from tests.service.jobs.workers import leased

FAKE_WORKER = Path(__file__).parent / "fake_worker.py"


@dataclass
class Host:
    """A host with a worker, whose way to the database can be cut."""

    name: str
    folder: Path
    database_url: str
    _process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        arguments = (self.database_url, self.folder / self.name, self.folder / f"{self.name}-cut")
        self._process = subprocess.Popen([sys.executable, FAKE_WORKER, *arguments])

    def cut(self, how: str) -> None:
        """Take the database away from it."""
        new = self.folder / f"{self.name}-new"
        new.write_text(how)
        new.rename(self.folder / f"{self.name}-cut")

    def mend(self) -> None:
        (self.folder / f"{self.name}-cut").unlink()

    def run_of(self, job: Job) -> Path:
        return self.folder / self.name / job.id / "run"

    def pid_of(self, job: Job) -> int:
        """The process id of the job's command here."""
        return int((self.run_of(job) / "pid").read_text())

    def pause(self, engine: Engine, *pids: int) -> None:
        """Stop processes of it, though not while they write: nobody else could."""
        with writing(engine).begin() as connection:
            connection.exec_driver_sql("SELECT 1")
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)

    def end(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()


@dataclass
class Hosts:
    queue: JobQueue
    first: Host
    second: Host

    def begin(self, **options: object) -> Job:
        """A job that runs on the first host, while the second one looks on."""
        witness = self.first.folder / "witness"
        job = self.queue.enqueue(
            "fake", {"steps": 40, "seconds": 0.05, "witness": str(witness), **options}
        )
        self.first.start()
        until(lambda: self.queue.get(job.id).progress.step, "the first host's progress")
        self.second.start()
        return job

    def require_one_at_a_time(self, job: Job, attempts: int = 2) -> None:
        until(lambda: self.queue.get(job.id).status.final, "the end")
        ended = self.queue.get(job.id)
        assert (ended.status, ended.attempts) == (Status.SUCCEEDED, attempts)
        assert (self.first.folder / "witness").read_text() == ""


@pytest.fixture
def hosts(queue: JobQueue, database_url: str, tmp_path: Path) -> Iterator[Hosts]:
    with ExitStack() as stack:
        first, second = (Host(name, tmp_path, database_url) for name in ("first", "second"))
        for host in (first, second):
            stack.callback(host.end)
        yield Hosts(queue, first, second)


@pytest.mark.postgresql
def test_a_job_whose_worker_is_killed_runs_on_the_other_host(hosts: Hosts) -> None:
    job = hosts.begin()
    pid = hosts.first.pid_of(job)
    hosts.first.process.kill()
    hosts.require_one_at_a_time(job)
    assert gone(pid)
    assert hosts.second.run_of(job).exists()


@pytest.mark.sqlite  # PostgreSQL ends what a paused worker holds only after its own timeout
def test_a_paused_worker_s_command_ends_before_the_other_host_begins(
    hosts: Hosts, engine: Engine
) -> None:
    job = hosts.begin()
    pid = hosts.first.pid_of(job)
    hosts.first.pause(engine, hosts.first.process.pid)
    until(lambda: hosts.queue.get(job.id).attempts == 2, "the second host's attempt")
    assert gone(pid)
    os.kill(hosts.first.process.pid, signal.SIGCONT)
    hosts.require_one_at_a_time(job)


@pytest.mark.sqlite
@pytest.mark.parametrize("how", ["refused", "hung"])
def test_a_worker_that_is_cut_off_ends_its_command_before_the_other_host_begins(
    hosts: Hosts, how: str
) -> None:
    job = hosts.begin(behave="saves")
    pid = hosts.first.pid_of(job)
    hosts.first.cut(how)
    until(lambda: hosts.queue.get(job.id).attempts == 2, "the second host's attempt")
    assert gone(pid)
    assert (hosts.first.run_of(job) / "saved").exists()  # it was asked first
    hosts.first.mend()
    hosts.require_one_at_a_time(job)
    # The first host lives, and takes the next job.
    hosts.second.process.kill()
    after = hosts.queue.enqueue("fake", {})
    until(lambda: hosts.queue.get(after.id).status is Status.SUCCEEDED, "another job")
    assert hosts.first.run_of(after).exists()


@dataclass
class Way:
    """A way to a server by its socket, on which nothing arrives any more once it is cut."""

    socket_path: str
    open: threading.Event = field(default_factory=threading.Event)
    _listener: socket.socket = field(init=False)
    _ends: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # the end
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.socket_path)
            self._ends += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with source, suppress(OSError):
            while data := source.recv(65536):
                self.open.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.mark.postgresql
def test_a_worker_without_a_way_to_the_server_ends_its_command_before_the_other_begins(
    hosts: Hosts, database_url: str
) -> None:
    folder = make_url(database_url).query["host"]
    with Way(f"{folder}/.s.PGSQL.5432") as way:
        around = make_url(database_url).set(host="127.0.0.1", port=way.port, query={})
        hosts.first.database_url = around.render_as_string(hide_password=False)
        job = hosts.begin()
        pid = hosts.first.pid_of(job)
        way.open.clear()  # in the middle of whatever the worker says
        until(lambda: hosts.queue.get(job.id).attempts == 2, "the second host's attempt")
        assert gone(pid)
        way.open.set()
        hosts.require_one_at_a_time(job)


@pytest.mark.sqlite
def test_a_short_cut_costs_the_job_nothing(hosts: Hosts) -> None:
    job = hosts.begin()
    hosts.first.cut("refused")
    time.sleep(0.4)
    hosts.first.mend()
    hosts.require_one_at_a_time(job, attempts=1)


@pytest.mark.sqlite
def test_a_worker_cut_off_alone_goes_on_with_its_job_at_no_attempt_s_cost(hosts: Hosts) -> None:
    job = hosts.begin()
    hosts.second.process.kill()
    pid = hosts.first.pid_of(job)
    hosts.first.cut("refused")
    until(lambda: gone(pid), "the command's end")
    hosts.first.mend()
    hosts.require_one_at_a_time(job, attempts=1)
    reasons = [event.data.get("reason") for event in hosts.queue.events(job.id)]
    assert "the worker could not renew its lease in time" in reasons
    starts = [event.data["step"] for event in hosts.queue.events(job.id) if event.kind == "start"]
    assert starts[0] == 0
    assert starts[-1] > 0  # from the saved state


@pytest.mark.sqlite
def test_a_group_that_was_paused_as_a_whole_ends_when_it_wakes(
    hosts: Hosts, engine: Engine
) -> None:
    job = hosts.begin(witness=str(hosts.first.folder / "nobody-s"), steps=30)
    pid = hosts.first.pid_of(job)
    (watchdog,) = children(hosts.first.process.pid)
    paused = (hosts.first.process.pid, watchdog, pid)
    hosts.first.pause(engine, *paused)
    until(lambda: hosts.queue.get(job.id).status.final, "the second host's end")
    told = hosts.queue.events(job.id)
    for process in paused[1:]:  # its worker sleeps on: nothing but the clock says so
        os.kill(process, signal.SIGCONT)
    until(lambda: gone(pid), "the end of the first host's command")
    assert hosts.queue.events(job.id) == told


@pytest.mark.sqlite
def test_a_lease_is_certain_for_less_than_the_others_wait(queue: JobQueue) -> None:
    queue.enqueue("fake", {})
    lease = leased(queue)
    with LeaseKeeper(queue, lease) as alone:
        assert alone.ends_at == math.inf  # one machine: the folder's lock decides
    queue.several_hosts = True
    keeper = LeaseKeeper(queue, lease)
    assert keeper.ends_at < time.monotonic()  # until it is renewed
    began = time.monotonic()
    keeper.renew()
    assert keeper.ends_at < began + queue.lease_seconds * 0.9
    assert keeper.ends_at + keeper.last_grace_s < time.monotonic() + queue.lease_seconds


def test_a_command_is_asked_to_end_and_then_killed_unless_its_time_is_extended(
    tmp_path: Path,
) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None); time.sleep(60)"
    with (tmp_path / "log").open("wb") as log, (tmp_path / "lock").open("wb") as lock:
        begin = time.monotonic()
        attempt = Attempt(lock.fileno(), str(tmp_path / "lease"), 1, begin + 1.5, 0.3)
        child = Child([sys.executable, "-c", script], attempt=attempt, log=log, environment={})
        child.extend(begin + 3.0)
        until(child.ended, "its end")
        assert time.monotonic() - begin >= 3.0
        assert child.overdue
        assert child.close()[0] == 128 + signal.SIGKILL
