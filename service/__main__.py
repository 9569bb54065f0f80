"""`gaitid`, also `python -m service`: run the service, and use one.

Nothing heavy is imported before a command needs it, so that `gaitid --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys

import typer

from service.cli import (
    audit,
    checkpoints,
    encryption,
    galleries,
    gallery_files,
    health,
    jobs,
    keys,
    model_changes,
    models,
    portability,
    recognition,
    running,
    sequences,
    subjects,
)
from service.cli.failure import CommandFailed

app = typer.Typer(
    name="gaitid",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Self-hosted gait identification: enrol and identify people by how they walk.",
)
for commands in (
    running,
    recognition,
    health,
    portability,
    audit,
    gallery_files,
    model_changes,
    checkpoints,
):
    app.add_typer(commands.app)
app.command()(jobs.calibrate)
app.command()(jobs.check_gallery)
for name, noun in {
    "galleries": galleries,
    "subjects": subjects,
    "sequences": sequences,
    "jobs": jobs,
    "models": models,
    "keys": keys,
    "encryption": encryption,
}.items():
    app.add_typer(noun.app, name=name)


def main() -> None:
    """Run the command line: status 0 done, 1 refused or failed, 2 wrong usage."""
    # Before torch and faiss are loaded: threads that spin while they wait take the cores from the
    # requests and jobs beside them.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.umask(0o077)  # what is written is of people: for nobody else on this machine to read
    try:
        app()
    except CommandFailed as error:
        typer.echo(f"gaitid: {error}", err=True)
        sys.exit(error.status)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # What could not be written is still in stdout's buffer, and would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        typer.echo(f"gaitid: {error}", err=True)
        sys.exit(CommandFailed.status)


if __name__ == "__main__":
    main()
