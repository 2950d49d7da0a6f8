"""
Tokens shown on a real bus: who gets a grant, who does not, and where they rest.
"""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
import redis.asyncio
import uuid_utils

from everbus.bus import Unauthenticated, connect, keys
from everbus.bus.connection import connected_as
from everbus.bus.credential import UNLOGGED
from everbus.bus.errors import Invalid
from everbus.bus.messages import pack, unpack
from everbus.bus.requests import Delegation
from everbus.compose.role_processes import in_background
from everbus.gateway.identity.grants import Grants, derived_key
from everbus.gateway.identity.principal import Principal
from everbus.gateway.identity.token_exchange import (
    MAX_REQUEST_BYTES,
    MAX_WAITING_OF_ONE,
    TokenExchange,
)
from everbus.gateway.identity.tokens import Identity, Key, mint
from tests.builders import an_envelope
from tests.integration.conftest import SECRET, a_grant, a_replica, a_token, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

GRANTS = Grants(derived_key(SECRET))


def shown(token, **fields):
    """
    What a MAD says on its token channel.
    """
    return UNLOGGED + pack({"instance": "i", "token": token, "showing": 1} | fields)


def forged(name="ada", **fields):
    given = {"role": "admin", "issuer": "everbus", "audience": "everbus"}
    given |= {"ttl_s": 60, "now": time.time()}
    return mint("another secret of thirty-two bytes!", name=name, **given | fields)


@pytest.fixture
def told(bus):
    """
    What the managers answer to what is said on the token channel of a MAD.
    """

    async def told(mad, said, instance="i", within_s=5.0):
        async with bus.client.pubsub() as listening:
            await listening.subscribe(keys.wake(mad, instance))
            await listening.get_message(timeout=5)
            await bus.client.publish(keys.token(mad), said)
            message = await listening.get_message(
                ignore_subscribe_messages=True, timeout=within_s
            )
        return None if message is None else unpack(message["data"], list)[0]

    return told


@pytest.mark.usefixtures("manager")
class TestAnswers:
    async def test_a_good_token_gets_a_grant_for_its_time(self, told):
        answer = await told("ada", shown(a_token("ada", ttl_s=60), showing=7))

        envelope = an_envelope("session.get", id="i.0.1", grant=answer["grant"])
        principal = GRANTS.principal_of("ada", envelope)
        assert (principal.name, principal.role) == ("ada", "mad")
        assert (answer["showing"], answer["tenant"]) == (7, "")
        assert 60 < answer["lasts_s"] < 66

    @pytest.mark.parametrize(
        "token",
        ["", "no token", forged(), a_token("ada", ttl_s=-60), a_token("ada")[:-2]],
        ids=["none", "words", "forged", "expired", "cut short"],
    )
    async def test_a_bad_one_is_refused_and_tells_no_forger_why(self, told, token):
        answer = await told("ada", shown(token))

        code, message = answer["refused"]
        assert (code, set(answer)) == ("unauthenticated", {"showing", "refused"})
        assert "token" in message
        if token:
            assert message == (await told("ada", shown(forged())))["refused"][1]

    @pytest.mark.parametrize("mad", [keys.EDGE, keys.GATEWAY])
    async def test_nobody_gets_one_in_the_gateways_own_names(self, told, mad):
        answer = await told(mad, shown(a_token(mad, "admin")))

        assert answer["refused"][0] == "unauthenticated"
        with pytest.raises(Invalid, match="no name for a MAD"):
            await connect("redis://127.0.0.1:1", mad=mad, token="t").__aenter__()

    @pytest.mark.parametrize(
        "said",
        [
            b"",
            b"\xc1",
            UNLOGGED + b"\xc1" * 9,
            UNLOGGED + b"\x91" * 5_000,
            UNLOGGED + pack({"instance": "i"}),
            UNLOGGED + pack({"instance": "i", "token": 7}),
            UNLOGGED + pack({"instance": "i", "token": b"\xff"}),
            UNLOGGED + b"\x82\xa8instance\xa1i\xa5token\xa1\xff",
            shown("eyJ", showing="x"),
            shown("x" * MAX_REQUEST_BYTES),
        ],
    )
    async def test_what_is_no_showing_ends_nothing(self, told, said):
        assert await told("ada", said, within_s=0.05) is None
        assert "grant" in await told("ada", shown(a_token("ada")))

    @pytest.mark.parametrize("instance", ["", "i:j", "i.0", "i*", "é", "i" * 65])
    async def test_what_is_no_instance_is_not_answered(self, told, instance):
        said = shown(a_token("ada"), instance=instance)

        assert await told("ada", said, instance=instance, within_s=0.05) is None
        assert "grant" in await told("ada", shown(a_token("ada")))

    @pytest.mark.parametrize("mad", ["", "a:b", "a b", "é", "x" * 65])
    async def test_who_is_no_mad_is_not_heard(self, told, mad):
        assert await told(mad, shown(a_token("ada")), within_s=0.05) is None
        assert "grant" in await told("ada", shown(a_token("ada")))


