"""
What a lane cannot read in Redis: the producer or the session concerned alone is
refused, until somebody mends it; nothing is applied twice, and the lane goes on.
"""

from contextlib import AsyncExitStack

import pytest
from structlog.testing import capture_logs

from everbus.bus import NotFound, Unavailable, connect, keys
from everbus.gateway.lane.intake import CONSUMER
from everbus.gateway.store import key_names
from everbus.gateway.store.dead_letters import letter_of
from tests.replicas import a_mad, a_token, letters, replica_here, settled, until

PUBLISHERS = key_names.publishers(0)


def names(logs):
    return [record["event"] for record in logs]


async def timeline(mad, session):
    return [one.entry for one in (await mad.timeline(session)).entries]


async def spoilt(client, mad, value=b"rubbish"):
    """
    The field of the MAD's record in partition 0, after it was overwritten.
    """
    [field] = [
        one
        for one in await client.hkeys(PUBLISHERS)
        if one.decode().startswith(f"{mad}:")
    ]
    before = await client.hget(PUBLISHERS, field)
    await client.hset(PUBLISHERS, field, value)

    return field, before


async def causes(client):
    """
    Of the dead letters; one of a command that its MAD sent again is there again.
    """
    return {letter_of(one).cause for one in await letters(client, 1)}


@pytest.mark.parametrize("value", [b"\xff\xfe", b"9,1,8-3"])
async def test_only_the_producer_whose_record_does_not_decode_is_refused(
    server, client, value
):
    """
    Its reads go on, and so do the lane and its other MADs; the record stays as it is.
    """
    told = []
    with capture_logs() as logs:
        async with (
            replica_here(server.url, partitions=1),
            connect(
                server.url, mad="ann", token=a_token(), on_refused=told.append
            ) as ann,
            a_mad(server.url, "bob") as bob,
        ):
            session = (await ann.create_session("ada")).id
            assert await ann.append_and_wait(session, "ann 1") == 1
            field, _ = await spoilt(client, "ann", value)

            with pytest.raises(Unavailable, match="does not decode") as refused:
                await ann.append_and_wait(session, "ann 2")
            unheard = ann.append(session, "ann 3")
            with pytest.raises(Unavailable):
                await ann.flush(settled=True, timeout=20)
            for n in range(2, 12):
                assert await bob.append_and_wait(session, f"bob {n}") == n
            assert (await ann.get_session(session)).last_seq == 11
            outcome = await ann.outcome(unheard)
            await settled(client)

            assert await client.hget(PUBLISHERS, field) == value

    assert refused.value.details["cause"] == "undecodable_record"
    assert [one.id for one in told] == [unheard]
    assert outcome.state == "unknown"
    assert await causes(client) == {"undecodable_record"}
    assert names(logs).count("producer.undecodable") >= 1
    # Once, since a commit relied on the record of before.
    assert names(logs).count("lane.disturbed") <= 1
    assert "lane.failed" not in names(logs)


async def test_what_was_applied_before_is_not_applied_again(server, client):
    """
    The entry comes once more, as after a lost answer: a record that counted as absent
    would begin at this number.
    """
    with capture_logs() as logs:
        async with (
            replica_here(server.url, partitions=1),
            a_mad(server.url, "ann") as ann,
            a_mad(server.url, "bob") as bob,
        ):
            session = (await ann.create_session("ada")).id
            ann.append(session, "once")
            await ann.flush()
            ingress = keys.ingress(0, "ann")
            [(_, entry)] = await client.xrevrange(ingress, count=1)
            await ann.flush(settled=True)

            async def met() -> bool:
                # A lane that still knows the number settles it without the record.
                await spoilt(client, "ann")
                await client.xadd(ingress, entry)
                await settled(client)
                return bool(await causes(client))

            await until(met, 20.0, "the record was read")
            assert await timeline(bob, session) == ["once"]
    assert await causes(client) == {"undecodable_record"}
    assert "lane.failed" not in names(logs)


