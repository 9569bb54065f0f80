"""`gaitid serve`: the api in this process, and one worker beside it."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from service.jobs.datasets import deployment, program
from service.jobs.supervisor import WorkerSupervisor
from service.settings import Settings

_BACKLOG = 2048


class CannotListen(Exception):
    """The address is taken, or not ours; the text says which and what to do."""


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; port 0 takes a free one. Raises `CannotListen`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(
            f"cannot listen on {host} port {port}: {error.strerror or error}; "
            "choose another one with --port (0 takes a free one)"
        ) from error
    return listener


class _Announcing(uvicorn.Server):
    """Says where it listens once it is ready, for people and for programs that wait for it."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def url_of(host: str, listener: socket.socket) -> str:
    """The URL under which this machine reaches the listener."""
    port = listener.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not a binding
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def serve(app: FastAPI, listener: socket.socket, settings: Settings, *, with_worker: bool) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status."""

    def announce() -> None:
        sys.stdout.write(f"GaitID listens on {url_of(settings.host, listener)}\n")
        sys.stdout.flush()

    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    server = _Announcing(config, announce)
    # uvicorn raises the signal that ended it once more afterwards; by default that would end this
    # process before the worker was asked to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    with ExitStack() as stack:
        stack.enter_context(listener)
        if with_worker:
            grace = settings.cancel_grace_seconds + 5.0
            worker = WorkerSupervisor(
                program("service", "worker"), deployment(settings), grace_s=grace
            )
            stack.enter_context(worker)
        server.run(sockets=[listener])
    return 0 if server.started else 3
