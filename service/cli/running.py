"""`gaitid serve`, `worker`, `demo`: run the service."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.deployment import galleries, settings_from
from service.cli.failure import CommandFailed
from service.cli.options import DataDir

app = typer.Typer()


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

    settings = settings_from(host=host, port=port, data_dir=data_dir)
    try:
        listener = listen(settings.host, settings.port)  # before anything slow is loaded
    except CannotListen as error:
        raise CommandFailed(str(error)) from error
    from service.foundation.logs import log_as_json
    from service.http.serve import CannotServe
    from service.http.serve import serve as run

    log_as_json()
    try:
        run(settings, listener, with_worker=worker)
    except CannotServe as error:
        raise CommandFailed(str(error)) from error


@app.command()
def worker(data_dir: DataDir = None) -> None:
    """Run jobs until told to stop: one that trains, and one of the others beside it."""
    import signal

    from service.foundation.logs import log_as_json
    from service.job_types.registry import JOB_CLASSES, job_types
    from service.jobs.leases import LeaseObserver
    from service.jobs.queue import JobQueue
    from service.jobs.worker import Worker
    from service.jobs.worker_pool import WorkerPool

    settings = settings_from(data_dir=data_dir)
    log_as_json()
    observer = LeaseObserver(settings.lease_seconds)
    with galleries(settings) as engine:
        running = WorkerPool(
            [
                Worker(
                    JobQueue.of(engine, settings),
                    job_types(settings, engine),
                    folders=settings.jobs_dir,
                    observer=observer,
                    grace_s=settings.cancel_grace_seconds,
                    job_class=job_class,
                )
                for job_class in JOB_CLASSES
            ]
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: running.stop())
        running.run()


@app.command()
def demo() -> None:
    """Show everything at work: enrol, identify, a stranger, a distillation; leave nothing."""
    from service.cli.demo import DemoFailed, run

    try:
        run()
    except DemoFailed as error:
        raise CommandFailed(f"the demo failed: {error}") from error