async def test_a_new_instance_goes_on_and_the_old_one_as_soon_as_it_is_mended(
    server, client
):
    """
    Both remedies: to connect anew, and to put the record back.
    """
    async with (
        replica_here(server.url, partitions=1),
        a_mad(server.url, "ann") as ann,
    ):
        session = (await ann.create_session("ada")).id
        field, before = await spoilt(client, "ann")
        with pytest.raises(Unavailable):
            await ann.append_and_wait(session, "refused")

        async with a_mad(server.url, "ann") as anew:
            assert await anew.append_and_wait(session, "anew") == 1
        await client.hset(PUBLISHERS, field, before)
        assert await ann.append_and_wait(session, "mended") == 2

        assert await timeline(ann, session) == ["anew", "mended"]


async def test_once_its_producer_is_gone_the_record_may_be_deleted(server, client):
    async with (
        replica_here(server.url, partitions=1),
        a_mad(server.url, "bob") as bob,
    ):
        async with a_mad(server.url, "ann") as ann:
            session = (await ann.create_session("ada")).id
        field, _ = await spoilt(client, "ann")
        await client.hdel(PUBLISHERS, field)

        async with a_mad(server.url, "ann") as ann:
            assert await ann.append_and_wait(session, "ann") == 1
        assert await bob.append_and_wait(session, "bob") == 2


async def test_a_lane_opens_over_it_and_replays_what_is_pending(server, client):
    """
    The manager comes when the record is spoilt and commands wait on both ingresses.
    """
    async with AsyncExitStack() as mads:
        async with replica_here(server.url, partitions=1):
            ann = await mads.enter_async_context(a_mad(server.url, "ann"))
            bob = await mads.enter_async_context(a_mad(server.url, "bob"))
            session = (await ann.create_session("ada")).id
            assert await bob.append_and_wait(session, "before") == 1
        await spoilt(client, "ann")
        ann.append(session, "ann")
        bob.append(session, "bob")
        for mad in (ann, bob):
            await mad.flush()
        await client.xreadgroup(
            keys.GROUP, CONSUMER, {keys.ingress(0, "ann"): ">"}, count=1
        )
        with capture_logs() as logs:
            async with replica_here(server.url, partitions=1):
                await settled(client)
                assert await timeline(bob, session) == ["before", "bob"]

    assert await causes(client) == {"undecodable_record"}
    assert "producer.undecodable" in names(logs)
    assert not {"lane.disturbed", "lane.failed"} & set(names(logs))


async def test_fences_that_do_not_decode_are_of_one_producer_too(server, client):
    with capture_logs() as logs:
        async with (
            replica_here(server.url, partitions=1),
            a_mad(server.url, "ann") as ann,
            a_mad(server.url, "bob") as bob,
        ):
            session = (await bob.create_session("ada")).id
            instance = ann._requests._publisher.instance
            await client.hset(key_names.fences(0), f"ann:{instance}", "rubbish")

            with pytest.raises(Unavailable, match="does not decode"):
                await ann.append_and_wait(session, "ann")
            assert await bob.append_and_wait(session, "bob") == 1
            await client.hdel(key_names.fences(0), f"ann:{instance}")
            assert await ann.append_and_wait(session, "ann") == 2

    assert not {"lane.disturbed", "lane.failed"} & set(names(logs))


async def test_a_session_that_nobody_can_read_refuses_its_own_commands_alone(
    server, client
):
    """
    No other tier has it: its commands are dead letters with that cause, at once.
    """
    with capture_logs() as logs:
        async with (
            replica_here(server.url, partitions=1),
            a_mad(server.url, "ann") as ann,
        ):
            session = (await ann.create_session("ada")).id
            other = (await ann.create_session("ada")).id
            await client.hset(key_names.session(0, session), "created_at", b"\xc1")

            ann.append(session, "lost")
            with pytest.raises(Unavailable, match="does not decode"):
                await ann.update_session(session, {"tags": ["x"]})
            assert await ann.append_and_wait(other, "kept") == 1
            await client.delete(key_names.session(0, session))
            with pytest.raises(NotFound):
                await ann.update_session(session, {"tags": ["x"]})

    assert await causes(client) == {"undecodable_session"}
    assert "lane.failed" not in names(logs)
