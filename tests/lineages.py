"""
Lineages that tests begin by hand: an old one, or one of another server.
"""

from collections.abc import Sequence
from typing import Any

from everbus.bus.errors import EverbusError
from everbus.bus.messages import Session
from everbus.gateway.store import key_names
from everbus.gateway.store.claims import Claim
from everbus.gateway.store.reader import Claimant, Reader

LINEAGE = 1_000


async def lost_nothing(client: Any, partition: int, since_ms: int = 1) -> None:
    """
    Let the bus say that this partition has lost nothing since then.

    Else even new ids would be looked for in MongoDB, for a minute.
    """
    # Not by the client's own INFO, which makes numbers of hexadecimal digits.
    told = await client.eval("return redis.call('INFO')", 0)
    text = told if isinstance(told, str) else told.decode()
    info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {
        "lineage": LINEAGE,
        "run": info["run_id"],
        "former": info["master_replid2"],
        "since": since_ms,
        "clock": since_ms,
    }
    await client.hset(key_names.lineage(partition), mapping=fields)


async def lost_writes(client: Any, partition: int) -> None:
    """
    Let the lineage be that of another server: the next lane begins a new one.
    """
    await client.hset(key_names.lineage(partition), "run", "another")


async def loaded(
    reader: Reader, session_ids: Sequence[str]
) -> dict[str, Session | EverbusError | None]:
    """
    What *reader* gives of these sessions, claimed under LINEAGE.
    """
    found: dict[str, Claimant] = {}
    claims = [Claim(session=session_id, lineage=LINEAGE) for session_id in session_ids]
    await reader.load_each(claims, found.__setitem__)

    return {
        session_id: one if isinstance(one, EverbusError) else one.session
        for session_id, one in found.items()
    }
