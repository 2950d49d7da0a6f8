"""
The console in a real browser, on a real bus: each page, live updates, and refusals.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
import pytest_asyncio

from everbus.gateway.identity.principal import Claimed
from tests.browser import WHY_NONE, WITHIN_MS, Watched, a_browser, a_page
from tests.integration.edge.conftest import (
    WITHIN_S,
    House,
    a_token,
    fresh,
    until_listed,
)
from tests.replicas import a_mad

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120),
]

PHONE = {"width": 360, "height": 740}
# Nothing of it is a dot, which names of fields may not have.
HACK = "<img/src=x/onerror=hacked=1>"
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "find_flight", "arguments": '{"to": "SEA"}'}}],
}
NO_RESOURCE = "Failed to load resource"


class Site(NamedTuple):
    """
    An edge with its console, and a browser.
    """

    url: str
    browser: "Browser"

    def client(self, name: str, role: Claimed = "user") -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {a_token(name, role)}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=WITHIN_S)

    @asynccontextmanager
    async def opened(
        self, place: str, token: str, **options: Any
    ) -> AsyncIterator[Watched]:
        """
        The console at *place*; nothing was asked elsewhere, and nothing failed.
        """
        async with a_page(self.browser, **options) as watched:
            await signed_in(watched.page, token)
            await watched.page.goto(f"{self.url}/console#/{place}")
            yield watched
        assert [one for one in watched.requests if not one.startswith(self.url)] == []
        assert [one for one in watched.requests if token in one] == []
        assert watched.faults == []


async def signed_in(page: "Page", token: str) -> None:
    """
    Let *page* open as after a sign-in.
    """
    await page.add_init_script(f"sessionStorage.setItem('everbus.token', '{token}')")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(house: House) -> AsyncIterator[Site]:
    if WHY_NONE:
        pytest.skip(WHY_NONE)
    async with house.served() as url, a_browser() as browser:
        yield Site(url, browser)


async def begun(client: httpx.AsyncClient, owner: str, *entries: Any) -> str:
    """
    A session of *owner* with a summary and *entries*.
    """
    made = await client.post("/sessions", json={"user_id": owner})
    assert made.status_code == 201, made.text
    at = made.headers["Location"]
    patch = {"context_summary": {"topic": "tides"}, "tags": ["physics"]}
    await client.patch(at, json={"patch": patch})
    for entry in entries:
        said = await client.post(f"{at}/timeline", json={"entry": entry})
        assert said.status_code == 201, said.text

    return str(made.json()["id"])


async def test_the_setting_switches_the_console_of_an_edge_off(house: House):
    async with (
        house.served(edge_console=False) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        answers = [await client.get(path) for path in ("/console", "/docs")]

    assert [one.status_code for one in answers] == [404, 200]


async def test_the_list_finds_pages_and_opens(site: Site):
    name = fresh()
    async with site.client(name) as client:
        ids = {*await asyncio.gather(*(begun(client, name) for _ in range(26)))}
        await until_listed(client, 26, owner=name)

    async with site.opened(f"sessions?owner={name}", a_token(name)) as (page, *_):
        rows = page.locator("tbody tr")
        await page.get_by_role("link", name="Next page").wait_for()
        shown = set(await page.locator("tbody .id").all_inner_texts())
        await page.get_by_role("link", name="Next page").click()
        await page.get_by_role("link", name="First page").wait_for()
        shown |= set(await page.locator("tbody .id").all_inner_texts())
        last = await rows.all_inner_texts()
        wide = await overflow(page)

        await page.get_by_label("Tag").fill("nobody-has-it")
        await page.keyboard.press("Enter")
        await page.get_by_text("No session matches").wait_for()
        await page.get_by_label("Tag").fill("physics")
        await page.get_by_label("State").select_option("active")
        await page.get_by_role("button", name="Search").click()
        await page.get_by_role("link", name="Next page").wait_for()
        await page.locator("tbody .id").first.focus()
        await page.keyboard.press("Enter")
        await page.locator("eb-session .live[data-state=live]").wait_for()

    assert shown == ids
    assert (len(last), wide) == (1, 0)
    assert all(word in last[0] for word in (name, "active", "hot or warm", "physics"))


async def test_a_token_in_the_fragment_signs_in_and_leaves_the_address(site: Site):
    """
    As `everbus dev` hands it over; it survives a reload, and a sign-out forgets it.
    """
    name = fresh()
    token = a_token(name)
    async with a_page(site.browser) as (page, faults, requests):
        await page.goto(f"{site.url}/console#token={token}")
        await page.get_by_text(f"{name} (user)").wait_for()
        address = page.url
        await page.reload()
        await page.locator("eb-sessions").wait_for()
        await page.get_by_role("button", name="Sign out").click()
        await page.locator("eb-sign-in").wait_for()
        kept = await page.evaluate("sessionStorage.length")

    assert address == f"{site.url}/console#/sessions"
    assert (kept, faults) == (0, [])
    assert [one for one in requests if token in one] == []


async def test_a_session_shows_who_said_what_and_what_is_said_now(site: Site):
    name = fresh()
    tool = {"role": "tool", "name": "find_flight", "content": '{"found": "HAT069"}'}
    async with site.client(name) as client:
        entries = ({"role": "user", "text": "a flight, please"}, CALL, tool)
        session = await begun(client, name, *entries)
        at = f"/sessions/{session}"
        await client.post(f"{at}/participants", json={"mad": "bob", "role": "host"})
        async with site.opened(f"sessions/{session}", a_token(name)) as (page, *_):
            await page.locator(".live[data-state=live]").wait_for()
            await page.locator("li.entry.user", has_text="a flight, please").wait_for()
            folded = page.locator("details", has_text="calls find_flight")
            assert await folded.locator("pre").count() == 0
            await folded.locator("summary").click()
            await folded.get_by_text('"to": "SEA"').wait_for()
            facts = await page.locator("eb-session dl").inner_text()
            people = await page.locator("section", has_text="Participants").inner_text()

            await client.post(f"{at}/timeline", json={"entry": {"text": "it is live"}})
            await page.locator("li.entry", has_text="it is live").wait_for()
            await client.patch(at, json={"patch": {"tags": ["changed"]}})
            await page.locator("a.tag", has_text="changed").wait_for()
            await page.get_by_role("link", name="session.updated").click()
            request = page.locator("eb-request")
            await request.get_by_text('"changed"').wait_for()
            committed = await request.inner_text()

    assert all(word in facts for word in (name, "hot (Redis)", "active"))
    assert "bob" in people
    assert all(word in committed for word in ("session.updated", name, "3 → 4"))


async def test_a_restore_asks_first(site: Site):
    name = fresh()
    async with site.client(name) as client:
        session = await begun(client, name)
        at = f"/sessions/{session}"
        async with site.opened(f"sessions/{session}", a_token(name)) as (page, *_):
            await page.get_by_label("Name of a new checkpoint").first.fill("calm")
            await page.keyboard.press("Enter")
            restore = page.get_by_role("button", name="Restore…")
            await restore.click()
            await page.keyboard.press("Escape")
            await page.locator("dialog").wait_for(state="detached")
            untouched = (await client.get(at)).json()

            await client.patch(at, json={"patch": {"context_summary": {"topic": "x"}}})
            await page.locator("dl div", has_text="Version3").wait_for()
            await page.locator("details", has_text="Summary").locator("summary").click()
            await page.get_by_text('"topic": "x"').wait_for()
            await restore.click()
            await page.get_by_role("button", name="Restore", exact=True).click()
            await page.get_by_text("Restored, as version 4.").wait_for()
            restored = (await client.get(at)).json()

    assert untouched["version"] == 2
    assert (restored["version"], restored["context_summary"]["topic"]) == (4, "tides")


async def test_a_restore_of_a_session_that_changed_meanwhile_is_refused(site: Site):
    name = fresh()
    async with site.client(name) as client:
        session = await begun(client, name)
        at = f"/sessions/{session}"
        await client.post(f"{at}/checkpoints", json={"name": "calm"})
        async with a_page(site.browser) as (page, *_):
            await signed_in(page, a_token(name))
            await page.goto(f"{site.url}/console#/sessions/{session}")
            await page.locator(".live[data-state=live]").wait_for()
            await page.get_by_role("button", name="Restore…").click()
            await client.patch(at, json={"patch": {"tags": ["later"]}})
            await page.locator("a.tag", has_text="later").wait_for()
            await page.get_by_role("button", name="Restore", exact=True).click()
            problem = page.locator("eb-checkpoints eb-problem")
            await problem.get_by_text("Look at it as it is now").wait_for()
            told = await problem.inner_text()
        after = (await client.get(at)).json()

    assert "version_conflict" in told
    assert (after["version"], after["tags"]) == (3, ["later"])


async def test_a_long_timeline_is_a_window(site: Site, house: House):
    """
    The page holds 200 entries, whichever way the user goes; live ones are counted.
    """
    name = fresh()
    async with site.client(name) as client, a_mad(house.url, "fiedler") as mad:
        session = await begun(client, name)
        at = f"/sessions/{session}"
        await client.post(f"{at}/participants", json={"mad": "fiedler"})
        for n in range(260):
            mad.append(session, {"text": f"entry {n + 1}."})
        await mad.flush(settled=True)
        async with site.opened(f"sessions/{session}", a_token(name)) as (page, *_):
            entries = page.locator("li.entry")
            older = page.get_by_role("button", name="Older entries")
            await entries.get_by_text("entry 260.").wait_for()
            for first in (161, 111, 61, 11, 1):
                await older.click()
                await page.get_by_text(f"Entries {first} to").wait_for()
                assert await entries.count() <= 200
            await entries.get_by_text("entry 1.").wait_for()
            most = await entries.count()
            await client.post(f"{at}/timeline", json={"entry": {"text": "later"}})
            await page.get_by_role("button", name="Newest entries (61 more)").click()
            await entries.get_by_text("later").wait_for()
            left = await entries.count()

    assert (most, left) == (200, 50)


async def test_text_of_others_stays_text(site: Site):
    name = f"{fresh()}{HACK}"
    told = [
        *(
            HACK,
            {"role": HACK, "text": HACK},
            {HACK: HACK},
            {"content": [{"text": HACK}]},
        ),
        {"role": "assistant", "tool_calls": [{"function": {"name": HACK}}]},
    ]
    async with site.client("root", "admin") as client:
        session = await begun(client, name, *told)
        at = f"/sessions/{session}"
        await client.patch(at, json={"patch": {"tags": [HACK], "fields": {HACK: HACK}}})
        await client.post(f"{at}/checkpoints", json={"name": HACK})
        await until_listed(client, 1, owner=name)
        token = a_token("root", "admin")
        async with site.opened(f"sessions/{session}", token) as (page, *_):
            await page.locator("a.tag", has_text=HACK).wait_for()
            await page.locator("b", has_text=HACK).first.wait_for()
            await page.locator("li.entry p", has_text=HACK).first.wait_for()
            await page.get_by_role("button", name="Restore…").click()
            await page.locator("dialog h2", has_text=HACK).wait_for()
            await page.keyboard.press("Escape")
            await page.goto(f"{site.url}/console#/sessions?tag={HACK}")
            await page.locator("td .tag", has_text=HACK).wait_for()
            hacked = await page.evaluate("window.hacked")
            images = await page.locator("img").count()

    assert (hacked, images) == (None, 0)


async def test_an_expired_token_leads_back_to_the_same_page(site: Site):
    name = fresh()
    async with site.client(name) as client:
        session = await begun(client, name, {"text": "still there"})
    expired = a_token(name, now=time.time() - 7200)
    refused = a_token(name, now=time.time() - 7200, ttl_s=10_000)[:-4] + "AAAA"
    async with a_page(site.browser) as (page, faults, _):
        await page.goto(f"{site.url}/console#token={refused}")
        await page.locator("eb-sign-in").wait_for()
        await page.goto(f"{site.url}/console#/sessions/{session}")
        for bad in (expired, refused):
            await page.get_by_label("Token").fill(bad)
            await page.keyboard.press("Enter")
            problem = page.locator("eb-sign-in eb-problem")
            await problem.get_by_text("unauthenticated").wait_for()
            assert await page.evaluate("sessionStorage.length") == 0
            await page.get_by_label("Token").wait_for()
        await page.get_by_label("Token").fill(a_token(name))
        await page.keyboard.press("Enter")
        await page.locator("li.entry", has_text="still there").wait_for()

    assert [one for one in faults if NO_RESOURCE not in one] == []


async def test_a_refusal_shows_its_code_and_a_remedy(site: Site):
    name = fresh()
    async with a_page(site.browser) as (page, faults, _):
        await signed_in(page, a_token(name))
        await page.goto(f"{site.url}/console#/overview")
        problem = page.locator("eb-problem")
        await problem.get_by_text("forbidden").wait_for()
        told = await problem.inner_text()
        await page.goto(f"{site.url}/console#/sessions/{HACK}")
        await problem.get_by_text("invalid").wait_for()
        assert await page.locator("img").count() == 0

    assert "ask an operator or an admin" in told
    assert [one for one in faults if NO_RESOURCE not in one] == []


async def test_overview_and_health_show_this_deployment_on_a_phone_at_night(site: Site):
    async with site.client("root", "admin") as client:
        session = await begun(client, fresh(), CALL)
    night = {"color_scheme": "dark", "viewport": PHONE}
    async with site.opened("overview", a_token("root", "admin"), **night) as (page, *_):
        await page.locator("figure", has_text="Bytes of each tier").wait_for()
        await page.locator("figure", has_text="Requests a second").wait_for()
        overview = await page.locator("eb-overview").inner_text()
        wide = [await overflow(page)]
        await page.goto(f"{site.url}/console#/health")
        await page.locator("eb-health .state.pass", has_text="ready").wait_for()
        checks = await page.locator("tbody").inner_text()
        wide.append(await overflow(page))
        await page.goto(f"{site.url}/console#/sessions/{session}")
        await page.locator("li.entry").wait_for()
        wide.append(await overflow(page))
        await page.goto(f"{site.url}/console#/sessions")
        await page.locator("tbody tr").first.wait_for()
        wide.append(await overflow(page))
        paper = await page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert all(
        word in overview for word in ("sessions", "hot, a month", "live streams")
    )
    assert all(word in checks for word in ("service", "bus", "lanes", "warm"))
    assert wide == [0, 0, 0, 0]
    assert paper == "rgb(16, 22, 21)"


async def overflow(page: Any) -> int:
    """
    By how many pixels a page is wider than its window.
    """
    found: int = await page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return found


async def test_trouble_comes_first_with_its_remedy(site: Site):
    """
    The report of an edge whose bus is away, put before the page by the browser.
    """
    since = "2026-01-01T00:00:00+00:00"
    passed = {"status": "pass", "since": since}
    away = {"status": "fail", "since": since, "output": "it does not answer"}
    report = {
        "status": "warn",
        "version": "1",
        "checks": {"service": [passed], "bus": [away]},
    }
    token = a_token("root", "admin")
    async with site.opened("sessions", token) as (page, *_):
        await page.route("**/health", lambda route: route.fulfill(json=report))
        await page.goto(f"{site.url}/console#/health")
        await page.locator("tbody").wait_for(timeout=WITHIN_MS)
        first = await page.locator("tbody tr").first.inner_text()

    assert all(word in first for word in ("bus", "does not answer", "→ Start Redis"))
