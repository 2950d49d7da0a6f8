"""
The processes that `everbus` can be: manager and archiver.

The composition root proper: settings become objects here, and only here.
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

from archiver.commands import gateway_commands
from archiver.confirmation import Terms
from archiver.drain import Drain
from archiver.scattered import ScatteredDrain
from archiver.schedule import run_schedule
from bus import keys
from bus.cluster import wire_to
from bus.errors import Unavailable
from bus.messages import SCHEMA
from bus.routing import is_cluster
from bus.wire import Wire
from compose.exits import CONFLICT, USAGE, Failed
from compose.keyring import grants_of, identity_of
from compose.logs import configure_logs
from compose.probes import drain_checks, lane_checks, probed
from compose.settings import Settings, load_settings
from compose.starting import check_servers
from compose.telemetry import send_spans
from compose.tiers import fields_type, tiers_below, vault_of, warm_tier
from compose.upkeep import archiver_works
from gateway.batch import Limits
from gateway.below import Tiers
from gateway.delivery import KINDS
from gateway.edge.health import Health
from gateway.failpoints import FailPoint, armed, disarmed
from gateway.granting import Granting
from gateway.health.indicators import INDICATORS
from gateway.health.status import Teller, told
from gateway.health.verdicts import examining
from gateway.lane import LaneParts
from gateway.policy import Policy
from gateway.replica import NameTaken, Replica
from gateway.replication import Replicas
from gateway.settlement import Settlement
from gateway.store.hot import RedisHot
from gateway.store.reader import NoTiers
from handlers.routes import Route, routes_with

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
    Bring what was committed into MongoDB.

    Example: EVERBUS_MONGO_URL=mongodb://db:27017 everbus archiver
    """
    _run(run_archiver, load_settings(os.environ))


async def run_manager(settings: Settings, stop: asyncio.Event) -> None:
    """
    Serve as a replica until *stop* is set.

    Raises:
        Unavailable: the bus cannot be reached at the start.
        Failed: the settings do not fit together, or do not fit the bus.
    """
    fail = _fail(settings)
    wire = wire_to(settings.redis_url, name="everbus-stats")
    try:
        async with (
            probed("manager", settings, stop) as health,
            tiers_below(settings, wire, fail) as tiers,
        ):
            await _serve(settings, tiers, fail, stop, health)
    finally:
        await wire.close()


