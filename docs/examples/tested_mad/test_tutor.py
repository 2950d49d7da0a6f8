"""
The tests of the tutor: on a bus in memory, with a fake model and faults on demand.
"""

import asyncio
from contextlib import aclosing, asynccontextmanager

import pytest
from tutor import Tutor

pytestmark = pytest.mark.asyncio


async def model(history):
    return f"{history[-1]} Good question!"


@asynccontextmanager
async def a_lesson(tutor, session_id):
    """
    The tutor at work in the session, while the block runs.
    """
    async with asyncio.TaskGroup() as tasks:
        teaching = tasks.create_task(tutor.teach(session_id))
        yield
        teaching.cancel()


async def next_event(mad, session_id, kind):
    async with asyncio.timeout(5), aclosing(mad.watch(session_id, after="0")) as events:
        async for event in events:
            if event.kind == kind:
                return event
    raise AssertionError(f"no {kind}")


async def test_a_question_is_answered_once(everbus_bus, everbus_mad):
    session = await everbus_mad.create_session("ada")
    tutor = Tutor(everbus_mad, model)

    async with everbus_bus.connect(mad="browser", user="ada") as browser:
        async with a_lesson(tutor, session.id):
            browser.append(session.id, {"role": "user", "text": "Why tides?"})
            await next_event(browser, session.id, "session.updated")

        page = await browser.timeline(session.id)
        read = await browser.get_session(session.id)

    assert [(one.author, one.entry["text"]) for one in page.entries] == [
        ("browser", "Why tides?"),
        ("tested_mad", "Why tides? Good question!"),
    ]
    assert read.context_summary == {"topic": "Why tides?"}
    assert list(read.participants) == ["tested_mad"]


async def test_the_topic_survives_somebody_who_was_faster(everbus_bus, everbus_mad):
    session = await everbus_mad.create_session("ada")
    everbus_bus.fail_next("version_conflict", kind="session.update", current_version=2)

    await Tutor(everbus_mad, model).note_topic(session.id, "tides")

    read = await everbus_mad.get_session(session.id)
    assert (read.version, read.context_summary) == (2, {"topic": "tides"})


@pytest.mark.parametrize("applied", [True, False], ids=["lost_reply", "lost_command"])
async def test_a_timeout_writes_the_topic_once(everbus_bus, everbus_mad, applied):
    session = await everbus_mad.create_session("ada")
    everbus_bus.fail_next("timeout", kind="session.update", applied=applied)

    await Tutor(everbus_mad, model).note_topic(session.id, "tides")

    assert (await everbus_mad.get_session(session.id)).version == 2


async def test_a_tutor_that_dies_is_missed(everbus_bus, everbus_mad):
    async with everbus_bus.connect(mad="tutor") as mad:
        session = await mad.create_session("tutor")
        await mad.update_session(session.id, {"acl": ["tutor", "tested_mad"]})
        await mad.join(session.id)

        everbus_bus.silence("tutor")
        everbus_bus.advance(everbus_bus.lease_s + 1)

        await next_event(everbus_mad, session.id, "participant.lost")
        assert (await everbus_mad.get_session(session.id)).participants == {}


async def test_a_restart_of_the_replica_loses_nothing(everbus_bus, everbus_mad):
    session = await everbus_mad.create_session("ada")

    everbus_bus.start_replica(everbus_bus.kill_replica())

    assert (await everbus_mad.get_session(session.id)).version == 1
