"""
What tests of outages share: parts that give up soon, and what they can be seen by.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import REGISTRY

from everbus.bus import Mad
from everbus.gateway.store import key_names
from tests.conversations import Conversation
from tests.hands import Hands
from tests.stack import PARTITIONS, Stack

# A call of a tier that is away is given up after a second.
SOON = {"warm_timeout_s": 1, "cold_timeout_s": 1}


@asynccontextmanager
async def served(stack: Stack) -> AsyncIterator[tuple[Mad, Hands]]:
    """
    A manager as a process; an archiver in this one, whose breakers and metrics a
    test can look at.
    """
    async with (
        stack.manager(**SOON),
        stack.mad() as mad,
        stack.hands(**SOON) as hands,
    ):
        yield mad, hands


def told_to_prometheus(metric: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(metric, labels)
    assert value is not None, metric

    return value


async def at_rest(stack: Stack, mad: Mad, entries: int = 40) -> Conversation:
    """
    A conversation that is dormant and not hot.
    """
    one = await Conversation.begin(mad)
    await one.say(entries)
    await one.change()
    await one.suspend()
    await stack.until_cold(one.id)

    return one


async def unconfirmed(stack: Stack) -> int:
    counts = await stack.client.mget([key_names.backlog(p) for p in range(PARTITIONS)])

    return sum(int(count or 0) for count in counts)


async def archived_all(stack: Stack, hands: Hands, some: list[Conversation]) -> bool:
    await hands.archive()
    documents = [await stack.document(one.id) for one in some]

    return all(document["archival_status"] == "S3" for document in documents)
