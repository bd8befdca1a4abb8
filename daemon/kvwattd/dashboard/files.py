"""The page's files, out of the package, packed once."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Request, Response

from kvwattd.api.problems import Refused

TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
NAMES = (
    "app.js",
    "cards.js",
    "controls.js",
    "health.js",
    "plots.js",
    "pool.js",
    "promises.js",
    "stream.js",
    "words.js",
    "style.css",
    "icon.svg",
)
PLOTLY = "plotly.js"
HEADERS = {
    # Plotly styles its plots by inline rules; scripts and data come from here alone.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    packed: bytes
    tag: str


def page() -> APIRouter:
    """`/` and what it consists of."""
    router = APIRouter(tags=["dashboard"], include_in_schema=False)

    @router.get("/")
    async def index(request: Request) -> Response:
        """The page."""
        return await _answer(request, "index.html")

    @router.get("/dashboard/{name}")
    async def part(request: Request, name: str) -> Response:
        """Scripts, style and the plot library."""
        if name not in (*NAMES, PLOTLY):
            raise Refused(404, f"no such file: {name!r}", f"one of {', '.join((*NAMES, PLOTLY))}")
        return await _answer(request, name)

    return router


async def _answer(request: Request, name: str) -> Response:
    file = await asyncio.to_thread(_file, name)
    headers = HEADERS | {"ETag": file.tag, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    kind = f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(file.content, media_type=kind, headers=headers)
    return Response(file.packed, media_type=kind, headers=headers | {"Content-Encoding": "gzip"})


@lru_cache(maxsize=len(NAMES) + 2)
def _file(name: str) -> _File:
    content = _plotly() if name == PLOTLY else (files(__package__) / "page" / name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return _File(content, gzip.compress(content, mtime=0), tag)


def _plotly() -> bytes:
    """The bundle; without the package the page tells its numbers and draws nothing.

    Found and not imported: plotly's import costs the daemon 30 MB that it would never use.
    """
    found = find_spec("plotly")
    if found is None or found.origin is None:
        raise Refused(404, "plots need the package plotly", "pip install 'kvwatt[report]'")
    return (Path(found.origin).parent / "package_data" / "plotly.min.js").read_bytes()
