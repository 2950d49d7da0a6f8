"""
What calls put on the bus: kind, body, durability, partition.
"""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest

from everbus.bus.client import Mad
from everbus.bus.errors import Invalid, ReplyTimeout, Unavailable
from everbus.bus.messages import (
    Checkpoint,
    CheckpointPage,
    CommandOutcome,
    CommittedTurn,
    Difference,
    Durable,
    Reply,
    SessionPage,
    Stats,
    TimelinePage,
    pack,
    unpack,
)
from everbus.bus.requests import Requests
from tests.builders import NOW, a_session

PARTITIONS = 8
CHECKPOINT = Checkpoint(
    id="i.0.1",
    name="",
    version=1,
    last_seq=0,
    kind="full",
    at=NOW,
    author="fiedler",
    sha256="00",
)
BODIES = {
    "timeline.append": {"seq": 7},
    "session.turn": CommittedTurn(turn="i.0.1", version=2, seqs=(7,)),
    "timeline.read": TimelinePage(()),
    "session.durable": Durable(1, 2),
    "session.list": SessionPage((), None),
    "session.stats": Stats(sessions=0, states={}, tiers={}),
    "session.diff": Difference(from_version=1, to_version=2, patch={}, changes=()),
    "checkpoint.create": CHECKPOINT,
    "checkpoint.list": CheckpointPage((CHECKPOINT,), None),
    "request.outcome": CommandOutcome("applied", "ok"),
    "request.cancel": CommandOutcome("cancelled", "cancelled"),
}


class FakeBus:
    """
    Publisher and replies in one: answers each command at once.
    """

    trouble = None
    last_error = None
    waiting = 0
    instance = "i"
    silent = False

    def __init__(self):
        self.published = []
        self.expected = set()

    def session_of(self, command_id):
        return ""

    def publish(self, envelope, partition, *, expires_at=None, sign=None):
        self.published.append((envelope, partition))
        return SimpleNamespace(envelope=envelope, attempted=True)

    def expects(self, identifier):
        return identifier in self.expected

    def expect(self, partition, identifier, wake):
        [*_, (envelope, _)] = self.published
        self.expected.add(identifier)
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        body = BODIES.get(envelope.kind, a_session())
        if not self.silent:
            reply.set_result(Reply(id="i.0.1", body=pack(body)))
        return reply

    def forget(self, identifier):
        self.expected.discard(identifier)


@pytest.fixture
def bus():
    return FakeBus()


@pytest.fixture
def mad(bus):
    return Mad("fiedler", Requests(bus, bus, PARTITIONS))


WRITES = {
    "session.create": lambda mad, **how: mad.create_session("ada", **how),
    "session.update": lambda mad, **how: mad.update_session("s", {}, **how),
    "session.delete": lambda mad, **how: mad.delete_session("s", **how),
    "session.suspend": lambda mad, **how: mad.suspend_session("s", **how),
    "session.resume": lambda mad, **how: mad.resume_session("s", **how),
    "participant.add": lambda mad, **how: mad.join("s", **how),
    "participant.remove": lambda mad, **how: mad.leave("s", **how),
    "session.turn": lambda mad, **how: mad.turn("s", [1], **how),
    "timeline.append": lambda mad, **how: mad.append_and_wait("s", 1, **how),
    "checkpoint.create": lambda mad, **how: mad.create_checkpoint("s", **how),
    "checkpoint.restore": lambda mad, **how: mad.restore_checkpoint("s", "c", **how),
}


@pytest.mark.parametrize("kind", WRITES)
async def test_every_write_takes_a_durability(mad, bus, kind):
    await WRITES[kind](mad)
    await WRITES[kind](mad, durability="replicated")

    (usual, _), (chosen, _) = bus.published
    assert (usual.kind, chosen.kind) == (kind, kind)
    waits = kind in ("session.suspend", "checkpoint.create")
    assert usual.durability == ("warm" if waits else "hot")
    assert chosen.durability == "replicated"


@pytest.mark.parametrize("kind", WRITES)
async def test_an_unknown_durability_is_refused_before_anything_is_sent(mad, bus, kind):
    with pytest.raises(Invalid, match="one of hot, replicated, warm") as refused:
        await WRITES[kind](mad, durability="cold")

    assert refused.value.details == {"field": "durability"}
    assert bus.published == []


OWN_IDS = {
    **WRITES,
    "session.create": lambda mad, **how: mad.create_session(
        "ada", session_id="s", **how
    ),
    "session.broadcast": lambda mad, **how: mad.broadcast("s", 1, **how),
    "session.resume, called": lambda mad, **how: mad.call("session.resume", "s", **how),
}


@pytest.mark.parametrize("kind", OWN_IDS)
async def test_a_write_takes_an_id_of_the_callers_own(mad, bus, kind):
    await OWN_IDS[kind](mad)
    await OWN_IDS[kind](mad, command_id="order-7")

    sent = [(envelope.id, envelope.wake) for envelope, _ in bus.published]
    assert sent == [("", ""), ("order-7", "i")]


@pytest.mark.parametrize("wrong", ["i.0.1", "", "a b", "x" * 81, 7, "order:7"])
@pytest.mark.parametrize("kind", OWN_IDS)
async def test_what_is_no_free_id_is_refused_before_anything_is_sent(
    mad, bus, kind, wrong
):
    with pytest.raises(Invalid) as refused:
        await OWN_IDS[kind](mad, command_id=wrong)

    assert refused.value.details == {"field": "command_id"}
    assert bus.published == []


