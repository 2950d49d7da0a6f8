"""
A MAD that is killed while it appends, again and again, on one spool.

It says each number when `append()` has returned for it. In the timeline is every
number it said, once and in order, whatever instant it died at and whether or not
the bus was there.
"""

import asyncio
import os
import random
import sqlite3

import pytest

from everbus.bus import connect
from everbus.bus.spool import Spool
from tests.integration.conftest import Bus, a_replica, a_token, in_order
from tests.processes import PIPE, start_python
from tests.servers import inherited, valkey

LIVES = 4
# About as long as one life lasts, in appends.
MOST_APPENDS = 400
PAYLOAD = "x" * 200

MAD = """
import asyncio, os, sys
from everbus.bus import connect

url, token, path, session, life, most = sys.argv[1:]

async def main():
    async with connect(
        url, mad="mortal", token=token, spool=path, timeout=2
    ) as mad:
        os.write(1, b"ready\\n")
        sys.stdin.readline()
        for n in range(int(most)):
            mad.append(session, [int(life), n, "PAYLOAD"])
            os.write(1, b"%d\\n" % n)
            if n % 8 == 0:
                await asyncio.sleep(0)
        await mad.flush(timeout=20)

asyncio.run(main())
""".replace("PAYLOAD", PAYLOAD)


class Mortal:
    """
    One process of the MAD.

    Attributes:
        said: how many appends had returned, by what it told.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.said = 0
        self._process = process

    @classmethod
    async def begin(cls, bus: Bus, path: str, session: str, *, life: int, most: int):
        process = await start_python(
            *("-c", MAD, bus.url, a_token("mortal"), path),
            *(session, str(life), str(most)),
            env=inherited(),
            stdin=PIPE,
            stdout=PIPE,
        )
        made = cls(process)
        while await made._line() != b"ready\n":
            pass
        return made

    def go(self) -> None:
        self._process.stdin.write(b"\n")

    async def killed_at(self, count: int) -> None:
        """
        SIGKILL as soon as it has said *count* numbers; then what it said besides.
        """
        while self.said < count:
            await self._hear(await self._line())
        self._process.kill()
        assert await self._process.wait() == -9
        for line in (await self._process.stdout.read()).splitlines():
            await self._hear(line)

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            self._process.stdin.close()
            for line in (await self._process.stdout.read()).splitlines():
                await self._hear(line)
            return await self._process.wait()

    async def _line(self) -> bytes:
        async with asyncio.timeout(15):
            line = await self._process.stdout.readline()
        assert line, "it ended by itself"
        return line

    async def _hear(self, line: bytes) -> None:
        # Logs of the SDK come between.
        if line.strip().isdigit():
            assert int(line) == self.said
            self.said += 1


def waiting_in(path: str) -> int:
    with sqlite3.connect(path) as db:
        [count] = db.execute("SELECT count(*) FROM waiting").fetchone()
    db.close()
    return int(count)


@pytest.mark.parametrize("bus_there", [False, True])
async def test_what_append_returned_for_is_there_once_and_in_order(tmp_path, bus_there):
    seed = int(os.environ.get("EVERBUS_SEED", random.randrange(10**6)))
    print("EVERBUS_SEED", seed)  # noqa: T201 - to do it again
    chance = random.Random(seed)
    path = str(tmp_path / "mortal.spool")
    async with valkey(tmp_path, aof=True) as server:
        made = Bus(server)
        async with made.client, a_replica(server.url, "one"):
            await made.until_served()
            session = await a_session(made, path)
            said, left = [], 0
            if not bus_there:
                await server.kill()
            for life in range(LIVES):
                one = await Mortal.begin(
                    made, path, session, life=life, most=MOST_APPENDS * 10
                )
                one.go()
                await one.killed_at(chance.randrange(1, MOST_APPENDS))
                said.append(one.said)
                left += waiting_in(path)
                if not bus_there:
                    assert waiting_in(path) >= sum(said)
            assert left > 0, "the spool was not needed"
            if not bus_there:
                await server.restart()
                await made.client.connection_pool.disconnect()
            last = await Mortal.begin(made, path, session, life=LIVES, most=50)
            last.go()
            assert await last.ended() == 0
            said.append(last.said)
            await made.until_settled("mortal")

            entries = in_order(await made.entries(session), "mortal")
            letters = await made.letters("mortal")

    heard = [[n for life, n, _ in entries if life == one] for one in range(LIVES + 1)]
    assert [life for life, _, _ in entries] == sorted(life for life, _, _ in entries)
    for count, numbers in zip(said, heard, strict=True):
        # The last append may have been kept without having returned.
        assert numbers in ([*range(count)], [*range(count + 1)])
    assert heard[-1] == [*range(50)]
    assert letters == []
    with_it = Spool.open(path, "mortal")
    assert with_it.count == 0
    with_it.close()


async def a_session(bus: Bus, path: str) -> str:
    """
    A session; and the spool has met the bus, so that it can begin without it.
    """
    token = a_token("mortal")
    async with connect(bus.url, mad="mortal", token=token, spool=path) as mad:
        return (await mad.create_session("mortal")).id
