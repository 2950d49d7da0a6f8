"""
Two agents on a bus in memory: who says what, once, also when one of them restarts.
"""

import asyncio
from contextlib import AsyncExitStack, aclosing

import pytest
from agents import AGREED, Agent, discuss, scripted

pytestmark = pytest.mark.asyncio


async def spoken(mad, session_id):
    page = await mad.timeline(session_id)
    return [(one.author, one.entry["text"]) for one in page.entries]


async def test_they_discuss_until_they_agree(everbus_bus):
    async with AsyncExitStack() as stack:
        author, critic = [
            Agent(
                await stack.enter_async_context(everbus_bus.connect(mad=name)),
                name,
                scripted(lines),
            )
            for name, lines in [
                ("author", ["The wind.", "The moon pulls."]),
                ("critic", ["Is it calm, too?", AGREED]),
            ]
        ]
        session_id = await discuss(author, critic, "Why tides?")

        session = await author.mad.get_session(session_id)
        said = await spoken(author.mad, session_id)

    assert said == [
        ("author", "The wind."),
        ("critic", "Is it calm, too?"),
        ("author", "The moon pulls."),
        ("critic", AGREED),
    ]
    assert session.context_summary == {"agreed": "The moon pulls."}
    assert sorted(session.participants) == ["author", "critic"]


async def said(mad, session_id, text):
    """
    Return when somebody has said *text*.
    """
    async with (
        asyncio.timeout(20),
        aclosing(mad.watch(session_id, after="0")) as events,
    ):
        async for event in events:
            if event.kind == "timeline.appended" and event.entry["text"] == text:
                return


async def test_an_agent_that_starts_again_answers_nothing_twice(
    everbus_bus, everbus_mad
):
    session = await everbus_mad.create_session("ada")
    await everbus_mad.add_participant(session.id, "critic")

    for question, answer in [("one", "not yet"), ("two", "nor this")]:
        await everbus_mad.append_and_wait(session.id, {"text": question})
        async with everbus_bus.connect(mad="critic") as mad, asyncio.TaskGroup() as run:
            critic = Agent(mad, "critic", scripted([answer]))
            taking_part = run.create_task(critic.take_part(session.id))
            await said(everbus_mad, session.id, answer)
            taking_part.cancel()

    page = await everbus_mad.timeline(session.id)
    assert [(one.entry["text"], one.entry.get("answers")) for one in page.entries] == [
        ("one", None),
        ("not yet", 1),
        ("two", None),
        ("nor this", 3),
    ]
