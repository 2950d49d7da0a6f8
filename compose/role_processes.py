"""
The processes `everbus manager` and `everbus archiver`.

This is the composition root: settings become objects here, and only here.
"""

import asyncio
import gc
import os
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

import structlog
import typer
import uvloop

from everbus.archiver.cluster_drain import ClusterDrain
from everbus.archiver.confirmation import ConfirmationLimits
from everbus.archiver.drain import Drain
from everbus.archiver.gateway_commands import gateway_commands
from everbus.archiver.schedule import run_schedule
from everbus.bus import keys
from everbus.bus.cluster_routing import is_cluster
from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import Unavailable
from everbus.bus.messages import SCHEMA
from everbus.bus.wire import Wire
from everbus.compose.archiver_jobs import archiver_jobs
from everbus.compose.exit_codes import CONFLICT, USAGE, Failed
from everbus.compose.keyring import grants_of, identity_of, revocations_of
from everbus.compose.logs import configure_logs
from everbus.compose.plaintext import check_plaintext
from everbus.compose.probes import drain_checks, lane_checks, serve_health
from everbus.compose.sealing_settings import sealing_of
from everbus.compose.settings import Settings, load_settings
from everbus.compose.startup_checks import check_servers
from everbus.compose.telemetry import send_spans
from everbus.compose.tier_settings import (
    archives_of,
    fail_point_of,
    fields_type,
    lower_tiers,
    warm_tier,
)
from everbus.gateway.failpoints import FailPoint, disarmed
from everbus.gateway.health.indicators import INDICATORS
from everbus.gateway.health.process import ProcessHealth
from everbus.gateway.health.status import StatusReporter, reporting
from everbus.gateway.health.verdicts import examining
from everbus.gateway.identity.policy import Policy
from everbus.gateway.identity.token_exchange import TokenExchange
from everbus.gateway.identity.token_revocation_reader import (
    TokenRevocationReader,
    read_at_start,
)
from everbus.gateway.identity.token_revocations import TokenRevocations
from everbus.gateway.lane.cache import CacheBudget, LaneCache
from everbus.gateway.lane.commit import BatchLimits
from everbus.gateway.lane.decision import Decider
from everbus.gateway.lane.delivery import KINDS
from everbus.gateway.lane.fetch_budget import FetchBudget
from everbus.gateway.lane.fetches import LowerTiers
from everbus.gateway.lane.loop import LaneParts
from everbus.gateway.lane.rates import CommandRates
from everbus.gateway.lane.replication import Replicas
from everbus.gateway.lane.replies import UnreadLimits
from everbus.gateway.presence.mad_quotas import QuotaLimits
from everbus.gateway.sealing.sealing import Sealing
from everbus.gateway.session_manager import NameTaken, SessionManager
from everbus.gateway.store.hot_copy import RedisHot
from everbus.gateway.store.reader import NoTiers
from everbus.gateway.store.scripts import write_at_all_times
from everbus.gateway.store.sealed_copies import SealedCopies
from everbus.gateway.store.warm_roles import WarmTier
from everbus.handlers.routes import Route, routes_with

log = structlog.get_logger()

START_TIMEOUT_S = 30.0
GC_ALLOCATIONS = 20_000

Role = Callable[[Settings, asyncio.Event], Awaitable[None]]


def manager(
    name: Annotated[
        str, typer.Option(help="This replica's name; default: host and a number.")
    ] = "",
) -> None:
    """
    Serve commands: one replica of the SessionManager.

    Stops on SIGTERM or Ctrl-C: finishes its batch and hands its lanes over.

    Example: EVERBUS_REDIS_URL=redis://bus:6379 EVERBUS_JWT_SECRET_FILE=/run/jwt
    everbus manager
    """
    settings = load_settings(os.environ)
    if name:
        settings = settings.model_copy(update={"replica": name})
    try:
        _run(run_manager, settings)
    except NameTaken as error:
        raise Failed(str(error), CONFLICT) from error


def archiver() -> None:
    """
    Drain commits into MongoDB, and move sessions between the tiers.

    Needs MongoDB; with S3 it also archives idle sessions. Several archivers may run:
    one works, by its lease, the others stand by.

    Example: EVERBUS_MONGO_URL=mongodb://db:27017 everbus archiver
    """
    _run(run_archiver, load_settings(os.environ))


