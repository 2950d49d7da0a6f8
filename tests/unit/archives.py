"""
A vault on a cold tier in memory, and sessions to put into it.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from prometheus_client import REGISTRY

from everbus.bus.errors import Unavailable
from everbus.bus.messages import TimelineEntry, pack
from everbus.gateway.store.cold.archives import Archive, Archives, Manifest
from everbus.gateway.store.cold.local import MemoryCold
from everbus.gateway.store.tiers import WarmSession
from tests.builders import NOW, a_session

A_CHUNK = 10
FAIL_POINTS = (
    "archive_chunk",
    "archive_document",
    "archive_manifest",
    "archive_verified",
)


class Killed(Exception):
    """
    Stands for the end of the process.
    """


class Cold(MemoryCold):
    """
    Memory that counts what is asked for, and can be told to fail.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.deletes_left = 10**9
        self.gate: asyncio.Event | None = None

    async def put(self, key: str, data: bytes) -> None:
        self.calls["put", key] += 1
        await super().put(key, data)

    async def get(self, key: str, limit: int) -> bytes | None:
        self.calls["get", key] += 1
        if self.gate is not None:
            await self.gate.wait()
        return await super().get(key, limit)

    async def delete(self, key: str) -> None:
        if self.deletes_left == 0:
            raise Unavailable("away")
        self.deletes_left -= 1
        await super().delete(key)


class Timeline:
    """
    The entries that the warm tier has, from *first* on; remembers what was read.
    """

    def __init__(self, entries: Sequence[bytes], first: int = 1) -> None:
        self.entries = entries
        self.first = first
        self.asked: list[tuple[int, int]] = []

    async def read(self, first: int, last: int) -> Sequence[bytes]:
        self.asked.append((first, last))
        assert first >= self.first, "no longer in the warm tier"
        return self.entries[first - self.first : last - self.first + 1]


def moment(seq: int) -> datetime:
    """
    Of entries 1, 2 and 3 the first minute, of 4, 5 and 6 the second.
    """
    return NOW + timedelta(minutes=(seq - 1) // 3)


def some_entries(first: int, last: int, text: str = "hi") -> list[bytes]:
    return [
        pack(TimelineEntry(seq, moment(seq), "fiedler", {"text": text, "n": seq}))
        for seq in range(first, last + 1)
    ]


def held(entries: int, **fields: Any) -> WarmSession:
    session = a_session(**{"last_seq": entries, "version": 3, "state": "dormant"})
    at = {name: fields.pop(name) for name in ("pointer", "through") if name in fields}

    return WarmSession(
        session=msgspec.structs.replace(session, **fields),
        full_context={"notes": ["a", {"b": 1.5}]},
        **at,
    )


async def archived(
    vault: Archives, there: WarmSession, entries: Sequence[bytes]
) -> Archive:
    return await vault.archive(there, Timeline(entries).read, lambda seq: None)


async def opened(vault: Archives, archive: Archive) -> Manifest:
    return await vault.open(archive.pointer, "s1", NOW)


async def everything(vault: Archives, archive: Archive) -> tuple[Any, list[bytes]]:
    manifest = await opened(vault, archive)

    return (
        await vault.document(manifest),
        await vault.entries(manifest, 1, manifest.last_seq),
    )


def alarms() -> float:
    """
    How many damaged objects were counted so far.
    """
    return REGISTRY.get_sample_value("everbus_cold_corrupted_total") or 0.0


def spoil(cold: MemoryCold, key: str, data: bytes | None) -> None:
    if data is None:
        del cold.objects[key]
    else:
        cold.objects[key] = data


def spoilt(name: str, data: bytes) -> bytes | None:
    middle = len(data) // 2
    kinds: dict[str, bytes | None] = {
        "missing": None,
        "empty": b"",
        "truncated": data[:-1],
        "longer": data + b"\0",
        "flipped first": bytes([data[0] ^ 1]) + data[1:],
        "flipped middle": data[:middle]
        + bytes([data[middle] ^ 1])
        + data[middle + 1 :],
        "flipped last": data[:-1] + bytes([data[-1] ^ 1]),
    }
    return kinds[name]
