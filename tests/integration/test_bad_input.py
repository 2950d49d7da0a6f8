"""
Hostile and broken input on the ingress: refused with its cause, and no lane stops.
"""

import itertools

import msgspec
import pytest

from everbus.bus.keys import ingress
from everbus.bus.messages import MAX_COMMAND_BYTES, pack, pack_envelope
from everbus.gateway.lane.delivery import MAX_ENTRY_COMMANDS
from tests.builders import an_envelope
from tests.integration.conftest import ON_EACH_SERVER, PARTITIONS, a_grant, a_token

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("manager"),
]

LANE = 1
SURROGATE = b"\xa3\xed\xa0\x80"  # U+D800 as a msgpack text, which UTF-8 forbids
NAN = float("nan")
DEEP = b"\x91" * 100_000 + b"\xc0"
counter = itertools.count()


class Hostile:
    """
    A MAD that writes whatever it wants to its own ingress of one lane.
    """

    def __init__(self, bus, session):
        self.bus = bus
        self.name = f"hostile{next(counter)}"
        self.grant = a_grant(self.name, "admin")
        self.session = session

    def envelope(self, kind="timeline.append", **fields):
        """
        A good command, but for what *fields* say.
        """
        known = {
            "session": self.session,
            "body": {"entry": "hi"},
            "id": f"free-{next(counter)}",
            "grant": self.grant,
        }
        return an_envelope(kind, **known | fields)

    def raw(self, **fields):
        """
        The same as loose msgpack fields, so that any of them can be wrong.
        """
        good = msgspec.msgpack.decode(pack(self.envelope()))
        return pack(good | fields)

    async def send(self, *commands, field="c"):
        await self.bus.publish(self.name, LANE, *commands, field=field)

    async def is_served(self):
        """
        Whether this lane still answers, after all that was sent before.
        """
        after = self.envelope(reply=True)
        await self.send(after)
        reply = await self.bus.reply(self.name, LANE, after.id)
        await self.bus.until_settled(self.name)
        summary = await self.bus.client.xpending(
            ingress(LANE, self.name), "session-manager"
        )
        return reply.code == "ok" and summary["pending"] == 0


@pytest.fixture
def shared(bus):
    """
    One session of the lane for all cases of a module, made at its first use.
    """
    return bus.a_session_id(LANE)


async def a_hostile(bus, session):
    hostile = Hostile(bus, session)
    await bus.register(hostile.name)
    made = hostile.envelope("session.create", body={"user_id": "ada"}, reply=True)
    await hostile.send(made)
    assert (await bus.reply(hostile.name, LANE, made.id)).code == "ok"

    return hostile


def with_key(key):
    return {"entry": {"fine": 1, key: 2}}


def raw_entry(packed):
    return {"entry": msgspec.Raw(packed)}


# What is no command at all: what is sent, and the cause of its dead letter.
MALFORMED = {
    "no bytes": (lambda h: b"", "undecodable"),
    "undecodable bytes": (lambda h: b"\xc1\xff\xff", "undecodable"),
    "cut short": (lambda h: pack_envelope(h.envelope())[:-9], "undecodable"),
    "bytes behind": (lambda h: pack_envelope(h.envelope()) + b"x", "undecodable"),
    "a list": (lambda h: pack([1, 2, 3]), "undecodable"),
    "a map without a kind": (lambda h: pack({"v": 1, "id": "a"}), "undecodable"),
    "an id that is a number": (lambda h: h.raw(id=7), "undecodable"),
    "a deadline that is text": (lambda h: h.raw(deadline_ms="9"), "undecodable"),
    "a version that is a float": (
        lambda h: h.raw(expected_version=1.5),
        "undecodable",
    ),
    "bad UTF-8 in the kind": (
        lambda h: h.raw(kind=msgspec.Raw(SURROGATE)),
        "undecodable",
    ),
    "nested 100,000 deep": (lambda h: DEEP, "undecodable"),
    "a body nested 100,000 deep": (
        lambda h: h.raw(body=msgspec.Raw(DEEP)),
        "undecodable",
    ),
    "too large": (lambda h: b"\xc4" * (MAX_COMMAND_BYTES + 1), "too_large"),
    "a newer schema": (lambda h: h.raw(v=2), "newer_schema"),
    "an unknown kind": (lambda h: h.envelope("session.explode"), "unknown_kind"),
    "a kind with a pattern": (lambda h: h.envelope("session.*"), "unknown_kind"),
    "a session of another lane": (
        lambda h: h.envelope(session=h.bus.a_session_id(LANE + 1)),
        "wrong_partition",
    ),
    "an id of another lane": (
        lambda h: h.envelope(id=f"i.{LANE + 1}.1"),
        "wrong_partition",
    ),
    "an id of no lane": (lambda h: h.envelope(id="i.99.1"), "wrong_partition"),
    "a counted command for another lane's session": (
        lambda h: h.envelope(id=f"i.{LANE}.1", session=h.bus.a_session_id(LANE + 1)),
        "wrong_partition",
    ),
    "an empty session": (lambda h: h.envelope(session=""), "invalid_session"),
    "a session with a brace": (lambda h: h.envelope(session="a{b}"), "invalid_session"),
    "a session with a glob": (lambda h: h.envelope(session="a*"), "invalid_session"),
    "a session with NUL": (lambda h: h.envelope(session="a\0b"), "invalid_session"),
    "a long session": (lambda h: h.envelope(session="s" * 65), "invalid_session"),
    "an empty id": (lambda h: h.envelope(id=""), "invalid_id"),
    "an id with a space": (lambda h: h.envelope(id="a b"), "invalid_id"),
    "an id with a colon": (lambda h: h.envelope(id="a:b"), "invalid_id"),
    "a long id": (lambda h: h.envelope(id="i" * 81), "invalid_id"),
    "a counted id with a space": (
        lambda h: h.envelope(id=f"a b.{LANE}.1"),
        "invalid_id",
    ),
    "a counted id with braces": (
        lambda h: h.envelope(id=f"{{x}}.{LANE}.1"),
        "invalid_id",
    ),
    "an unknown kind under a bad id": (
        lambda h: h.envelope("session.explode", id="a*", reply=True),
        "invalid_id",
    ),
    "a long counted id": (
        lambda h: h.envelope(id=f"{'i' * 100_000}.{LANE}.1"),
        "invalid_id",
    ),
}

