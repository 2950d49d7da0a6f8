"""
Commands without a reply under ids of the caller's own, on a bus that loses its data.
"""

import asyncio

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_what_the_bus_lost_is_there_once_after_a_settled_flush(stack):
    """
    Whatever MongoDB has by then: what it has is not applied again.
    """
    async with stack.served() as (mad, hands):
        async with hands.draining():
            session = await mad.create_session("ada")
            mad.append(session.id, 0, command_id=f"{session.id}-0")
            mad.append(session.id, 1, command_id=f"{session.id}-1")
            await mad.durable(session.id, wait=True)
        # Nobody drains: these are in Redis alone.
        mad.append(session.id, 2, command_id=f"{session.id}-2")
        patch = {"tags": ["sea"]}
        mad.update_later(session.id, patch, command_id=f"{session.id}-3")
        await mad.get_session(session.id)
        await stack.client.flushall()
        async with hands.draining():
            await mad.flush(settled=True, timeout=25)
            await mad.durable(session.id, wait=True)
            there = await mad.get_session(session.id)
            page = await mad.timeline(session.id)

    assert [one.entry for one in page.entries] == [0, 1, 2]
    assert (there.version, there.last_seq, there.tags) == (2, 3, ("sea",))


async def test_the_end_of_a_block_settles_them_too(stack):
    async with stack.served() as (mad, hands), hands.draining():
        session = await mad.create_session("ada")
        async with stack.mad() as other:
            for n in range(40):
                other.append(session.id, n, command_id=f"{session.id}-{n}")
        again = await asyncio.gather(
            *(
                mad.append_and_wait(session.id, n, command_id=f"{session.id}-{n}")
                for n in range(40)
            )
        )
        assert again == list(range(1, 41))
