"""`gaitid keys`: API keys, made on the deployment's machine with its database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.deployment import (
    DataDir,
    audit_record,
    database,
    existing,
    settings_from,
)
from service.cli.failure import WrongUsage, failing_on

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from service.access.keys import ApiKey
    from service.foundation.settings import Settings

app = typer.Typer(no_args_is_help=True, help="API keys of this deployment, made on its machine.")


@app.command("add")
def add(
    scope: Annotated[
        list[str], typer.Option(help="enroll, identify, jobs or admin; may be repeated.")
    ],
    name: Annotated[str, typer.Option(help="Whose key it is.")] = "",
    rate: Annotated[
        str | None,
        typer.Option(
            help="Requests it may send, such as 120/minute, or unlimited. [GAITID_RATE_LIMIT]"
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            help="When it becomes useless: 90d from now, or as a day such as 2027-01-31 begins, "
            "UTC. Without this, never.",
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key, shown once and kept as a hash; from then on every call needs a key."""
    from service.access.keys import Scope, create_key, read_expiry
    from service.storage.database import now

    known = [item.value for item in Scope]
    unknown = [item for item in scope if item not in known]
    if unknown:
        raise WrongUsage(f"no such scope: {', '.join(unknown)}; there are {', '.join(known)}")
    scopes = [Scope(item) for item in scope]
    try:
        expires_at = None if expires is None else read_expiry(expires, now())
    except ValueError as error:
        raise WrongUsage(f"--expires: {error}") from error
    with _recorded("add_key", settings_from(data_dir=data_dir)) as (engine, record):
        try:
            key, token = create_key(engine, scopes, name, rate, record, expires_at=expires_at)
        except ValueError as error:
            raise WrongUsage(f"--rate: {error}") from error
    until = "" if key.expires_at is None else f" is good until {_written(key.expires_at)}"
    typer.echo(f"key {key.key_id}{until}; it is not shown again:", err=True)
    typer.echo(token)


@app.command("list")
def show_all(data_dir: DataDir = None) -> None:
    """List keys with their state, without the secrets, which are not kept."""
    from service.access.keys import list_keys
    from service.storage.database import now

    at = now()
    with database(existing(data_dir)) as engine:
        for key in list_keys(engine):
            state = key.state(at)
            when = "" if key.expires_at is None else f" until {_written(key.expires_at)}"
            rate = "" if key.rate is None else f"  {key.rate}"
            scopes = ",".join(sorted(key.scopes))
            typer.echo(f"{key.key_id}  {state}{when}  {scopes}{rate}  {key.name}")


@app.command("revoke")
def revoke(key_id: str, data_dir: DataDir = None) -> None:
    """Revoke a key, from now on."""
    from service.access.keys import revoke_key
    from service.foundation.errors import NotFound

    with _recorded("revoke_key", existing(data_dir)) as (engine, record), failing_on(NotFound):
        revoke_key(engine, key_id, record)
    typer.echo(f"{key_id} revoked")


def _written(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


@contextmanager
def _recorded(
    action: Literal["add_key", "revoke_key"], settings: Settings
) -> Iterator[tuple[Engine, Callable[[ApiKey], None]]]:
    """Yield the database, and a function that writes a change of a key to the audit record."""
    from service.access.audit.entries import COMMAND, key_change

    with database(settings) as engine, audit_record(settings, engine) as record:
        yield engine, lambda key: record.changed(key_change(action, key), COMMAND)
