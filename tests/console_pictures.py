"""
The pictures of docs/console.md: each page of the console, on a stack of its own.

Run it: make pictures, which writes them into docs/console. Needs a Chromium.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from playwright.async_api import Browser, Page

from everbus.bus import connect
from everbus.compose.stack import EmbeddedStack
from everbus.gateway.identity.principal import Claimed
from everbus.gateway.identity.tokens import mint
from tests.browser import WHY_NONE, a_browser, a_page

MAX_BYTES = 200_000
DESK = {"width": 1200, "height": 820}
PHONE = {"width": 390, "height": 820}
OWNER = "ada"
OWNERS = ("grace", OWNER, "mary", "emmy")
TOPICS = ("tides", "moorings", "harbour", "weather")
SESSIONS = 10
TOKEN_TTL_S = 600
# So that rates have a line, and requests a colour.
LOOKS = 6
CALL = {"name": "tide_table", "arguments": '{"port": "Brest", "day": "2026-03-21"}'}
TABLE = '{"high": ["05:12", "17:34"], "low": ["11:20", "23:41"]}'
TALK: tuple[tuple[str, Any], ...] = (
    (
        "ada",
        {"role": "user", "text": "When can I leave Brest tomorrow with 2 m draught?"},
    ),
    (
        "fiedler",
        {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]},
    ),
    ("harbour", {"role": "tool", "name": "tide_table", "content": TABLE}),
    (
        "fiedler",
        {
            "role": "assistant",
            "text": "High water is at 05:12 and 17:34. With 2 m draught leave between "
            "03:40 and 06:50, or between 16:00 and 19:10.",
        },
    ),
    ("ada", {"role": "user", "text": "The afternoon, then. Is there wind?"}),
)


class Scene(NamedTuple):
    """
    A stack with sessions to look at.
    """

    url: str
    token: str
    session: str


async def main(folder: Path) -> None:
    """
    Write every picture into *folder*.
    """
    if WHY_NONE:
        raise SystemExit(WHY_NONE)
    with tempfile.TemporaryDirectory() as data:
        async with EmbeddedStack(Path(data), managers=1, edge=True) as stack:
            environment = stack.environment()
            scene = await played(environment)
            async with a_browser() as browser:
                await at_the_desk(browser, scene, folder)
                await on_a_phone(browser, scene, folder)


async def played(environment: dict[str, str]) -> Scene:
    """
    Sessions of four people; in one of them two MADs advise its owner.
    """
    url, token = environment["EVERBUS_EDGE_URL"], environment["EVERBUS_TOKEN"]
    async with client_of(url, token) as client:
        for n in range(SESSIONS):
            session = await begun(client, n)
        at = f"/sessions/{session}"
        for mad, role in (("fiedler", "skipper"), ("harbour", "tide tables")):
            await client.post(f"{at}/participants", json={"mad": mad, "role": role})
        await client.post(f"{at}/checkpoints", json={"name": "before departure"})
        owner = (await client.get(at)).json()["owner_id"]
    for author, entry in TALK:
        await said(environment, session, owner if author == OWNER else author, entry)

    return Scene(url, token, session)


def client_of(url: str, token: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token}"}

    return httpx.AsyncClient(base_url=url, headers=headers, timeout=30)


async def begun(client: httpx.AsyncClient, n: int) -> str:
    topic = TOPICS[n % len(TOPICS)]
    made = await client.post("/sessions", json={"user_id": OWNERS[n % len(OWNERS)]})
    patch = {"context_summary": {"topic": topic}, "tags": [topic, "sailing"]}
    await client.patch(made.headers["Location"], json={"patch": patch})

    return str(made.json()["id"])


async def said(
    environment: dict[str, str], session: str, author: str, entry: Any
) -> None:
    """
    Append as *author*: a MAD on the bus, a user by REST.
    """
    role: Claimed = "user" if author in OWNERS else "mad"
    token = mint(
        environment["EVERBUS_JWT_SECRET"],
        name=author,
        role=role,
        issuer="everbus",
        audience="everbus",
        ttl_s=TOKEN_TTL_S,
        now=time.time(),
    )
    if role == "user":
        async with client_of(environment["EVERBUS_EDGE_URL"], token) as client:
            told = await client.post(
                f"/sessions/{session}/timeline", json={"entry": entry}
            )
            assert told.status_code == 201, told.text
        return
    async with connect(
        environment["EVERBUS_REDIS_URL"], mad=author, token=token
    ) as mad:
        await mad.append_and_wait(session, entry)


async def at_the_desk(browser: Browser, scene: Scene, folder: Path) -> None:
    async with opened(browser, scene, DESK, "light") as page:
        await page.locator("tbody tr").first.wait_for()
        await taken(page, folder / "sessions.png")

        await page.goto(f"{scene.url}/console#/sessions/{scene.session}")
        await page.locator("li.entry").first.wait_for()
        await page.locator("summary", has_text="calls tide_table").click()
        async with client_of(scene.url, scene.token) as client:
            patch = {"patch": {"context_summary": {"topic": "wind"}}}
            await client.patch(f"/sessions/{scene.session}", json=patch)
        changed = page.get_by_role("link", name="session.updated")
        await changed.wait_for()
        await page.locator("dl div", has_text="Version5").wait_for()
        await taken(page, folder / "session.png", full_page=True)

        await changed.click()
        await page.locator("eb-request h2").wait_for()
        await taken(page, folder / "request.png")

        await page.goto(f"{scene.url}/console#/health")
        await page.locator("tbody tr").first.wait_for()
        await taken(page, folder / "health.png")

        await page.goto(f"{scene.url}/console#/overview")
        async with client_of(scene.url, scene.token) as client:
            for _ in range(LOOKS):
                for _ in range(20):
                    await client.get(f"/sessions/{scene.session}")
                await asyncio.sleep(2)  # one look of the page
        await taken(page, folder / "overview.png")


async def on_a_phone(browser: Browser, scene: Scene, folder: Path) -> None:
    async with opened(browser, scene, PHONE, "dark") as page:
        await page.goto(f"{scene.url}/console#/sessions/{scene.session}")
        await page.locator("li.entry").first.wait_for()
        await page.locator("h2", has_text="Conversation").scroll_into_view_if_needed()
        await page.evaluate("scrollTo(0, 330)")
        await taken(page, folder / "phone.png")


@asynccontextmanager
async def opened(
    browser: Browser, scene: Scene, size: Any, scheme: str
) -> AsyncIterator[Page]:
    """
    The console, signed in.
    """
    looks = {"viewport": size, "color_scheme": scheme, "reduced_motion": "reduce"}
    place = {"locale": "en-GB", "timezone_id": "UTC"}
    async with a_page(browser, **looks, **place) as (page, *_):
        await page.goto(f"{scene.url}/console#token={scene.token}")
        await page.locator("tbody tr").first.wait_for()
        yield page


async def taken(page: Page, picture: Path, *, full_page: bool = False) -> None:
    size = len(await page.screenshot(path=picture, full_page=full_page))
    assert size < MAX_BYTES, f"{picture} has {size} bytes, too many for the repository"


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
