"""`gaitid share`: models and packs of this machine's data folder, into the hosts' common store."""

from __future__ import annotations

import typer

from service.cli.deployment import DataDir, database, settings_from
from service.cli.failure import CommandFailed, failing_on

app = typer.Typer()


@app.command()
def share(data_dir: DataDir = None) -> None:
    """Put models and packs of the data folder into the store that GAITID_STORE names."""
    from service.foundation.errors import Unavailable
    from service.job_types.sharing import share as put
    from service.serving.lineage import BrokenKey
    from service.storage.file_store import StoreUnusable, open_store

    settings = settings_from(data_dir=data_dir)
    with (
        database(settings) as engine,
        failing_on(BrokenKey, StoreUnusable, Unavailable, ValueError),
    ):
        store = open_store(settings)
        if store is None:
            raise CommandFailed("GAITID_STORE is not set: every file stays in the data folder")
        for done in put(settings, engine, store):
            typer.echo(done)
