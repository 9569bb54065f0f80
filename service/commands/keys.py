"""`gaitid keys`: API keys, made on the deployment's machine with its database."""

from __future__ import annotations

from typing import Annotated

import typer

from service.commands.deployment import database, settings_from
from service.commands.failure import CommandFailed
from service.commands.options import DataDir

app = typer.Typer(no_args_is_help=True, help="API keys of this deployment, made on its machine.")


@app.command("add")
def add(
    scope: Annotated[
        list[str], typer.Option(help="enroll, identify, jobs or admin; may be repeated.")
    ],
    name: Annotated[str, typer.Option(help="Whose key it is.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Make a key, shown once and kept as a hash; from then on every call needs one."""
    from service.auth import Scope, create_key

    known = [item.value for item in Scope]
    unknown = [item for item in scope if item not in known]
    if unknown:
        raise CommandFailed(f"no such scope: {', '.join(unknown)}; there are {', '.join(known)}")
    with database(settings_from(data_dir=data_dir)) as engine:
        key, token = create_key(engine, [Scope(item) for item in scope], name)
    typer.echo(f"key {key.key_id}; it is not shown again:", err=True)
    typer.echo(token)


@app.command("list")
def show_all(data_dir: DataDir = None) -> None:
    """List keys, without the secrets, which nobody knows."""
    from service.auth import list_keys

    with database(settings_from(data_dir=data_dir)) as engine:
        for key in list_keys(engine):
            state = "revoked" if key.revoked_at else "active"
            typer.echo(f"{key.key_id}  {state}  {','.join(sorted(key.scopes))}  {key.name}")


@app.command("revoke")
def revoke(key_id: str, data_dir: DataDir = None) -> None:
    """Make a key useless from now on."""
    from service.auth import revoke_key
    from service.errors import NotFound

    with database(settings_from(data_dir=data_dir)) as engine:
        try:
            revoke_key(engine, key_id)
        except NotFound as error:
            raise CommandFailed(str(error)) from error
    typer.echo(f"{key_id} revoked")
