"""
`everbus mads`: which MADs there are and who of them is alive; let in, and put out.
"""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer

from bus.errors import NotFound
from bus.keys import GROUP, MADS, NEWS, PRESENCE, ingress
from bus.wire import Wire
from compose.acl import check_mad_user, mad_rules
from compose.answers import OutputOption, print_json, print_table, tell
from compose.bus_access import BusAccess, bus_access
from compose.bus_url import database_of, url_for_user
from compose.exits import CONFLICT, Failed
from compose.mad_roll import MadRow, roll
from compose.mad_users import (
    check_replaceable,
    end_user,
    find_user,
    is_mads,
    save_users,
    set_user,
    weaknesses,
)
from compose.replay_command import Output
from compose.starting import refuse_cluster
from gateway.store.leases import Watch, instances, watch
from gateway.store.scripts import load_scripts, script

# Longer than this nobody has looked at the leases: the list may be out of date.
IDLE_MS = 5_000
# Managers look once a second which MADs there are.
HEARD_S = 1.2
_USERS = (
    "each node has its own users. Add --no-acl, and run ACL SETUSER on each node with "
    "the rules that `everbus acl` prints"
)

_Name = Annotated[str, typer.Argument(help="The MAD's name.", metavar="NAME")]
_Of = Annotated[str, typer.Option("--mad", help="Only those of this MAD.")]
_Rotate = Annotated[bool, typer.Option("--rotate", help="A new password.")]
_NoAcl = Annotated[
    bool, typer.Option("--no-acl", help="No user: for a bus without ACLs.")
]
_Force = Annotated[
    bool, typer.Option("--force", help="Also if commands of it are lost by that.")
]


class _Left(NamedTuple):
    """
    What lies on the ingress of a MAD in one partition.
    """

    partition: int
    gone: int
    pending: int
    unread: int

    @property
    def unsettled(self) -> int:
        """
        How many entries nobody will hear of if it goes.
        """
        return self.pending + self.unread


def list_(mad: _Of = "", output: OutputOption = Output.table) -> None:
    """
    List the MADs and their instances: who is alive, who was lost, and in what.

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
    Let a MAD use the bus: register it, make its Redis user, print its URL once.

    The user may do what `everbus acl --mad NAME` shows and nothing else. Needs a
    user in EVERBUS_REDIS_URL who may do ACL SETUSER.

    Example: EVERBUS_MAD_URL=$(everbus mads add fiedler)
    """
    check_mad_user(name)
    url = asyncio.run(_add(name, rotate=rotate, no_acl=no_acl))
    if output is Output.json:
        print_json({"mad": name, "url": url})
    else:
        typer.echo(url)


def remove(name: _Name, force: _Force = False, no_acl: _NoAcl = False) -> None:
    """
    Put a MAD out: end its user and its connections, and delete its streams.

    While commands of it wait to be settled nothing is done, but with --force, which
    loses them. What it has said in its sessions stays.

    Example: everbus mads remove fiedler
    """
    check_mad_user(name)
    asyncio.run(_remove(name, force=force, no_acl=no_acl))
    tell(f"{name} is removed")


async def _list(mad: str, output: Output) -> None:
    async with bus_access("mads") as bus:
        registered = [one.decode() for one in await bus.wire.call("HKEYS", MADS)]
        records = await instances(bus.wire, mad)
        rows = await roll(bus, [one for one in registered if mad in ("", one)], records)
        watched = await watch(bus.wire)
    if output is Output.json:
        print_json({"mads": rows, "watch": watched})
    else:
        columns = ("MAD", "instance", "state", "epoch", "lease left", "last heartbeat")
        print_table((*columns, "sessions", "noticed by"), map(_row, rows))
    _tell_of(watched)


def _row(row: MadRow) -> Sequence[Any]:  # as print_table takes them
    left = "-" if row.lease_left_s is None else f"{row.lease_left_s:.1f} s"
    sessions = f"{len(row.sessions):,}{'+' if row.more_sessions else ''}"

    return (
        *(row.mad, row.instance, row.state, row.epoch or "", left),
        *(row.last_heartbeat, sessions if row.instance else "", row.noticed),
    )


def _tell_of(watched: Watch) -> None:
    if watched.idle_ms is None:
        tell("nobody watches over the heartbeats: start `everbus manager`")
    elif watched.idle_ms > IDLE_MS:
        tell(
            f"nobody has looked at the heartbeats for {watched.idle_ms / 1000:.0f} s, "
            "so this may be out of date: see whether a manager runs"
        )
    if watched.untold:
        tell(f"{watched.untold:,} losses are still being told to the sessions")