# A command whose body cannot be: its kind, its body, the field that is named.
INVALID = {
    "NaN": ("timeline.append", {"entry": NAN}, "entry"),
    "infinity": ("timeline.append", {"entry": [float("inf")]}, "entry"),
    "an integer beyond 2^53": ("timeline.append", {"entry": 2**53 + 1}, "entry"),
    "a key with $": ("timeline.append", with_key("$set"), "entry"),
    "a key with a dot": ("timeline.append", with_key("a.b"), "entry"),
    "a key with NUL": ("timeline.append", with_key("a\0"), "entry"),
    "a key that is a number": ("timeline.append", {"entry": {1: 2}}, "entry"),
    "bytes": ("timeline.append", {"entry": b"\xff"}, "entry"),
    "an extension type": (
        "timeline.append",
        {"entry": msgspec.msgpack.Ext(5, b"x")},
        "entry",
    ),
    "a timestamp": (
        "timeline.append",
        raw_entry(b"\xd6\xff\x00\x00\x00\x00"),
        "entry",
    ),
    "a lone surrogate": ("timeline.append", raw_entry(SURROGATE), "entry"),
    "bad UTF-8": ("timeline.append", raw_entry(b"\xa2\xff\xfe"), "entry"),
    "an entry 33 deep": ("timeline.append", raw_entry(b"\x91" * 33 + b"\xc0"), "entry"),
    "an entry 900 deep": (
        "timeline.append",
        raw_entry(b"\x91" * 900 + b"\xc0"),
        "entry",
    ),
    "no entry": ("timeline.append", {}, "body"),
    "a body that is a list": ("timeline.append", [1], "body"),
    "a patch that is a list": ("session.update", {"patch": []}, "patch"),
    "a patch of $": (
        "session.update",
        {"patch": {"context_summary": {"$where": "1"}}},
        "context_summary",
    ),
    "a patch of NaN": (
        "session.update",
        {"patch": {"work_in_progress": {"x": NAN}}},
        "work_in_progress",
    ),
    "an operator as a field": (
        "session.update",
        {"patch": {"$set": {"version": 9}}},
        "$set",
    ),
    "a protected field": ("session.update", {"patch": {"owner_id": "eve"}}, "owner_id"),
    "a user with a glob": ("session.create", {"user_id": "*"}, "user_id"),
    "a MAD with a colon": ("participant.add", {"mad": "a:b"}, "mad"),
    "a limit of text": ("timeline.read", {"limit": "9"}, "limit"),
    "a limit of 10^9": ("timeline.read", {"limit": 10**9}, "limit"),
    "a page before the first": ("timeline.read", {"after": -1}, "after"),
}


# The same, where a reply can be given: there is an id, and it is of this lane.
TOLD = [
    "an unknown kind",
    "a session with a brace",
    "a counted command for another lane's session",
]


@pytest.mark.parametrize("case", MALFORMED)
async def test_what_is_no_command_becomes_a_dead_letter(bus, shared, case):
    """
    S13: told with its cause, and the lane goes on with nothing left pending.
    """
    hostile = await a_hostile(bus, shared)
    made, cause = MALFORMED[case]

    await hostile.send(made(hostile))

    assert await hostile.is_served()
    [letter] = await bus.letters(hostile.name)
    assert (letter.cause, bool(letter.message)) == (cause, True)
    assert await bus.state(shared) == (1, 1), "it had an effect"


async def test_an_entry_without_a_command_becomes_a_dead_letter(bus, shared):
    hostile = await a_hostile(bus, shared)

    await hostile.send(hostile.envelope(), field="x")

    assert await hostile.is_served()
    [letter] = await bus.letters(hostile.name)
    assert letter.cause == "no_command"


