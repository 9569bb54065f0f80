"""What commands need that work on this machine's deployment: its settings and its database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from service.cli.failure import CommandFailed, StorageRefused
from service.gallery.listing import is_enrolled

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from service.access.audit.record import AuditRecord
    from service.foundation.settings import Settings


def settings_from(**given: Any) -> Settings:
    """Settings from the environment, under what the command line gives."""
    from pydantic import ValidationError

    from service.foundation.settings import Settings, misspelt

    if complaints := misspelt(os.environ):
        raise CommandFailed("; ".join(complaints))
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(
            f"GAITID_{'_'.join(str(part) for part in item['loc']).upper()}: {item['msg']}"
            for item in error.errors()
        )
        raise CommandFailed(wrong) from error


def existing(data_dir: Path | None) -> Settings:
    """Settings of a deployment that there is already.

    A folder that was mistyped is refused, instead of becoming an empty deployment in which there
    is nothing to list, to revoke or to encrypt.
    """
    settings = settings_from(data_dir=data_dir)
    if settings.database_url is None and not settings.database_file.exists():
        raise CommandFailed(
            f"there is no deployment in {settings.data_dir}: {settings.database_file.name} is "
            "missing; name its folder with --data-dir or GAITID_DATA_DIR"
        )
    return settings


@contextmanager
def database(settings: Settings) -> Iterator[Engine]:
    """The deployment's database, with today's tables; it is made where there is none.

    What storage refuses within is raised as `StorageRefused`.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from service.storage.data_folder import NotPrivate, open_data_folder
    from service.storage.database import NewerSchema, migrate, open_database, storage_trouble

    try:
        open_data_folder(settings)
    except NotPrivate as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"the data folder cannot be made: {error}") from error
    engine = open_database(settings.resolved_database_url)
    is_open = False
    try:
        migrate(engine)
        is_open = True
        yield engine
    except NewerSchema as error:
        raise CommandFailed(str(error)) from error
    except (OSError, SQLAlchemyError) as error:
        trouble = storage_trouble(error)
        if trouble is not None and trouble.problem_slug != "database-unavailable":
            raise StorageRefused(trouble.detail) from error
        if isinstance(error, OSError):  # a file of the command's own
            raise CommandFailed(str(error)) from error
        cause = getattr(error, "orig", error)
        if trouble is not None:  # there is no log to look into
            raise StorageRefused(
                f"the database in {settings.data_dir} cannot be written or reached: {cause}"
            ) from error
        if is_open:
            raise
        raise CommandFailed(f"the database cannot be opened: {cause}") from error
    finally:
        engine.dispose()


@contextmanager
def galleries(settings: Settings) -> Iterator[Engine]:
    """The database with the keys that its galleries may be encrypted with."""
    from service.foundation.errors import Unavailable
    from service.gallery.sealing import unlock
    from service.storage.encryption import KeyTrouble, read_keys

    try:
        keys = read_keys(settings)
        with database(settings) as engine:
            unlock(engine, keys)
            yield engine
    except (KeyTrouble, Unavailable) as error:  # a damaged row, a key that was replaced meanwhile
        raise CommandFailed(str(error)) from error


@contextmanager
def audit_record(settings: Settings, engine: Engine) -> Iterator[AuditRecord]:
    """The record of who did what; `engine` is the galleries' database."""
    from contextlib import closing

    from service.access.audit.record import AuditRecord

    with closing(AuditRecord(settings, partial(is_enrolled, engine))) as record:
        yield record
