"""Stores of tests: a folder, or an S3 server of their own and a way to it that can be cut."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from service.foundation.settings import Settings
from service.storage.database import new_id
from service.storage.file_store import FileStore, open_store

SECRET = "wJalrXUtnFEMI/K7MDENG"  # noqa: S105
_PATIENCE_S = 60.0


def opened(where: Path | str) -> FileStore:
    """The store that hosts have in common whose GAITID_STORE says this."""
    store = open_store(Settings(store=str(where)))
    assert store is not None
    return store


@contextmanager
def s3_server() -> Iterator[int]:
    """Run moto's server on a free port; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port, server)
        yield port
    finally:
        server.kill()
        server.wait()


def variables(port: int) -> Mapping[str, str]:
    """What the environment holds of a server."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


def new_bucket(port: int) -> str:
    """Make a bucket, by a plain request: the server checks no signature."""
    name = f"bucket-{new_id()}"
    httpx.put(
        f"http://127.0.0.1:{port}/{name}",
        headers={
            "Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"
        },
    ).raise_for_status()
    return name


class Wire:
    """A port that leads to another until it is cut: a store that is away for a while."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._listen(self._listener)

    def cut(self) -> None:
        """Refuse connections, and end those there are."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Lead there again."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listen(self._listener)

    def _listen(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            for one, other in ((near, far), (far, near)):
                self._open.add(one)
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while some := one.recv(1 << 16):
                other.sendall(some)
        with suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)
        self._open.discard(one)
        one.close()


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if server.poll() is not None:
            raise RuntimeError(f"moto's server ended with status {server.returncode}")
        time.sleep(0.05)
    raise TimeoutError("moto's server does not listen")