async def run_manager(settings: Settings, stop: asyncio.Event) -> None:
    """
    Run a replica until *stop* is set.

    Raises:
        Unavailable: the bus is unreachable at the start.
        Failed: the settings contradict each other or the bus.
    """
    check_plaintext(settings)
    fail = fail_point_of(settings)
    async with (
        serve_health("manager", settings, stop) as health,
        sealing_of(settings) as sealing,
        lower_tiers(settings, fail, sealing) as tiers,
    ):
        revocations = revocations_of(settings)
        parts = lane_parts(
            *(settings, settings.partitions, tiers),
            fail=fail,
            revocations=revocations,
        )
        if sealing is not None:
            parts = parts._replace(sealed=SealedCopies(sealing))
        await _serve(settings, parts, stop, health, revocations)


async def _serve(
    settings: Settings,
    parts: LaneParts,
    stop: asyncio.Event,
    health: ProcessHealth,
    revocations: TokenRevocations,
) -> None:
    # Before the first call of the bus, so that bad settings are reported first.
    identity = identity_of(settings, revocations)
    token_exchange = TokenExchange(settings.redis_url, identity, grants_of(settings))
    partitions = await _partitions(settings, checked=True)
    revoked = TokenRevocationReader(settings.redis_url, revocations, restores=True)
    await read_at_start(revoked, revocations)
    name = settings.replica or f"{socket.gethostname()}-{os.getpid()}"
    quotas = QuotaLimits(settings.ingress_max_bytes, settings.mad_max_connections)
    replica = SessionManager(name, parts, ttl_ms=settings.lane_ttl_ms, quotas=quotas)
    limit = settings.outbox_max_records
    async with (
        examining(settings.redis_url, name, INDICATORS, outbox_limit=limit) as also,
        reporting(StatusReporter(settings.redis_url, "manager", name, also=also)),
        in_background(token_exchange.run(), stop),
        in_background(revoked.run(), stop),
    ):
        serving = asyncio.ensure_future(replica.run(stop))
        health.add(*lane_checks(replica, time.monotonic))
        health.started = True
        log.info("manager.ready", replica=name, partitions=partitions)
        await serving


async def run_archiver(settings: Settings, stop: asyncio.Event) -> None:
    """
    Drain the outboxes, and move sessions between the tiers, until *stop* is set.

    Raises:
        Unavailable: the bus is unreachable at the start.
        Failed: the settings contradict each other or the bus.
    """
    check_plaintext(settings)
    async with (
        serve_health("archiver", settings, stop) as health,
        sealing_of(settings) as sealing,
    ):
        await _archive(settings, stop, health, sealing)


async def _archive(
    settings: Settings,
    stop: asyncio.Event,
    health: ProcessHealth,
    sealing: Sealing | None,
) -> None:
    fail = fail_point_of(settings)
    warm = warm_tier(settings, sealing)
    archives = archives_of(settings, fail, sealing)
    if warm is None:
        raise Failed("EVERBUS_MONGO_URL is not set; the archiver needs it", USAGE)
    wire = wire_to(settings.redis_url, name="everbus-hot")
    partitions = await _partitions(settings)
    name = f"archiver-{socket.gethostname()}-{os.getpid()}"
    sealed = None if sealing is None else SealedCopies(sealing)
    drain = _drain_of(settings, (partitions, warm, name), fail, sealed)
    health.add(*drain_checks(drain))
    health.started = True
    log.info("archiver.ready", partitions=partitions)
    try:
        async with (
            reporting(StatusReporter(settings.redis_url, "archiver", name)),
            gateway_commands(settings.redis_url, partitions) as send,
            asyncio.TaskGroup() as tasks,
        ):
            hot = RedisHot(wire, partitions)
            jobs = archiver_jobs(settings, warm, archives, send, hot, fail)
            tasks.create_task(run_schedule(stop, lambda: drain.lease.held, jobs))
            await drain.run(stop)
    finally:
        await wire.close()
        warm.close()
        if archives is not None:
            archives.close()


def _drain_of(
    settings: Settings,
    what: tuple[int, WarmTier, str],
    fail: FailPoint,
    sealed: SealedCopies | None,
) -> Drain | ClusterDrain:
    limits = ConfirmationLimits(_hot_ttl_ms(settings), settings.reply_ttl_s * 1000)
    drain_type = ClusterDrain if is_cluster(settings.redis_url) else Drain

    return drain_type(
        settings.redis_url,
        *what,
        fail=fail,
        terms=limits,
        sealed=sealed,
    )


