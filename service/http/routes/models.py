"""Models: list, show, add, remove, put into service and take back."""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile

from service.access.audit import entries
from service.access.audit.entries import Entry
from service.access.keys import Scope
from service.gallery.active_model import PinnedGallery, every_gallery
from service.gallery.records import ModelReference
from service.http import recorded
from service.http.routes.access import requires
from service.http.routes.audited import record_change
from service.http.routes.dependencies import Held
from service.http.routes.jobs import JobAnswer, Submissions, accepted, keeping
from service.http.schemas import Schema, Timestamp
from service.job_types.activation import roll_back
from service.job_types.requests import GalleryChoice
from service.jobs.job import Job
from service.serving.registry import NAME, RegisteredModel, Source
from service.serving.uploading import add_checkpoint

router = APIRouter(prefix="/models", tags=["models"])
_admin = Depends(requires(Scope.ADMIN))


class ModelAnswer(Schema):
    """A model: where it comes from, what it reached, where it is in use, and its card."""

    name: str
    source: Source
    digest: str
    active_in: list[str]
    previous_in: list[str]
    metrics: dict[str, Any]
    card: dict[str, Any]
    job_id: str | None
    created_at: Timestamp | None

    @classmethod
    def of(cls, model: RegisteredModel, galleries: list[PinnedGallery], own: str) -> Self:
        """From a registered model (its folder stays here) and the galleries that may use it."""
        return cls(
            name=model.name,
            source=model.source,
            digest=model.digest,
            active_in=[
                row.name
                for row in galleries
                if model.name == (own if row.active is None else row.active.name)
            ],
            previous_in=[
                row.name
                for row in galleries
                if row.previous is not None and row.previous.name == model.name
            ],
            metrics=model.metrics,
            card=model.card,
            job_id=model.job_id,
            created_at=model.created_at,
        )


class ModelList(Schema):
    """Every model, by name; there are few, so this is one page."""

    items: list[ModelAnswer]
    next_cursor: None = None


@router.get("")
def list_models(held: Held) -> ModelList:
    """List the models that jobs may name."""
    galleries = every_gallery(held.engine)
    return ModelList(
        items=[
            ModelAnswer.of(model, galleries, held.settings.model) for model in held.registry.all()
        ]
    )


@router.post("", status_code=201, dependencies=[_admin])
def add_model(
    request: Request,
    response: Response,
    held: Held,
    name: Annotated[str, Form(pattern=NAME)],
    weights: Annotated[UploadFile, File(description="The weights, as safetensors.")],
    card: Annotated[UploadFile, File(description="The card, as JSON.")],
) -> ModelAnswer:
    """Add a checkpoint as a model: its two files, as `python -m training export` writes them."""

    def record(digest: str) -> None:
        record_change(request, recorded.model("add_model", name, digest=digest))

    model = add_checkpoint(held.settings, held.registry, name, weights.file, card.file, record)
    response.headers["Location"] = f"/models/{name}"
    return ModelAnswer.of(model, [], held.settings.model)


@router.post("/rollback", status_code=202)
async def rollback(
    request: Request, response: Response, held: Held, body: GalleryChoice | None = None
) -> JobAnswer:
    """Go back to the model that a gallery had before, at once; the job has succeeded already."""
    gallery = (body or GalleryChoice()).gallery
    also = keeping(request, _rolled_back)
    job = await held.writers.run(roll_back, held.settings, held.engine, gallery, also)
    await held.models.follow_now(gallery)
    return accepted(response, job)


@router.get("/{name}")
def show_model(held: Held, name: str) -> ModelAnswer:
    """Show one model with its card."""
    return ModelAnswer.of(held.registry.show(name), every_gallery(held.engine), held.settings.model)


@router.delete("/{name}", status_code=204, dependencies=[_admin])
def remove_model(request: Request, held: Held, name: str) -> None:
    """Remove a model that no gallery uses or may go back to, and no unfinished job names."""
    held.registry.remove(name, lambda: record_change(request, recorded.model("remove_model", name)))


@router.post("/{name}/activate", status_code=202)
def activate(
    request: Request,
    response: Response,
    jobs: Submissions,
    name: str,
    body: GalleryChoice | None = None,
) -> JobAnswer:
    """Give a gallery this model, in the background; searches go on with the old one until then."""
    return accepted(
        response, jobs.activate(name, (body or GalleryChoice()).gallery, keeping(request))
    )


def _rolled_back(job: Job) -> Entry:
    done = job.result or {}
    return entries.model_change(
        "rollback_model",
        done["gallery"],
        job.id,
        old=ModelReference(**done["previous"]),
        new=ModelReference(done["model"], done["digest"]),
    )
