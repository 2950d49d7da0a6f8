"""
`everbus request show`: the life of one command, as far as Redis remembers it.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, NamedTuple

import typer

from everbus.bus import keys
from everbus.bus.messages import COMMAND_FIELD, Ordinal, Reply, ordinal_of, unpack
from everbus.bus.wire import Wire
from everbus.compose.bus_access import BusAccess, bus_access, bus_time
from everbus.compose.command_output import OutputOption, print_json, print_table
from everbus.compose.exit_codes import FINDING, USAGE, Failed
from everbus.compose.replay_command import Output
from everbus.compose.sealing_settings import sealing_of
from everbus.compose.verify.readers import outbox_records
from everbus.gateway.lane.sequence import ProducerWindow
from everbus.gateway.store import dead_letters, key_names
from everbus.gateway.store.sealed_copies import SealedCopies

# Stream entries and dead letters that are looked at, the newest first.
LOOKED_AT = 10_000
PAGE = 500


class Step(NamedTuple):
    """
    One step of a command's life.

    Attributes:
        at: UTC, ISO 8601; empty if it is not known.
        who: a MAD, a principal or a part; empty if it is not known.
    """

    step: str
    at: str = ""
    who: str = ""
    detail: str = ""


def show(
    command_id: Annotated[str, typer.Argument(help="The command's id.", metavar="ID")],
    output: OutputOption = Output.table,
) -> None:
    """
    Show what became of a command: published, settled, replied, drained or buried.

    Reads Redis alone: what MongoDB has taken is no longer in the outbox. Needs the
    EVERBUS_REDIS_URL of the managers. The exit code is 1 if nothing is known.

    Example: everbus request show 01a2b3c4d5.3.17
    """
    ordinal = ordinal_of(command_id)
    if ordinal is None:
        raise Failed(f"{command_id[:80]!a} is no id of a command of the SDK", USAGE)
    steps = asyncio.run(_steps(command_id, ordinal))
    if not steps:
        raise Failed(f"Redis knows nothing of {command_id}", FINDING)
    if output is Output.json:
        print_json([step._asdict() for step in steps])
    else:
        print_table(Step._fields, steps)


async def _steps(command_id: str, ordinal: Ordinal) -> list[Step]:
    async with (
        bus_access("request") as access,
        sealing_of(access.settings) as sealing,
    ):
        sealed = None if sealing is None else SealedCopies(sealing)
        if ordinal.partition >= access.partitions:
            raise Failed(f"there is no partition {ordinal.partition}", USAGE)
        found: list[Step] = []
        async for mad, window in _producers(access.wire, ordinal):
            found += await _published(access.wire, mad, ordinal, command_id)
            found.append(_settled(mad, window, ordinal.n))
            key = f"{mad}:{command_id}"
            found += await _replied(access.wire, ordinal.partition, key, sealed)
        found += await _committed(access.wire, ordinal.partition, command_id, sealed)
        found += await _buried(access, ordinal.partition, command_id)
        return found


async def _producers(
    wire: Wire, ordinal: Ordinal
) -> AsyncIterator[tuple[str, ProducerWindow]]:
    """
    The MADs with a record of this instance: one, or none.
    """
    found = await wire.call("HGETALL", key_names.publishers(ordinal.partition))
    for name, packed in zip(found[::2], found[1::2], strict=True):
        mad, _, instance = name.decode(errors="replace").rpartition(":")
        if instance == ordinal.instance:
            yield mad, ProducerWindow.read(packed)


async def _published(
    wire: Wire, mad: str, ordinal: Ordinal, command_id: str
) -> list[Step]:
    end, stream = "+", keys.ingress(ordinal.partition, mad)
    for _ in range(LOOKED_AT // PAGE):
        entries = await wire.call("XREVRANGE", stream, end, "-", "COUNT", PAGE)
        for identifier, fields in entries:
            named = dict(zip(fields[::2], fields[1::2], strict=True))
            if command_id.encode() in named.get(COMMAND_FIELD, b""):
                at_ms = int(identifier.partition(b"-")[0])
                detail = f"entry {identifier.decode()} on {stream}"
                at = bus_time(at_ms).isoformat()
                return [Step("published", at, mad, detail)]
        if len(entries) < PAGE:
            break
        end = f"({entries[-1][0].decode()}"
    return []


def _settled(mad: str, window: ProducerWindow, n: int) -> Step:
    if window.undecodable:
        return Step("unknown", "", mad, "the producer's record does not decode")
    if window.settled(n):
        return Step("settled", "", mad, f"number {n} counts as settled")
    return Step("waiting", "", mad, f"number {n} is not settled")


async def _replied(
    wire: Wire, partition: int, command: str, sealed: SealedCopies | None
) -> list[Step]:
    kept = await wire.call("GET", key_names.ledger(partition, command))
    if sealed is not None:
        [kept] = await sealed.open_replies([command], [kept])
    if kept is None:
        return []
    mad = command.partition(":")[0]
    reply = unpack(kept, Reply)

    return [Step("replied", "", mad, f"{reply.code} {reply.message}".strip())]


async def _committed(
    wire: Wire, partition: int, command_id: str, sealed: SealedCopies | None
) -> list[Step]:
    async for record in outbox_records(wire, partition, sealed):
        for event in record.events:
            if event.command_id == command_id:
                at = event.at.isoformat() if event.at else ""
                place = f"version {event.version}, seq {event.seq}"
                detail = f"{event.kind} of {record.session} at {place}; not drained"
                return [Step("committed", at, event.principal, detail)]
    return []


async def _buried(access: BusAccess, partition: int, command_id: str) -> list[Step]:
    after: str | None = None
    for _ in range(LOOKED_AT // PAGE):
        page = await access.wire.call(
            *("XREVRANGE", key_names.dead(partition), after or "+", "-", "COUNT", PAGE)
        )
        for identifier, fields in page:
            named = dict(zip(fields[::2], fields[1::2], strict=True))
            letter = dead_letters.letter_of(named)
            if letter.envelope is not None and letter.envelope.id == command_id:
                at = bus_time(letter.at_ms).isoformat()
                detail = f"{letter.cause}: {letter.message} ({identifier.decode()})"
                return [Step("buried", at, letter.mad, detail)]
        if len(page) < PAGE:
            break
        after = f"({page[-1][0].decode()}"
    return []


request_app = typer.Typer(
    help="What became of a command. Example: everbus request show ID",
    no_args_is_help=True,
)
request_app.command()(show)


@request_app.callback()
def _group() -> None:
    """
    Keeps `show` a subcommand while it is the only one.
    """
