"""
A worker that goes offline and comes back: what it noted meanwhile is applied once.

It shows how to
- keep appends in a file while the bus is away, also over a SIGKILL of this process;
- start while the bus is away, once the spool has met its bus;
- hear of an append that was refused after it was accepted here.

Run it: start `everbus dev`. Then, in another terminal:

    set -a; . .everbus/env; set +a
    everbus session create ada
    python worker.py SESSION

Each line that you type becomes an entry. Stop `everbus dev`, type on, kill the worker,
start `everbus dev` and the worker again: `everbus timeline SESSION` shows every line.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator

import everbus

log = logging.getLogger("worker")

SPOOL = "worker.db"
# A full spool is no loss: nothing more is accepted until the bus has taken some.
FULL_PAUSE_S = 1.0


def on_refused(refused: everbus.RefusedCommand) -> None:
    """
    Report an entry that is in the spool no more and in no timeline.
    """
    log.error("refused: %s: %s", refused.code, refused.message)


async def note_all(
    mad: everbus.Mad, session_id: str, notes: AsyncIterator[str]
) -> None:
    """
    Append each note; it is on the disk when "kept" is printed.
    """
    async for text in notes:
        await note(mad, session_id, text)
        print("kept", text, flush=True)


async def note(mad: everbus.Mad, session_id: str, text: str) -> None:
    """
    Append *text*, when there is room for it.
    """
    while True:
        try:
            mad.append(session_id, {"note": text})
        except everbus.Overloaded:
            await asyncio.sleep(FULL_PAUSE_S)
        else:
            return


async def typed_lines() -> AsyncIterator[str]:
    """
    The lines of stdin, until its end.
    """
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield line.strip()


async def main(session_id: str) -> None:
    """
    Note what is typed; at the end, what could not be sent stays in the spool.
    """
    async with everbus.connect(mad="worker", spool=SPOOL, on_refused=on_refused) as mad:
        await note_all(mad, session_id, typed_lines())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
