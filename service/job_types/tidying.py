"""Tidying a host that has workers: what others have ended or removed goes from its disk, too.

A job may end while this host is away, and a model or pack be removed by a call to another one. The
api sweeps its own host's data folder; on a host that only works, this does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from service.foundation.errors import Unavailable
from service.foundation.settings import Settings
from service.job_types.datasets import drop_unused_packs
from service.jobs.queue import JobQueue
from service.jobs.scratch import remove_old_folders, remove_scratch_of_ended
from service.serving.model_files import open_model_files
from service.storage.database import now

_OFTEN_S = 30.0
_PATIENCE_S = 1.0
_log = logging.getLogger(__name__)


@contextmanager
def tidying(settings: Settings, engine: Engine, *, often_s: float = _OFTEN_S) -> Iterator[None]:
    """Tidy in a thread until the block ends."""
    ended = threading.Event()

    def run() -> None:
        swept = -settings.sweep_seconds
        while True:
            try:
                tidy_often(settings, engine)
                if time.monotonic() - swept >= settings.sweep_seconds:
                    tidy_seldom(settings, engine)
                    swept = time.monotonic()
            except (OSError, SQLAlchemyError, Unavailable):  # the next time may succeed
                _log.exception("this host could not be tidied")
            if ended.wait(often_s):
                return

    thread = threading.Thread(target=run, name="tidying", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_PATIENCE_S)  # it may be waiting for a store that is away


def tidy_often(settings: Settings, engine: Engine) -> None:
    """Remove copies of walks of jobs that have ended, and of models that were removed."""
    remove_scratch_of_ended(JobQueue.of(engine, settings), settings.jobs_dir)
    open_model_files(settings, engine).tidy_cache()


def tidy_seldom(settings: Settings, engine: Engine) -> None:
    """Remove folders of jobs that ended long ago, and copies of packs."""
    oldest = now() - timedelta(days=settings.job_retention_days)
    remove_old_folders(JobQueue.of(engine, settings), settings.jobs_dir, oldest)
    drop_unused_packs(settings)
