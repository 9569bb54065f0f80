"""A PostgreSQL server of the tests' own: in a temporary folder, reached by a socket in it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psycopg
from sqlalchemy import Pool, event

from tests.e2e.deployment import children

_DEBIAN = Path("/usr/lib/postgresql")
_USERS = ("postgres", "nobody")  # whose server it is when the tests run as root
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "timezone": "Asia/Kathmandu",  # times must not depend on it
    "log_min_messages": "fatal",
}


class PostgreSQL:
    """A server in a folder; its databases are made as copies of others."""

    def __init__(self, programs: Path, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self._as_other = _as_another_user(folder)
        self._programs = programs
        self._settings = {**_SETTINGS, **settings}
        self._started: subprocess.Popen[bytes] | None = None
        self._names = (f"test_{number}" for number in count())

    def run(self, program: str, *arguments: object) -> None:
        """Run one of PostgreSQL's programs as the user whose server it is."""
        subprocess.run(
            [*self._as_other, "--", self._programs / program, *map(str, arguments)],
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        server = (self._programs / "postgres", "-D", self.folder / "data", "-k", self.folder)
        self._started = subprocess.Popen(
            [*self._as_other, "--pdeathsig=INT", "--", *server, *options],
            cwd=self.folder,
            stderr=subprocess.DEVNULL,
        )
        self._wait(self._started)

    def stop(self) -> None:
        """Stop it without waiting for who is connected, if it runs."""
        if self._started is not None:
            self._started.send_signal(signal.SIGINT)
            self._started.wait(30)

    def kill(self) -> None:
        """End all its processes as `kill -9` does, as when its machine dies."""
        assert self._started is not None
        for process in [self._started.pid, *children(self._started.pid)]:
            os.kill(process, signal.SIGKILL)
        self._started.wait(30)

    def url(self, database: str, *others: PostgreSQL) -> str:
        """What GAITID_DATABASE_URL says for a database of it, and of others that may follow it."""
        hosts = ",".join(str(server.folder) for server in (self, *others))
        return f"postgresql://gaitid@/{database}?host={hosts}"

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement outside of any transaction, as the server's superuser."""
        with self._connect() as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create(self, template: str = "template0", name: str = "") -> str:
        """Make a database that is a copy of another, to which nobody is connected; its name."""
        name = name or next(self._names)
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} OWNER gaitid")
        return name

    def end_connections(self, database: str) -> None:
        """End every connection to a database, as a restart or a fail-over does."""
        with self._connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                (database,),
            )

    def drop(self, database: str) -> None:
        """Remove a database, also while somebody is connected to it."""
        self.execute(f"DROP DATABASE {database} WITH (FORCE)")

    def _wait(self, started: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self._connect().close()
            except psycopg.OperationalError:
                if started.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self.folder), user="postgres", dbname="postgres", autocommit=True
        )


def binaries() -> Path | None:
    """Where the programs of the newest PostgreSQL on this machine are; None without one."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    installed = [path for path in _DEBIAN.glob("*/bin/initdb") if re.search(r"/\d+/", str(path))]
    newest = max(installed, key=lambda path: int(path.parts[-3]), default=None)
    return None if newest is None else newest.parent


@contextmanager
def running(programs: Path, **changed: str) -> Iterator[PostgreSQL]:
    """Serve, with changed settings, until the block ends, or this process does; nothing is left."""
    with _removed_at_the_end(programs, changed) as server:
        account = ("-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8")
        server.run("initdb", "--no-sync", *account, "-D", server.folder / "data")
        server.start()
        server.execute("CREATE ROLE gaitid LOGIN")
        yield server


@contextmanager
def standby(programs: Path, primary: PostgreSQL) -> Iterator[PostgreSQL]:
    """A copy of another server that follows it, until it is promoted."""
    with _removed_at_the_end(programs, {}) as server:
        copied = ("-h", primary.folder, "-U", "postgres", "-D", server.folder / "data")
        server.run("pg_basebackup", *copied, "--write-recovery-conf", "--checkpoint=fast")
        server.start()
        yield server


@contextmanager
def connections_closed() -> Iterator[None]:
    """Close what is connected in the block and left open: connections complain if nobody does."""
    opened: list[Any] = []

    def connected(connection: Any, _record: object) -> None:
        opened.append(connection)

    event.listen(Pool, "connect", connected)
    yield
    event.remove(Pool, "connect", connected)
    for connection in opened:
        connection.close()


@contextmanager
def _removed_at_the_end(programs: Path, settings: Mapping[str, str]) -> Iterator[PostgreSQL]:
    folder = Path(mkdtemp(prefix="gaitid-pg-"))
    try:
        server = PostgreSQL(programs, folder, settings)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _as_another_user(folder: Path) -> list[str]:
    """The beginning of a command by which root does not run PostgreSQL, which refuses that."""
    if os.geteuid() != 0:
        return ["setpriv"]
    there = {one.pw_name: one for one in pwd.getpwall()}
    user = next(there[name] for name in _USERS if name in there)
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
