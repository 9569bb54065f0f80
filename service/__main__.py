"""`gaitid`, also `python -m service`: run the service, and use one.

Nothing heavy is imported before a command needs it, so that `gaitid --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from service.audit.record import AuditRecord
    from service.client import Client
    from service.settings import Settings

app = typer.Typer(
    name="gaitid",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Self-hosted gait identification: enrol and identify people by how they walk.",
)
jobs = typer.Typer(no_args_is_help=True, help="Jobs of a running service.")
models = typer.Typer(no_args_is_help=True, help="Models of a running service.")
keys = typer.Typer(no_args_is_help=True, help="API keys of this deployment, made on its machine.")
encryption = typer.Typer(
    no_args_is_help=True, help="Encryption of what this deployment keeps, on its machine."
)
app.add_typer(jobs, name="jobs")
app.add_typer(models, name="models")
app.add_typer(keys, name="keys")
app.add_typer(encryption, name="encryption")

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the deployment's data. [GAITID_DATA_DIR, else data]")
]
Url = Annotated[
    str, typer.Option(envvar="GAITID_URL", help="Where the service listens.", show_default=True)
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="GAITID_API_KEY", help="Better set in the environment.")
]
Gallery = Annotated[str, typer.Option(help="The gallery to use.")]
Walk = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A walk's file.")]
_LOCAL = "http://127.0.0.1:8000"


class CommandFailed(Exception):
    """The command cannot go on; the text is for the person who typed it."""


# Running the service


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
    from service.listening import CannotListen, listen

    settings = _settings(host=host, port=port, data_dir=data_dir)
    try:
        listener = listen(settings.host, settings.port)  # before anything slow is loaded
    except CannotListen as error:
        raise CommandFailed(str(error)) from error
    from service.logs import log_as_json
    from service.serving import CannotServe
    from service.serving import serve as run

    log_as_json()
    try:
        run(settings, listener, with_worker=worker)
    except CannotServe as error:
        raise CommandFailed(str(error)) from error


@app.command()
def worker(data_dir: DataDir = None) -> None:
    """Run jobs until told to stop: one that trains, and one of the others beside it."""
    import signal

    from service.jobs.crew import Crew
    from service.jobs.lane import LANES
    from service.jobs.queue import JobQueue
    from service.jobs.types import job_types
    from service.jobs.worker import Worker
    from service.logs import log_as_json

    settings = _settings(data_dir=data_dir)
    log_as_json()
    with _galleries(settings) as engine:
        running = Crew(
            [
                Worker(
                    JobQueue.of(engine, settings),
                    job_types(settings, engine),
                    folders=settings.jobs_dir,
                    grace_s=settings.cancel_grace_seconds,
                    lane=lane,
                )
                for lane in LANES
            ]
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: running.stop())
        running.run()


@app.command()
def demo() -> None:
    """Show everything at work: enrol, identify, a stranger, a distillation; leave nothing."""
    from service.demo import DemoFailed, run

    try:
        run()
    except DemoFailed as error:
        raise CommandFailed(f"the demo failed: {error}") from error


@app.command("export-gallery")
def export_gallery(
    gallery: Annotated[str, typer.Argument(help="The gallery's name.")],
    out: Annotated[Path, typer.Argument(help="The .zip to write.")],
    data_dir: DataDir = None,
) -> None:
    """Write a gallery's walks to a file, out of the database, as jobs do to train on them."""
    from service.audit.entries import COMMAND, Entry
    from service.errors import NotFound
    from service.gallery.export import GalleryChanged
    from service.gallery.export import export_gallery as export

    settings = _settings(data_dir=data_dir)
    with _galleries(settings) as engine, _audit(settings, engine) as audit:
        audit.changed(Entry("export_gallery", gallery), COMMAND)
        try:
            walks = export(engine, gallery, out)
        except (NotFound, GalleryChanged) as error:
            raise CommandFailed(str(error)) from error
    typer.echo(f"{walks} walks")


