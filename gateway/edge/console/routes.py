"""
Routes of /console: a page and its assets, out of this package.

The page is a client like any other: it calls the API's routes with the user's own
token, so nothing here needs one, and nothing here reads a session.
"""

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from everbus.gateway.edge.documentation import HEADERS

PAGE = "index.html"
MEDIA_TYPES: Mapping[str, str] = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
# Trusted types: a browser refuses text that a script would turn into markup.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": POLICY,
    # The same for everybody; asked for again, so that an upgrade shows at once.
    "Cache-Control": "no-cache",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Asset(NamedTuple):
    """
    One file of the page.
    """

    content: bytes
    media_type: str
    etag: str


def console_routes() -> list[Route]:
    """
    The routes of /console; the assets are read once, here.
    """
    assets = packaged_assets()

    async def page(request: Request) -> Response:
        return _served(request, assets[PAGE])

    async def asset(request: Request) -> Response:
        # Looked up by name, never as a path.
        found = assets.get(request.path_params["asset"])
        if found is None:
            raise HTTPException(404)
        return _served(request, found)

    return [
        Route("/console", page, methods=["GET"]),
        Route("/console/{asset}", asset, methods=["GET"]),
    ]


def packaged_assets() -> dict[str, Asset]:
    """
    The assets by name, from wherever this package is installed.
    """
    found = {}
    for file in files(__package__).joinpath("assets").iterdir():
        media_type = MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[file.name] = Asset(content, media_type, etag)
    return found


def _served(request: Request, asset: Asset) -> Response:
    headers = {**_HEADERS, "ETag": asset.etag}
    # Also as `W/"…"`, which compressing proxies make of it.
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
