"""
The outer door as a process, put together from the settings.

It serves before it has met the bus, and while that is away: reads come from MongoDB
then, and what needs the bus is refused until it is there.
"""

import asyncio
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import structlog
import uvloop

from bus import keys
from bus.client import Mad
from bus.connection import joined
from bus.errors import Unavailable
from compose.exits import CONFLICT, Failed
from compose.keyring import grants_of, identity_of
from compose.logs import configure_logs
from compose.roles import beside, calm_collector
from compose.settings import Settings, load_settings
from compose.telemetry import send_spans
from compose.tiers import warm_side
from gateway.edge.app import edge_app
from gateway.edge.checks import TierWatch, edge_health, keys_watch
from gateway.edge.desk import Desk
from gateway.edge.health import health_routes
from gateway.edge.opening import streams_in
from gateway.edge.parts import EdgeParts, Limits
from gateway.edge.serving import Serving
from gateway.edge.watchdog import Watchdog

log = structlog.get_logger()

# How long one attempt to meet the bus may take, and the pause before the next one.
MEET_S = 1.0
PAUSE_S = 0.5
# Twice the connections that it has open at most, see `gateway.edge.serving`.
MAX_FILES = 20_000
_LOOPBACK = ("127.", "::1", "localhost")


def serve_edge() -> None:
    """
    Serve as an edge until SIGTERM or Ctrl-C; a second signal ends it at once.
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    send_spans("edge")
    _open_more_files()
    calm_collector()
    uvloop.run(_until_signal(settings))


async def run_edge(settings: Settings, stop: asyncio.Event) -> None:
    """
    Serve as an edge until *stop* is set.

    Raises:
        Failed: the settings do not fit together, or the port cannot be had.
        Unauthenticated, Forbidden: the bus turns the user of its URL away.
    """
    async with AsyncExitStack() as closing:
        listener = closing.enter_context(listening(settings))
        serving = await _serving(settings, stop, closing)
        await serving.run(listener, stop)
    log.info("edge.stopped")


async def _serving(
    settings: Settings, stop: asyncio.Event, closing: AsyncExitStack
) -> Serving:
    """
    What an edge serves; everything that it needs ends with *closing*.
    """
    identity, grants = identity_of(settings), grants_of(settings)
    watchdog = Watchdog(settings.redis_url, settings.partitions)
    below = closing.enter_context(warm_side(settings))
    warm = None if below is None else TierWatch("warm", below.probe)
    known = keys_watch(identity)
    bus = await closing.enter_async_context(meeting(settings, stop))
    for watching in (watchdog, warm, known):
        if watching is not None:
            await closing.enter_async_context(beside(watching.run(), stop))
    parts = EdgeParts(
        bus=bus,
        desk=Desk(watchdog, below),
        identity=identity,
        grants=grants,
        limits=limits_of(settings),
        now=time.time,
    )
    health = edge_health(watchdog, warm, keys=known, stopping=stop.is_set)
    app = edge_app(parts, health_routes(health))

    def ready(url: str) -> None:
        health.started = True
        log.info("edge.ready", url=url)
        _warn_of_plain_text(settings)

    return Serving(app, streams_in(app, parts), settings.edge_drain_s, ready)


def limits_of(settings: Settings) -> Limits:
    """
    What one principal and one tenant may ask of this edge.
    """
    return Limits(
        rate=settings.edge_rate,
        tenant_rate=settings.edge_tenant_rate,
        concurrency=settings.edge_concurrency,
        tenant_concurrency=settings.edge_tenant_concurrency,
        streams=settings.edge_streams,
        drain_s=settings.edge_drain_s,
    )


def listening(settings: Settings) -> socket.socket:
    """
    The edge's address, taken; whoever connects is refused until it is served.

    Raises:
        Failed: it is in use, is not of this machine, or needs other rights.
    """
    host, port = settings.edge_host, settings.edge_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Failed(
            f"cannot serve on EVERBUS_EDGE_HOST={host}, EVERBUS_EDGE_PORT={port}: "
            f"{error.strerror or error}. Stop what listens there "
            f"(ss -ltnp 'sport = :{port}' tells which), or choose another port; 0 "
            "takes a free one",
            CONFLICT,
        ) from error
    return listener


class Meeting:
    """
    The edge's instance on the bus, as soon as there is one.

    Until then whoever asks for it is told that the bus is away.
    """

    def __init__(self) -> None:
        self.met: Mad | None = None

    def __getattr__(self, name: str) -> Any:  # an attribute of Mad
        if self.met is None:
            # `away_s`, as the SDK says it of a bus that went away.
            raise Unavailable(
                "this edge has not met its bus yet; nothing was sent. Try again later",
                away_s=0.0,
            )
        return getattr(self.met, name)


@asynccontextmanager
async def meeting(settings: Settings, stop: asyncio.Event) -> AsyncIterator[Mad]:
    """
    The edge's instance on the bus, which need not be there yet.

    Raises:
        Unauthenticated, Forbidden: the bus is there, and turns us away.
    """
    meeting = Meeting()
    async with AsyncExitStack() as joining:
        try:
            meeting.met = await _joined(settings, joining)
        except Unavailable as error:
            log.warning("bus.not_met", error=error.message)
            later = _met_later(settings, meeting, joining)
            await joining.enter_async_context(beside(later, stop))
        # It has every attribute of one, or raises.
        yield cast(Mad, meeting)


async def _met_later(
    settings: Settings, meeting: Meeting, joining: AsyncExitStack
) -> None:
    while meeting.met is None:
        await asyncio.sleep(PAUSE_S)
        try:
            meeting.met = await _joined(settings, joining)
        except Unavailable as error:
            log.debug("bus.not_met", error=error.message)
    log.info("bus.met")


async def _joined(settings: Settings, joining: AsyncExitStack) -> Mad:
    instance = joined(settings.redis_url, keys.EDGE, None, MEET_S, lease=False)

    return await joining.enter_async_context(instance)


def _warn_of_plain_text(settings: Settings) -> None:
    if settings.edge_host.startswith(_LOOPBACK):
        return
    log.warning(
        "edge.plain_text",
        host=settings.edge_host,
        reason="tokens go over this wire unencrypted",
        remedy="let TLS end at an ingress before this edge, on a network of your own",
    )


def _open_more_files() -> None:
    """
    Take as many file descriptors as the system lets this process have, to MAX_FILES.

    Each stream is one, and many systems give 1024 to who does not ask.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def end() -> None:
        stop.set()
        for number in signals:
            # The next one ends the process at once.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, end)
    await run_edge(settings, stop)
