"""`gaitid footage`, and the hidden command by which a footage job looks for walks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.connection import AsJson, Gallery, asking, json_object, require_success
from service.cli.deployment import DataDir, audit_record, galleries, settings_from
from service.cli.failure import CommandFailed, failing_on
from service.cli.gallery_files import report
from service.cli.output import print_object, printable
from service.jobs.job import LEASE_VARIABLE

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from service.access.audit.record import AuditRecord
    from service.client import Client
    from service.foundation.settings import Settings
    from service.jobs.queue import JobQueue, Lease
    from service.recognition.footage_search import Looked

app = typer.Typer()


@asking(app, "footage", attempts=8)
def footage(
    client: Client,
    clip: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A video.")],
    gallery: Gallery = "default",
    top_k: Annotated[int, typer.Option(min=1, max=100, help="Candidates to name.")] = 5,
    filter: Annotated[
        str | None, typer.Option(help='Metadata of candidates: JSON, such as {"view": ["090"]}.')
    ] = None,
    keep_minutes: Annotated[
        int, typer.Option(min=1, help="Minutes that the walks are kept, from the end.")
    ] = 60,
    as_json: AsJson = False,
) -> None:
    """Say who walks in a long clip, by a job: a line for each walk as it ends.

    Status 1 unless the job succeeds. `gaitid enroll WHO --walk ID` enrols a walk of the list.
    """
    job = client.footage(
        clip, gallery=gallery, top_k=top_k, filter=json_object("--filter", filter),
        keep_minutes=keep_minutes,
    )  # fmt: skip
    typer.echo(f"job {job.id}", err=True)
    for event in client.follow(job.id):
        if event.kind == "walk" and "walk" in event.data:  # else it was forgotten meanwhile
            if as_json:
                print_object(event.data)
            else:
                typer.echo(_line(event.data))
    done = require_success(client.job(job.id))
    nobody = (done.result or {}).get("nobody")
    if nobody and not as_json:
        typer.echo(printable(nobody), err=True)


def _line(walk: Mapping[str, Any]) -> str:
    """One walk: when, whose, and what to enrol it by."""
    first = walk["candidates"][0] if walk["candidates"] else None
    who = "nobody you know"
    if first is not None and walk["decision"] == "match":
        who = printable(first["subject_id"])
    alike = "" if first is None else f" ({first['similarity']:.3f})"
    when = f"{_clock(walk['from_s'])} to {_clock(walk['to_s'])}"
    return f"{when}  track {walk['track']}  {who}{alike}  walk {walk['walk']}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes) // 60}:{int(minutes) % 60:02}:{rest:04.1f}"


@app.command("find-walks", hidden=True)
def find_walks(
    job_id: str,
    clip: Annotated[Path, typer.Argument(help="The clip.")],
    out: Annotated[Path, typer.Argument(help="The .json to write.")],
    state: Annotated[Path, typer.Argument(help="The .json to go on from, replaced ever again.")],
    lease: Annotated[int, typer.Option(envvar=LEASE_VARIABLE, help="The number of its lease.")],
    data_dir: DataDir = None,
) -> None:
    """List the walks in a clip: a footage job's command."""
    from service.foundation.errors import ServiceError
    from service.job_types.footage import Searched
    from service.jobs.queue import JobQueue, LeaseLost
    from service.recognition.footage_reader import CannotRead

    settings = settings_from(data_dir=data_dir)
    with galleries(settings) as engine, audit_record(settings, engine) as record:
        queue = JobQueue.of(engine, settings)
        with failing_on(ServiceError, CannotRead):
            try:
                held = queue.lease_of(job_id, lease)
                looked = asyncio.run(_look(settings, engine, queue, held, clip, state, record))
            except LeaseLost as error:
                raise CommandFailed("the job was cancelled, or another worker has it") from error
    nobody = looked.done.nobody if not looked.walks and not looked.poor else None
    searched = Searched(
        segmenter=looked.done.segmenter,
        seconds=looked.done.seconds,
        people=looked.done.people,
        refused=looked.poor,
        nobody=nobody,
    )
    out.write_text(searched.model_dump_json(), encoding="utf-8")
    report(event="done", metrics={"walks": looked.walks, "people": looked.done.people})


async def _look(
    settings: Settings,
    engine: Engine,
    queue: JobQueue,
    lease: Lease,
    clip: Path,
    state: Path,
    record: AuditRecord,
) -> Looked:
    from threading import Event

    from service.access.audit.entries import SERVICE, Entry
    from service.foundation.metrics import Metrics
    from service.gallery.store import GalleryStore
    from service.http.resources import open_encoder, open_models
    from service.jobs.job_type import partial
    from service.recognition.footage_reader import reading
    from service.recognition.footage_search import FootageSearch, Position
    from service.recognition.identification import Search
    from service.recognition.load import Load

    store, metrics, stopping = GalleryStore(engine), Metrics(), Event()
    if settings.milvus is not None and settings.milvus.folder is not None:
        # The api process has the folder of milvus-lite, which is one process's at a time.
        settings = settings.model_copy(update={"index": "faiss"})

    def identified(entry: Entry) -> None:
        record.changed(entry, SERVICE)

    def progress(done: int, total: int, left: float | None) -> None:
        report(event="progress", step=done, total_steps=total, eta_s=left)

    def save(position: Position) -> None:
        new = partial(state)
        new.write_text(position.model_dump_json(), encoding="utf-8")
        new.replace(state)

    begin = Position.model_validate_json(state.read_bytes()) if state.exists() else None
    encoder = open_encoder(settings, engine, settings.model)
    async with open_models(settings, store, metrics, Load(1), stopping, encoder) as (_, models):
        try:
            search = Search(store, models, metrics)
            listing = FootageSearch(store, search, queue, lease, identified, progress, save)
            await listing.check()
            with reading(clip, settings, begin.part if begin else None) as messages:
                return await listing.run(messages, begin)
        finally:
            stopping.set()
