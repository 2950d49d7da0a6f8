"""
Requests at a moderate rate: beside a session that twenty hammer on, and by kind.
"""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import uuid_utils

from everbus.bus import Mad, keys
from everbus.gateway.store import key_names
from everbus.gateway.store.uuid_age import SKEW_MS
from tests.bench.patches import another
from tests.bench.rig import PARTITIONS
from tests.bench.scale_clients import Client, client
from tests.bench.scale_rig import Scale, made, paced, say, since
from tests.bench.scale_work import PATCH, TEXT, Plan
from tests.bench.tier_rig import TIMEOUT_S, Stack, quantile

WRITERS = 20
PROBE_RATE = 200.0
PROBED = 100
ARM_S = 10.0
TIMES_RATE = 200.0
# What the twenty keep to in `paced`: what a hot session may have while the cores,
# which they share with all else here, are not the bound.
PACE = 1000.0
# The arms of a pair: what the twenty do meanwhile.
ARMS = ("off", "paced", "spread", "hot")
Probes = dict[tuple[str, str], list[float]]


async def hot(scale: Scale) -> None:
    """
    Updates of other sessions, of its partition and of others, while nobody else
    writes (off); 20 write to one session 1,000/s together (paced), or as fast as the
    replies come (hot); or the same 20 to 1,000 sessions so (spread).

    Hot beside off is what is asked; hot beside spread tells how much of that is one
    session's doing and how much is that two cores are busy.
    """
    stack = scale.stack
    async with stack.manager(), stack.mad() as mad:
        [crowd] = await made(mad, 1)
        home = keys.partition_of(crowd, PARTITIONS)
        probed = {
            "same partition": await _made_in(mad, {home}),
            "other partitions": await _made_in(mad, {*range(PARTITIONS)} - {home}),
        }
        async with client(_plan(stack, crowd, await made(mad, 1000))) as hammer:
            await _pairs(scale, mad, hammer, probed)
            report = hammer.report()
        session = await mad.get_session(crowd, timeout=TIMEOUT_S)
    told = 1 + report.versions[crowd]
    scale.figures.note("updates of the hot session lost", abs(session.version - told))


def _plan(stack: Stack, crowd: str, others: Sequence[str]) -> Plan:
    return Plan(
        work="hammer",
        url=stack.bus.url,
        mads=tuple(f"writer{n}" for n in range(WRITERS)),
        sessions=tuple(others),
        crowd=(crowd,),
        rate=PACE,
        report=str(stack.folder / "hammer"),
    )


async def _pairs(
    scale: Scale, mad: Mad, hammer: Client, probed: Mapping[str, Sequence[str]]
) -> None:
    before = 0
    for pair in range(scale.pairs):
        took: Probes = {}
        # Each order as often as its reverse, so that no arm is always the later.
        for arm in ARMS if pair % 2 == 0 else ARMS[::-1]:
            if arm != "off":
                await hammer.tell(arm)
            await _probe(scale, mad, probed, arm, took)
            await hammer.tell("off")
            done = hammer.report().requests
            if arm != "off":
                rate = (done - before) / scale.seconds(ARM_S, 1)
                scale.figures.note(f"writes/s of the {WRITERS}, {arm}", rate)
            before = done
        _compare(scale, probed, took)
        say(f"pair {pair + 1} of {scale.pairs}")


async def _probe(
    scale: Scale,
    mad: Mad,
    probed: Mapping[str, Sequence[str]],
    arm: str,
    took: Probes,
) -> None:
    """
    Updates at a fixed rate, in turns of both kinds of sessions.
    """
    kinds = list(probed)

    async def request(n: int, due: float) -> None:
        kind = kinds[n % 2]
        session = random.choice(probed[kind])
        with since(due, took.setdefault((arm, kind), [])):
            patch = {"fields": another(PATCH)}
            await mad.update_session(session, patch, timeout=TIMEOUT_S)

    await paced(PROBE_RATE, scale.seconds(ARM_S, 1), request)


def _compare(scale: Scale, probed: Mapping[str, Any], took: Probes) -> None:
    for kind in probed:
        p99 = {}
        for arm in ARMS:
            seconds = took[arm, kind]
            scale.figures.times(f"{kind}, {arm}", seconds, (50, 99))
            p99[arm] = quantile(seconds, 0.99)
        samples = len(took["hot", kind])
        for one, other in (("hot", "off"), ("paced", "off"), ("hot", "spread")):
            name = f"{kind}, p99, {one} : {other}"
            scale.figures.note(name, p99[one] / p99[other], samples)


async def _made_in(mad: Mad, partitions: set[int]) -> list[str]:
    """
    New sessions whose partition is one of these.
    """
    ids: list[str] = []
    while len(ids) < PROBED:
        chosen = str(uuid_utils.uuid7())
        if keys.partition_of(chosen, PARTITIONS) in partitions:
            await mad.create_session("ada", session_id=chosen, timeout=TIMEOUT_S)
            ids.append(chosen)
    return ids


async def times(scale: Scale) -> None:
    """
    Each kind of call by the SDK at 200/s over 1,000 sessions, in turns.

    In a bus's first minute a new id may be older than the bus, so creating asks
    MongoDB: that minute is over here, by hand.
    """
    stack = scale.stack
    took: dict[str, list[float]] = {}
    async with stack.manager("before"), stack.mad():
        pass
    await _age(stack)
    async with stack.archiver(), stack.manager(), stack.mad() as mad:
        ids = await made(mad, scale.count(1000))
        calls = _calls(mad)
        kinds = list(calls)

        async def request(n: int, due: float) -> None:
            kind = kinds[n % len(kinds)]
            with since(due, took.setdefault(kind, [])):
                await calls[kind](ids[n % len(ids)])

        await paced(TIMES_RATE, scale.seconds(60, 5), request)
        found = [await mad.get_session(i, timeout=TIMEOUT_S) for i in ids]
    for kind in kinds:
        scale.quantiles(f"{kind} at {TIMES_RATE:g}/s", took[kind])
    wrong = len(took["update"]) - sum(one.version - 1 for one in found)
    wrong += len(took["append"]) - sum(one.last_seq for one in found)
    scale.figures.note("commands of the paced lost", abs(wrong))


def _calls(mad: Mad) -> dict[str, Callable[[str], Awaitable[Any]]]:
    append = partial(mad.append_and_wait, entry={"text": TEXT}, timeout=TIMEOUT_S)

    return {
        "create": lambda _: mad.create_session("ada", timeout=TIMEOUT_S),
        "hot get": partial(mad.get_session, timeout=TIMEOUT_S),
        "update": lambda i: mad.update_session(
            i, {"fields": another(PATCH)}, timeout=TIMEOUT_S
        ),
        "append": append,
    }


async def _age(stack: Stack) -> None:
    """
    Make the bus older than any clock may be off: `since` of `key_names.lineage`.
    """
    for p in range(PARTITIONS):
        key = key_names.lineage(p)
        await stack.wire.call("HINCRBY", key, "since", -2 * SKEW_MS)
