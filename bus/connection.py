"""
Connecting: builds the parts of the SDK for one MAD instance.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from functools import partial
from typing import NamedTuple, ParamSpec

import structlog
import uuid_utils

from everbus.bus.arguments import check_connect
from everbus.bus.bus_address import server_url
from everbus.bus.client import DEFAULT_TIMEOUT_S, Mad
from everbus.bus.credential import Credential, TokenSource
from everbus.bus.errors import Defect, EverbusError, Invalid, Unavailable
from everbus.bus.farewell import Ending, farewell_at_exit
from everbus.bus.handshake import DEFAULT_LEASE_MS, BusParameters, handshake, verify_bus
from everbus.bus.heartbeat import HeartbeatThread
from everbus.bus.keys import EDGE, GATEWAY
from everbus.bus.lease import Lease
from everbus.bus.messages import check_mad
from everbus.bus.publisher import Publisher
from everbus.bus.reply_receiver import ReplyReceiver
from everbus.bus.requests import CLOSED, ClientAffinity, Requests
from everbus.bus.settings import BusSettings
from everbus.bus.single_use import AsyncSingleUse
from everbus.bus.spool import MAX_BYTES as SPOOL_BYTES
from everbus.bus.spool import Spool
from everbus.bus.unsettled import OnRefused, Unsettled
from everbus.bus.waits import set_within

log = structlog.get_logger()

HOW_TO_CONNECT = (
    "Set EVERBUS_REDIS_URL and EVERBUS_TOKEN to those of a running bus; `everbus dev` "
    "starts one and prints both"
)
# Time for the last flush of a block that ends by an exception, or that ends while the
# bus is away and a spool holds the waiting commands.
BRIEF_FLUSH_S = 1.0
# How long the end of a block waits until its commands are settled.
SETTLED_S = 10.0

OnLost = Callable[[int], None]
SpoolPath = str | os.PathLike[str]
P = ParamSpec("P")


def connect(
    url: str | None = None,
    *,
    mad: str | None = None,
    token: TokenSource | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    lease: bool = True,
    on_lost: OnLost | None = None,
    on_refused: OnRefused | None = None,
    spool: SpoolPath | None = None,
    spool_bytes: int = SPOOL_BYTES,
) -> AbstractAsyncContextManager[Mad]:
    """
    Connect a MAD; leaving the block flushes the appended entries, then closes.

    Without arguments it finds the bus, the name and the token in the
    environment: `EVERBUS_MAD_URL` or `EVERBUS_REDIS_URL`, `EVERBUS_MAD`,
    `EVERBUS_TOKEN`. Uses four connections for any number of requests (a fifth
    during the token exchange), and one thread, which publishes heartbeats.

    Args:
        timeout: seconds for connecting, and for the last flush.
        token: the JWT of the principal, or a function that returns a fresh one. The
            function is called in a thread, now and before the last token expires.
            The managers exchange the token for a grant; commands carry the grant.
        lease: whether the managers notice the death of this instance and report it
            to its sessions. False sends no heartbeat, for programs that end soon.
        on_refused: called in the event loop with each append or `update_later` that was
            accepted here and refused later (see `RefusedCommand`). Each one is also
            logged as an error, and raised by the next `flush`. Must not block.
        on_lost: called in the event loop with the epoch that ended, when the instance
            is back after it was lost or silent for a whole TTL. The instance may
            have left its sessions; only `join` enters them again. Must not block.
            Its exceptions are logged.
        spool: path of this MAD's own file on a local disk. Commands without a reply
            wait there and survive this process, up to *spool_bytes*. After its
            first bus, `connect` succeeds while that bus is away, and leaving the
            block does not wait for it.

    Raises:
        Unavailable: there is no bus, or no manager ever started on it; or another
            process uses the spool.
        Unauthenticated: the bus refuses the URL's credentials, the managers refuse
            the token, or there is no token.
        Invalid: *mad* is not a valid name, or is reserved; or the spool belongs to
            another MAD or to another bus.
        Overloaded: the disk of the spool is full.
    """
    settings = BusSettings()
    name = check_mad(settings.mad if mad is None else mad)
    if name in (EDGE, GATEWAY):
        raise Invalid(f"{name} is no name for a MAD; choose another", field="mad")
    check_connect(url, token, timeout, lease, (on_lost, on_refused), spool, spool_bytes)
    connected = connected_as(
        settings.reachable(url or settings.url_for(name)),
        name,
        settings.token.get_secret_value() if token is None else token,
        timeout,
        lease=lease,
        on_lost=on_lost,
        on_refused=on_refused,
        spool=spool,
        spool_bytes=spool_bytes,
    )
    return AsyncSingleUse(connected)


@asynccontextmanager
async def connected_as(
    address: str,
    name: str,
    token: TokenSource | None,
    timeout: float,
    *,
    lease: bool = True,
    on_lost: OnLost | None = None,
    on_refused: OnRefused | None = None,
    spool: SpoolPath | None = None,
    spool_bytes: int = SPOOL_BYTES,
) -> AsyncIterator[Mad]:
    """
    Connect under any name, also a reserved one; otherwise as `connect`.

    Without a *token* the instance has no grant: gateway and edge need none.
    """
    affinity, entered = ClientAffinity(), False
    try:
        address = server_url(address)
        with _open_spool(spool, name, spool_bytes) as opened_spool:
            unsettled = Unsettled(name, spool=opened_spool, on_refused=on_refused)
            parts = await _parts(
                address, name, timeout, opened_spool, lease, token, unsettled
            )
            client, requests = parts.client(address, affinity)
            async with (
                _running(parts, requests, affinity),
                _heartbeats(address, name, parts.lease, on_lost, timeout) as heartbeat,
            ):
                if parts.reached:
                    await _await_subscription(parts.replies, timeout)
                    await _present_token(parts.credential, timeout)
                entered = True
                ending = Ending(affinity, parts.publisher, heartbeat, timeout)
                with farewell_at_exit(ending):
                    async with _last_flush(requests, parts, affinity, timeout):
                        yield client
    except EverbusError as error:
        if entered:
            raise
        # Without its causes, which are in its message.
        raise error.copy() from None


class _Parts(NamedTuple):
    """
    The parts of one connection.

    Attributes:
        reached: whether the bus answered; else the spool knows its parameters.
    """

    mad: str
    publisher: Publisher
    replies: ReplyReceiver
    credential: Credential | None
    unsettled: Unsettled
    lease: Lease | None
    spool: Spool | None
    instance: str
    partitions: int
    reached: bool

    def client(self, address: str, affinity: ClientAffinity) -> tuple[Mad, Requests]:
        """
        The calls on these parts.
        """
        requests = Requests(
            *(self.publisher, self.replies, self.partitions), affinity=affinity
        )

        client = Mad(
            *(self.mad, requests),
            instance=self.instance,
            lease=self.lease,
            address=address,
        )

        return client, requests


async def _parts(
    address: str,
    name: str,
    timeout: float,
    spool: Spool | None,
    leased: bool,
    token: TokenSource | None,
    unsettled: Unsettled,
) -> _Parts:
    parameters, reached = await _parameters(address, name, timeout, spool)
    instance = uuid_utils.uuid7().hex
    lease = Lease(instance, parameters.lease_ms / 1000) if leased else None
    credential = (
        Credential(address, name, instance, token) if token is not None else None
    )
    publisher = Publisher(
        *(address, name, instance, parameters.partitions),
        lease=lease,
        spool=spool,
        credential=credential,
        unsettled=unsettled,
        verify_bus=None
        if reached
        else partial(verify_bus, address, name, spool, parameters.partitions),
    )
    replies = ReplyReceiver(
        *(address, name, instance),
        lease=lease,
        credential=credential,
        on_refused=unsettled.refused,
    )

    return _Parts(
        *(name, publisher, replies, credential, unsettled, lease, spool),
        *(instance, parameters.partitions, reached),
    )


@asynccontextmanager
async def _last_flush(
    requests: Requests, parts: _Parts, affinity: ClientAffinity, timeout: float
) -> AsyncIterator[None]:
    """
    Flush at the end of the block, then refuse every call; a forked child only refuses.
    """
    try:
        yield
        # A refusal for good that a call has raised already is no news at the end.
        if affinity.same_process and not parts.publisher.refusal_raised:
            await _flush(requests, parts, timeout)
    except BaseException:
        if affinity.same_process:
            await _flush_briefly(requests, parts)
        raise
    finally:
        affinity.end()


@contextmanager
def _open_spool(
    path: SpoolPath | None, name: str, max_bytes: int
) -> Iterator[Spool | None]:
    if path is None:
        yield None
        return
    with closing(Spool.open(path, name, max_bytes=max_bytes)) as spool:
        yield spool


async def _parameters(
    address: str, name: str, timeout: float, spool: Spool | None
) -> tuple[BusParameters, bool]:
    """
    Parameters of the bus, and whether the bus itself gave them; else from the spool.
    """
    try:
        parameters = await handshake(address, name, timeout)
    except Unavailable as error:
        if spool is None or spool.partitions is None:
            raise Unavailable(
                f"{error.message.rstrip('.')}. {HOW_TO_CONNECT}"
            ) from error
        log.warning("bus.not_met", mad=name, error=error.message)
        return BusParameters(
            spool.partitions, spool.lease_ms or DEFAULT_LEASE_MS
        ), False
    if spool is not None:
        spool.remember(*parameters)

    return parameters, True


@asynccontextmanager
async def _running(
    parts: _Parts, requests: Requests, affinity: ClientAffinity
) -> AsyncIterator[None]:
    """
    Run publisher, replies and token exchange during the block.

    A forked child that leaves the block ends nothing: sockets and their poll are the
    parent's as well.
    """
    publisher, replies, credential = parts.publisher, parts.replies, parts.credential
    running = (publisher, replies, *((credential,) if credential else ()))
    tasks = [asyncio.create_task(part.run()) for part in running]
    tasks.append(asyncio.create_task(parts.unsettled.run(requests.settled_numbers)))
    for task in tasks:
        task.add_done_callback(partial(_on_task_done, publisher, replies))
    try:
        yield
    finally:
        if affinity.same_process:
            for task in tasks:
                task.cancel()
            replies.fail(Unavailable(CLOSED))
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _heartbeats(
    address: str, name: str, lease: Lease | None, on_lost: OnLost | None, timeout: float
) -> AsyncIterator[HeartbeatThread | None]:
    """
    Publish heartbeats during the block.

    The block begins after the first heartbeat was tried: the managers would not notice
    the death of an instance that joined a session before they knew it.
    """
    if lease is None:
        yield None
        return
    tried = asyncio.Event()
    heartbeat = HeartbeatThread(
        address,
        name,
        lease,
        on_tried=_in_this_loop(tried.set),
        on_lost=_in_this_loop(partial(_report_loss, name, on_lost)),
    )
    heartbeat.start()
    try:
        await set_within(tried, timeout)
        yield heartbeat
    finally:
        # In a thread: the last message may take as long as the bus does.
        await asyncio.to_thread(heartbeat.close)


def _in_this_loop(function: Callable[P, object]) -> Callable[P, None]:
    """
    Wrap *function*: a call from any thread runs it in the current event loop.
    """
    loop = asyncio.get_running_loop()

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        # A closed loop needs no call any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(partial(function, *args, **kwargs))

    return call


def _report_loss(name: str, on_lost: OnLost | None, epoch: int) -> None:
    log.warning("instance.lost", mad=name, epoch=epoch)
    if on_lost is None:
        return
    try:
        on_lost(epoch)
    except Exception:  # the MAD's own code must not break ours
        log.exception("on_lost.failed", mad=name, epoch=epoch)


def _on_task_done(
    publisher: Publisher, replies: ReplyReceiver, task: asyncio.Task[None]
) -> None:
    """
    End all requests when publisher or replies have ended.
    """
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        log.error("client.broken", exc_info=error)
        broken = Defect(f"the client broke: {type(error).__name__}: {error}")
        replies.fail(broken)
        publisher.refuse(broken)
    elif publisher.last_error is not None:
        replies.fail(publisher.last_error)


async def _flush(requests: Requests, parts: _Parts, timeout: float) -> None:
    """
    Bring waiting commands onto the bus, and wait until they are settled.

    Raises:
        Unavailable: the time is over, and no spool holds the rest.
    """
    deadline = time.monotonic() + timeout
    if not await _brought(requests, parts, timeout):
        log.info("appends.spooled", mad=parts.mad, count=requests.waiting)
        return
    left_s = min(SETTLED_S, max(0.0, deadline - time.monotonic()))
    if not await requests.settled(left_s):
        log.warning("appends.unsettled", mad=parts.mad, count=parts.unsettled.count)


async def _brought(requests: Requests, parts: _Parts, timeout: float) -> bool:
    """
    Bring waiting commands onto the bus; with a spool they may wait for the next start.

    Raises:
        Unavailable: the time is over, and no spool holds the rest.
    """
    if parts.spool is None:
        await requests.on_bus(timeout)
        return True
    deadline = time.monotonic() + timeout
    while (left_s := deadline - time.monotonic()) > 0:
        with suppress(Unavailable):
            await requests.on_bus(min(BRIEF_FLUSH_S, left_s))
            return True
        if parts.publisher.last_error is not None:
            break
    return False


async def _flush_briefly(requests: Requests, parts: _Parts) -> None:
    """
    Flush for a moment while an exception leaves the block.

    The end of the event loop has cancelled the publisher's task before: then this one
    writes.
    """
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(BRIEF_FLUSH_S):
                await parts.publisher.drain_if_stopped()
        await requests.on_bus(BRIEF_FLUSH_S)
    except EverbusError as error:
        if parts.spool is not None:
            log.info("appends.spooled", mad=parts.mad, count=requests.waiting)
        elif requests.waiting:
            log.warning("appends.lost", mad=parts.mad, error=error.message)


async def _await_subscription(replies: ReplyReceiver, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await replies.started()
    except TimeoutError as error:
        raise Unavailable("the bus answers, but no channel can be opened") from error


async def _present_token(credential: Credential | None, timeout: float) -> None:
    """
    Exchange the token, so that `connect` itself reports a bad one.

    If no manager answers, commands wait until one does.

    Raises:
        Unauthenticated: the managers refuse the token.
        Forbidden: the bus does not let this MAD publish it.
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