def lane_parts(
    settings: Settings,
    partitions: int,
    tiers: LowerTiers,
    routes: Mapping[str, Route] | None = None,
    fail: FailPoint = disarmed,
    revocations: TokenRevocations | None = None,
) -> LaneParts:
    """
    The parts of a replica's lanes.

    Args:
        routes: the handler of each kind; tests pass a handler that fails.
        revocations: the revoked tokens; the caller keeps them up to date.

    Raises:
        Failed: the settings contradict each other.
    """
    grants = grants_of(settings)
    policy = Policy(KINDS)
    handlers = routes
    if handlers is None:
        handlers = routes_with(
            fields_type(settings), turn_max_entries=settings.turn_max_entries
        )
    rates = CommandRates(settings.mad_rate, settings.tenant_rate)
    cache_budget = CacheBudget(settings.cache_max_bytes)
    has_tiers = not isinstance(tiers, NoTiers)

    return LaneParts(
        redis_url=settings.redis_url,
        partitions=partitions,
        decider=lambda: Decider(
            grants,
            policy,
            handlers,
            tiers=has_tiers,
            unread=_unread_limits(settings),
            rates=rates,
            cache=LaneCache(cache_budget),
            revocations=revocations,
        ),
        tiers=tiers,
        incarnation=uuid.uuid4().hex[:12],
        limits=BatchLimits(
            reply_ttl_ms=settings.reply_ttl_s * 1000,
            ledger_ttl_ms=settings.ledger_ttl_s * 1000,
            dead_letters=settings.dead_letters_max_items,
            dead_bytes=settings.dead_letters_max_bytes,
        ),
        batch_commands=settings.batch_commands,
        batch_bytes=settings.batch_max_bytes,
        budget=FetchBudget(settings.fetched_max_bytes, settings.page_max_bytes),
        outbox_records=settings.outbox_max_records,
        hot_ttl_ms=_hot_ttl_ms(settings),
        doubts=settings.doubt,
        lease_ttl_ms=_lease_ttl_ms(settings),
        lost_after_disconnect_s=settings.lost_after_disconnect_s,
        replicas=Replicas(settings.replicas_wanted, settings.replicated_timeout_ms),
        fail=fail,
    )


def _unread_limits(settings: Settings) -> UnreadLimits:
    return UnreadLimits(
        settings.unread_max_bytes,
        settings.unread_max_items,
        settings.reply_ttl_s * 1000,
    )


@asynccontextmanager
async def in_background(
    work: Coroutine[None, None, None], stop: asyncio.Event
) -> AsyncIterator[None]:
    """
    Run *work* during the block; if it fails, *stop* is set.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(partial(_stop_on_failure, stop))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _stop_on_failure(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("role.broken", exc_info=error)
        stop.set()


def _hot_ttl_ms(settings: Settings) -> int:
    return max(1, round(settings.hot_ttl_s * 1000))


def _lease_ttl_ms(settings: Settings) -> int:
    return round(settings.lease_ttl_s * 1000)


async def _partitions(settings: Settings, *, checked: bool = False) -> int:
    """
    The number of partitions of this bus; sets up a new bus.

    Args:
        checked: refuse a bus that may lose sessions, before the first write.

    Raises:
        Failed: the bus has another number than the settings, or may lose sessions.
    """
    wire = wire_to(settings.redis_url, name="everbus-start")
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            if checked:
                await check_servers(settings)
            await _set_up(wire, settings)
            stored = await wire.call("HGET", keys.CONFIG, "partitions")
    except TimeoutError as error:
        raise Unavailable(f"the bus did not answer in {START_TIMEOUT_S} s") from error
    finally:
        await wire.close()
    if int(stored) != settings.partitions:
        raise Failed(
            f"this bus has {int(stored)} partitions, fixed when it was set up; "
            f"set EVERBUS_PARTITIONS={int(stored)}",
            CONFLICT,
        )
    return int(stored)


async def _set_up(wire: Wire, settings: Settings) -> None:
    write = partial(write_at_all_times, wire)
    for field, value in (("partitions", settings.partitions), ("schema", SCHEMA)):
        await write("HSETNX", keys.CONFIG, field, value)
    # The lease of MADs; the newest manager's value counts.
    await write("HSET", keys.CONFIG, "lease_ms", _lease_ttl_ms(settings))
    for ours in (keys.GATEWAY, keys.EDGE):
        if await write("HSETNX", keys.MADS, ours, "{}"):
            await wire.call("PUBLISH", keys.NEWS, "mads")


def _run(role: Role, settings: Settings) -> None:
    """
    Run one role until SIGTERM or SIGINT; then it ends in order.
    """
    configure_logs(settings.log_format, settings.log_level)
    send_spans(role.__name__.removeprefix("run_"))
    tune_collector()
    uvloop.run(_until_signal(role, settings))


def tune_collector() -> None:
    """
    Make Python's garbage collector run seldom.

    Imported modules stay alive. Batches and requests are short-lived and have few
    cycles, so the default of 700 allocations between two runs is too low.
    """
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


async def _until_signal(role: Role, settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await role(settings, stop)
