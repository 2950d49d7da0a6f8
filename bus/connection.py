"""
Connecting: the parts of the SDK, put together for one MAD instance.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog
import uuid_utils

from bus.client import DEFAULT_TIMEOUT_S, Mad
from bus.errors import Defect, EverbusError, Forbidden, Invalid, Unavailable
from bus.keys import CONFIG, GATEWAY, MADS, NEWS
from bus.messages import SCHEMA, check_mad
from bus.publisher import Publisher
from bus.replies import Replies
from bus.requests import Requests
from bus.settings import BusSettings
from bus.wire import Wire, WireFailed

log = structlog.get_logger()

# What a block that ends by an exception has for its last flush.
HASTE_S = 1.0


@asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    mad: str | None = None,
    token: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
) -> AsyncIterator[Mad]:
    """
    A connected MAD; leaving the block flushes what was appended, then closes.

    Without arguments it finds the bus, the name and the token in the
    environment: `EVERBUS_MAD_URL` or `EVERBUS_REDIS_URL`, `EVERBUS_MAD`,
    `EVERBUS_TOKEN`. Uses three connections, whatever the number of requests.

    Raises:
        Unavailable: no bus, or no manager has ever started on it.
        Unauthenticated: the bus refuses the URL's credentials.
        Invalid: *mad* cannot be a name, or is the gateway's own.
    """
    settings = BusSettings()
    name = check_mad(mad or settings.mad)
    if name == GATEWAY:
        raise Invalid(f"{GATEWAY} is no name for a MAD; choose another", field="mad")
    address = url or settings.url_for(name)
    secret = settings.token.get_secret_value() if token is None else token
    async with joined(address, name, secret, timeout) as client:
        yield client


@asynccontextmanager
async def joined(
    address: str, name: str, secret: str, timeout: float
) -> AsyncIterator[Mad]:
    """
    A connected instance of any name, the gateway's own included; see `connect`.
    """
    partitions = await _introduce(address, name, timeout)
    instance = uuid_utils.uuid7().hex
    publisher = Publisher(address, name, instance, partitions)
    replies = Replies(address, name, instance)
    client = Mad(name, Requests(secret, publisher, replies, partitions))
    tasks = [asyncio.create_task(part.run()) for part in (publisher, replies)]
    for task in tasks:
        task.add_done_callback(partial(_ended, publisher, replies))
    try:
        await _started(replies, timeout)
        yield client
        await client.flush(timeout=timeout)
    except BaseException:
        await _flush_in_haste(client)
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _ended(publisher: Publisher, replies: Replies, task: asyncio.Task[None]) -> None:
    """
    End all requests when the publisher or the replies can do no more.
    """
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        log.error("client.broken", exc_info=error)
        replies.fail(Defect(f"the client broke: {type(error).__name__}: {error}"))
    elif publisher.trouble is not None:
        replies.fail(publisher.trouble)


async def _flush_in_haste(client: Mad) -> None:
    """
    Bring what waits onto the bus while somebody's error is on its way up.
    """
    try:
        await client.flush(timeout=HASTE_S)
    except EverbusError as error:
        if client.waiting:
            log.warning("appends.lost", mad=client.name, error=error.message)


async def _started(replies: Replies, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await replies.started()
    except TimeoutError as error:
        raise Unavailable("the bus answers, but no channel can be opened") from error


async def _introduce(url: str, mad: str, timeout: float) -> int:
    """
    Make *mad* known where the bus lets it, and learn the number of partitions.
    """
    wire = Wire(url, name=f"mad-{mad}")
    deadline = time.monotonic() + timeout
    try:
        while True:
            config = await wire.call("HMGET", CONFIG, "partitions", "schema")
            if config[0] is not None:
                break
            if time.monotonic() > deadline:
                raise Unavailable(
                    "this bus has no eb:config: no manager ever started on it. "
                    "Start `everbus manager`, or `everbus dev` for a whole stack"
                )
            await asyncio.sleep(0.1)
        await _register(wire, mad)
    finally:
        await wire.close()
    if int(config[1] or SCHEMA) < SCHEMA:
        raise Unavailable(
            f"the managers understand schema {int(config[1])}, this SDK speaks "
            f"{SCHEMA}; upgrade the managers first"
        )
    return int(config[0])


async def _register(wire: Wire, mad: str) -> None:
    """
    Enter *mad* in the list of MADs, on a bus without ACL; else `mads add` did.
    """
    try:
        if await wire.call("HSETNX", MADS, mad, "{}"):
            await wire.call("PUBLISH", NEWS, "mads")
    except Forbidden:
        log.debug("mad.registered_by_operator", mad=mad)
    except WireFailed:
        raise
    except Unavailable as error:
        log.warning("mad.not_registered", mad=mad, error=error.message)
