"""Dependencies of the routes: the application's resources, and the walks of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Form, Request, UploadFile
from starlette.requests import ClientDisconnect

from service.foundation.errors import Reason, TooLarge
from service.gallery.fields import FILTER_SCHEMA, json_in_a_string
from service.http.resources import Resources
from service.recognition.decoder_pool import UNSAID, Asked
from service.recognition.intake import Upload

Result = TypeVar("Result")


def resources_of(request: Request) -> Resources:
    """The application's resources."""
    resources: Resources = request.app.state.resources
    return resources


# Dependencies that are no coroutines cost a thread each, at every request.
async def get_resources(request: Request) -> Resources:
    """The application's resources."""
    return resources_of(request)


async def get_ready_resources(request: Request) -> Resources:
    """The resources of an application that is ready; raises `Unavailable` before it is."""
    resources = resources_of(request)
    resources.readiness.require()
    return resources


AppResources = Annotated[Resources, Depends(get_resources)]
ReadyResources = Annotated[Resources, Depends(get_ready_resources)]


Input = Annotated[
    Literal["auto", "silhouettes", "footage"],
    Form(alias="input", description="What `sequence` is; `auto` tells by its content."),
]
Track = Annotated[
    int | None,
    Form(ge=1, le=2**31 - 1, description="Whose walk, of those that a former answer listed."),
]


FrameRate = Annotated[
    float | None,
    Form(
        gt=0,
        le=1000,
        description="Images a second, of footage that is sent as images; 25 if it is not said.",
    ),
]


FilterField = Annotated[
    str | None,
    Form(
        alias="filter",
        description="A JSON object: only sequences whose metadata equal it, such as "
        '{"view": ["000", "180"]}; a list means any of its values.',
        json_schema_extra=json_in_a_string(FILTER_SCHEMA),
    ),
]


def upload(file: UploadFile, asked: Asked, position: int | None = None) -> Upload:
    """A file of a request, named by its field, its position and what the client calls it."""
    field = "sequence" if position is None else f"sequence[{position}]"
    name = f"{field} {file.filename}" if file.filename else field
    return Upload(name, file.read, asked)


def uploads(files: Sequence[UploadFile], most: int, asked: Asked = UNSAID) -> list[Upload]:
    """The files of a request that takes at most so many; raises `TooLarge`."""
    if len(files) > most:
        raise TooLarge(
            f"Send at most {most} sequences in a request.", Reason("sequence", "too_many")
        )
    return [upload(file, asked, position) for position, file in enumerate(files)]


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work; raises `ClientDisconnect`, and cancels it, when the client goes away."""
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
