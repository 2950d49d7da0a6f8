"""
The page /console without a browser: its routes, headers, and the text of its assets.
"""

import re
from functools import cache
from typing import cast

import httpx
import pytest
from fastapi import FastAPI

from everbus.bus.client import Mad
from everbus.gateway.edge.app import edge_app
from everbus.gateway.edge.console.routes import MEDIA_TYPES, PAGE, packaged_assets
from everbus.gateway.edge.context import EdgeContext, EdgeLimits
from everbus.gateway.edge.fallback import ReadFallback
from everbus.gateway.identity.grants import Grants
from everbus.gateway.identity.tokens import Identity

ASSETS = packaged_assets()
SCRIPTS = {
    name: asset.content.decode()
    for name, asset in ASSETS.items()
    if name.endswith(".js")
}
MAX_BYTES = 100_000
MAX_LINES = 300
# Ways from a text to markup or code.
SINKS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|"
    r"srcdoc=|DOMParser|createContextualFragment|setHTML"
)
IMPORT = re.compile(r'^import (?:[^"]+ from )?"([^"]+)";', re.MULTILINE)
NAMESPACE = "http://www.w3.org/2000/svg"


@cache
def an_edge(*, console: bool = True) -> FastAPI:
    """
    An edge that is asked for no session.
    """
    context = EdgeContext(
        bus=cast(Mad, None),
        fallback=ReadFallback(),
        identity=cast(Identity, None),
        grants=cast(Grants, None),
        limits=EdgeLimits(),
        now=float,
        console=console,
    )
    return edge_app(context)


async def asked(path: str, *, console: bool = True, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(an_edge(console=console))
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        return await client.get(path, headers=headers)


async def test_the_page_lets_in_nothing_but_its_own_files():
    page = await asked("/console")
    policy = dict(
        part.partition(" ")[::2]
        for part in page.headers["Content-Security-Policy"].split("; ")
    )

    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert policy["default-src"] == "'none'"
    assert {
        policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")
    } == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["frame-ancestors"] == "'none'"
    assert page.headers["X-Frame-Options"] == "DENY"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert not re.search(r"<script>|<style|style=|\son\w+=", page.text)


async def test_each_asset_is_served_with_its_type_and_the_same_policy():
    page = await asked("/console")

    for name, asset in ASSETS.items():
        served = await asked(f"/console/{name}")

        assert (served.status_code, served.content) == (200, asset.content)
        media_type = served.headers["Content-Type"].partition(";")[0]
        assert media_type == MEDIA_TYPES[name.rpartition(".")[2]]
        for header in ("Content-Security-Policy", "Cross-Origin-Resource-Policy"):
            assert served.headers[header] == page.headers[header]
        assert served.headers["X-Content-Type-Options"] == "nosniff"


async def test_an_asset_that_a_browser_has_is_not_sent_again():
    first = await asked("/console/app.js")
    tag = first.headers["ETag"]
    again = [
        await asked("/console/app.js", **{"If-None-Match": one})
        for one in (tag, f"W/{tag}", f'"other", {tag}', '"other"')
    ]

    assert [one.status_code for one in again] == [304, 304, 304, 200]
    assert first.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    [
        *("/console/nothing.js", "/console/", "/console/assets/app.js"),
        *("/console/__init__.py", "/console/routes.py", "/console/../routes.py"),
        *("/console/%2e%2e/routes.py", "/console/..%2froutes.py"),
        *("/console/%2fetc%2fpasswd", "/console//etc/passwd", "/console/app.js%00"),
    ],
)
async def test_what_is_no_asset_is_not_found(path: str):
    answer = await asked(path)

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/console", "/console/app.js"])
async def test_a_setting_switches_it_off(path: str):
    answer = await asked(path, console=False)

    assert answer.status_code == 404


async def test_it_has_what_its_files_name_and_nothing_else():
    page = ASSETS[PAGE].content.decode()
    named = re.findall(r'(?:src|href)="console/([^"]+)"', page)
    imported = [one for text in SCRIPTS.values() for one in IMPORT.findall(text)]

    assert {one[:2] for one in imported} == {"./"}
    assert {*named, *(one[2:] for one in imported), PAGE} == set(ASSETS)


@pytest.mark.parametrize("name", sorted(ASSETS))
def test_an_asset_is_small_and_names_no_other_server(name: str):
    text = ASSETS[name].content.decode()

    assert len(text.splitlines()) <= MAX_LINES
    assert re.findall(r"https?://[^\"' )]+", text.replace(NAMESPACE, "")) == []


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_no_script_turns_text_into_markup(name: str):
    assert SINKS.findall(SCRIPTS[name]) == []


def test_the_whole_page_is_small():
    assert sum(len(asset.content) for asset in ASSETS.values()) < MAX_BYTES