async def _add(name: str, *, rotate: bool, no_acl: bool) -> str:
    async with bus_access("mads") as bus:
        url = bus.settings.redis_url
        if no_acl:
            await _register(bus.wire, name)
            return url_for_user(url)
        refuse_cluster(bus.settings, "mads add", _USERS)
        user = await find_user(bus.wire, name)
        check_replaceable(user, name, rotate=rotate)
        # First, so that whatever crashes, no user is there that nobody serves.
        await _register(bus.wire, name)
        password = secrets.token_urlsafe(32)
        rules = mad_rules(name, database=database_of(url))
        await set_user(bus.wire, name, password, rules)
        found = await weaknesses(bus.wire)
    for weakness in found:
        tell(f"warning: {weakness}")
    tell(f"{name} may use the bus. Its URL, with its password, is shown only now:")

    return url_for_user(url, name, password)


async def _register(wire: Wire, name: str) -> None:
    if await wire.call("HSETNX", MADS, name, "{}"):
        await wire.call("PUBLISH", NEWS, "mads")


async def _remove(name: str, *, force: bool, no_acl: bool) -> None:
    async with bus_access("mads") as bus:
        if not no_acl:
            refuse_cluster(bus.settings, "mads remove", _USERS)
        user = None if no_acl else await find_user(bus.wire, name)
        if user is not None and not is_mads(user, name):
            tell(f"the server's user {name} is no MAD's; it stays")
            user = None
        if user is None and not await bus.wire.call("HEXISTS", MADS, name):
            raise NotFound(f"there is no MAD {name}; `everbus mads list` shows them")
        await load_scripts(bus.wire)
        if not force:
            _check_settled(name, await _ingresses(bus, name, "look"))
        if user is not None:
            await _put_out(bus.wire, name)
        lost = await _dismiss(bus, name, force=force)
        await bus.wire.call("UNLINK", ingress(PRESENCE, name))
    for one in lost:
        if one.unsettled:
            tell(
                f"lost in partition {one.partition}: {one.pending:,} entries that were "
                f"read and not settled, {one.unread:,} that nobody had read"
            )


async def _put_out(wire: Wire, name: str) -> None:
    await end_user(wire, name)
    if not await save_users(wire):
        tell(
            f"warning: if the server's configuration file names the user {name}, a "
            "restart brings it back: run CONFIG REWRITE on it now"
        )


async def _dismiss(bus: BusAccess, name: str, *, force: bool) -> list[_Left]:
    """
    Take the MAD off the list and delete its streams; what lay on them.

    Raises:
        Failed: it published something meanwhile; then it is on the list again.
    """
    if await bus.wire.call("HDEL", MADS, name):
        await bus.wire.call("PUBLISH", NEWS, "mads")
        # A lane begins anew when a stream of its own goes, and would make it again.
        await asyncio.sleep(HEARD_S)
    left = await _ingresses(bus, name, "any" if force else "settled")
    if any(not one.gone for one in left):
        await _register(bus.wire, name)
    _check_settled(name, left if not force else ())

    return left


async def _ingresses(bus: BusAccess, name: str, how: str) -> list[_Left]:
    """
    What lies on the MAD's ingress streams, each deleted by the rule *how*.
    """
    left = []
    for partition in range(bus.partitions):
        stream = [ingress(partition, name)]
        reply = await bus.wire.call(*script("dismiss", stream, GROUP, how))
        left.append(_Left(partition, *reply))
    return left


def _check_settled(name: str, left: Sequence[_Left]) -> None:
    """
    Raises:
        Failed: commands of the MAD wait to be settled.
    """
    waiting = [one for one in left if one.unsettled]
    if waiting:
        entries = sum(one.unsettled for one in waiting)
        where = ", ".join(str(one.partition) for one in waiting)
        raise Failed(
            f"{name} is not removed: {entries:,} entries of it wait to be settled, in "
            f"partition {where}. Let a manager run until they are, or lose them by "
            "--force",
            CONFLICT,
        )


mads_app = typer.Typer(
    help="MADs: who is alive, let in, put out. Example: everbus mads list",
    no_args_is_help=True,
)
mads_app.command("list")(list_)
mads_app.command()(add)
mads_app.command()(remove)