async def _serve(
    settings: Settings,
    tiers: Tiers,
    fail: FailPoint,
    stop: asyncio.Event,
    health: Health,
) -> None:
    # Before the bus is touched: settings that do not fit are the user's first news.
    granting = Granting(settings.redis_url, identity_of(settings), grants_of(settings))
    parts = lane_parts(settings, settings.partitions, tiers, fail=fail)
    partitions = await _partitions(settings, checked=True)
    name = settings.replica or f"{socket.gethostname()}-{os.getpid()}"
    replica = Replica(name, parts, ttl_ms=settings.lane_ttl_ms)
    limit = settings.outbox_max_records
    async with (
        examining(settings.redis_url, name, INDICATORS, outbox_limit=limit) as also,
        told(Teller(settings.redis_url, "manager", name, also=also)),
        beside(granting.run(), stop),
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
        Unavailable: the bus cannot be reached at the start.
        Failed: the settings do not fit together, or do not fit the bus.
    """
    async with probed("archiver", settings, stop) as health:
        await _archive(settings, stop, health)


async def _archive(settings: Settings, stop: asyncio.Event, health: Health) -> None:
    fail = _fail(settings)
    warm, vault = warm_tier(settings), vault_of(settings, fail)
    if warm is None:
        raise Failed("EVERBUS_MONGO_URL is not set; the archiver needs it", USAGE)
    wire = wire_to(settings.redis_url, name="everbus-hot")
    partitions = await _partitions(settings)
    terms = Terms(_hot_ttl_ms(settings), settings.reply_ttl_s * 1000)
    name = f"archiver-{socket.gethostname()}-{os.getpid()}"
    made = ScatteredDrain if is_cluster(settings.redis_url) else Drain
    drain = made(settings.redis_url, partitions, warm, name, fail=fail, terms=terms)
    health.add(*drain_checks(drain))
    health.started = True
    log.info("archiver.ready", partitions=partitions)
    try:
        async with (
            told(Teller(settings.redis_url, "archiver", name)),
            gateway_commands(settings.redis_url, partitions) as send,
            asyncio.TaskGroup() as tasks,
        ):
            hot = RedisHot(wire, partitions)
            works = archiver_works(settings, warm, vault, send, hot, fail)
            tasks.create_task(run_schedule(stop, lambda: drain.lease.held, works))
            await drain.run(stop)
    finally:
        await wire.close()
        warm.close()
        if vault is not None:
            vault.close()


def lane_parts(
    settings: Settings,
    partitions: int,
    tiers: Tiers,
    routes: Mapping[str, Route] | None = None,
    fail: FailPoint = disarmed,
) -> LaneParts:
    """
    What the lanes of a replica are built from.

    Args:
        routes: what each kind means; tests put a handler that fails in here.

    Raises:
        Failed: the settings do not fit together.
    """
    grants = grants_of(settings)
    policy = Policy(KINDS)
    meant = routes_with(fields_type(settings)) if routes is None else routes
    has_tiers = not isinstance(tiers, NoTiers)

    return LaneParts(
        redis_url=settings.redis_url,
        partitions=partitions,
        settlement=lambda: Settlement(grants, policy, meant, tiers=has_tiers),
        tiers=tiers,
        incarnation=uuid.uuid4().hex[:12],
        limits=Limits(
            reply_ttl_ms=settings.reply_ttl_s * 1000,
            ledger_ttl_ms=settings.ledger_ttl_s * 1000,
        ),
        batch_commands=settings.batch_commands,
        outbox_records=settings.outbox_max_records,
        hot_ttl_ms=_hot_ttl_ms(settings),
        lease_ttl_ms=_lease_ttl_ms(settings),
        replicas=Replicas(settings.replicas_wanted, settings.replicated_timeout_ms),
        fail=fail,
    )


@asynccontextmanager
async def beside(
    work: Coroutine[None, None, None], stop: asyncio.Event
) -> AsyncIterator[None]:
    """
    *work* going on for the time of the block; if it breaks, *stop* is set.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(partial(_ended, stop))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _ended(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("role.broken", exc_info=error)
        stop.set()


def _hot_ttl_ms(settings: Settings) -> int:
    return max(1, round(settings.hot_ttl_s * 1000))


def _lease_ttl_ms(settings: Settings) -> int:
    return round(settings.lease_ttl_s * 1000)


def _fail(settings: Settings) -> FailPoint:
    return armed(settings.fail_point) if settings.fail_point else disarmed


async def _partitions(settings: Settings, *, checked: bool = False) -> int:
    """
    The number of partitions that this bus was set up with, by us if by nobody.

    Args:
        checked: refuse a bus that may lose sessions, before anything is written.

    Raises:
        Failed: the bus has another number than the settings, or may lose sessions.
    """
    wire = wire_to(settings.redis_url, name="everbus-start")
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            if checked:
                await check_servers(settings)
            await _set_up(wire, settings)
            told = await wire.call("HGET", keys.CONFIG, "partitions")
    except TimeoutError as error:
        raise Unavailable(f"the bus did not answer in {START_TIMEOUT_S} s") from error
    finally:
        await wire.close()
    if int(told) != settings.partitions:
        raise Failed(
            f"this bus has {int(told)} partitions, fixed when it was set up; "
            f"set EVERBUS_PARTITIONS={int(told)}",
            CONFLICT,
        )
    return int(told)


async def _set_up(wire: Wire, settings: Settings) -> None:
    for field, value in (("partitions", settings.partitions), ("schema", SCHEMA)):
        await wire.call("HSETNX", keys.CONFIG, field, value)
    # How often MADs have to tell that they live; the newest manager's word counts.
    await wire.call("HSET", keys.CONFIG, "lease_ms", _lease_ttl_ms(settings))
    for ours in (keys.GATEWAY, keys.EDGE):
        if await wire.call("HSETNX", keys.MADS, ours, "{}"):
            await wire.call("PUBLISH", keys.NEWS, "mads")


def _run(role: Role, settings: Settings) -> None:
    """
    Run one role until SIGTERM or SIGINT, then let it end in order.
    """
    configure_logs(settings.log_format, settings.log_level)
    send_spans(role.__name__.removeprefix("run_"))
    calm_collector()
    uvloop.run(_until_signal(role, settings))


def calm_collector() -> None:
    """
    Have Python look for cycles seldom.

    What was imported stays; batches and requests are short-lived and hold few cycles,
    so the collector need not look at them every 700 allocations.
    """
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


async def _until_signal(role: Role, settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await role(settings, stop)
