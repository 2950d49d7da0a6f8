"""
What everbus does while a disk is full: refuse, wait, and take nothing for done.

No file of the server, or of the process, can grow: each writes as on a full disk.
"""

import asyncio
import signal
from functools import partial

import pytest
from pymongo.errors import PyMongoError
from redis.exceptions import ResponseError

from everbus.bus.errors import EverbusError
from everbus.compose.retried_calls import read_retrying
from everbus.compose.retried_calls import write_once as carried_out
from tests.conversations import Conversation
from tests.outages import archived_all, at_rest, served, told_to_prometheus, unconfirmed
from tests.processes import PIPE, start_python
from tests.replicas import settled, until
from tests.servers import inherited
from tests.stack import (
    Stack,
    fill_disk,
    free_disk,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

# `everbus archive` in a process whose files cannot grow, as on a full disk; what it
# prints goes through pipes.
NO_ROOM = """
import resource
import sys

from everbus.compose.cli import main

if sys.argv.pop() == "full":
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
main()
"""


class TestDiskFull:
    async def test_of_mongodb_hot_sessions_go_on_and_are_caught_up_with(self, stack):
        """
        WiredTiger panics for want of room, so the server is started again.
        """
        async with served(stack) as (mad, hands), hands.draining():
            one = await Conversation.begin(mad)
            await one.say(5)
            await stack.drained()
            fill_disk(stack.mongo)
            try:
                with pytest.raises(PyMongoError):
                    await stack.held["probe"].insert_one({"x": "x" * 10_000})
                await one.say(20)
                await one.change()
                await until(
                    lambda: told_to_prometheus("everbus_drain_failing_seconds") > 0
                )
                assert await unconfirmed(stack) > 0
            finally:
                free_disk(stack.mongo)
            await stack.mongo.kill()
            await stack.mongo.restart()

            await stack.drained()
            await stack.client.flushall()
            await one.check()

    @pytest.mark.parametrize("room_bytes", [0, 1])
    async def test_of_s3_nothing_is_taken_for_archived(self, stack, room_bytes):
        """
        With a byte of room nanio says that it has put an object, of which there is
        one byte: only reading back finds that out.
        """
        async with served(stack) as (mad, hands), hands.draining():
            one = await at_rest(stack, mad, 60)
            fill_disk(stack.s3, room_bytes)
            try:
                report = await hands.archive()
            finally:
                free_disk(stack.s3)

            assert (report.archived, report.failed) == (0, 1)
            await hands.upkeep.purge()
            document = await stack.document(one.id)
            assert document["archival_status"] == "ACTIVE"
            await until(partial(archived_all, stack, hands, [one]), 20)
            await hands.upkeep.purge()
            await one.check()

    async def test_of_a_folder_nothing_is_taken_for_archived(self, stack, tmp_path):
        folder = {"cold_store": "folder", "cold_folder": tmp_path / "cold"}
        async with (
            stack.manager(**folder),
            stack.mad() as mad,
            stack.hands(**folder) as hands,
            hands.draining(),
        ):
            one = await at_rest(stack, mad, 60)

            code, errors = await archive(stack, "full", **folder)
            assert code == 1
            assert "ulimit -f" in errors or "File too large" in errors
            assert (await stack.document(one.id))["archival_status"] == "ACTIVE"

            code, errors = await archive(stack, "roomy", **folder)
            assert code == 0, errors
            assert (await stack.document(one.id))["archival_status"] == "S3"
            await hands.upkeep.purge()
            await one.check()

    async def test_of_redis_writes_are_refused_and_none_that_was_told_is_lost(
        self, stack
    ):
        """
        Nor is any after it is killed, once there is room again.
        """
        async with served(stack) as (mad, _):
            one = await Conversation.begin(mad)
            await one.say(5)
            fill_disk(stack.bus)
            try:
                await until(partial(refused, stack), what="the server refuses writes")
                with pytest.raises(EverbusError):
                    await mad.append_and_wait(one.id, {"lost": True}, timeout=1)
                persistence = await stack.client.info("persistence")
                assert persistence["aof_last_write_status"] == "err"
            finally:
                free_disk(stack.bus)
            await until(partial(written, stack), what="there is room again")
            told_before = await read_retrying(partial(mad.get_session, one.id))
            await carried_out(mad, partial(mad.append_and_wait, one.id, {"n": "last"}))
            await settled(stack.client)
            await until(partial(written, stack), what="all is in the file")
            await stack.bus.kill()
            await stack.bus.restart()

            session = await read_retrying(partial(mad.get_session, one.id))
            entries = [e.entry for e in session.recent_timeline]
            assert told_before.last_seq >= 5
            assert entries[:5] == one.entries
            assert entries[-1] == {"n": "last"}


async def archive(stack: Stack, room: str, **settings: object) -> tuple[int, str]:
    """
    The exit code of `everbus archive`, and what it says to people.
    """
    process = await start_python(
        *("-c", NO_ROOM, "archive", "--idle-days", "0", room),
        env={**inherited(), **stack.environment(**settings)},
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(40):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
    assert process.returncode is not None

    return process.returncode, (output + errors).decode()


async def refused(stack: Stack) -> bool:
    try:
        await stack.client.set("probe", "x" * 1000)
    except ResponseError as error:
        return str(error).startswith("MISCONF")
    return False


async def written(stack: Stack) -> bool:
    persistence = await stack.client.info("persistence")
    pending = persistence.get("aof_buffer_length", 0)

    return persistence["aof_last_write_status"] == "ok" and pending == 0
