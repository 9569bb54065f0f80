"""The page at `/`, and the files of `service/http/web` that it is made of.

They are read once and served unchanged. The page may load nothing from other hosts and run nothing
inside its markup, so that text from a gallery can never become a script.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response

from service.foundation.errors import NotFound
from service.http.middleware.access import PAGE_FILES

_WEB = Path(__file__).parents[1] / "web"
_FRONT = "index.html"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src blob:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class _File:
    """One file of the page, as it is sent."""

    content: bytes
    headers: dict[str, str]


def _read(path: Path) -> _File:
    content = path.read_bytes()
    headers = {
        "Content-Type": _TYPES[path.suffix],
        "Content-Security-Policy": _POLICY,
        "Cache-Control": "no-cache",  # kept, and asked about: a new version is a new page at once
        "ETag": f'"{sha256(content).hexdigest()[:32]}"',
    }
    return _File(content, headers)


_FILES = {path.name: _read(path) for path in _WEB.iterdir() if path.suffix in _TYPES}


@router.get("/")
async def front(request: Request) -> Response:
    """Show the page."""
    return _answer(request, _FILES[_FRONT])


@router.get(PAGE_FILES + "{name}")
async def file(request: Request, name: str) -> Response:
    """Give one of the page's files; raises `NotFound`."""
    found = _FILES.get(name)
    if found is None:
        raise NotFound("The page has no such file.")
    return _answer(request, found)


def _answer(request: Request, found: _File) -> Response:
    if request.headers.get("If-None-Match") == found.headers["ETag"]:
        return Response(status_code=304, headers=found.headers)
    return Response(found.content, headers=found.headers)
