"""
`everbus mads`: list the MADs and their instances; add, remove and enable a MAD.
"""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, NamedTuple

import typer

from everbus.bus.bus_servers import BusServer
from everbus.bus.errors import NotFound
from everbus.bus.keys import GROUP, MADS, NEWS, PRESENCE, ingress
from everbus.bus.wire import Wire
from everbus.compose.acl import check_mad_user, mad_rules
from everbus.compose.bus_access import BusAccess, bus_access, servers_of
from everbus.compose.bus_url import database_of, url_for_user
from everbus.compose.command_output import OutputOption, notify, print_json, print_table
from everbus.compose.exit_codes import CONFLICT, Failed
from everbus.compose.mad_overview import MadRow, mad_rows
from everbus.compose.mad_users import UserOnBus, check_replaceable, is_user_of
from everbus.compose.replay_command import Output
from everbus.gateway.store.lease_records import SweepStatus, instances, watch
from everbus.gateway.store.mad_access import DISABLED, disabled_mads, switch_user
from everbus.gateway.store.scripts import load_scripts, script

# After so long without a sweep of the leases the list may be out of date.
IDLE_MS = 5_000
# Managers look once a second for new and removed MADs.
NOTICED_WITHIN_S = 1.2

_Name = Annotated[str, typer.Argument(help="The MAD's name.", metavar="NAME")]
_Of = Annotated[str, typer.Option("--mad", help="Only instances of this MAD.")]
_Rotate = Annotated[
    bool, typer.Option("--rotate", help="Give the user a new password.")
]
_NoAcl = Annotated[
    bool, typer.Option("--no-acl", help="Make no Redis user: for a bus without ACLs.")
]
_Force = Annotated[
    bool, typer.Option("--force", help="Remove it even if its commands are lost.")
]
_Trim = Annotated[
    bool, typer.Option("--trim", help="Drop all entries of its streams: they are lost.")
]


class _IngressState(NamedTuple):
    """
    The entries on the ingress stream of a MAD in one partition.
    """

    partition: int
    gone: int
    pending: int
    unread: int

    @property
    def unsettled(self) -> int:
        """
        Number of entries that are lost with the stream.
        """
        return self.pending + self.unread


def list_(mad: _Of = "", output: OutputOption = Output.table) -> None:
    """
    List the MADs and their instances: alive, lost or left, and their sessions.

    Example: everbus mads list --mad fiedler -o json
    """
    asyncio.run(_list(mad, output))


def add(
    name: _Name,
    rotate: _Rotate = False,
    no_acl: _NoAcl = False,
    output: OutputOption = Output.table,
) -> None:
    """
    Add a MAD to the bus: register it, make its Redis user, print its URL once.

    The user is made on every server of the bus, replicas too, with the rights that
    `everbus acl --mad NAME` shows, and no others. If a server lacks it, or an earlier
    version made it with broader rights, it is renewed and keeps its URL. The user in
    EVERBUS_REDIS_URL needs the right to ACL SETUSER.

    Example: EVERBUS_MAD_URL=$(everbus mads add fiedler)
    """
    check_mad_user(name)
    url = asyncio.run(_add(name, rotate=rotate, no_acl=no_acl))
    if output is Output.json:
        print_json({"mad": name, "url": url})
    elif url:
        typer.echo(url)


def remove(name: _Name, force: _Force = False, no_acl: _NoAcl = False) -> None:
    """
    Remove a MAD: end its user and its connections, and delete its streams.

    While commands of the MAD are unsettled, this changes nothing. --force removes the
    MAD all the same and loses these commands. Its entries in sessions stay.

    Example: everbus mads remove fiedler
    """
    check_mad_user(name)
    asyncio.run(_remove(name, force=force, no_acl=no_acl))
    notify(f"{name} is removed")


def enable(name: _Name, trim: _Trim = False) -> None:
    """
    Enable a MAD that was disabled for what it took of the bus.

    While its streams are above EVERBUS_INGRESS_MAX_BYTES this changes nothing: let
    managers settle its commands, or lose those by --trim. Its URL stays as it is.

    Example: everbus mads enable fiedler
    """
    check_mad_user(name)
    asyncio.run(_enable(name, trim=trim))
    notify(f"{name} is enabled")


