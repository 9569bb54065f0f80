"""`gaitid jobs`, `gaitid calibrate`, `gaitid adapt` and `gaitid check-gallery`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.connection import (
    AsJson,
    Gallery,
    TargetFpir,
    Wait,
    asking,
    finish,
    require_success,
)
from service.cli.failure import WrongUsage
from service.cli.output import print_answer, print_list, print_table, printable

if TYPE_CHECKING:
    from service.client import Client, Job

app = typer.Typer(no_args_is_help=True, help="Jobs of a running service.")
submit = typer.Typer(no_args_is_help=True, help="Start a job; its id goes to stdout.")
app.add_typer(submit, name="submit")
top = typer.Typer()
"""The commands that are no part of `gaitid jobs`."""

Pack = Annotated[str | None, typer.Option(help="A pack of the deployment's.")]
Needs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=AMOUNT]",
        help="What a worker must have, such as gpu or memory=64 (GiB); repeatable.",
    ),
]
Enrolled = Annotated[str | None, typer.Option(help="Instead: what is enrolled in this gallery.")]


@asking(app, "list")
def show_all(
    client: Client,
    status: Annotated[str | None, typer.Option(help="Only jobs with this status.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    print_list(
        client.jobs(status=status),
        {
            "job": lambda item: item.id,
            "type": lambda item: item.type,
            "status": lambda item: item.status,
            "done": lambda item: f"{item.progress.fraction:.0%}",
            "created": lambda item: item.created_at,
            "error": lambda item: item.error or item.waiting_for,
        },
        as_json=as_json,
    )


@asking(app, "show")
def show(client: Client, job_id: str) -> None:
    """Show a job as JSON."""
    print_answer(client.job(job_id))


@asking(app, "cancel")
def cancel(client: Client, job_id: str) -> None:
    """Ask for a job to be stopped."""
    typer.echo(client.cancel(job_id).status)


@asking(app, "follow", attempts=8)
def follow(client: Client, job_id: str, as_json: AsJson = False) -> None:
    """Show a job's progress to its end; status 1 unless it succeeds."""
    if as_json:
        for event in client.follow(job_id):
            print_answer(event)
        require_success(client.job(job_id))
    else:
        typer.echo(finish(client, client.job(job_id)).status)


@asking(submit, "distill")
def distill(
    client: Client,
    recipe: str,
    name: Annotated[str, typer.Option(help="Name of the model to make.")],
    teacher: Annotated[
        list[str] | None, typer.Option(help="A registered model; may be repeated.")
    ] = None,
    dataset: Pack = None,
    gallery: Enrolled = None,
    student: Annotated[str | None, typer.Option(help="A registered model to start from.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Changes the recipe, such as steps=500; repeatable."
        ),
    ] = None,
    activate: Annotated[str | None, typer.Option(help="never, or if_better.")] = None,
    activate_in: Annotated[
        str | None, typer.Option(help="In which gallery; the dataset's, else default.")
    ] = None,
    needs: Needs = None,
    wait: Wait = False,
) -> None:
    """Train a student from teachers by a recipe."""
    job = client.distill(
        recipe=recipe,
        name=name,
        dataset=_source(dataset, gallery),
        teachers=teacher or [],
        student=student,
        overrides=dict(map(_override, overrides or ())),
        activate=activate,
        activate_in=activate_in,
        needs=_needs(needs),
    )
    _started(client, job, wait=wait)


@asking(submit, "evaluate")
def evaluate(
    client: Client,
    model: str,
    dataset: Pack = None,
    gallery: Enrolled = None,
    protocol: Annotated[
        str | None, typer.Option(help="How it is measured; cross-view if not given.")
    ] = None,
    enrolled: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION,…",
            help="Instead of a protocol: conditions that are enrolled, as 'nm-0[1-4]'; repeatable.",
        ),
    ] = None,
    asked: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]CONDITION,…",
            help="Conditions that are asked of them, reported as NAME; repeatable.",
        ),
    ] = None,
    apart: Annotated[
        float | None,
        typer.Option(min=0, max=180, help="Degrees up to which views count as the same view."),
    ] = None,
    needs: Needs = None,
    wait: Wait = False,
) -> None:
    """Measure a model, by a protocol or by conditions of one's own."""
    job = client.evaluate(
        model=model,
        dataset=_source(dataset, gallery),
        protocol=protocol,
        conditions=_conditions(protocol, enrolled or [], asked or [], apart),
        needs=_needs(needs),
    )
    _started(client, job, wait=wait)


@asking(submit, "calibrate")
def submit_calibration(
    client: Client,
    gallery: Gallery = "default",
    target_fpir: TargetFpir = 0.01,
    wait: Wait = False,
) -> None:
    """Find a gallery's threshold."""
    _started(client, client.calibrate(gallery=gallery, target_fpir=target_fpir), wait=wait)


@asking(submit, "adapt")
def submit_adaptation(client: Client, gallery: Gallery = "default", wait: Wait = False) -> None:
    """Fit a gallery's scene transform, and use it if it helps."""
    _started(client, client.adapt(gallery=gallery), wait=wait)


@asking(submit, "audit-gallery")
def submit_audit(client: Client, gallery: Gallery = "default", wait: Wait = False) -> None:
    """Find what in a gallery attracts other people."""
    _started(client, client.audit_gallery(gallery=gallery), wait=wait)


@asking(submit, "reindex")
def reindex(client: Client, gallery: Gallery = "default", wait: Wait = False) -> None:
    """Make a gallery's embeddings and index anew."""
    _started(client, client.reindex(gallery=gallery), wait=wait)


