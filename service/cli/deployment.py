"""What the commands share that work on this machine's deployment: its settings and its database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.failure import CommandFailed, StorageRefused, failing_on

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from service.access.audit.record import AuditRecord
    from service.foundation.settings import Settings


DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the deployment's data. [GAITID_DATA_DIR, else data]")
]


def settings_from(**given: Any) -> Settings:
    """Read the settings from the environment; what the command line gives goes first."""
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
    """Read the settings of a deployment that exists.

    A mistyped folder is refused. It would become an empty deployment, with nothing to list, to
    revoke or to encrypt.
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
    """Yield the deployment's database, migrated; it is created if it is missing.

    Within, errors of the storage become `StorageRefused`.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from service.storage.data_folder import NotPrivate, open_data_folder
    from service.storage.database import NewerSchema, migrate, open_configured
    from service.storage.failures import storage_trouble

    try:
        with failing_on(NotPrivate):
            open_data_folder(settings)
    except OSError as error:
        raise CommandFailed(f"the data folder cannot be made: {error}") from error
    engine = open_configured(settings)
    is_open = False
    try:
        with failing_on(NewerSchema):
            migrate(engine)
        is_open = True
        yield engine
    except (OSError, SQLAlchemyError) as error:
        trouble = storage_trouble(error)
        if trouble is not None and trouble.problem_slug != "database-unavailable":
            raise StorageRefused(trouble.detail) from error
        if isinstance(error, OSError):  # of a file that the command reads or writes
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
    """Yield the database, with the keys that its galleries may be encrypted with."""
    from service.foundation.errors import Unavailable
    from service.gallery.sealing import unlock
    from service.storage.encryption import KeyTrouble, read_keys

    with failing_on(KeyTrouble, Unavailable):  # a damaged row, a key that was replaced meanwhile
        keys = read_keys(settings)
        with database(settings) as engine:
            unlock(engine, keys, settings.walk_keys_url)
            yield engine


@contextmanager
def audit_record(settings: Settings, engine: Engine) -> Iterator[AuditRecord]:
    """Yield the record of who did what; `engine` is the galleries' database."""
    from contextlib import closing

    from service.access.audit.record import AuditRecord
    from service.gallery.listing import is_enrolled

    with closing(AuditRecord(settings, partial(is_enrolled, engine))) as record:
        yield record
