"""`gaitid`, also `python -m service`: run the service, and use one.

Heavy modules are imported by the commands that need them, so that `gaitid --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from service.cli import (
    audit,
    checkpoints,
    deployment,
    encryption,
    footage,
    galleries,
    gallery_files,
    jobs,
    keys,
    models,
    portability,
    recognition,
    sequences,
    share,
    subjects,
    watch,
)
from service.cli.deployment import DataDir
from service.cli.failure import CommandFailed, failing_on
from service.foundation import tracing
from service.jobs.job import LEASE_VARIABLE

app = typer.Typer(
    name="gaitid",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Self-hosted gait identification: enrol and identify people by how they walk.",
)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="[GAITID_HOST, else 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: a free one. [GAITID_PORT, else 8000]")
    ] = None,
    data_dir: DataDir = None,
    worker: Annotated[bool, typer.Option(help="Run a worker for jobs beside the api.")] = True,
) -> None:
    """Run the api, and one worker beside it."""
    from service.http.listening import CannotListen, listen

    settings = deployment.settings_from(host=host, port=port, data_dir=data_dir)
    with failing_on(CannotListen):
        listener = listen(settings.host, settings.port)  # before anything slow is loaded
    from service.foundation.logs import log_as_json
    from service.http.serve import CannotServe
    from service.http.serve import serve as run

    log_as_json()
    with failing_on(CannotServe):
        run(settings, listener, with_worker=worker)


@app.command()
def worker(
    data_dir: DataDir = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=AMOUNT]",
            help="What this machine has beside what is found out (cpu, gpu, memory in GiB), or "
            "instead of it; repeatable. [GAITID_WORKER_LABELS]",
        ),
    ] = None,
) -> None:
    """Run jobs until told to stop: one that trains, and one of the others beside it."""
    import signal

    from service.foundation.errors import Unavailable
    from service.foundation.logs import log_as_json
    from service.job_types.registry import JOB_CLASSES, job_types
    from service.job_types.tidying import tidying
    from service.jobs.job_files import JobFiles
    from service.jobs.labels import detect, parse
    from service.jobs.leases import LeaseObserver
    from service.jobs.presence import Presence
    from service.jobs.queue import JobQueue
    from service.jobs.worker import Worker
    from service.jobs.worker_pool import WorkerPool
    from service.serving.lineage import BrokenKey
    from service.storage.file_store import StoreUnusable

    settings = deployment.settings_from(data_dir=data_dir)
    with failing_on(ValueError, tracing.CannotTrace):
        tracing.set_up()
        told = parse((*settings.worker_labels, *(label or ())))
    labels = {**detect(gpu=settings.device != "cpu"), **told}
    log_as_json()
    observer = LeaseObserver(settings.lease_seconds)
    with (
        failing_on(BrokenKey, StoreUnusable, Unavailable),
        deployment.galleries(settings) as engine,
        tidying(settings, engine),
    ):
        files = JobFiles.of(settings)
        running = WorkerPool(
            [
                Worker(
                    JobQueue.of(engine, settings),
                    job_types(settings, engine),
                    folders=settings.jobs_dir,
                    observer=observer,
                    grace_s=settings.cancel_grace_seconds,
                    job_class=job_class,
                    files=files,
                    labels=labels,
                )
                for job_class in JOB_CLASSES
            ]
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: running.stop())
        with Presence(engine, labels, lease_seconds=settings.lease_seconds):
            running.run()


@app.command()
def demo() -> None:
    """Show everything at work: enrol, identify, a stranger, a distillation; leave nothing."""
    from service.cli.demo import DemoFailed, run

    try:
        run()
    except DemoFailed as error:
        raise CommandFailed(f"the demo failed: {error}") from error


for part in (recognition, footage, watch, portability, audit, gallery_files, checkpoints, share):
    app.add_typer(part.app)
app.add_typer(jobs.top)
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


@contextmanager
def _trace() -> Iterator[None]:
    """Within the trace of the job that this is a command of, if there is one."""
    parent = os.environ.get(tracing.TRACEPARENT_VARIABLE)
    if parent is None or LEASE_VARIABLE not in os.environ:
        yield
        return
    with failing_on(tracing.CannotTrace):
        tracing.set_up()
    with tracing.span(f"command {sys.argv[1]}", parent=parent):
        yield


def main() -> None:
    """Run the command line: status 0 done, 1 refused or failed, 2 wrong usage."""
    # Before torch and faiss are loaded: threads that spin while they wait take the cores from the
    # requests and jobs beside them.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.umask(0o077)  # what is written is of people: for nobody else on this machine to read
    try:
        with _trace():
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