async def _enable(name: str, *, trim: bool) -> None:
    async with bus_access("mads") as bus:
        known = {one.mad: one for one in await disabled_mads(bus.wire)}
        if name not in known and not await bus.wire.call("HEXISTS", MADS, name):
            raise NotFound(f"there is no MAD {name}; `everbus mads list` shows them")
        if trim:
            await _trim(bus, name)
        size = await _stream_bytes(bus, name)
        limit = bus.settings.ingress_max_bytes
        if size > limit:
            raise Failed(
                f"{name} stays disabled: its streams have {size:,} bytes, and the "
                f"quota is {limit:,}. Let managers settle them, or lose them by --trim",
                CONFLICT,
            )
        # First the record, since managers switch off what has one.
        await bus.wire.call("HDEL", DISABLED, name)
        await switch_user(bus.settings.redis_url, name, on=True)


async def _trim(bus: BusAccess, name: str) -> None:
    """
    Drop all entries of the MAD's streams.
    """
    for lane in (*range(bus.partitions), PRESENCE):
        dropped = await bus.wire.call("XTRIM", ingress(lane, name), "MAXLEN", 0)
        if dropped and lane != PRESENCE:
            notify(f"lost in partition {lane}: {dropped:,} entries")


async def _stream_bytes(bus: BusAccess, name: str) -> int:
    await load_scripts(bus.wire, "sizes")
    total = 0
    for lane in (*range(bus.partitions), PRESENCE):
        _, size = await bus.wire.call(*script("sizes", [ingress(lane, name)]))
        total += size
    return total


async def _list(mad: str, output: Output) -> None:
    async with bus_access("mads") as bus:
        registered = [one.decode() for one in await bus.wire.call("HKEYS", MADS)]
        records = await instances(bus.wire, mad)
        rows = await mad_rows(
            bus, [one for one in registered if mad in ("", one)], records
        )
        watched = await watch(bus.wire)
        disabled = [
            one for one in await disabled_mads(bus.wire) if mad in ("", one.mad)
        ]
    if output is Output.json:
        print_json({"mads": rows, "watch": watched, "disabled": disabled})
    else:
        columns = ("MAD", "instance", "state", "epoch", "lease left", "last heartbeat")
        print_table((*columns, "sessions", "noticed by"), map(_row, rows))
    for one in disabled:
        notify(f"above its quota: {one.shown}. Then: everbus mads enable {one.mad}")
    _warn_of_sweep(watched)


def _row(row: MadRow) -> Sequence[Any]:  # as print_table takes them
    left = "-" if row.lease_left_s is None else f"{row.lease_left_s:.1f} s"
    sessions = f"{len(row.sessions):,}{'+' if row.more_sessions else ''}"

    return (
        *(row.mad, row.instance, row.state, row.epoch or "", left),
        *(row.last_heartbeat, sessions if row.instance else "", row.noticed),
    )


def _warn_of_sweep(watched: SweepStatus) -> None:
    if watched.idle_ms is None:
        notify("no manager watches the heartbeats: start `everbus manager`")
    elif watched.idle_ms > IDLE_MS:
        notify(
            f"no manager swept the heartbeats for {watched.idle_ms / 1000:.0f} s, so "
            "this list may be out of date: check that a manager runs"
        )
    if watched.untold:
        notify(f"{watched.untold:,} losses are not yet announced to all their sessions")


async def _add(name: str, *, rotate: bool, no_acl: bool) -> str:
    async with bus_access("mads") as bus:
        url = bus.settings.redis_url
        if no_acl:
            await _register(bus.wire, name)
            return url_for_user(url)
        rules = mad_rules(name, database=database_of(url), partitions=bus.partitions)
        async with servers_of(bus) as servers:
            password = await _make_user(bus, servers, name, rules, rotate=rotate)
    if not password:
        notify(f"the user of {name} is renewed; its URL stays as it is")
        return ""
    notify(f"{name} may use the bus. Its URL, with its password, is shown only now:")

    return url_for_user(url, name, password)


