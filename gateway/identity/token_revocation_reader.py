"""
The list of revoked tokens on the bus: how it is read, again and again.

Each process asks every second for the list's version, one field of a hash, and for the
list when that has changed. No message is needed, so none can be lost.
"""

import asyncio
import secrets
import time
from collections.abc import Mapping

import msgspec
import structlog
from redis.exceptions import ResponseError

from everbus.bus.cluster_wire import wire_to
from everbus.bus.errors import EverbusError, Unavailable
from everbus.bus.wire import Argument, Wire
from everbus.gateway.identity.token_revocations import (
    LIST,
    UNREAD_S,
    VERSION,
    TokenRevocation,
    TokenRevocations,
)
from everbus.gateway.telemetry.metrics import REVOKED, REVOKED_UNREAD

log = structlog.get_logger()

EVERY_S = 1.0
# With the interval less than the 5 s within which a revocation is heard of.
TIMEOUT_S = 2.0

_revocation = msgspec.json.Decoder(TokenRevocation)


class TokenRevocationReader:
    """
    Keeps a process's copy of the list up to date.
    """

    def __init__(
        self, url: str, revocations: TokenRevocations, *, restores: bool = False
    ) -> None:
        """
        Read for *revocations*; nothing is sent before `read` or `run`.

        *restores*: write entries again that the bus has lost, with a failover or all
        its data; for processes that may write the list.
        """
        self._wire = wire_to(url, name="everbus-revoked")
        self._revocations = revocations
        self._restores = restores
        self._version: bytes | None = b"never read"
        self._trouble = ""

    async def run(self) -> None:
        """
        Read every second until cancelled.
        """
        try:
            while True:
                began = time.monotonic()
                await self.read()
                await asyncio.sleep(max(0.0, EVERY_S - (time.monotonic() - began)))
        finally:
            await self.close()

    async def close(self) -> None:
        """
        Close the connection.
        """
        await self._wire.close()

    async def read(self) -> bool:
        """
        Read the list if it has changed; returns whether the bus let us.
        """
        trouble = ""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._read()
        except (EverbusError, ResponseError, TimeoutError) as error:
            trouble = str(error) or "no answer"
        self._report(trouble)

        return not trouble

    async def _read(self) -> None:
        version = await self._wire.call("HGET", LIST, VERSION, timeout_s=TIMEOUT_S)
        known = self._revocations
        if version == self._version and (version is not None or not known.kept()):
            known.note_read()
            return
        lacks = known.heard(await read_list(self._wire))
        self._version = version
        if lacks and self._restores:
            await self._wire.call("HSET", LIST, *written(known.kept()))
            log.warning("revocations.restored", count=len(known))

    def _report(self, trouble: str) -> None:
        known = self._revocations
        REVOKED.set(len(known))
        REVOKED_UNREAD.set(min(known.unread_s, 1e9) if trouble else 0)
        if trouble and not self._trouble:
            log.warning("revocations.unread", reason=trouble)
        elif self._trouble and not trouble:
            log.info("revocations.read_again")
        self._trouble = trouble
        if known.unread_s > UNREAD_S:
            # Where that refuses tokens, their streams end.
            known.notify()


async def read_list(wire: Wire) -> dict[str, TokenRevocation]:
    """
    The entries on the bus by their fields; what does not decode is left out.

    Raises:
        EverbusError: the bus is away, or refuses.
    """
    pairs = await wire.call("HGETALL", LIST, timeout_s=TIMEOUT_S)
    found: dict[str, TokenRevocation] = {}
    for field, value in zip(pairs[::2], pairs[1::2], strict=True):
        if field == VERSION.encode():
            continue
        try:
            found[field.decode()] = _revocation.decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            log.exception("revocations.undecodable", field=ascii(field)[:80])
    return found


def written(entries: Mapping[str, TokenRevocation]) -> list[Argument]:
    """
    Fields and values of one HSET that writes *entries*, the new version among them.
    """
    pairs: list[Argument] = [VERSION, secrets.token_hex(8)]
    for field, one in entries.items():
        pairs += [field, msgspec.json.encode(one)]

    return pairs


async def read_at_start(
    reader: TokenRevocationReader, revocations: TokenRevocations
) -> None:
    """
    Read the list before the first token is judged.

    Raises:
        Unavailable: it cannot be read, and that refuses all tokens.
    """
    if not await reader.read() and revocations:
        raise Unavailable(
            "the list of revoked tokens cannot be read, and EVERBUS_REVOKED_UNREAD is "
            "closed; see the log's revocations.unread"
        )
