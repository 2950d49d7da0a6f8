"""
The page /docs: Swagger UI on the edge's own description.

Its assets come from a wheel and not from a CDN, so the page works without internet and
its policy lets in no script of anybody else.
"""

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

# Only the assets of this package are used; it keeps up with Swagger UI's releases.
PACKAGE = "fastapi_offline"
ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
# Relative, for an ingress that serves the edge below a path.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>everbus</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# In a file of its own: the policy allows no script within the page.
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#ui",
  deepLinking: true,
  validatorUrl: null,
});
"""

Served = Callable[[Request], Awaitable[Response]]


def documentation_routes() -> list[Route]:
    """
    The routes of /docs and its assets.
    """
    return [
        Route("/docs", _text(_PAGE, "text/html"), methods=["GET"]),
        Route("/docs/start.js", _text(_START, "text/javascript"), methods=["GET"]),
        Route("/docs/{asset}", _asset, methods=["GET"]),
    ]


def _text(content: str, media_type: str) -> Served:
    async def served(_: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=media_type)

    return served


async def _asset(request: Request) -> Response:
    name = request.path_params["asset"]
    folder = asset_folder()
    if name not in ASSETS or folder is None:
        raise HTTPException(404)
    return FileResponse(folder / name, headers=HEADERS, media_type=ASSETS[name])


def asset_folder() -> Path | None:
    """
    The folder of the assets; None if their package is not installed.
    """
    # Found and not imported: its code is not needed.
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "static"