@app.command("calibrate-gallery", hidden=True)
def calibrate_gallery(
    gallery: Annotated[str, typer.Argument(help="The gallery's name.")],
    out: Annotated[Path, typer.Argument(help="The .json to write.")],
    checkpoint: Annotated[Path, typer.Option(exists=True, help="Folder of a checkpoint.")],
    target_fpir: Annotated[float, typer.Option(help="The rate of false matches to promise.")],
    data_dir: DataDir = None,
) -> None:
    """Find a gallery's threshold and write it to a file: a calibration job's command."""
    import json

    from models.calibration import CannotCalibrate
    from service.calibration import CalibrationModel, measure
    from service.errors import NotFound

    def tell(**event: Any) -> None:
        typer.echo(json.dumps(event))

    with _galleries(_settings(data_dir=data_dir)) as engine:
        try:
            model = CalibrationModel.read(checkpoint)
            measured = measure(
                engine,
                gallery,
                model,
                target_fpir,
                lambda done, total: tell(event="progress", step=done, total_steps=total),
            )
        except (NotFound, CannotCalibrate) as error:
            raise CommandFailed(str(error)) from error
    out.write_text(measured.model_dump_json(), encoding="utf-8")
    tell(event="done", metrics={"threshold": measured.operating_point.threshold})


@app.command("audit-gallery", hidden=True)
def audit_gallery(
    gallery: Annotated[str, typer.Argument(help="The gallery's name.")],
    out: Annotated[Path, typer.Argument(help="The .json to write.")],
    checkpoint: Annotated[Path, typer.Option(exists=True, help="Folder of a checkpoint.")],
    data_dir: DataDir = None,
) -> None:
    """Audit a gallery and write what was found to a file: an audit job's command."""
    import json

    from service.errors import NotFound
    from service.gallery_audit import AuditModel, CannotAudit
    from service.gallery_audit import audit as carry_out

    def tell(**event: Any) -> None:
        typer.echo(json.dumps(event))

    with _galleries(_settings(data_dir=data_dir)) as engine:
        try:
            audited = carry_out(
                engine,
                gallery,
                AuditModel.read(checkpoint),
                lambda done, total: tell(event="progress", step=done, total_steps=total),
            )
        except (NotFound, CannotAudit) as error:
            raise CommandFailed(str(error)) from error
    out.write_text(audited.model_dump_json(), encoding="utf-8")
    tell(event="done", metrics=audited.audit.totals.model_dump())


@app.command("activate-model", hidden=True)
def activate_model(job_id: str, data_dir: DataDir = None) -> None:
    """Re-embed a gallery and swap its model: an activation job's command, which ends the job."""
    from service.activation import Activation, CannotActivate
    from service.audit.entries import SERVICE, Entry
    from service.errors import ServiceError
    from service.jobs.queue import JobQueue

    settings = _settings(data_dir=data_dir)
    with _galleries(settings) as engine, _audit(settings, engine) as audit:

        def record(entry: Entry) -> None:
            audit.changed(entry, SERVICE)

        queue = JobQueue.of(engine, settings)
        try:
            Activation(settings, engine, queue, _tell_steps, record).run(job_id)
        except (ServiceError, CannotActivate) as error:
            raise CommandFailed(str(error)) from error


@app.command("reindex-gallery", hidden=True)
def reindex_gallery(
    gallery: Annotated[str, typer.Argument(help="The gallery's name.")],
    out: Annotated[Path, typer.Argument(help="The .json to write.")],
    data_dir: DataDir = None,
) -> None:
    """Check and complete a gallery's embeddings: a reindex job's command."""
    from service.errors import ServiceError
    from service.reindexing import CannotReindex, reindex

    settings = _settings(data_dir=data_dir)
    with _galleries(settings) as engine:
        try:
            done = reindex(settings, engine, gallery, _tell_steps)
        except (ServiceError, CannotReindex) as error:
            raise CommandFailed(str(error)) from error
    out.write_text(done.model_dump_json(), encoding="utf-8")