async def _make_user(
    bus: BusAccess,
    servers: Sequence[BusServer],
    name: str,
    rules: Sequence[str],
    *,
    rotate: bool,
) -> str:
    """
    Register the MAD and make its user on all servers; returns the new password, empty
    if the old one stays.
    """
    found = await UserOnBus.find(name, servers)
    user = found.user
    ours = user is not None and is_user_of(user, name)
    if ours and found.is_outdated and not rotate:
        await found.renew(rules)
        await _register(bus.wire, name)
        return ""
    check_replaceable(user, name, rotate=rotate)
    # First, so that a crash never leaves a user whose MAD nobody serves.
    await _register(bus.wire, name)
    password = secrets.token_urlsafe(32)
    await found.make(password, rules)
    for weakness, where in (await found.warnings()).items():
        at = f"{', '.join(where)}: " if len(servers) > 1 else ""
        notify(f"warning: {at}{weakness}")

    return password


async def _register(wire: Wire, name: str) -> None:
    if await wire.call("HSETNX", MADS, name, "{}"):
        await wire.call("PUBLISH", NEWS, "mads")


async def _remove(name: str, *, force: bool, no_acl: bool) -> None:
    async with AsyncExitStack() as closing:
        bus = await closing.enter_async_context(bus_access("mads"))
        found = None
        if not no_acl:
            servers = await closing.enter_async_context(servers_of(bus))
            found = await UserOnBus.find(name, servers)
        user = None if found is None else found.user
        if user is not None and not is_user_of(user, name):
            notify(f"the server's user {name} is no MAD's; it stays")
            user = None
        if user is None and not await bus.wire.call("HEXISTS", MADS, name):
            raise NotFound(f"there is no MAD {name}; `everbus mads list` shows them")
        await load_scripts(bus.wire)
        if not force:
            _check_settled(name, await _ingresses(bus, name, "look"))
        if found is not None and user is not None:
            await _end_user(found, name)
        lost = await _deregister(bus, name, force=force)
        await bus.wire.call("UNLINK", ingress(PRESENCE, name))
    for one in lost:
        if one.unsettled:
            notify(
                f"lost in partition {one.partition}: {one.pending:,} entries that were "
                f"read and not settled, {one.unread:,} unread entries"
            )


async def _end_user(user: UserOnBus, name: str) -> None:
    unsaved = await user.end()
    if unsaved:
        notify(
            f"warning: if the configuration file of {', '.join(unsaved)} names the "
            f"user {name}, a restart brings it back: run CONFIG REWRITE on it now"
        )


async def _deregister(bus: BusAccess, name: str, *, force: bool) -> list[_IngressState]:
    """
    Deregister the MAD and delete its streams; returns their former entries.

    Raises:
        Failed: the MAD published meanwhile; then it is registered again.
    """
    if await bus.wire.call("HDEL", MADS, name):
        await bus.wire.call("PUBLISH", NEWS, "mads")
        # A lane that still reads the stream would start over and make it again.
        await asyncio.sleep(NOTICED_WITHIN_S)
    left = await _ingresses(bus, name, "any" if force else "settled")
    if any(not one.gone for one in left):
        await _register(bus.wire, name)
    _check_settled(name, left if not force else ())

    return left


async def _ingresses(bus: BusAccess, name: str, how: str) -> list[_IngressState]:
    """
    The entries on the MAD's ingress streams; deletes each stream by the rule *how*.
    """
    left = []
    for partition in range(bus.partitions):
        stream = [ingress(partition, name)]
        reply = await bus.wire.call(*script("dismiss", stream, GROUP, how))
        left.append(_IngressState(partition, *reply))
    return left


def _check_settled(name: str, left: Sequence[_IngressState]) -> None:
    """
    Raises:
        Failed: commands of the MAD are unsettled.
    """
    waiting = [one for one in left if one.unsettled]
    if waiting:
        entries = sum(one.unsettled for one in waiting)
        where = ", ".join(str(one.partition) for one in waiting)
        raise Failed(
            f"{name} is not removed: {entries:,} of its entries are unsettled, in "
            f"partition {where}. Let a manager run until they are settled, or lose "
            "them by --force",
            CONFLICT,
        )


mads_app = typer.Typer(
    help="List, add, remove and enable MADs. Example: everbus mads list",
    no_args_is_help=True,
)
mads_app.command("list")(list_)
mads_app.command()(add)
mads_app.command()(remove)
mads_app.command()(enable)