async def test_a_new_session_under_an_id_of_ones_own_has_one_as_well(mad, bus):
    with pytest.raises(Invalid, match="choose both") as refused:
        await mad.create_session("ada", command_id="order-7")

    assert refused.value.details == {"field": "session_id"}
    assert bus.published == []


async def test_an_id_that_waits_for_its_reply_is_not_sent_again(mad, bus):
    """
    One reply cannot go to two calls; after a timeout the id may be used again.
    """
    bus.silent = True
    first = asyncio.create_task(
        mad.append_and_wait("s", 1, command_id="order-7", timeout=0.2)
    )
    await asyncio.sleep(0)
    with pytest.raises(Invalid, match="await that one first"):
        await mad.append_and_wait("s", 1, command_id="order-7")
    with pytest.raises(ReplyTimeout, match="repeat it under 'order-7'"):
        await first
    bus.silent = False

    assert await mad.append_and_wait("s", 1, command_id="order-7") == 7


async def test_a_flush_that_is_over_before_all_is_settled_says_so_first(bus):
    """
    The refusal of one command must not pass for the settlement of all.
    """
    told = []

    class Publisher(FakeBus):
        unsettled = 3
        answered = False

        async def flush(self):
            pass

        async def settled(self, patience_s):
            return self.answered

        def check_refused(self):
            told.append("refused")

    publisher = Publisher()
    flushing = Mad("fiedler", Requests(publisher, bus, PARTITIONS))
    with pytest.raises(Unavailable, match="3 commands are on the bus"):
        await flushing.flush(settled=True)
    assert told == []

    publisher.answered = True
    await flushing.flush(settled=True)
    assert told == ["refused"]


async def test_an_append_takes_a_durability_too(mad, bus):
    mad.append("s", 1, durability="warm")
    with pytest.raises(Invalid):
        mad.append("s", 1, durability="cold")

    [(envelope, _)] = bus.published
    assert (envelope.durability, envelope.reply) == ("warm", False)


async def test_what_is_for_no_session_goes_to_any_partition(mad, bus):
    """
    One lane must not answer all searches of all MADs.
    """
    for _ in range(200):
        await mad.list_sessions()
        await mad.stats()

    partitions = Counter(partition for _, partition in bus.published)
    assert set(partitions) == set(range(PARTITIONS))
    assert {envelope.session for envelope, _ in bus.published} == {""}


async def test_what_concerns_a_command_is_asked_where_the_command_went(mad, bus):
    told = await mad.outcome("i.5.7"), await mad.cancel("i.5.7")

    assert [one.state for one in told] == ["applied", "cancelled"]
    assert [(e.kind, e.session, p) for e, p in bus.published] == [
        ("request.outcome", "", 5),
        ("request.cancel", "", 5),
    ]
    assert {bytes(e.body) for e, _ in bus.published} == {pack({"command_id": "i.5.7"})}


@pytest.mark.parametrize("identifier", ["i.8.1", "i.5.0", "i.5", "free", ""])
async def test_an_id_that_is_none_of_ours_is_refused_before_anything_is_sent(
    mad, bus, identifier
):
    for ask in (mad.outcome, mad.cancel):
        with pytest.raises(Invalid, match="no id of ours"):
            await ask(identifier)

    assert bus.published == []


async def test_filters_that_are_not_given_are_not_sent(mad, bus):
    await mad.list_sessions(owner="ada", active_since=NOW, limit=7)

    [(envelope, _)] = bus.published
    sent = unpack(envelope.body, dict)
    assert (set(sent), sent["owner"]) == ({"owner", "active_since", "limit"}, "ada")


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {"after": 0, "newest_first": False, "limit": 100}),
        ({"after": None}, {"newest_first": False, "limit": 100}),
        (
            {"after": None, "before": 9, "newest_first": True, "limit": 7},
            {"before": 9, "newest_first": True, "limit": 7},
        ),
    ],
)
async def test_a_page_is_asked_for_within_its_bounds(mad, bus, options, sent):
    await mad.timeline("s", **options)

    [(envelope, _)] = bus.published
    assert unpack(envelope.body, dict) == sent


async def test_the_past_is_asked_for_by_version(mad, bus):
    await mad.session_at("s", 3)
    await mad.diff("s", 3, 4)
    await mad.checkpoints("s", before="i.0.1")
    await mad.durable("s", wait=True)
    await mad.get_session("s", full=True)

    sent = {e.kind: unpack(e.body, dict) for e, _ in bus.published}
    assert sent == {
        "session.at": {"version": 3},
        "session.diff": {"from_version": 3, "to_version": 4},
        "checkpoint.list": {"before": "i.0.1", "limit": 100},
        "session.durable": {"wait": True},
        "session.get": {"full": True},
    }


@pytest.mark.parametrize(
    ("again", "error"), [(True, ReplyTimeout), (False, Unavailable)]
)
async def test_the_outcome_of_a_request_that_was_sent_again_and_refused_is_unknown(
    mad, bus, monkeypatch, again, error
):
    """
    The first time may have had its effect; `unavailable` would have it repeated.
    """
    refused = Reply(id="i.0.1", code="unavailable", message="MongoDB is away")
    published = bus.publish

    def publish(*arguments, **options):
        outgoing = published(*arguments, **options)
        outgoing.again = again
        return outgoing

    async def refuse(*_):
        return refused

    monkeypatch.setattr(bus, "publish", publish)
    monkeypatch.setattr(bus, "expect", lambda *_: asyncio.ensure_future(refuse()))
    with pytest.raises(Unavailable) as raised:
        await mad.get_session("s1")

    assert type(raised.value) is error
