"""Models: list, show."""

from __future__ import annotations

from typing import Any, Self

from fastapi import APIRouter

from service.model_registry import RegisteredModel, Source
from service.routes.dependencies import Held
from service.schemas import Schema, Timestamp

router = APIRouter(prefix="/models", tags=["models"])


class ModelAnswer(Schema):
    """A model: where it comes from, what it reached, and its card."""

    name: str
    source: Source
    digest: str
    metrics: dict[str, Any]
    card: dict[str, Any]
    job_id: str | None
    created_at: Timestamp | None

    @classmethod
    def of(cls, model: RegisteredModel) -> Self:
        """From a registered model; its folder stays here."""
        return cls(
            name=model.name,
            source=model.source,
            digest=model.digest,
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
    return ModelList(items=[ModelAnswer.of(model) for model in held.registry.all()])


@router.get("/{name}")
def show_model(held: Held, name: str) -> ModelAnswer:
    """Show one model with its card."""
    return ModelAnswer.of(held.registry.show(name))
