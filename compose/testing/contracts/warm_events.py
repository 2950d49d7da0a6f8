"""
The contract of every warm tier for the events of a session.
"""

from datetime import timedelta

import msgspec

from everbus.compose.testing.contracts.assertions import Check, is_empty, returned, same
from everbus.compose.testing.contracts.sample_histories import BEGIN, SampleHistory
from everbus.gateway.store.read_bound import ReadBound
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.outcomes import Event

HOUR = timedelta(hours=1)


async def events_are_read_in_order(tier: WarmTier) -> None:
    """
    Steps and notices come in their order, from any place on; appends do not, nor do
    moves between tiers.
    """
    story = SampleHistory("told")
    records = [story.create(), story.broadcast({"a": 1}, None), story.append("x")]
    records += [story.update({"c": 1}, steps=3, tags=("t",)), story.checkpoint("c")]
    await tier.write(records)
    await tier.write(records)

    wanted = [
        *(
            "1.0.0 session.created",
            "1.0.1 session.broadcast",
            "1.0.2 session.broadcast",
        ),
        *("2.1.2 session.updated", "3.1.2 session.updated", "4.1.2 session.updated"),
        "4.1.3 checkpoint.created",
    ]
    places = {(0, 0): 0, (1, 0): 1, (1, 1): 2, (1, 2): 3, (2, 2): 4, (4, 2): 6}
    for place, first in places.items():
        found = await tier.events("told", BEGIN, place, 100)
        same(list(map(_described, found)), wanted[first:], f"events behind {place}")
        found = await tier.events("told", BEGIN, place, 2)
        same(list(map(_described, found)), wanted[first : first + 2], "two of them")
        found = await tier.events("told", BEGIN, place, 100, ReadBound(1))
        some = list(map(_described, found))
        same(some, wanted[first : first + len(some)], "a read of one byte")
        same(bool(some), bool(wanted[first:]), "whether it finds any")
    same(await tier.events("told", BEGIN, (4, 3), 9), [], "events behind the last")
    same(await tier.events("told", BEGIN + HOUR, (0, 0), 9), [], "another life's")
    await tier.write([story.archive("p")])
    found = await tier.events("told", BEGIN, (0, 0), 100)
    same(list(map(_described, found)), wanted, "events after it was archived")


async def an_event_is_kept_whole(tier: WarmTier) -> None:
    """
    Who did what when, its patch and its message come back as they were.
    """
    story = SampleHistory("kept")
    message = {"n": [1, 1.5, None], "deep": {"ü": 2**53}}
    records = [story.create(), story.broadcast(message), story.update({"c": {"a": 1}})]
    await tier.write(records)

    found = list(await tier.events("kept", BEGIN, (0, 0), 9))
    same(found, [event for record in records for event in record.events], "events")


async def who_appended_is_known(tier: WarmTier) -> None:
    """
    Of the entries that commits brought, until they are purged.
    """
    story = SampleHistory("known")
    records = [story.create(), story.append("a", "b"), story.append("c")]
    records.append(story.archive("p"))
    await tier.write(records)
    events = [event for record in records[1:3] for event in record.events]
    wanted = {event.seq: (event.command_id, event.principal) for event in events}

    same(await tier.appended_by("known", BEGIN, 1, 9), wanted, "all of them")
    found = await tier.appended_by("known", BEGIN, 2, 2)
    same(found, {2: wanted[2]}, "one of them")
    packed = list(await tier.entries("known", BEGIN, 1, 3))
    while await tier.purge("known", BEGIN, 3, 100):
        pass
    await returned(tier, story, {})
    await tier.put_entries("known", BEGIN, packed)
    same(await tier.appended_by("known", BEGIN, 1, 3), {}, "entries that were put back")


async def notices_bring_a_session_forward(tier: WarmTier) -> None:
    """
    Alone, too, though neither version nor seq moves; late ones take nothing back.
    """
    story = SampleHistory("noticed")
    records = [story.create(), story.broadcast("a"), story.broadcast("b", "c")]
    for record in records:
        await tier.write([record])
        warm_session = (await tier.sessions(["noticed"]))["noticed"]
        same(warm_session.session.notices, record.notices, "notices")
        same(warm_session.session.last_active, record.last_active, "last activity")
    await tier.write([story.update(tags=("t",))])
    await tier.write(records[1:2])
    await tier.write(records)

    warm_session = (await tier.sessions(["noticed"]))["noticed"]
    same(warm_session.session, story.session, "session")


async def the_same_command_may_notice_twice(tier: WarmTier) -> None:
    """
    An id of its sender's own making counts anew after ten minutes, at the same version:
    both are returned, or a subscriber would wait for the second one for ever.
    """
    story = SampleHistory("twice")
    await tier.write([story.create()])
    for record in (story.broadcast("a"), story.broadcast("b")):
        [event] = record.events
        event = msgspec.structs.replace(event, command_id="retry-1")
        await tier.write([msgspec.structs.replace(record, events=(event,))])

    found = await tier.events("twice", BEGIN, (1, 0), 9)
    same([event.message for event in found], ["a", "b"], "messages")


async def a_noticed_session_is_not_archived(tier: WarmTier) -> None:
    """
    Neither archived nor swapped by who has not seen the notice.
    """
    story = SampleHistory("busy")
    await tier.write([story.create()])
    seen = (await tier.sessions(["busy"]))["busy"]
    stale = story.archive("p")
    story.moves = 0
    await tier.write([story.broadcast("a")])
    await tier.write([stale])

    warm_session = (await tier.sessions(["busy"]))["busy"]
    same(
        (warm_session.archival_status, warm_session.session.notices),
        ("ACTIVE", 1),
        "after a stale one",
    )
    same(await tier.swap(seen, seen), False, "swap of what was seen before")
    same(await tier.swap(warm_session, warm_session), True, "swap of what is there")
    await tier.write([story.archive("p")])
    refused = await tier.write([story.broadcast("b")])
    same(len(refused), 1, "refused behind a stub")


async def events_of_the_deleted_are_gone(tier: WarmTier) -> None:
    """
    With all else of that generation; a later one has its own, also within one commit.
    """
    story, later = SampleHistory("gone"), SampleHistory("gone", BEGIN + HOUR)
    records = [story.create(), story.broadcast("a"), story.append("x")]
    await tier.write(records)
    await tier.write([story.delete()])
    await tier.write(records)

    await is_empty(tier, story)
    ended = (*story.update().events, *story.delete().events)
    begun = later.create()
    both = msgspec.structs.replace(begun, events=(*ended, *begun.events))
    await tier.write([both, later.broadcast("b")])
    found = await tier.events("gone", BEGIN + HOUR, (0, 0), 9)
    wanted = ["1.0.0 session.created", "1.0.1 session.broadcast"]
    same(list(map(_described, found)), wanted, "events of the later life")


def _described(event: Event) -> str:
    return f"{event.version}.{event.seq}.{event.notices} {event.kind}"


CHECKS: tuple[Check, ...] = (
    events_are_read_in_order,
    an_event_is_kept_whole,
    who_appended_is_known,
    notices_bring_a_session_forward,
    the_same_command_may_notice_twice,
    a_noticed_session_is_not_archived,
    events_of_the_deleted_are_gone,
)
