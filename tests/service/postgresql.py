"""A PostgreSQL server of the tests' own: in a temporary folder, reached by a socket in it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

import psycopg

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
    """A running server; its databases are made as copies of others."""

    def __init__(self, folder: Path, started: subprocess.Popen[bytes]) -> None:
        self._folder = folder
        self._started = started
        self._names = (f"test_{number}" for number in count())

    def url(self, database: str) -> str:
        """What GAITID_DATABASE_URL says for one of its databases."""
        return f"postgresql://gaitid@/{database}?host={self._folder}"

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

    def wait(self) -> None:
        """Return once it answers."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self._connect().close()
            except psycopg.OperationalError:
                if self._started.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self._folder), user="postgres", dbname="postgres", autocommit=True
        )


def binaries() -> Path | None:
    """Where the programs of the newest PostgreSQL on this machine are; None without one."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).parent
    installed = [path for path in _DEBIAN.glob("*/bin/initdb") if re.search(r"/\d+/", str(path))]
    newest = max(installed, key=lambda path: int(path.parts[-3]), default=None)
    return None if newest is None else newest.parent


@contextmanager
def running(programs: Path, **changed: str) -> Iterator[PostgreSQL]:
    """Serve, with changed settings, until the block ends, or this process does; nothing is left."""
    folder = Path(mkdtemp(prefix="gaitid-pg-"))
    data = folder / "data"
    as_other = _as_another_user(folder)
    try:
        initdb = [
            str(programs / "initdb"),
            "--no-sync",
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
        ]
        subprocess.run(
            [*as_other, "--", *initdb, "--locale=C.UTF-8", "-D", str(data)],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        options = [f"--{name}={value}" for name, value in {**_SETTINGS, **changed}.items()]
        server = [str(programs / "postgres"), "-D", str(data), "-k", str(folder), *options]
        started = subprocess.Popen(
            [*as_other, "--pdeathsig=INT", "--", *server], cwd=folder, stderr=subprocess.DEVNULL
        )
        try:
            serving = PostgreSQL(folder, started)
            serving.wait()
            serving.execute("CREATE ROLE gaitid LOGIN")
            yield serving
        finally:
            started.send_signal(signal.SIGINT)  # without waiting for who is connected
            started.wait(30)
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
