"""
Writes that are asked for again, at one edge.
"""

import asyncio
import re

import pytest

from everbus.bus.errors import Invalid
from everbus.bus.messages import check_command_id, check_session_id, ordinal_of
from everbus.gateway.edge import idempotency as module
from everbus.gateway.edge.idempotency import (
    ANSWER_TTL_S,
    REPLAYED,
    HttpAnswer,
    IdempotencyCache,
    command_id_of,
    session_id_of,
)
from everbus.gateway.identity.principal import Principal
from everbus.gateway.store.uuid_age import made_ms


class Work:
    """
    A write that counts how often it is done.
    """

    def __init__(self, body: bytes = b"1") -> None:
        self.done = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._body = body

    async def __call__(self) -> HttpAnswer:
        await self.gate.wait()
        self.done += 1

        return HttpAnswer(201, self._body, {"ETag": '"1"'})


def ada(tenant: str = "", name: str = "ada") -> Principal:
    return Principal(name, "user", 1e12, tenant)


async def test_those_who_come_meanwhile_get_the_first_answer():
    work, idempotency = Work(), IdempotencyCache(lambda: 0.0)
    work.gate.clear()
    asking = [asyncio.create_task(idempotency.once("k", b"f", work)) for _ in range(50)]
    await asyncio.sleep(0)
    work.gate.set()

    told = await asyncio.gather(*asking)

    assert work.done == 1
    assert {one.body for one in told} == {b"1"}
    assert sum(REPLAYED in one.headers for one in told) == 49
    assert not idempotency._locks


async def test_one_who_gives_up_holds_up_nobody():
    """
    The next one asks again, under the same id: the ledger tells what came of it.
    """
    work, idempotency = Work(), IdempotencyCache(lambda: 0.0)
    work.gate.clear()
    first, second = [
        asyncio.create_task(idempotency.once("k", b"f", work)) for _ in "12"
    ]
    await asyncio.sleep(0)

    first.cancel()
    work.gate.set()

    assert (await second).body == b"1"
    assert first.cancelled()
    assert work.done == 1


async def test_what_failed_is_asked_again():
    idempotency = IdempotencyCache(lambda: 0.0)

    async def failing() -> HttpAnswer:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await idempotency.once("k", b"f", failing)
    told = await idempotency.once("k", b"f", Work())

    assert REPLAYED not in told.headers


async def test_a_key_is_for_one_request():
    idempotency = IdempotencyCache(lambda: 0.0)
    await idempotency.once("k", b"f", Work())

    with pytest.raises(Invalid) as refusal:
        await idempotency.once("k", b"other", Work())

    assert refusal.value.details["field"] == "Idempotency-Key"


async def test_answers_are_forgotten_in_time_and_beyond_the_limits(monkeypatch):
    monkeypatch.setattr(module, "MAX_ANSWERS", 2)
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 10)
    now_s = 0.0
    idempotency = IdempotencyCache(lambda: now_s)
    for name in "abc":
        await idempotency.once(name, b"", Work())
    again = Work()
    await idempotency.once("a", b"", again)
    await idempotency.once("large", b"", Work(b"x" * 5))
    assert (again.done, list(idempotency._stored)) == (1, ["a", "large"])
    await idempotency.once("larger", b"", Work(b"x" * 6))
    assert list(idempotency._stored) == ["larger"]
    await idempotency.once("too large", b"", Work(b"x" * 11))
    assert list(idempotency._stored) == ["larger"]

    now_s = ANSWER_TTL_S
    await idempotency.once("late", b"", Work())

    assert list(idempotency._stored) == ["late"]


def test_ids_follow_from_tenant_principal_and_key():
    ids = {
        command_id_of(who, key)
        for who in (ada(), ada("t"), ada(name="t"), ada("t", "bob"))
        for key in ("1", "2")
    }

    assert len(ids) == 8
    assert command_id_of(ada(), "1") in ids


def test_ids_are_such_as_the_bus_takes():
    """
    Free ones: a command's is no number of a publisher's, a session's tells no time.
    """
    command, session = command_id_of(ada(), "1"), session_id_of(ada(), "1")

    assert check_command_id(command) == command
    assert ordinal_of(command) is None
    assert check_session_id(session) == session
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", session)
    assert (session[14], session[19] in "89ab") == ("8", True)
    assert made_ms(session) is None


@pytest.mark.parametrize("key", ["", " ", "a b", "ü", "x" * 256, "a\n"])
def test_keys_are_visible_ascii(key):
    with pytest.raises(Invalid):
        command_id_of(ada(), key)
