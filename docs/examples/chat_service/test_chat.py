"""
The chat service as its users see it, on a bus in memory.
"""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from chat import NAME, app, connection

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def a_browser():
    """
    A client of the service, which runs during the block.
    """
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        connection(app),
        httpx.AsyncClient(transport=transport, base_url="http://chat") as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def environment(everbus_bus, monkeypatch):
    for name, value in everbus_bus.environment(NAME).items():
        monkeypatch.setenv(name, value)


async def texts(browser, user, after=0):
    read = await browser.get(f"/chats/{user}", params={"after": after})
    return [(one["role"], one["text"]) for one in read.json()["messages"]]


async def test_a_message_is_answered():
    async with a_browser() as browser:
        said = await browser.post("/chats/ada", json={"text": "Why tides?"})

        everything = await texts(browser, "ada")
        news = await texts(browser, "ada", after=1)

    assert (said.status_code, said.json()) == (201, {"seq": 1})
    answer = ("assistant", "You said: Why tides?")
    assert (everything, news) == ([("user", "Why tides?"), answer], [answer])


async def test_each_user_has_a_conversation_of_their_own():
    async with a_browser() as browser:
        await asyncio.gather(
            *(
                browser.post(f"/chats/{user}", json={"text": f"I am {user}"})
                for user in ("ada", "bob")
            )
        )

        said = {user: (await texts(browser, user))[0] for user in ("ada", "bob")}

    assert said == {"ada": ("user", "I am ada"), "bob": ("user", "I am bob")}


async def test_a_conversation_outlives_the_service():
    for text in ("before", "after"):
        async with a_browser() as browser:
            await browser.post("/chats/ada", json={"text": text})
            said = await texts(browser, "ada")

    assert [text for role, text in said if role == "user"] == ["before", "after"]


async def test_a_refusal_has_its_code_and_status(everbus_bus):
    everbus_bus.fail_next("overloaded", kind="timeline.append")

    async with a_browser() as browser:
        said = await browser.post("/chats/ada", json={"text": "Why tides?"})

    assert (said.status_code, said.json()["code"]) == (429, "overloaded")
