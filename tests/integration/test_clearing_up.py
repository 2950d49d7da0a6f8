"""
By age sessions go from every tier; a dry run changes nothing.

On Valkey, SecantusDB and nanio, through the SDK; the archiver is in the test's hands,
so that what a test says happens first has happened.
"""

import asyncio
import json
import signal
from datetime import timedelta

import pytest

from everbus.bus import NotFound
from tests.conversations import Conversation
from tests.processes import PIPE, start_python
from tests.servers import inherited
from tests.stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARCHIVE = "from everbus.compose.cli import main; main()"


class TestClearingUp:
    async def test_by_age_it_goes_from_every_tier(self, stack):
        async with stack.served() as (mad, hands), hands.draining():
            cold = await stack.archived(mad, hands, purged=False)
            back = await stack.archived(mad, hands)
            await back.check()
            warm = await Conversation.begin(mad)
            await warm.say(30)
            await warm.suspend()
            await stack.drained()
            limit = (await stack.document(warm.id))["last_active"]
            young = await Conversation.begin(mad)
            await young.say(3)
            await stack.drained()
            assert stack.objects(cold.id)
            assert stack.objects(back.id)

            retired = await hands.retirement.run(limit + timedelta(milliseconds=1))
            await stack.drained()
            await hands.upkeep.remove()

            assert retired == 3
            for gone in (cold, back, warm):
                with pytest.raises(NotFound):
                    await mad.get_session(gone.id)
                assert not await stack.is_hot(gone.id)
                assert await stack.entries_in(gone.id) == 0
                assert stack.objects(gone.id) == []
                for kept in ("events", "snapshots", "checkpoints"):
                    of = {"session": gone.id}
                    assert await stack.held[kept].count_documents(of) == 0
            await young.check()

    async def test_a_dry_run_changes_nothing(self, stack):
        """
        By the command, as an operator runs it.
        """
        async with stack.served() as (mad, hands), hands.draining():
            one = await Conversation.begin(mad)
            await one.say(30)
            await one.suspend()
            await stack.until_cold(one.id)
            before = await everything(stack)

            told_ = await everbus(stack, "archive", "--idle-days", "0", "--dry-run")

            assert json.loads(told_)["archived"] == 1
            assert json.loads(told_)["entries"] == 30
            assert await everything(stack) == before
            assert stack.objects(one.id) == []

            told_ = await everbus(stack, "archive", "--idle-days", "0")
            assert json.loads(told_)["archived"] == 1
            assert (await stack.document(one.id))["archival_status"] == "S3"
            await one.check()


async def everbus(stack: Stack, *arguments: str) -> str:
    """
    What the command prints.
    """
    process = await start_python(
        *("-c", ARCHIVE, *arguments, "-o", "json"),
        env={**inherited(), **stack.environment()},
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(30):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == 0, errors.decode()

    return output.decode()


async def everything(stack: Stack) -> dict[str, list]:
    """
    All that MongoDB holds.
    """
    return {
        name: [d async for d in stack.held[name].find().sort("_id", 1)]
        for name in sorted(await stack.held.list_collection_names())
    }