@asynccontextmanager
async def granting(url, identity=None):
    """
    The part of a manager that answers to tokens, in reach.
    """
    known = Identity([Key("HS256", SECRET)], "everbus", "everbus")
    made = TokenExchange(url, identity or known, GRANTS)
    async with (
        in_background(made.run(), asyncio.Event()),
        redis.asyncio.from_url(url) as client,
    ):

        async def listening():
            return await client.pubsub_numpat() > 0

        await until(listening, "somebody listens")
        yield made


async def test_a_flood_fills_no_memory_and_stops_nobody_else(unserved):
    """
    One MAD shows its token as fast as it can, and another connects meanwhile.
    """
    await unserved.client.hset(keys.CONFIG, "partitions", 1)
    most, said, over = 0, shown(forged("eve")), asyncio.Event()
    async with granting(unserved.url) as made:

        async def flood():
            nonlocal most
            while not over.is_set() or made._dropped["too many"] < 1_000:
                async with unserved.client.pipeline(transaction=False) as pipe:
                    for _ in range(500):
                        pipe.publish(keys.token("eve"), said)
                    await pipe.execute()
                most = max(most, made._count)

        flooding = asyncio.create_task(flood())
        given = {"url": unserved.url, "mad": "ada", "token": a_token("ada")}
        async with connect(**given, lease=False) as ada:
            granted = ada.grant
        over.set()
        await flooding

    assert granted
    assert 0 < most <= MAX_WAITING_OF_ONE + 1


async def test_one_token_that_cannot_be_judged_holds_up_no_other(unserved):
    class Slow(Identity):
        async def authenticate(self, token):
            if token == "slow":
                await asyncio.Event().wait()
            if token == "broken":
                raise ZeroDivisionError("eyJ-secret")
            return await super().authenticate(token)

    identity = Slow([Key("HS256", SECRET)], "everbus", "everbus")
    await unserved.client.hset(keys.CONFIG, "partitions", 1)
    async with granting(unserved.url, identity):
        for token in ("slow", "broken"):
            await unserved.client.publish(keys.token("eve"), shown(token))
        given = {"url": unserved.url, "mad": "ada", "token": a_token("ada")}
        async with connect(**given, lease=False) as ada:
            assert ada.grant


@pytest.mark.usefixtures("manager")
class TestConnecting:
    @pytest.mark.parametrize(
        "token", [forged(), a_token("ada", ttl_s=-60), "eyJ.no.token"]
    )
    async def test_a_bad_token_is_the_first_news(self, bus, token):
        with pytest.raises(Unauthenticated, match="not valid here"):
            async with connect(bus.url, mad="ada", token=token):
                pytest.fail("connected")

    async def test_a_token_is_renewed_while_the_mad_works(self, bus):
        """
        No command comes under the grant of a token that has ended.
        """
        given = []

        def fresh():
            # With the managers' leeway of 5 s it is renewed after 4 or 5.
            given.append(a_token("ada", ttl_s=1))
            return given[-1]

        async with connect(bus.url, mad="ada", token=fresh) as ada:
            credential = ada._requests._publisher._credential
            credential._renew(time.monotonic() + 0.1)
            session = (await ada.create_session("ada")).id
            first = ada.grant

            async def renewed():
                await ada.get_session(session)
                return ada.grant != first

            await until(renewed, "another grant")
        assert len(given) >= 2

    async def test_a_grant_whose_key_was_given_up_is_renewed(self, bus, monkeypatch):
        monkeypatch.setattr("everbus.bus.credential.INVALIDATE_EVERY_S", 0.0)
        async with connect(bus.url, mad="ada", token=a_token("ada")) as ada:
            other = Grants(b"a key that was given up, 32 bytes")
            principal = Principal("ada", "mad", time.time() + 60)
            credential = ada._requests._publisher._credential
            credential.grant = other.for_instance(principal, "ada", ada.instance)

            with pytest.raises(Unauthenticated):
                await ada.create_session("ada")

            async def mended():
                try:
                    return bool(await ada.create_session("ada"))
                except Unauthenticated:
                    return False

            await until(mended, "the grant was renewed")