@app.command("hold-out", hidden=True)
def hold_out(
    export: Annotated[Path, typer.Argument(exists=True, help="A file of export-gallery's.")],
    out: Annotated[Path, typer.Argument(help="The partition's .json to write.")],
) -> None:
    """Say whom a training may learn and whom not: a command of a distillation that is compared."""
    from service.holding_out import partition_of

    with _complaints():
        out.write_text(partition_of(export), encoding="utf-8")


@app.command("compare-models", hidden=True)
def compare_models(
    gallery: Annotated[str, typer.Argument(help="The gallery's name.")],
    out: Annotated[Path, typer.Argument(help="The .json to write.")],
    checkpoint: Annotated[Path, typer.Option(exists=True, help="Folder of the new checkpoint.")],
    pack: Annotated[Path, typer.Option(exists=True, help="What it was trained on.")],
    data_dir: DataDir = None,
) -> None:
    """Compare a new model with a gallery's own on people it was not trained on."""
    from service.errors import ServiceError
    from service.gate import judge

    settings = _settings(data_dir=data_dir)
    with _galleries(settings) as engine, _complaints():
        try:
            verdict = judge(settings, engine, gallery, checkpoint, pack, _tell_steps)
        except ServiceError as error:
            raise CommandFailed(str(error)) from error
    out.write_text(verdict.model_dump_json(), encoding="utf-8")


# Checkpoints


