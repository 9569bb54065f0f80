"""How routes reach what the application holds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, UploadFile
from starlette.requests import ClientDisconnect

from service.http.resources import Resources
from service.recognition.intake import Walk

Result = TypeVar("Result")


def resources(request: Request) -> Resources:
    """What the application holds."""
    held: Resources = request.app.state.resources
    return held


def ready_resources(request: Request) -> Resources:
    """The same, once model and indexes are loaded; raises `Unavailable` before."""
    held = resources(request)
    held.readiness.require()
    return held


Held = Annotated[Resources, Depends(resources)]
HeldReady = Annotated[Resources, Depends(ready_resources)]


def walk(upload: UploadFile, position: int | None = None) -> Walk:
    """An upload as a walk, named by its field, its position and what the client calls it."""
    field = "sequence" if position is None else f"sequence[{position}]"
    return Walk(f"{field} {upload.filename}" if upload.filename else field, upload.read)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work, or drop it when the client goes away; raises `ClientDisconnect` then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
