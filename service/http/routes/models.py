"""Models: list, show, add, remove, activate, roll back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile
from pydantic import Field
from safetensors import SafetensorError, safe_open

from models.card import WEIGHTS, ModelReference
from service.access.audit import entries
from service.access.audit.entries import Entry
from service.access.keys import Scope
from service.gallery.active_model import GalleryModels, every_gallery
from service.http import recorded
from service.http.middleware.scopes import requires
from service.http.resources import Resources
from service.http.routes.audited import record_change
from service.http.routes.dependencies import AppResources
from service.http.routes.jobs import JobAnswer, Submits
from service.http.schemas import Schema, Timestamp
from service.job_types.activation import roll_back
from service.job_types.requests import GalleryChoice
from service.jobs.job import Job
from service.serving.model_files import NAME
from service.serving.registry import RegisteredModel, Source
from service.serving.uploading import add_checkpoint

router = APIRouter(prefix="/models", tags=["models"])
_admin = Depends(requires(Scope.ADMIN))

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation
_OWN_VALIDATION: Final = "rank1"  # among the metrics of a training job
_MOST_HEADLINES = 10


class ModelSummary(Schema):
    """A model: what it is, where it comes from, where it is in use, and its headline figures."""

    name: str
    source: Source
    digest: str
    architecture: str | None
    parameters: int | None = Field(description="null when the weights cannot be read")
    weights_bytes: int | None = Field(description="null when the weights cannot be read")
    headline: dict[str, float] = Field(
        description="rank-1 of each evaluation on its card, and `rank1` of its own validation"
    )
    active_in: list[str]
    previous_in: list[str]
    job_id: str | None
    created_at: Timestamp | None


class ModelAnswer(ModelSummary):
    """A model with its whole card and every figure it reached."""

    metrics: dict[str, Any]
    card: dict[str, Any]


class ModelList(Schema):
    """Every model, by name; there are few, so this is one page."""

    items: list[ModelSummary]
    next_cursor: None = None


def _summary(
    model: RegisteredModel, galleries: Sequence[GalleryModels], own: str
) -> dict[str, Any]:
    """Return what a list shows of a model; galleries start with the model `own`."""
    parameters, size = _measured(model.path / WEIGHTS)
    return {
        "name": model.name,
        "source": model.source,
        "digest": model.digest,
        "architecture": model.card.architecture,
        "parameters": parameters,
        "weights_bytes": size,
        "headline": headline(model.card.name, model.metrics),
        "active_in": [
            row.name for row in galleries if model.name == (row.active.name if row.active else own)
        ],
        "previous_in": [
            row.name for row in galleries if row.previous and row.previous.name == model.name
        ],
        "job_id": model.job_id,
        "created_at": model.created_at,
    }


def _answer(resources: Resources, model: RegisteredModel) -> ModelAnswer:
    summary = _summary(model, every_gallery(resources.engine), resources.settings.model)
    return ModelAnswer(
        **summary,
        metrics=model.metrics,
        card=model.card.model_dump(mode="json", exclude_unset=True),
    )


def _measured(weights: Path) -> tuple[int | None, int | None]:
    """Return how many parameters a file of weights holds, and its bytes; only its head is read."""
    try:
        with safe_open(weights, framework="numpy") as file:
            shapes = [
                file.get_slice(name).get_shape()
                for name in file.keys()  # noqa: SIM118 - it is no mapping
                if not name.endswith(_STATISTICS)
            ]
        return sum(map(prod, shapes)), weights.stat().st_size
    except (OSError, SafetensorError):
        return None, None


def headline(name: object, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the first figure of each evaluation among a model's metrics, and its own `rank1`.

    An evaluation, as `python -m training export` writes it, has a row for each method that it
    compares. The row that counts is called as the card is, or else it is the first one. A figure is
    `[value, low, high]`.
    """
    found: dict[str, float] = {}
    for evaluation, value in metrics.items():
        match value:
            case int() | float() if evaluation == _OWN_VALIDATION:
                found[evaluation] = value
            case {"rows": dict(rows)} if rows:
                match rows.get(str(name), next(iter(rows.values()))):
                    case dict(row) if row:
                        match next(iter(row.values())):
                            case [int() | float() as figure, *_]:
                                found[evaluation] = figure
    return dict(islice(found.items(), _MOST_HEADLINES))


@router.get("")
def list_models(resources: AppResources) -> ModelList:
    """List the models that jobs may name, without their cards."""
    galleries, own = every_gallery(resources.engine), resources.settings.model
    models = resources.registry.all()
    return ModelList(items=[ModelSummary(**_summary(one, galleries, own)) for one in models])


@router.post("", status_code=201, dependencies=[_admin])
def add_model(
    request: Request,
    response: Response,
    resources: AppResources,
    name: Annotated[str, Form(pattern=NAME)],
    weights: Annotated[UploadFile, File(description="The weights, as safetensors.")],
    card: Annotated[UploadFile, File(description="The card, as JSON.")],
) -> ModelAnswer:
    """Add a checkpoint as a model: its two files, as `python -m training export` writes them."""

    def record(digest: str) -> None:
        record_change(request, recorded.model("add_model", name, digest=digest))

    model = add_checkpoint(
        resources.settings, resources.registry, name, weights.file, card.file, record
    )
    response.headers["Location"] = f"/models/{name}"
    return _answer(resources, model)


@router.post("/rollback", status_code=202)
async def rollback(
    new: Submits, resources: AppResources, body: GalleryChoice | None = None
) -> JobAnswer:
    """Go back to the model that a gallery had before, at once; the job has succeeded already."""
    gallery = (body or GalleryChoice()).gallery
    also = new.in_transaction(_rolled_back)
    job = await resources.writers.run(
        roll_back, resources.settings, resources.engine, gallery, also
    )
    await resources.models.follow_now(gallery)
    return new.accepted(job)


@router.get("/{name}")
def show_model(resources: AppResources, name: str) -> ModelAnswer:
    """Show one model with its whole card."""
    return _answer(resources, resources.registry.show(name))


@router.delete("/{name}", status_code=204, dependencies=[_admin])
def remove_model(request: Request, resources: AppResources, name: str) -> None:
    """Remove a model that no gallery uses or may go back to, and no unfinished job names."""
    resources.registry.remove(
        name, lambda: record_change(request, recorded.model("remove_model", name))
    )


@router.post("/{name}/activate", status_code=202)
def activate(new: Submits, name: str, body: GalleryChoice | None = None) -> JobAnswer:
    """Give a gallery this model, in the background; searches go on with the old one until then."""
    gallery = (body or GalleryChoice()).gallery
    return new.accepted(new.submit.activate(name, gallery, new.in_transaction()))


def _rolled_back(job: Job) -> Entry:
    done = job.result or {}
    return entries.model_change(
        "rollback_model",
        done["gallery"],
        job.id,
        old=ModelReference(**done["previous"]),
        new=ModelReference(done["model"], done["digest"]),
    )
