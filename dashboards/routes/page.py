"""`/`: the live page, as it was built."""

import asyncio
from pathlib import Path

from fastapi import APIRouter, HTTPException
from starlette.responses import HTMLResponse, Response

router = APIRouter()

DIST = Path(__file__).resolve().parent.parent / "web" / "dist"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": "application/json"}


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> Response:
    """Give the page, or say how to build it."""
    try:
        text = await asyncio.to_thread((DIST / "index.html").read_bytes)
    except FileNotFoundError:
        raise HTTPException(
            503, "the page is not built: run `make setup`, or `npm run build` in dashboards/web"
        ) from None
    return HTMLResponse(text)


@router.get("/assets/{name}", response_class=Response, include_in_schema=False)
async def asset(name: str) -> Response:
    """Give a script or a style sheet; its name changes with its content, so it may be kept for ever."""
    path = DIST / "assets" / name
    # A route's segment has no slash, but "..", once decoded, would still be a folder.
    if path.suffix not in MEDIA_TYPES or path.parent != DIST / "assets":
        raise HTTPException(404)
    try:
        content = await asyncio.to_thread(path.read_bytes)
    except (FileNotFoundError, IsADirectoryError):
        raise HTTPException(404) from None
    return Response(
        content, media_type=MEDIA_TYPES[path.suffix], headers={"Cache-Control": "public, max-age=31536000, immutable"}
    )
