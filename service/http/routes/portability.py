"""Export and import of whole galleries."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.access.keys import Scope
from service.gallery.fields import GalleryName
from service.http import recorded
from service.http.middleware.scopes import requires
from service.http.routes.audited import record_answer, record_read
from service.http.routes.dependencies import AppResources
from service.http.schemas import ImportAnswer

router = APIRouter(
    prefix="/galleries", tags=["galleries"], dependencies=[Depends(requires(Scope.ADMIN))]
)
_FILE = {"application/zip": {"schema": {"type": "string", "format": "binary"}}}


@router.get(
    "/{gallery}/export",
    response_class=StreamingResponse,
    responses={200: {"content": _FILE, "description": "The file, as it is made."}},
)
def export_gallery(
    request: Request,
    resources: AppResources,
    gallery: str,
    embeddings: Annotated[
        bool, Query(description="Whether the models' embeddings are in it, beside the silhouettes.")
    ] = True,
) -> StreamingResponse:
    """Export a gallery as it is now; the connection is cut if something is erased meanwhile."""
    pieces = resources.portability.export(gallery, embeddings=embeddings)
    record_read(request, recorded.export(gallery, embeddings=embeddings))
    return StreamingResponse(
        pieces,
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{gallery}.zip"'},
    )


@router.put(
    "/{gallery}/import",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": _FILE}},
)
async def import_gallery(
    request: Request, response: Response, resources: AppResources, gallery: GalleryName
) -> ImportAnswer:
    """Make a new gallery of an export: all of it, or nothing when anything in it is wrong."""
    imported = await resources.portability.put(gallery, request.stream())
    await record_answer(request, recorded.imported(imported.gallery))
    response.headers["Location"] = f"/galleries/{gallery}"
    return ImportAnswer.beside(resources.model, imported)
