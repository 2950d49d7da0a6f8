"""
Connecting: the parts of the SDK, put together for one MAD instance.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from typing import ParamSpec

import structlog
import uuid_utils

from bus.client import DEFAULT_TIMEOUT_S, Mad
from bus.credential import Credential, TokenSource
from bus.errors import Defect, EverbusError, Invalid, Unavailable
from bus.heart import Heart
from bus.introduction import DEFAULT_LEASE_MS, Terms, introduce, meet
from bus.keys import EDGE, GATEWAY
from bus.lease import Lease
from bus.messages import check_mad
from bus.publisher import Publisher
from bus.replies import Replies
from bus.requests import Requests
from bus.settings import BusSettings
from bus.spool import MAX_BYTES as SPOOL_BYTES
from bus.spool import Spool

log = structlog.get_logger()

# What a block that ends by an exception has for its last flush, and one that ends
# while the bus is away and a spool holds what waits.
HASTE_S = 1.0

OnLost = Callable[[int], None]
SpoolPath = str | os.PathLike[str]
P = ParamSpec("P")


@asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    mad: str | None = None,
    token: TokenSource | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    lease: bool = True,
    on_lost: OnLost | None = None,
    spool: SpoolPath | None = None,
    spool_bytes: int = SPOOL_BYTES,
) -> AsyncIterator[Mad]:
    """
    A connected MAD; leaving the block flushes what was appended, then closes.

    Without arguments it finds the bus, the name and the token in the
    environment: `EVERBUS_MAD_URL` or `EVERBUS_REDIS_URL`, `EVERBUS_MAD`,
    `EVERBUS_TOKEN`. Uses four connections, whatever the number of requests (a fifth
    for the moment in which it shows its token), and one thread, which tells the
    managers that this instance lives.

    Args:
        token: the JWT of the principal who asks, or what gives a fresh one: called,
            in a thread, now and in good time before the last one expires. It is
            shown to the managers; commands carry the grant that they give for it.
        lease: whether the instance is missed when it dies: its sessions are told
            then. Without, no heartbeat is sent; for calls that end in a moment.
        on_lost: called in the event loop when the instance is heard again after
            it was lost, or silent for as long: with the epoch that ended. It may
            have left its sessions, and joins them again only by `join`. Must not
            wait. What it raises is logged.
        spool: a file of this MAD's, on a local disk: what wants no reply waits there
            and survives this process, at most *spool_bytes* of it. Once it has met
            a bus, `connect` succeeds while that is away, and leaving the block does
            not wait for it.

    Raises:
        Unavailable: no bus, or no manager has ever started on it; or another
            process uses the spool.
        Unauthenticated: the bus refuses the URL's credentials, or the managers the
            token; or there is none.
        Invalid: *mad* cannot be a name, or is the gateway's own; or what waits in
            the spool is not of this MAD, or not for this bus.
        Overloaded: the disk of the spool is full.
    """
    settings = BusSettings()
    name = check_mad(mad or settings.mad)
    if name in (EDGE, GATEWAY):
        raise Invalid(f"{name} is no name for a MAD; choose another", field="mad")
    address = url or settings.url_for(name)
    async with joined(
        address,
        name,
        settings.token.get_secret_value() if token is None else token,
        timeout,
        lease=lease,
        on_lost=on_lost,
        spool=spool,
        spool_bytes=spool_bytes,
    ) as client:
        yield client


@asynccontextmanager
async def joined(
    address: str,
    name: str,
    token: TokenSource | None,
    timeout: float,
    *,
    lease: bool = True,
    on_lost: OnLost | None = None,
    spool: SpoolPath | None = None,
    spool_bytes: int = SPOOL_BYTES,
) -> AsyncIterator[Mad]:
    """
    A connected instance of any name, the gateway's own included; see `connect`.

    Without a *token* it has no grant of its own, as gateway and edge have none.
    """
    with _opened(spool, name, spool_bytes) as kept:
        terms, met = await _terms(address, name, timeout, kept)
        instance = uuid_utils.uuid7().hex
        leased = Lease(instance, terms.lease_ms / 1000) if lease else None
        first = None if met else partial(meet, address, name, kept, terms.partitions)
        shown = (
            Credential(address, name, instance, token) if token is not None else None
        )
        publisher = Publisher(
            *(address, name, instance, terms.partitions),
            lease=leased,
            spool=kept,
            credential=shown,
            meet=first,
        )
        replies = Replies(address, name, instance, lease=leased, credential=shown)
        requests = Requests(publisher, replies, terms.partitions)
        client = Mad(name, requests, instance=instance, lease=leased)
        async with (
            _running(publisher, replies, shown),
            _heard(address, name, leased, on_lost, timeout),
        ):
            try:
                if met:
                    await _started(replies, timeout)
                    await _granted(shown, timeout)
                yield client
                await _flush(client, publisher, kept, timeout)
            except BaseException:
                await _flush_in_haste(client, kept)
                raise


@contextmanager
def _opened(
    path: SpoolPath | None, name: str, max_bytes: int
) -> Iterator[Spool | None]:
    if path is None:
        yield None
        return
    with closing(Spool.open(path, name, max_bytes=max_bytes)) as spool:
        yield spool


async def _terms(
    address: str, name: str, timeout: float, spool: Spool | None
) -> tuple[Terms, bool]:
    """
    The terms of the bus, and whether it told them itself; else the spool remembers.
    """
    try:
        terms = await introduce(address, name, timeout)
    except Unavailable as error:
        if spool is None or spool.partitions is None:
            raise
        log.warning("bus.not_met", mad=name, error=error.message)
        return Terms(spool.partitions, spool.lease_ms or DEFAULT_LEASE_MS), False
    if spool is not None:
        spool.remember(*terms)

    return terms, True


@asynccontextmanager
async def _running(
    publisher: Publisher, replies: Replies, credential: Credential | None
) -> AsyncIterator[None]:
    """
    What is sent and what is received, for the time of the block.
    """
    parts = (publisher, replies, *((credential,) if credential else ()))
    tasks = [asyncio.create_task(part.run()) for part in parts]
    for task in tasks:
        task.add_done_callback(partial(_ended, publisher, replies))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _heard(
    address: str, name: str, lease: Lease | None, on_lost: OnLost | None, timeout: float
) -> AsyncIterator[None]:
    """
    Heartbeats for the time of the block.

    Begins when the first is on the bus, or has failed: an instance that joined a
    session before the managers know of it would not be missed there.
    """
    if lease is None:
        yield
        return
    tried = asyncio.Event()
    heart = Heart(
        address,
        name,
        lease,
        on_tried=_in_this_loop(tried.set),
        on_lost=_in_this_loop(partial(_tell_lost, name, on_lost)),
    )
    heart.start()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await tried.wait()
        yield
    finally:
        # In a thread: the goodbye may take as long as the bus does.
        await asyncio.to_thread(heart.close)


def _in_this_loop(function: Callable[P, object]) -> Callable[P, None]:
    """
    What has *function* called in the running loop, from any thread.
    """
    loop = asyncio.get_running_loop()

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        # A loop that is closed needs to know nothing any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(partial(function, *args, **kwargs))

    return call


def _tell_lost(name: str, on_lost: OnLost | None, epoch: int) -> None:
    log.warning("instance.lost", mad=name, epoch=epoch)
    if on_lost is None:
        return
    try:
        on_lost(epoch)
    except Exception:  # code of the MAD's own: nothing of ours may break by it
        log.exception("on_lost.failed", mad=name, epoch=epoch)


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


async def _flush(
    client: Mad, publisher: Publisher, spool: Spool | None, timeout: float
) -> None:
    """
    Bring what waits onto the bus; what a spool holds may wait until it is back.

    Raises:
        Unavailable: not all is there in time, and no spool holds the rest.
    """
    if spool is None:
        return await client.flush(timeout=timeout)
    deadline = time.monotonic() + timeout
    while (left_s := deadline - time.monotonic()) > 0:
        with suppress(Unavailable):
            return await client.flush(timeout=min(HASTE_S, left_s))
        if publisher.trouble is not None:
            break
    log.info("appends.spooled", mad=client.name, count=client.waiting)
    return None


async def _flush_in_haste(client: Mad, spool: Spool | None) -> None:
    """
    Bring what waits onto the bus while somebody's error is on its way up.
    """
    try:
        await client.flush(timeout=HASTE_S)
    except EverbusError as error:
        if spool is not None:
            log.info("appends.spooled", mad=client.name, count=client.waiting)
        elif client.waiting:
            log.warning("appends.lost", mad=client.name, error=error.message)


async def _started(replies: Replies, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await replies.started()
    except TimeoutError as error:
        raise Unavailable("the bus answers, but no channel can be opened") from error


async def _granted(credential: Credential | None, timeout: float) -> None:
    """
    Show the token, so that a bad one is the caller's first news; where no manager
    answers, commands wait until one does.

    Raises:
        Unauthenticated: the managers refuse it.
        Forbidden: the bus does not let this MAD show it.
    """
    if credential is None:
        return
    try:
        async with asyncio.timeout(timeout):
            await credential.current()
    except TimeoutError:
        log.warning("grant.awaited", error=f"none within {timeout} s")
    except Unavailable as error:
        log.warning("grant.awaited", error=error.message)
