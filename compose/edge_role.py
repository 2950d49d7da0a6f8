"""
The edge process, built from the settings.

An edge also serves while the bus is away, even before its first connection: reads
come from MongoDB, and requests that need the bus are refused.
"""

import asyncio
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import structlog
import uvloop

from everbus.bus import keys
from everbus.bus.client import Mad
from everbus.bus.connection import connected_as
from everbus.bus.errors import Unavailable
from everbus.compose.edge_settings import listed
from everbus.compose.exit_codes import CONFLICT, USAGE, Failed
from everbus.compose.keyring import grants_of, identity_of, revocations_of
from everbus.compose.logs import configure_logs
from everbus.compose.plaintext import check_plaintext
from everbus.compose.probes import serve_probes
from everbus.compose.role_processes import in_background, tune_collector
from everbus.compose.sealing_settings import opening_of
from everbus.compose.settings import Settings, load_settings
from everbus.compose.telemetry import send_spans
from everbus.compose.tier_settings import warm_reads
from everbus.gateway.edge.addresses import TrustedProxies
from everbus.gateway.edge.app import edge_app
from everbus.gateway.edge.context import EdgeContext, EdgeLimits
from everbus.gateway.edge.fallback import ReadFallback
from everbus.gateway.edge.handshake import streams_in
from everbus.gateway.edge.server import EdgeServer
from everbus.gateway.health.bus_watchdog import Watchdog
from everbus.gateway.health.connections import ConnectionLimits, Connections
from everbus.gateway.health.probe_routes import probe_routes
from everbus.gateway.health.process_checks import TierProbe, edge_health, identity_probe
from everbus.gateway.identity.token_revocation_reader import TokenRevocationReader

log = structlog.get_logger()

# Deadline of one connection attempt, and the pause before the next attempt.
CONNECT_TIMEOUT_S = 1.0
PAUSE_S = 0.5
# Files of an edge that are no connection of a client.
OWN_FILES = 1000


def serve_edge() -> None:
    """
    Run an edge until SIGTERM or Ctrl-C; a second signal ends it at once.
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    send_spans("edge")
    _open_more_files(settings.edge_connections + OWN_FILES)
    tune_collector()
    uvloop.run(_until_signal(settings))


async def run_edge(settings: Settings, stop: asyncio.Event) -> None:
    """
    Run an edge until *stop* is set.

    Raises:
        Failed: the settings contradict each other, or the port is not available.
        Unauthenticated, Forbidden: the bus refuses the user in its URL.
    """
    check_plaintext(settings, edge=True)
    async with AsyncExitStack() as closing:
        listener = closing.enter_context(bound_socket(settings))
        serving = await _serving(settings, stop, closing)
        await serving.run(listener, stop)
    log.info("edge.stopped")


async def _serving(
    settings: Settings, stop: asyncio.Event, closing: AsyncExitStack
) -> EdgeServer:
    """
    The server of an edge; *closing* closes all that it uses.
    """
    revocations = revocations_of(settings)
    identity = identity_of(settings, revocations)
    grants = grants_of(settings, "edge")
    revoked = TokenRevocationReader(settings.redis_url, revocations)
    # Before the first request; a bus that is away does not stop an edge.
    await revoked.read()
    watchdog = Watchdog(settings.redis_url, settings.partitions)
    sealing = await closing.enter_async_context(opening_of(settings))
    below = closing.enter_context(warm_reads(settings, sealing))
    warm = None if below is None else TierProbe("warm", below.probe)
    known = identity_probe(identity)
    bus = await closing.enter_async_context(edge_mad(settings, stop))
    for watching in (watchdog, warm, known, revoked):
        if watching is not None:
            await closing.enter_async_context(in_background(watching.run(), stop))
    context = EdgeContext(
        bus=bus,
        fallback=ReadFallback(watchdog, below),
        identity=identity,
        grants=grants,
        limits=limits_of(settings),
        now=time.time,
        proxies=proxies_of(settings),
        origins=tuple(listed(settings.edge_cors_origins)),
        docs=settings.edge_docs,
        revocations=revocations,
        console=settings.edge_console,
    )
    health = edge_health(
        *(watchdog, warm),
        client=bus,
        keys=known,
        stopping=stop.is_set,
    )
    own_port = settings.health_port != 0
    if own_port:
        await closing.enter_async_context(serve_probes(health, settings))
    app = edge_app(context, probe_routes(health, public=own_port))

    def ready(url: str) -> None:
        health.started = True
        log.info("edge.ready", url=url)

    connections = Connections(connection_limits(settings))
    streams = streams_in(app, context)
    revocations.on_change.append(lambda: streams.end_revoked(revocations))

    return EdgeServer(app, streams, connections, settings.edge_drain_s, ready)


def connection_limits(settings: Settings) -> ConnectionLimits:
    """
    The bounds on the connections of this edge.
    """
    return ConnectionLimits(
        total=settings.edge_connections,
        per_address=settings.edge_connections_per_address,
        head_timeout_s=settings.edge_head_timeout_s,
        counted=proxies_of(settings).counted_connection,
        tls=tls_of(settings),
    )


def tls_of(settings: Settings) -> ssl.SSLContext | None:
    """
    The edge's certificate; None without one.

    Raises:
        Failed: a file is missing, or is no certificate or key.
    """
    cert, key = settings.edge_cert, settings.edge_key
    if not cert and not key:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
        if settings.edge_client_ca:
            context.load_verify_locations(settings.edge_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one, too
        raise Failed(
            f"EVERBUS_EDGE_CERT={cert}, EVERBUS_EDGE_KEY={key}, "
            f"EVERBUS_EDGE_CLIENT_CA={settings.edge_client_ca}: "
            f"{error.strerror or error}; wanted PEM files of a certificate, its key, "
            "and the clients' authority",
            USAGE,
        ) from error
    return context


def proxies_of(settings: Settings) -> TrustedProxies:
    """
    The proxies before this edge.
    """
    return TrustedProxies(
        tuple(listed(settings.edge_trusted_proxies)), settings.edge_forwarded_header
    )


def limits_of(settings: Settings) -> EdgeLimits:
    """
    The limits of this edge per principal and per tenant.
    """
    return EdgeLimits(
        rate=settings.edge_rate,
        tenant_rate=settings.edge_tenant_rate,
        concurrency=settings.edge_concurrency,
        tenant_concurrency=settings.edge_tenant_concurrency,
        streams=settings.edge_streams,
        bad_tokens=settings.edge_bad_tokens,
        bad_messages=settings.edge_bad_messages,
        drain_s=settings.edge_drain_s,
    )


def bound_socket(settings: Settings) -> socket.socket:
    """
    A socket bound to the edge's address; it refuses connections until it is served.

    Raises:
        Failed: the address is in use, not of this machine, or needs other rights.
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
            f"{error.strerror or error}. Stop the program that "
            f"listens there (ss -ltnp 'sport = :{port}' shows it), or choose another "
            "port; 0 takes a free one",
            CONFLICT,
        ) from error
    return listener


