"""
A real browser for tests of pages: Debian's Chromium, driven by Playwright.

Where one of them is missing, `WHY_NONE` says so, and tests skip with it.
"""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WHY_NONE = (
    "no chromium here: apt-get install chromium"
    if CHROMIUM is None
    else "playwright is not installed: pip install 'everbus[test]'"
    if find_spec("playwright") is None
    else ""
)
WITHIN_MS = 30_000
# Chromium's own services, and a sandbox that root cannot have.
_ARGUMENTS = (
    *("--disable-background-networking", "--disable-component-update"),
    *("--no-sandbox",) * (os.geteuid() == 0),
)


class Watched(NamedTuple):
    """
    A page, and what went wrong on it.

    Attributes:
        faults: errors on its console, and exceptions nobody caught.
        requests: the URL of everything that it asked for.
    """

    page: "Page"
    faults: list[str]
    requests: list[str]


@asynccontextmanager
async def a_browser() -> AsyncIterator["Browser"]:
    """
    A headless Chromium without a profile.
    """
    from playwright.async_api import async_playwright

    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=CHROMIUM, args=list(_ARGUMENTS)
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def a_page(browser: "Browser", **options: Any) -> AsyncIterator[Watched]:
    """
    A page in a context of its own: no other test's storage.
    """
    context = await browser.new_context(**options)
    context.set_default_timeout(WITHIN_MS)
    page = await context.new_page()
    watched = Watched(page, [], [])
    page.on("console", lambda said: _note(watched, said))
    page.on("pageerror", lambda error: watched.faults.append(f"uncaught: {error}"))
    page.on("request", lambda request: watched.requests.append(request.url))
    try:
        yield watched
    finally:
        await context.close()


def _note(watched: Watched, said: Any) -> None:
    if said.type == "error":
        watched.faults.append(said.text)