@app.command("import-opengait")
def import_opengait(
    checkpoint: Annotated[Path, typer.Argument(exists=True, help="A .pt file of OpenGait's.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    architecture: Annotated[str, typer.Option(help="gaitbase, or deepgaitv2[-2d|-p3d|-3d].")],
    name: Annotated[str | None, typer.Option(help="Name on the card.")] = None,
    metric: Annotated[
        Literal["cosine", "euclidean"], typer.Option(help="How its embeddings are compared.")
    ] = "euclidean",
    embedding_source: Annotated[
        Literal["embedding", "neck"],
        typer.Option(help="What is compared; neck where it was trained with use_emb2."),
    ] = "embedding",
) -> None:
    """Turn a checkpoint that OpenGait saved into one of ours."""
    from models.opengait import convert

    with _complaints():
        card = convert(
            checkpoint,
            out,
            architecture,
            name=name,
            metric=metric,
            embedding_source=embedding_source,
        )
    typer.echo(
        f"{out}: {card.architecture}, {card.parts} parts of {card.channels} channels, "
        f"{card.identities} identities, digest {card.digest}"
    )


@app.command()
def embed(
    checkpoint: Annotated[Path, typer.Option(exists=True, help="Folder of a checkpoint.")],
    out: Annotated[
        Path, typer.Option(help="The .npz to write: embeddings; of --normalised also logits.")
    ],
    walks: Annotated[list[Path] | None, typer.Argument(help="Walks in any upload format.")] = None,
    normalised: Annotated[
        Path | None,
        typer.Option(exists=True, help="Instead: an .npz of silhouettes uint8 [n, s, 64, 44]."),
    ] = None,
) -> None:
    """Embed walks with a checkpoint."""
    from models.embedding_file import embed_prepared, embed_walks

    if (normalised is None) == (not walks):
        raise CommandFailed("give walks, or --normalised, and not both")
    with _complaints():
        if normalised is not None:
            count = embed_prepared(checkpoint, normalised, out)
        else:
            count = embed_walks(checkpoint, walks or [], out)
    typer.echo(f"{out}: {count} walks")


# People


@app.command()
def enroll(
    subject_id: str,
    walks: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
    gallery: Gallery = "default",
    accept_conflict: Annotated[
        bool, typer.Option("--accept-conflict", help="Also walks that may be another subject's.")
    ] = False,
    url: Url = _LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Enrol walks of one person."""
    with _client(url, api_key) as client:
        enrolment = client.enroll(
            subject_id, walks, gallery=gallery, accept_conflict=accept_conflict
        )
    for sequence in enrolment.sequences:
        issues = ", ".join(sequence.quality.issues) or "no issues"
        again = "  already enrolled" if sequence.already_enrolled else ""
        typer.echo(f"{sequence.sequence_id}  {sequence.frames} frames  {issues}{again}")
    for conflict in enrolment.conflicts:
        typer.echo(f"{conflict.where} may be {conflict.other.subject_id}", err=True)


@app.command()
def identify(
    walk: Walk,
    gallery: Gallery = "default",
    top_k: Annotated[int, typer.Option(min=1, max=100)] = 5,
    url: Url = _LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Say who walks there."""
    with _client(url, api_key) as client:
        answer = client.identify(walk, gallery=gallery, top_k=top_k)
    typer.echo(f"{answer.decision} (threshold {answer.threshold:.3f}, {answer.threshold_source})")
    for candidate in answer.candidates:
        typer.echo(f"{candidate.rank:3d}  {candidate.similarity:.3f}  {candidate.subject_id}")


@app.command()
def verify(
    subject_id: str,
    walk: Walk,
    gallery: Gallery = "default",
    url: Url = _LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Say whether this is the person; status 1 when it is not."""
    with _client(url, api_key) as client:
        answer = client.verify(subject_id, walk, gallery=gallery)
    typer.echo(
        f"{'verified' if answer.verified else 'not verified'}: similarity "
        f"{answer.similarity:.3f}, threshold {answer.threshold:.3f}"
    )
    if not answer.verified:
        raise typer.Exit(1)


@app.command()
def subjects(gallery: Gallery = "default", url: Url = _LOCAL, api_key: ApiKey = None) -> None:
    """List who is enrolled."""
    with _client(url, api_key) as client:
        for subject in client.subjects(gallery=gallery):
            typer.echo(f"{subject.subject_id}  {subject.sequences} sequences")


@app.command()
def calibrate(
    gallery: Gallery = "default",
    target_fpir: Annotated[
        float, typer.Option(help="At most this share of strangers may be matched.")
    ] = 0.01,
    url: Url = _LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Find a gallery's threshold, by a job; status 1 unless it succeeds."""
    from service.progress import follow

    with _client(url, api_key) as client:
        job = follow(client, client.calibrate(gallery=gallery, target_fpir=target_fpir).id)
    found = job.result
    if job.status != "succeeded" or found is None:
        raise CommandFailed(f"{job.status}{': ' + job.error if job.error else ''}")
    low, high = found["interval"] or (None, None)
    interval = "" if low is None else f", {low:.4f} to {high:.4f} at {found['confidence']:.0%}"
    typer.echo(
        f"threshold {found['threshold']:.4f} ({found['method']}{interval}) for "
        f"{found['target_fpir']:g} false matches a search with {found['gallery_subjects']} enrolled"
    )


@app.command("check-gallery")
def check_gallery(gallery: Gallery = "default", url: Url = _LOCAL, api_key: ApiKey = None) -> None:
    """List what in a gallery attracts other people, by a job; status 1 unless it succeeds."""
    from service.progress import follow

    with _client(url, api_key) as client:
        job = follow(client, client.audit_gallery(gallery=gallery).id)
    found = job.result
    if job.status != "succeeded" or found is None:
        raise CommandFailed(f"{job.status}{': ' + job.error if job.error else ''}")
    typer.echo(
        f"{found['gallery_sequences']} sequences of {found['gallery_subjects']} subjects, "
        f"threshold {found['threshold']:.4f} ({found['threshold_source']})"
    )
    for one in found["nearer_to_another"]:
        other = one["other"]
        typer.echo(
            f"nearer to another  {one['similarity']:.3f}  {one['subject_id']} {one['sequence_id']}"
            f"  {other['subject_id']} {other['sequence_id']}"
        )
    for one in found["pairs"]:
        first, second = (member["subject_id"] for member in one["members"])
        typer.echo(f"perhaps one person  {one['similarity']:.3f}  {first}  {second}")
    for one in found["hubs"]:
        typer.echo(f"attracts {one['attracts']} subjects  {one['subject_id']} {one['sequence_id']}")
    for one in found["poor"]:
        issues = ", ".join(one["issues"]) or "no issues"
        typer.echo(f"poor  {one['score']:.2f}  {one['subject_id']} {one['sequence_id']}  {issues}")


# Whole galleries


@app.command("export")
def export_whole_gallery(
    gallery: Annotated[str, typer.Argument(help="The gallery's name.")],
    out: Annotated[Path, typer.Argument(dir_okay=False, help="The .zip to write.")],
    embeddings: Annotated[
        bool, typer.Option(help="With the models' embeddings, which are made again otherwise.")
    ] = True,
    url: Url = _LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Bring a whole gallery of a running service home as one file."""
    from service.progress import transfer

    with _complaints(), _client(url, api_key) as client, transfer(gallery, None) as transferred:
        client.export_gallery(gallery, out, embeddings=embeddings, transferred=transferred)
    typer.echo(f"{out}: {out.stat().st_size} bytes")


@app.command("import")
def import_whole_gallery(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An export.")],
    gallery: Annotated[str, typer.Option(help="Name of the gallery to make.")],
    url: Url = _LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Make a new gallery of an exported one."""
    from service.progress import transfer

    with (
        _client(url, api_key) as client,
        transfer(file.name, file.stat().st_size) as transferred,
    ):
        made = client.import_gallery(file, gallery, transferred=transferred)
    typer.echo(
        f"{made.gallery.name}: {made.gallery.subjects} subjects, {made.gallery.sequences} "
        f"sequences, {made.sequence_ids} ids, {made.embeddings['taken']} embeddings taken over"
    )


# Jobs and models


@jobs.command("list")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs with this status.")] = None,
    url: Url = _LOCAL,
    api_key: ApiKey = None,
) -> None:
    """List jobs, newest first."""
    with _client(url, api_key) as client:
        for job in client.jobs(status=status):
            typer.echo(f"{job.id}  {job.type:9}  {job.status:10}  {job.progress.fraction:4.0%}")


@jobs.command("show")
def show_job(job_id: str, url: Url = _LOCAL, api_key: ApiKey = None) -> None:
    """Show a job as JSON."""
    with _client(url, api_key) as client:
        typer.echo(client.job(job_id).model_dump_json(indent=2))


@jobs.command("cancel")
def cancel_job(job_id: str, url: Url = _LOCAL, api_key: ApiKey = None) -> None:
    """Ask for a job to be stopped."""
    with _client(url, api_key) as client:
        typer.echo(client.cancel(job_id).status)


@jobs.command("follow")
def follow_job(job_id: str, url: Url = _LOCAL, api_key: ApiKey = None) -> None:
    """Show a job's progress to its end; status 1 unless it succeeds."""
    from service.progress import follow

    with _client(url, api_key) as client:
        job = follow(client, job_id)
    typer.echo(f"{job.status}{': ' + job.error if job.error else ''}")
    if job.status != "succeeded":
        raise typer.Exit(1)


@jobs.command("distill")
def start_distillation(
    recipe: str,
    name: Annotated[str, typer.Option(help="Name of the model to make.")],
    teacher: Annotated[list[str], typer.Option(help="A registered model; may be repeated.")],
    dataset: Annotated[str | None, typer.Option(help="A pack of the deployment's.")] = None,
    gallery: Annotated[str | None, typer.Option(help="Instead: what is enrolled there.")] = None,
    student: Annotated[str | None, typer.Option(help="A registered model to start from.")] = None,
    url: Url = _LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Start a distillation."""
    if (dataset is None) == (gallery is None):
        raise CommandFailed("give --dataset or --gallery, and not both")
    source = dataset if dataset is not None else {"gallery": str(gallery)}
    with _client(url, api_key) as client:
        job = client.distill(
            recipe=recipe, name=name, dataset=source, teachers=teacher, student=student
        )
    typer.echo(job.id)


@models.command("list")
def list_models(url: Url = _LOCAL, api_key: ApiKey = None) -> None:
    """List models."""
    with _client(url, api_key) as client:
        for model in client.models():
            typer.echo(f"{model.name}  {model.source}  {model.digest}")


@models.command("show")
def show_model(name: str, url: Url = _LOCAL, api_key: ApiKey = None) -> None:
    """Show a model and its card as JSON."""
    with _client(url, api_key) as client:
        typer.echo(client.model(name).model_dump_json(indent=2))


# The record of who did what


@app.command()
def audit(
    since: Annotated[str | None, typer.Option(help="From then on, such as 2026-11-01Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Before then.")] = None,
    gallery: Annotated[str | None, typer.Option(help="Only of this gallery.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Only lines with a higher number.")] = 0,
    check: Annotated[
        bool, typer.Option(help="Say instead whether the lines are unchanged; else status 1.")
    ] = False,
    url: Url = _LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Write the audit record of a running service as JSON lines."""
    import json

    from service.audit import chain

    if check and gallery is not None:
        raise CommandFailed("--check takes every line, so it cannot be told with --gallery")
    with _client(url, api_key) as client:
        lines = client.audit(since=since, until=until, gallery=gallery, after=after)
        if not check:
            for line in lines:
                typer.echo(line)
            return
        try:
            checked = chain.check(json.loads(line) for line in lines)
        except chain.Broken as error:
            raise CommandFailed(str(error)) from error
    typer.echo(
        f"{checked.lines} lines, {checked.first} to {checked.last}, unchanged; "
        f"the last one's hash is {checked.hash}"
    )


# Keys


@keys.command("add")
def add_key(
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
    data_dir: DataDir = None,
) -> None:
    """Make a key, shown once and kept as a hash; from then on every call needs one."""
    from service.audit import entries
    from service.auth import ApiKey as Key
    from service.auth import Scope, create_key

    known = [item.value for item in Scope]
    unknown = [item for item in scope if item not in known]
    if unknown:
        raise CommandFailed(f"no such scope: {', '.join(unknown)}; there are {', '.join(known)}")
    settings = _settings(data_dir=data_dir)
    with _database(settings) as engine, _audit(settings, engine) as audit:

        def record(key: Key) -> None:
            audit.changed(entries.key_change("add_key", key), entries.COMMAND)

        try:
            key, token = create_key(engine, [Scope(item) for item in scope], name, rate, record)
        except ValueError as error:
            raise CommandFailed(f"--rate: {error}") from error
    typer.echo(f"key {key.key_id}; it is not shown again:", err=True)
    typer.echo(token)


@keys.command("list")
def show_keys(data_dir: DataDir = None) -> None:
    """List keys, without the secrets, which nobody knows."""
    from service.auth import list_keys

    with _database(_settings(data_dir=data_dir)) as engine:
        for key in list_keys(engine):
            state = "revoked" if key.revoked_at else "active"
            rate = "" if key.rate is None else f"  {key.rate}"
            scopes = ",".join(sorted(key.scopes))
            typer.echo(f"{key.key_id}  {state}  {scopes}{rate}  {key.name}")


@keys.command("revoke")
def revoke_key(key_id: str, data_dir: DataDir = None) -> None:
    """Make a key useless from now on."""
    from service.audit import entries
    from service.auth import ApiKey as Key
    from service.auth import revoke_key as revoke
    from service.errors import NotFound

    settings = _settings(data_dir=data_dir)
    with _database(settings) as engine, _audit(settings, engine) as audit:

        def record(key: Key) -> None:
            audit.changed(entries.key_change("revoke_key", key), entries.COMMAND)

        try:
            revoke(engine, key_id, record)
        except NotFound as error:
            raise CommandFailed(str(error)) from error
    typer.echo(f"{key_id} revoked")


# Encryption


@encryption.command("new-key")
def new_encryption_key() -> None:
    """Print a new key for GAITID_ENCRYPTION_KEYS; whoever loses it loses what it encrypts."""
    from service.encryption import new_secret

    typer.echo(new_secret())


@encryption.command("status")
def encryption_status(data_dir: DataDir = None) -> None:
    """Say how much is encrypted with which key, and how much is plain."""
    from service.gallery.reencryption import holdings
    from service.gallery.sealing import sealing_of

    with _galleries(_settings(data_dir=data_dir)) as engine:
        current = sealing_of(engine).key_id
        for kept in holdings(engine):
            name = "not encrypted" if kept.key_id is None else f"key {kept.key_id}"
            written = "  (written with)" if kept.key_id == current else ""
            typer.echo(f"{name}: {kept.sequences} walks, {kept.embeddings} embeddings{written}")


@encryption.command("rotate")
def rotate_encryption(data_dir: DataDir = None) -> None:
    """Encrypt everything with the first key, also what is plain; the service may run meanwhile.

    Run it again when it was interrupted. Afterwards the other keys are not needed any more.
    """
    from rich.console import Console
    from rich.progress import Progress

    from service.audit.entries import COMMAND, Entry
    from service.gallery.reencryption import reencrypt

    settings = _settings(data_dir=data_dir)
    with (
        _galleries(settings) as engine,
        _audit(settings, engine) as audit,
        Progress(console=Console(stderr=True)) as bar,
    ):
        audit.changed(Entry("rotate_encryption"), COMMAND)
        task = bar.add_task("encrypting", total=None)
        done = reencrypt(engine, lambda done, total: bar.update(task, completed=done, total=total))
    typer.echo(f"{done} silhouettes and embeddings encrypted")


def _settings(**given: Any) -> Settings:
    """Settings from the environment, under what the command line gives."""
    from pydantic import ValidationError

    from service.settings import Settings, misspelt

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


def _tell_steps(done: int, total: int) -> None:
    """An event as a training's, for the worker that reads our standard output."""
    import json

    typer.echo(json.dumps({"event": "progress", "step": done, "total_steps": total}))


@contextmanager
def _database(settings: Settings) -> Iterator[Engine]:
    from service.database import migrate, open_database

    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = open_database(settings.resolved_database_url)
    try:
        migrate(engine)
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _galleries(settings: Settings) -> Iterator[Engine]:
    """The database with the keys that its galleries may be encrypted with."""
    from service.encryption import KeyTrouble, Tampered, read_keys
    from service.gallery.sealing import unlock

    try:
        keys = read_keys(settings)
        with _database(settings) as engine:
            unlock(engine, keys)
            yield engine
    except (KeyTrouble, Tampered) as error:
        raise CommandFailed(str(error)) from error


@contextmanager
def _audit(settings: Settings, engine: Engine) -> Iterator[AuditRecord]:
    """The record of who did what; `engine` is the galleries' database."""
    from contextlib import closing

    from service.audit.record import AuditRecord

    with closing(AuditRecord.open(settings, engine)) as audit:
        yield audit


@contextmanager
def _client(url: str, api_key: str | None) -> Iterator[Client]:
    from service.client import Client, Refused, ServiceUnreachable

    try:
        with Client(url, api_key=api_key) as client:
            yield client
    except (Refused, ServiceUnreachable) as error:
        raise CommandFailed(str(error)) from error


@contextmanager
def _complaints() -> Iterator[None]:
    """Errors of `models` say what is wrong with a file; nobody needs their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise CommandFailed(str(error)) from error


def main() -> None:
    """Run the command line: status 0 done, 1 refused or failed, 2 wrong usage."""
    # Before torch and faiss are loaded: threads that spin while they wait take the cores from the
    # requests and jobs beside them.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except CommandFailed as error:
        typer.echo(f"gaitid: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
