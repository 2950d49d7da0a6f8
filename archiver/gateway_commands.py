"""
The archiver's own commands: it asks the lanes, and changes no session itself.

They travel on the ingress of the MAD `gateway`. Only gateway processes may write to it,
so the commands carry no grant.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import structlog

from everbus.bus.errors import Defect, Unavailable
from everbus.bus.keys import GATEWAY
from everbus.bus.publisher import Publisher
from everbus.bus.reply_receiver import ReplyReceiver
from everbus.bus.requests import Requests
from everbus.handlers.commands import ArchiveSession, DeleteSession

log = structlog.get_logger()

# A reply comes when MongoDB holds the command's effect.
REPLY_TIMEOUT_S = 30.0
START_TIMEOUT_S = 10.0

_KINDS: dict[type[ArchiveSession | DeleteSession], str] = {
    ArchiveSession: "session.archive",
    DeleteSession: "session.delete",
}

# Asks the session's lane, and returns when MongoDB holds the effect; raises the
# refusal's own exception, ReplyTimeout, or Unavailable.
Send = Callable[[str, ArchiveSession | DeleteSession], Awaitable[None]]


@asynccontextmanager
async def gateway_commands(url: str, partitions: int) -> AsyncIterator[Send]:
    """
    A function that sends commands to the lanes of the bus at *url*, while the block
    runs.

    Raises:
        Unavailable: no subscription to the bus can be opened.
    """
    instance = uuid.uuid4().hex
    publisher = Publisher(url, GATEWAY, instance, partitions)
    replies = ReplyReceiver(url, GATEWAY, instance)
    requests = Requests(publisher, replies, partitions)

    async def send(session_id: str, body: ArchiveSession | DeleteSession) -> None:
        await requests.ask(
            _KINDS[type(body)],
            session_id,
            msgspec.structs.asdict(body),
            REPLY_TIMEOUT_S,
            durability="warm",
        )

    tasks = [asyncio.create_task(part.run()) for part in (publisher, replies)]
    for task in tasks:
        task.add_done_callback(partial(_ended, replies))
    try:
        await _started(replies)
        yield send
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _ended(replies: ReplyReceiver, task: asyncio.Task[None]) -> None:
    """
    Fail all requests after the publisher or the replies ended.
    """
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        log.error("commands.broken", exc_info=error)
    replies.fail(Defect(f"the archiver cannot ask any more: {error}"))


async def _started(replies: ReplyReceiver) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await replies.started()
    except TimeoutError as error:
        raise Unavailable("the bus answers, but no channel can be opened") from error