@asking(top, "calibrate")
def calibrate(
    client: Client,
    gallery: Gallery = "default",
    target_fpir: TargetFpir = 0.01,
    as_json: AsJson = False,
) -> None:
    """Find a gallery's threshold, by a job; status 1 unless it succeeds."""
    job = client.calibrate(gallery=gallery, target_fpir=target_fpir)
    job = finish(client, job, quiet=as_json)
    if as_json:
        print_answer(job)
        return
    found = job.result or {}
    low, high = found["interval"] or (None, None)
    interval = "" if low is None else f", {low:.4f} to {high:.4f} at {found['confidence']:.0%}"
    typer.echo(
        f"threshold {found['threshold']:.4f} ({found['method']}{interval}) for "
        f"{found['target_fpir']:g} false matches a search with {found['gallery_subjects']} enrolled"
    )


@asking(top, "adapt")
def adapt(client: Client, gallery: Gallery = "default", as_json: AsJson = False) -> None:
    """Fit a gallery's scene transform, used if it helps, by a job; status 1 unless it succeeds."""
    job = finish(client, client.adapt(gallery=gallery), quiet=as_json)
    if as_json:
        print_answer(job)
        return
    found = job.result or {}
    low, high = found["gain"]["interval"]
    said = "in use" if found["used"] else f"not in use: {printable(found['reason'])}"
    typer.echo(
        f"scene transform {said}; {found['gain']['value']:+.1%} ({low:+.1%} to {high:+.1%}) of "
        f"comparisons right, of {found['subjects']} people left out of the fit; "
        f"{found['walks']} walks"
    )


@asking(top, "check-gallery")
def check_gallery(client: Client, gallery: Gallery = "default", as_json: AsJson = False) -> None:
    """List what in a gallery attracts other people, by a job; status 1 unless it succeeds."""
    job = finish(client, client.audit_gallery(gallery=gallery), quiet=as_json)
    if as_json:
        print_answer(job)
        return
    found = job.result or {}
    typer.echo(
        f"{found['gallery_sequences']} sequences of {found['gallery_subjects']} subjects, "
        f"threshold {found['threshold']:.4f} ({printable(found['threshold_source'])})"
    )
    if findings := list(_findings(found)):
        print_table(("finding", "subject", "sequence", "because"), findings)
    else:
        typer.echo("nothing was found")


def _findings(found: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """Yield a row for each finding of an audit; a pair of subjects has one, for the first."""
    for item in found["nearer_to_another"]:
        yield "nearer to another", *_member(item), _likeness(item["similarity"], item["other"])
    for item in found["pairs"]:
        first, second = item["members"]
        yield "perhaps one person", *_member(first), _likeness(item["similarity"], second)
    for item in found["hubs"]:
        yield "attracts others", *_member(item), f"{item['attracts']} subjects"
    for item in found["poor"]:
        reasons = ", ".join(item["issues"]) or "no issues"
        yield "poor", *_member(item), f"score {item['score']:.2f}, {reasons}"


def _member(item: Mapping[str, Any]) -> tuple[object, object]:
    return item["subject_id"], item["sequence_id"]


def _likeness(similarity: float, other: Mapping[str, Any]) -> str:
    return f"{similarity:.3f} to {other['subject_id']} {other['sequence_id']}"


def _source(dataset: str | None, gallery: str | None) -> str | dict[str, str]:
    if (dataset is None) == (gallery is None):
        raise WrongUsage("give --dataset or --gallery, and not both")
    return dataset if dataset is not None else {"gallery": str(gallery)}


def _conditions(
    protocol: str | None, enrolled: list[str], asked: list[str], apart: float | None
) -> dict[str, Any] | None:
    """What is enrolled and what is asked, as `python -m training evaluate` takes it."""
    if not enrolled and not asked:
        if apart is not None:
            raise WrongUsage("--apart belongs to --enrolled and --asked")
        return None
    if protocol is not None:
        raise WrongUsage("give --protocol, or --enrolled and --asked, and not both")
    questions: dict[str, list[str]] = {}
    for text in asked:
        name, equals, patterns = text.partition("=")
        if not equals and set(text) & set("*?[],"):
            raise WrongUsage(
                f"--asked {printable(text)}: give it a name, as NAME={printable(text)}"
            )
        questions.setdefault(name, []).extend(_patterns(patterns if equals else name))
    gallery = [pattern for text in enrolled for pattern in _patterns(text)]
    if not gallery or not questions or not all(questions.values()):
        raise WrongUsage("--enrolled and --asked each name a condition")
    return {"enrolled": gallery, "asked": questions, "apart": apart or 0}


def _patterns(text: str) -> list[str]:
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]


def _override(text: str) -> tuple[str, Any]:
    """Parse a change of a recipe: its key, and a JSON value or else a word."""
    key, equals, value = text.partition("=")
    if not (key.strip() and equals):
        raise WrongUsage(f"--set {printable(text)}: a change is written KEY=VALUE")
    try:
        return key.strip(), json.loads(value, parse_constant=str)  # no request can carry NaN
    except ValueError:
        return key.strip(), value


def _needs(texts: list[str] | None) -> dict[str, float] | None:
    from service.jobs.labels import parse

    try:
        return parse(texts) if texts else None
    except ValueError as error:
        raise WrongUsage(f"--needs: {printable(str(error))}") from error


def _started(client: Client, job: Job, *, wait: bool) -> None:
    typer.echo(job.id)
    if wait:
        finish(client, job)