@pytest.mark.parametrize("case", INVALID)
async def test_a_body_that_cannot_be_is_refused_naming_its_field(bus, shared, case):
    """
    S13: in a reply if one is wanted, else in a dead letter; no effect either way.
    """
    hostile = await a_hostile(bus, shared)
    kind, body, field = INVALID[case]
    asked = hostile.envelope(kind, body=body, reply=True)

    await hostile.send(asked)
    await hostile.send(hostile.envelope(kind, body=body))

    reply = await bus.reply(hostile.name, LANE, asked.id)
    assert (reply.code, reply.details.get("field")) == ("invalid", field)
    assert await hostile.is_served()
    [letter] = await bus.letters(hostile.name)
    assert letter.cause == "invalid"
    assert await bus.state(shared) == (1, 1), "it had an effect"


@pytest.mark.parametrize("case", TOLD)
async def test_who_waits_is_told_that_it_was_no_command(bus, shared, case):
    hostile = await a_hostile(bus, shared)
    made, cause = MALFORMED[case]
    asked = msgspec.structs.replace(made(hostile), reply=True)

    await hostile.send(asked)

    reply = await bus.reply(hostile.name, LANE, asked.id)
    assert (reply.code, reply.details["cause"]) == ("invalid", cause)


async def test_an_entry_beyond_any_of_ours_stays_in_the_server(bus, shared):
    """
    Only its size reaches a manager, which would else take its memory for it.
    """
    hostile = await a_hostile(bus, shared)

    await hostile.send(*(b"x" * 400_000 for _ in range(30)))

    assert await hostile.is_served()
    [letter] = await bus.letters(hostile.name)
    assert (letter.cause, letter.packed) == ("too_large", b"")
    assert "entry of 12000030 bytes" in letter.message


async def test_an_entry_of_too_many_commands_is_one_dead_letter(bus, shared):
    """
    Our publishers never write such an entry; taking it would stall its lane.
    """
    hostile = await a_hostile(bus, shared)

    await hostile.send(*(hostile.envelope() for _ in range(MAX_ENTRY_COMMANDS + 1)))

    assert await hostile.is_served()
    [letter] = await bus.letters(hostile.name)
    assert letter.cause == "too_large"
    assert await bus.state(shared) == (1, 1), "it had an effect"


@ON_EACH_SERVER
async def test_the_good_commands_of_an_entry_are_applied(bus, shared):
    """
    A bad one between them is buried alone; their order is kept.
    """
    hostile = await a_hostile(bus, shared)
    first = hostile.envelope(body={"entry": "first"})
    second = hostile.envelope(body={"entry": "second"})

    await hostile.send(first, b"\xc1", DEEP, hostile.envelope("no.such"), second)

    assert await hostile.is_served()
    said = [entry.entry for entry in await bus.entries(shared)]
    assert said == ["first", "second", "hi"]
    causes = [letter.cause for letter in await bus.letters(hostile.name)]
    assert causes == ["undecodable", "undecodable", "unknown_kind"]


async def test_a_command_gone_astray_does_not_count_in_the_lane_it_came_to(bus, shared):
    """
    Its number is another lane's, and must not make numbers here count as settled.
    """
    hostile = await a_hostile(bus, shared)
    grant = a_grant(hostile.name, "admin", instance="i")
    astray = hostile.envelope(id=f"i.{(LANE + 1) % PARTITIONS}.9", grant=grant)
    first = hostile.envelope(id=f"i.{LANE}.1", grant=grant, reply=True)

    await hostile.send(astray, first)

    reply = await bus.reply(hostile.name, LANE, first.id)
    assert reply.code == "ok"
    assert await hostile.is_served()
    assert await bus.state(shared) == (1, 2)


@pytest.mark.parametrize("case", TOLD)
async def test_what_was_buried_is_never_told_as_applied(bus, shared, case):
    """
    G6: also of a counted command to which nobody wanted a reply.
    """
    hostile = await a_hostile(bus, shared)
    made, _ = MALFORMED[case]
    buried = msgspec.structs.replace(made(hostile), id=f"i.{LANE}.1")
    await hostile.send(buried)
    asked = hostile.envelope(
        "request.outcome", session="", body={"command_id": buried.id}, reply=True
    )

    await hostile.send(asked)

    told = msgspec.msgpack.decode(
        (await bus.reply(hostile.name, LANE, asked.id)).body, type=dict
    )
    assert (told["state"], told["code"]) == ("rejected", "invalid")


@pytest.mark.parametrize(
    "case", ["cut short", "a newer schema", "a deadline that is text"]
)
async def test_no_token_lies_in_the_dead_letter_of_an_undecodable_command(
    bus, shared, case
):
    """
    S4: the bytes are kept as they came, but for bearer tokens, which an SDK of
    before there were grants puts there.
    """
    hostile = await a_hostile(bus, shared)
    good, hostile.grant = hostile.grant, a_token(hostile.name).encode()
    made, _ = MALFORMED[case]
    sent = made(hostile)
    hostile.grant = good
    assert b"eyJ" in sent

    await hostile.send(sent)

    assert await hostile.is_served()
    [letter] = await bus.letters(hostile.name)
    assert b"eyJ" not in pack(letter)
    assert (len(letter.packed), letter.packed[:9]) == (len(sent), sent[:9])