async def test_with_no_manager_up_everything_waits_for_one(unserved):
    """
    Requests and appends are sent when one is there that answers to the token.
    """
    bus, session = unserved, unserved.a_session_id(0)
    async with a_replica(bus.url, "one"):
        await bus.until_served()
    async with connect(bus.url, mad="ada", token=a_token("ada")) as ada:
        assert ada.grant == b""
        made = asyncio.create_task(
            ada.create_session("ada", session_id=session, timeout=15)
        )
        await asyncio.sleep(0)
        ada.append(session, {"n": 1})
        async with a_replica(bus.url, "two"):
            assert (await made).id == session
            await ada.flush()
            await bus.until_settled("ada")

    assert [one.entry for one in await bus.entries(session)] == [{"n": 1}]


def signed(principal):
    return lambda envelope: GRANTS.for_command(principal, envelope)


ADA = Principal("ada", "user", time.time() + 3600)
BOB = Principal("bob", "user", time.time() + 3600)


@pytest.fixture
def edge(bus, manager):
    """
    What an edge sends by hand: an envelope made, sealed and published; its reply.
    """

    async def ask(kind, session, body, principal=ADA, seal=None, **fields):
        known = {"id": f"free-{uuid_utils.uuid4()}", "reply": True, "grant": b""}
        envelope = an_envelope(kind, session=session, body=body, **known | fields)
        grant = (seal or signed(principal))(envelope)
        sent = type(envelope)(
            **{n: getattr(envelope, n) for n in envelope.__struct_fields__}
            | {"grant": grant}
        )
        await bus.register(keys.EDGE)
        lane = bus.partition(session)
        stream = keys.reply(lane, keys.EDGE, sent.id)
        before = await bus.client.xlen(stream)
        await bus.publish(keys.EDGE, lane, sent)

        async def there():
            return await bus.client.xlen(stream) > before

        await until(there, "a reply")
        return (await bus.replies(keys.EDGE, lane, sent.id))[-1]

    return ask


