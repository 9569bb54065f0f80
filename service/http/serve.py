"""`gaitid serve`: the application in this process, and a worker in another."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from models.card import CheckpointError
from models.encoder.encoder import Encoder
from models.networks.device import find_device
from service.access.audit.record import AuditRecord
from service.access.exposure import Exposed, check_exposure
from service.foundation import tracing
from service.foundation.errors import NotFound, Unavailable
from service.foundation.settings import Settings
from service.gallery.listing import is_enrolled
from service.http.app import create_app
from service.http.connections import Connections, affordable
from service.http.listening import url_of
from service.http.protocol import BoundedHttp, Patience
from service.http.resources import MilvusTrouble, open_collections, open_encoder, open_engine
from service.job_types.commands import deployment, program
from service.jobs.supervisor import WorkerSupervisor
from service.serving.lineage import BrokenKey, TrainingRecord
from service.storage.data_folder import NotPrivate
from service.storage.database import NewerSchema
from service.storage.encryption import KeyTrouble
from service.storage.file_store import StoreUnusable, open_store

_TICK_S = 0.05


class CannotServe(Exception):
    """The service cannot start as it is configured; the text says what to change."""


def _preflight(settings: Settings) -> Encoder:
    """Load the deployment's own model; raises `CannotServe`.

    Says in one sentence what would otherwise be a traceback of the starting application.
    """
    try:
        find_device(settings.device)
    except ValueError as error:
        raise CannotServe(f"GAITID_DEVICE: {error}") from error
    try:
        engine = open_engine(settings)
        AuditRecord(settings, partial(is_enrolled, engine)).close()
    except (KeyTrouble, NewerSchema, NotPrivate) as error:
        raise CannotServe(str(error)) from error
    except (OSError, ImportError, SQLAlchemyError) as error:
        cause = getattr(error, "orig", error)
        raise CannotServe(
            f"the database cannot be opened: {cause}. Unless GAITID_DATABASE_URL says otherwise it "
            f"is in {settings.data_dir}: is there space left, and may this user write there?"
        ) from error
    try:
        check_exposure(settings, engine)
        open_collections(settings, engine)
        TrainingRecord.of(settings.data_dir, open_store(settings))
        return open_encoder(settings, engine, settings.model)
    except (
        Exposed,
        MilvusTrouble,
        NotFound,
        CheckpointError,
        BrokenKey,
        StoreUnusable,
        Unavailable,
    ) as error:
        raise CannotServe(str(error)) from error
    finally:
        engine.dispose()


def server_config(
    app: FastAPI, settings: Settings, patience: Patience | None = None
) -> uvicorn.Config:
    """Return uvicorn's configuration: how many connections, and how they are read."""
    # A file of an upload goes to the disk from 1 MiB on, and so does a body with its key.
    files = settings.max_uploads * (settings.max_request_bytes // 2**20 + 2)
    among = Connections(affordable(settings.max_connections, files))
    return uvicorn.Config(
        app,
        http=partial(BoundedHttp, among=among, patience=patience or Patience()),  # type: ignore[arg-type]
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # a layer of the application reads them
        timeout_graceful_shutdown=math.ceil(settings.stop_seconds),
    )


class Server(uvicorn.Server):
    """Announces its address once it has started, and leaves without cutting anybody off.

    Once told to stop it is not ready; it answers for `drain_seconds` more, then finishes what it
    has within `stop_seconds` (give or take one), without slow uploads, and refuses what comes.
    """

    def __init__(
        self, app: FastAPI, config: uvicorn.Config, settings: Settings, announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._app = app
        self._settings = settings
        self._announce = announce

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the service is not ready from now on."""
        self._app.state.draining.leaving = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer for a while, then finish, then end."""
        draining, resources = self._app.state.draining, self._app.state.resources
        draining.leaving = True
        resources.readiness.leave()
        resources.followers.end()
        await self._until(lambda: False, self._settings.drain_seconds)
        draining.refusing = True
        resources.decoders.give_up_slow()
        for connection in list(self.server_state.connections):
            # To an idle one a request may be on its way, which gets an answer.
            if isinstance(connection, BoundedHttp) and not connection.idle:
                connection.shutdown()
        began = time.monotonic()
        await self._until(lambda: not draining.answering, self._settings.stop_seconds)
        left = self._settings.stop_seconds - (time.monotonic() - began)
        self.config.timeout_graceful_shutdown = max(1, math.ceil(left))
        await super().shutdown(sockets)

    async def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        """Wait for something to hold, though not for longer, nor once told to stop at once."""
        deadline = time.monotonic() + seconds
        while not (holds() or self.force_exit) and time.monotonic() < deadline:
            await asyncio.sleep(_TICK_S)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def serve(settings: Settings, listener: socket.socket, *, with_worker: bool) -> None:
    """Serve until SIGINT or SIGTERM; raises `CannotServe`."""

    def announce() -> None:
        sys.stdout.write(f"GaitID listens on {url_of(settings.host, listener)}\n")
        sys.stdout.flush()

    # uvicorn raises the signal that ended it once more afterwards; by default that would end this
    # process before the worker was asked to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        tracing.set_up()
    except tracing.CannotTrace as error:
        raise CannotServe(str(error)) from error
    with ExitStack() as stack:
        stack.enter_context(listener)
        encoder = _preflight(settings)
        app = create_app(settings, encoder)
        config = server_config(app, settings)
        if with_worker:
            worker = WorkerSupervisor(
                program("service", "worker"),
                deployment(settings),
                grace_s=settings.cancel_grace_seconds + 5.0,
            )
            stack.enter_context(worker)
        Server(app, config, settings, announce).run(sockets=[listener])
