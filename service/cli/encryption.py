"""`gaitid encryption`: the keys of this deployment's galleries, on its machine."""

from __future__ import annotations

import typer

from service.cli.deployment import DataDir, audit_record, existing, galleries

app = typer.Typer(
    no_args_is_help=True, help="Encryption of what this deployment keeps, on its machine."
)


@app.command("new-key")
def new_key() -> None:
    """Print a new key for GAITID_ENCRYPTION_KEYS; what it encrypts is lost with it."""
    from service.storage.encryption import new_secret

    typer.echo(new_secret())


@app.command("status")
def status(data_dir: DataDir = None) -> None:
    """Say how much is encrypted with which key, and how much is plain."""
    from service.gallery.reencryption import holdings
    from service.gallery.sealing import sealing_of

    with galleries(existing(data_dir)) as engine:
        sealing = sealing_of(engine)
        current = {sealing.key_id, sealing.walks_key_id}
        for kept in holdings(engine):
            name = "not encrypted" if kept.key_id is None else f"key {kept.key_id}"
            if kept.key_id == sealing.walks_key_id != sealing.key_id:
                name = f"keys of their own in {kept.key_id}"
            written = "  (written with)" if kept.key_id in current else ""
            scenes = f", {kept.scenes} of scenes" if kept.scenes else ""
            typer.echo(
                f"{name}: {kept.sequences} walks, {kept.embeddings} embeddings{scenes}{written}"
            )


@app.command("rotate")
def rotate(data_dir: DataDir = None) -> None:
    """Encrypt everything with the first key, also what is plain; the service may run meanwhile.

    Where walks have keys of their own (GAITID_WALK_KEYS_URL), only those are encrypted anew.

    Run it again when it was interrupted. Afterwards the other keys are not needed any more.
    """
    from service.access.audit.entries import COMMAND, Entry
    from service.cli.progress import bar
    from service.gallery.reencryption import reencrypt
    from service.gallery.snapshots import Snapshots

    settings = existing(data_dir)
    with (
        galleries(settings) as engine,
        audit_record(settings, engine) as record,
        bar("encrypting") as update,
    ):
        record.changed(Entry("rotate_encryption"), COMMAND)
        done = reencrypt(engine, lambda done, total: update(completed=done, total=total))
        Snapshots(engine, settings.indexes_dir).sweep()
    typer.echo(f"{done} silhouettes and embeddings encrypted")


@app.command("reconcile")
def reconcile(data_dir: DataDir = None) -> None:
    """Make a database and a store of walk keys fit after one was restored; stop the service first.

    Erases walks that have no key there, which nobody can read, and ends keys that have no walk.
    """
    from service.access.audit.entries import COMMAND, Entry
    from service.gallery.snapshots import Snapshots
    from service.privacy.erasure_transactions import reconcile as reconciled

    settings = existing(data_dir)
    with galleries(settings) as engine, audit_record(settings, engine) as record:
        record.changed(Entry("reconcile_walk_keys"), COMMAND)
        erased, strays = reconciled(engine)
        Snapshots(engine, settings.indexes_dir).sweep()
    typer.echo(f"{erased} walks erased that had no key, {strays} keys ended that had no walk")
