"""The application: one FastAPI app, made of resources, layers and thin routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI
from starlette.middleware import Middleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from models.encoder.encoder import Encoder
from service.access.keys import Scope
from service.foundation.logs import log_as_json
from service.foundation.metrics import Metrics
from service.foundation.settings import Settings
from service.http import problems
from service.http.draining import Draining
from service.http.middleware.access import Access
from service.http.middleware.audit import Audit
from service.http.middleware.body import BodyGuard
from service.http.middleware.cors import Cors
from service.http.middleware.head import HeadAsGet
from service.http.middleware.idempotency import Idempotency
from service.http.middleware.prefix import Prefix
from service.http.middleware.request_context import RequestContext
from service.http.middleware.scopes import Scopes, requires
from service.http.openapi import openapi, operation_id
from service.http.resources import open_engine, open_resources
from service.http.routes import (
    audited,
    enroll,
    galleries,
    health,
    identify,
    jobs,
    models,
    page,
    portability,
    sequences,
    subjects,
)
from service.http.routes.known_fields import only_known_fields
from service.http.upload_slots import UploadSlots
from service.storage.writers import Writers


def create_app(
    settings: Settings | None = None,
    encoder: Encoder | None = None,
    *,
    upload_slots: UploadSlots | None = None,
) -> FastAPI:
    """Make the application; without settings they come from the environment (GAITID_*).

    `encoder` is of the deployment's own model, for who has loaded it already. `upload_slots`
    replaces the slots that the settings ask for.
    """
    settings = settings or Settings()
    engine = open_engine(settings)
    metrics = Metrics()
    writers = Writers()
    draining = Draining()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log_as_json()
        app.openapi()  # kept from here on: nobody's request waits while it is made
        async with open_resources(settings, engine, writers, metrics, encoder) as resources:
            app.state.resources = resources
            yield
        writers.close()
        engine.dispose()

    # The first one is the outermost: every request passes them in this order.
    layers = [
        # Pages of other origins: outside of what answers errors, so that they can read those.
        *([Middleware(Cors, origins=settings.cors_origins)] if settings.cors_origins else []),
        # Under which path a proxy shows the service, before any layer looks at the path.
        Middleware(Prefix, root_path=settings.root_path, trusted_proxies=settings.trusted_proxies),
        # Whom a trusted proxy calls for: after the layer above, which asks who the proxy is.
        Middleware(
            ProxyHeadersMiddleware,
            trusted_hosts=[str(network) for network in settings.trusted_proxies],
        ),
        # HEAD is answered as GET is, by all that follows.
        Middleware(HeadAsGet),
        # An id, one log line and one measurement for every request; refusals by the layers below
        # become problem documents here.
        Middleware(RequestContext, metrics=metrics, draining=draining),
        # Who calls, and how often: before anything of the body is read.
        Middleware(Access, engine=engine, settings=settings),
        # Whether the key has the scope of the route: before the body, too.
        Middleware(Scopes),
        # How large and how slow a body may be.
        Middleware(
            BodyGuard,
            settings=settings,
            slots=upload_slots or UploadSlots(settings.max_uploads),
        ),
        # A POST with a key that was carried out before is answered from what was kept.
        Middleware(Idempotency, engine=engine, writers=writers),
        # A change that its route has not recorded is recorded before it is answered.
        Middleware(Audit),
    ]
    app = FastAPI(
        title="GaitID",
        summary="Enrol and identify people by how they walk.",
        version=version("gaitid"),
        lifespan=lifespan,
        middleware=layers,
        # `service.http.routes.health` has a page that needs no other host, and the document.
        docs_url=None,
        openapi_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
        dependencies=[Depends(only_known_fields)],
    )
    app.state.draining = draining
    problems.install(app)
    with_own_scopes = (health, page, enroll, identify, galleries, portability, subjects, sequences)
    for module in (*with_own_scopes, audited):
        app.include_router(module.router)
    for module in (jobs, models):
        app.include_router(module.router, dependencies=[Depends(requires(Scope.JOBS))])

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = openapi(app)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]
    return app