class LateMad:
    """
    The edge's instance on the bus, connected when the bus is there.

    Until then each attribute raises Unavailable.
    """

    def __init__(self) -> None:
        self.mad: Mad | None = None

    def __getattr__(self, name: str) -> Any:  # an attribute of Mad
        if self.mad is None:
            # `away_s`, as in the SDK's error for a bus that went away.
            raise Unavailable(
                "this edge has not reached its bus yet; nothing was sent. Try again "
                "later",
                away_s=0.0,
            )
        return getattr(self.mad, name)


@asynccontextmanager
async def edge_mad(settings: Settings, stop: asyncio.Event) -> AsyncIterator[Mad]:
    """
    The edge's instance on the bus; the bus may still be away.

    Raises:
        Unauthenticated, Forbidden: the bus is there and refuses this edge.
    """
    late = LateMad()
    async with AsyncExitStack() as closing:
        try:
            late.mad = await _connected(settings, closing)
        except Unavailable as error:
            log.warning("bus.not_connected", error=error.message)
            later = _connect_later(settings, late, closing)
            await closing.enter_async_context(in_background(later, stop))
        # LateMad has every attribute of a Mad, or raises.
        yield cast(Mad, late)


async def _connect_later(
    settings: Settings, late: LateMad, closing: AsyncExitStack
) -> None:
    while late.mad is None:
        await asyncio.sleep(PAUSE_S)
        try:
            late.mad = await _connected(settings, closing)
        except Unavailable as error:
            log.debug("bus.not_connected", error=error.message)
    log.info("bus.connected")


async def _connected(settings: Settings, closing: AsyncExitStack) -> Mad:
    instance = connected_as(
        settings.redis_url, keys.EDGE, None, CONNECT_TIMEOUT_S, lease=False
    )

    return await closing.enter_async_context(instance)


def _open_more_files(wanted: int) -> None:
    """
    Raise the limit of file descriptors as far as the system allows, to *wanted*.

    Each stream takes one descriptor, and the default of many systems is 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def end() -> None:
        stop.set()
        for number in signals:
            # The next signal ends the process at once.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, end)
    await run_edge(settings, stop)
