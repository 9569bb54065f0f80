"""Liveness, readiness, metrics and documentation."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from service.http.documentation import POLICY, documentation_page
from service.http.middleware.prefix import PREFIX
from service.http.routes.dependencies import AppResources
from service.http.schemas import ModelReference, Schema
from service.jobs.presence import living_workers
from service.storage.failures import is_away

_log = logging.getLogger(__name__)

router = APIRouter(tags=["health"])


class Alive(Schema):
    """The process answers."""

    status: str


class Ready(Schema):
    """Model and indexes are loaded, the databases can be read."""

    status: str
    model: ModelReference


@router.get("/healthz")
async def alive() -> Alive:
    """Say that the process answers."""
    return Alive(status="alive")


@router.get("/readyz")
def ready(resources: AppResources) -> Ready:
    """Say whether model and indexes are loaded and the databases there: 503 with the reason."""
    resources.readiness.require()
    resources.store.check()
    resources.audit.check()
    return Ready(status="ready", model=ModelReference.of(resources.model))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(resources: AppResources) -> Response:
    """Metrics for Prometheus."""
    lease_seconds = resources.settings.lease_seconds
    try:
        living = float(len(living_workers(resources.engine, lease_seconds=lease_seconds)))
    except SQLAlchemyError as error:  # the other metrics are wanted all the more
        if not is_away(error):
            _log.warning("workers cannot be counted: %s", error)
        living = math.nan
    resources.metrics.workers.set(living)
    return Response(
        generate_latest(resources.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


@router.get("/openapi.json", include_in_schema=False)
async def description(request: Request) -> JSONResponse:
    """Give the OpenAPI document, for the path under which it was asked for."""
    document: dict[str, Any] = request.app.openapi()
    prefix: str = request.scope[PREFIX]
    return JSONResponse({**document, "servers": [{"url": prefix}]} if prefix else document)


@router.get("/docs", include_in_schema=False)
async def documentation(request: Request) -> HTMLResponse:
    """Describe every call."""
    page = documentation_page(request.app.openapi())
    return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})
