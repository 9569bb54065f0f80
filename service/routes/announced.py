"""Calls of the interface that this version does not carry out yet: 404, and what to do instead.

Without them their addresses would be taken for those of a job or a model, which know GET only, and
be refused as the wrong method.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.errors import NotFound, Reason

_CALLS = ("/jobs/audit-gallery",)

router = APIRouter(include_in_schema=False)


async def _not_yet(request: Request) -> None:
    raise NotFound(
        "This version of GaitID does not have this call; /docs lists those it has.",
        Reason(request.url.path, "not_available"),
        slug="not-available",
    )


for _call in _CALLS:
    router.add_api_route(_call, _not_yet, methods=["POST"])