class TestFreeIds:
    async def test_the_author_is_who_asked_there(self, bus, edge):
        session = bus.a_session_id(0)
        made = await edge("session.create", session, {"user_id": "ada"})
        await edge("timeline.append", session, {"entry": "hi"})

        [entry] = await bus.entries(session)
        assert (made.code, entry.author) == ("ok", "ada")

    async def test_of_an_instance_a_grant_does_not_count_there(self, bus, edge):
        for mad in (keys.EDGE, "ada"):
            reply = await edge(
                "session.create",
                bus.a_session_id(0),
                {"user_id": "ada"},
                seal=lambda _, mad=mad: a_grant("ada", "user", mad=mad),
            )
            assert reply.code == "unauthenticated"

    async def test_what_was_sealed_for_another_command_does_not_count(self, bus, edge):
        session = bus.a_session_id(0)
        other = an_envelope("session.get", session=session, id="other")
        reply = await edge(
            "session.create",
            session,
            {"user_id": "ada"},
            seal=lambda _: GRANTS.for_command(ADA, other),
        )
        assert reply.code == "unauthenticated"

    async def test_repeated_it_gets_the_first_reply(self, bus, edge):
        session, id_ = bus.a_session_id(1), f"key-{uuid_utils.uuid4()}"
        await edge("session.create", session, {"user_id": "ada"})
        body = {"entry": "once"}
        replies = [
            await edge("timeline.append", session, body, id=id_) for _ in range(2)
        ]

        assert replies[0] == replies[1]
        assert len(await bus.entries(session)) == 1

    @pytest.mark.parametrize(
        "other",
        [
            {"body": {"entry": "another"}},
            {"kind": "session.update", "body": {"patch": {}}},
            {"expected_version": 1},
        ],
        ids=["body", "kind", "version"],
    )
    async def test_for_another_command_it_is_invalid(self, bus, edge, other):
        session, id_ = bus.a_session_id(1), f"key-{uuid_utils.uuid4()}"
        await edge("session.create", session, {"user_id": "ada"})
        first = {"kind": "timeline.append", "body": {"entry": "once"}}
        await edge(session=session, id=id_, **first)

        reply = await edge(session=session, id=id_, **first | other)

        assert (reply.code, reply.details) == ("invalid", {"field": "id"})
        assert len(await bus.entries(session)) == 1
        assert await bus.state(session) == (1, 1)

    async def test_nobody_else_is_told_its_reply(self, bus, edge):
        session, id_ = bus.a_session_id(1), f"key-{uuid_utils.uuid4()}"
        await edge("session.create", session, {"user_id": "ada"})
        command = {"session": session, "body": {"entry": "once"}, "id": id_}
        await edge("timeline.append", **command)

        other = await edge("timeline.append", **command, principal=BOB)
        nobody = await edge("timeline.append", **command, seal=lambda _: b"none")

        assert (other.code, nobody.code) == ("invalid", "unauthenticated")
        assert len(await bus.entries(session)) == 1

    async def test_a_refusal_that_stays_is_its_first_reply(self, bus, edge):
        session, id_ = bus.a_session_id(1), f"key-{uuid_utils.uuid4()}"
        body = {"entry": "early"}
        first = await edge("timeline.append", session, body, id=id_)
        await edge("session.create", session, {"user_id": "ada"})

        again = await edge("timeline.append", session, body, id=id_)
        assert first.code == again.code == "not_found"

    @pytest.mark.parametrize("why", ["expired", "unauthenticated"])
    async def test_one_that_passes_is_not(self, bus, edge, why):
        """
        The command may be taken under the same id once it is over.
        """
        session, id_ = bus.a_session_id(1), f"key-{uuid_utils.uuid4()}"
        refused = (
            {"deadline_ms": 0} if why == "expired" else {"seal": lambda _: b"none"}
        )
        body = {"user_id": "ada"}
        first = await edge("session.create", session, body, id=id_, **refused)
        again = await edge("session.create", session, body, id=id_)

        assert (first.code, again.code) == (why, "ok")

    async def test_each_instance_that_asks_gets_its_own_reply(self, bus, manager):
        """
        On a stream of its own: one that is read and unlinked is not the other's.
        """
        await bus.register(keys.EDGE)
        large = "x" * 20_000  # no wake-up carries it
        async with (
            connected_as(bus.url, keys.EDGE, None, 5, lease=False) as one,
            connected_as(bus.url, keys.EDGE, None, 5, lease=False) as two,
        ):
            session = (
                await one.acting(Delegation(signed(ADA))).create_session("ada")
            ).id
            for n in range(10):
                acting = Delegation(signed(ADA), command_id=f"{session}-{n}")
                patch = {"context_summary": {"large": large, "n": n}}
                asked = [
                    door.acting(acting).update_session(session, patch, timeout=3)
                    for door in (one, two)
                ]
                first, second = await asyncio.gather(*asked)

                assert first == second
                assert first.version == n + 2

    async def test_whoever_waits_is_woken(self, bus, manager):
        """
        The id does not tell the instance, so the envelope does: no reply is found by
        the sweep, which comes half a second later.
        """
        await bus.register(keys.EDGE)
        took_s = []
        async with connected_as(bus.url, keys.EDGE, None, 5, lease=False) as door:
            session = (
                await door.acting(Delegation(signed(ADA))).create_session("ada")
            ).id
            for n in range(10):
                acting = Delegation(signed(ADA), command_id=f"{session}-{n}")
                began = time.monotonic()
                await door.acting(acting).append_and_wait(session, {"n": n})
                took_s.append(time.monotonic() - began)
            with pytest.raises(Invalid, match="publisher's number"):
                door.acting(Delegation(signed(ADA), command_id="i.0.1"))

        assert sorted(took_s)[5] < 0.25, took_s
