"""
`everbus replay` on a real stack, and how the roles refuse to start.
"""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio

from everbus.bus import connect
from everbus.compose.recordings import Recording, read_recordings, roles_of
from everbus.compose.replay import replay, tokens_for
from everbus.compose.settings import load_settings
from everbus.compose.stack import EmbeddedStack
from tests.processes import PIPE, start_python
from tests.servers import inherited, valkey

HOUSE = Path(__file__).parent.parent.parent
CONVERSATIONS = 10
# More than the hot tier holds, so that reading back reaches MongoDB.
MESSAGES = 30
TURNS = ("user", "assistant", "tool", "tool", "assistant")
SECRET = "0123456789abcdef" * 4
NOWHERE = "redis://127.0.0.1:1"

on_it = pytest.mark.asyncio(loop_scope="module")


def a_message(conversation, n):
    return {"role": TURNS[n % len(TURNS)], "content": f"{conversation}/{n}", "n": n}


def a_file(folder):
    path = folder / "conversations.jsonl"
    with path.open("w") as lines:
        for c in range(CONVERSATIONS):
            messages = [a_message(c, n) for n in range(MESSAGES)]
            line = {"conversation_id": f"c{c}", "user_id": "ada", "messages": messages}
            lines.write(json.dumps(line) + "\n")
    return path


async def everbus(*arguments, **settings):
    """
    Runs the command as a user would; returns exit code, stdout and stderr.
    """
    process = await start_python(
        *("-m", "everbus", *map(str, arguments)),
        env=inherited() | settings,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(50):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def a_stack(folder, managers):
    async with EmbeddedStack(folder / "s", managers=managers) as stack:
        yield stack, load_settings(stack.environment())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory):
    """
    One manager and all that it needs, for the tests that break nothing.
    """
    async with a_stack(tmp_path_factory.mktemp("replay"), managers=1) as (made, _):
        yield made


@on_it
async def test_a_replay_is_clean_again_and_again(stack, tmp_path):
    """
    Two runs of one file do not collide; JSON goes to stdout, and only JSON.
    """
    path = a_file(tmp_path)
    code, out, err = await everbus("replay", path, **stack.environment())
    settings = stack.environment() | {"EVERBUS_LOG_LEVEL": "debug"}
    again, told, _ = await everbus("replay", path, "-o", "json", **settings)

    assert (code, again) == (0, 0), err
    assert "300" in out
    assert "out of order" in out
    report = json.loads(told)
    assert (report["conversations"], report["messages"]) == (CONVERSATIONS, 300)
    assert (report["lost"], report["violations"]) == (0, [])


@on_it
async def test_a_token_of_an_admin_does_without_the_secret(stack, tmp_path):
    settings = stack.environment() | {"EVERBUS_JWT_SECRET": ""}
    code, _, err = await everbus("replay", a_file(tmp_path), **settings)

    assert code == 0, err


@pytest.mark.campaign  # tests/chaos has the same, longer, in every run
async def test_replicas_that_are_killed_lose_nothing(tmp_path):
    """
    Killed one after the other, while many conversations are under way.
    """
    async with a_stack(tmp_path, managers=2) as (stack, settings):
        recordings = read_recordings(a_file(tmp_path), "x")
        tokens = tokens_for(settings, roles_of(recordings))
        playing = asyncio.create_task(
            replay(recordings, settings.redis_url, tokens, rate=75)
        )
        for name in ("manager-1", "manager-2"):
            await asyncio.sleep(1.0)
            assert not playing.done()
            await stack.kill(name)
        report = await playing

    assert report.violations == ()
    assert report.seconds > 300 / 75 * 0.9


@on_it
async def test_what_others_append_is_found(stack):
    """
    The comparison reads what is in the tiers, not what was sent.
    """
    begun = asyncio.Event()
    settings = load_settings(stack.environment())
    recording = Recording("c", "ada", "c-1", (a_message("c", 0), a_message("c", 1)))
    tokens = tokens_for(settings, recording.roles)
    admin = stack.environment()["EVERBUS_TOKEN"]
    async with connect(settings.redis_url, mad="forger", token=admin) as forger:
        replaying = asyncio.create_task(
            replay(
                *([recording], settings.redis_url, tokens),
                rate=0.5,
                progress=lambda _, __: begun.set(),
            )
        )
        await begun.wait()
        await forger.append_and_wait("c-1", recording.messages[1])
        report = await replaying

    assert [one.kind for one in report.violations] == ["unequal", "doubled"]


async def test_a_bus_that_is_away_ends_with_3(tmp_path):
    path = a_file(tmp_path)

    code, out, err = await everbus(
        "replay", path, EVERBUS_REDIS_URL=NOWHERE, EVERBUS_JWT_SECRET=SECRET
    )

    assert (code, out) == (3, "")
    assert "Traceback" not in err


async def test_a_replay_without_a_token_gives_the_remedy(tmp_path):
    code, out, err = await everbus("replay", a_file(tmp_path))

    assert (code, out) == (2, "")
    assert "EVERBUS_JWT_SECRET nor EVERBUS_TOKEN" in err
    assert ". .everbus/env" in err


async def test_a_manager_without_a_key_gives_the_remedy(tmp_path):
    async with valkey(tmp_path) as server:
        code, _, err = await everbus("manager", EVERBUS_REDIS_URL=server.url)

    assert code == 2
    assert "Set EVERBUS_JWT_SECRET" in err
    assert "Traceback" not in err


async def test_an_archiver_without_mongodb_gives_the_remedy():
    code, _, err = await everbus("archiver", EVERBUS_REDIS_URL=NOWHERE)

    assert code == 2
    assert "EVERBUS_MONGO_URL is not set" in err


async def test_a_role_without_a_bus_ends_with_3():
    settings = {"EVERBUS_REDIS_URL": NOWHERE, "EVERBUS_JWT_SECRET": SECRET}
    mongo = {"EVERBUS_MONGO_URL": "mongodb://127.0.0.1:1"}

    ended = [
        await everbus("manager", **settings),
        await everbus("archiver", **settings, **mongo),
    ]

    assert [code for code, _, _ in ended] == [3, 3]
    assert not any("Traceback" in err for _, _, err in ended)


async def test_a_manager_for_another_number_of_partitions_ends_with_5(tmp_path):
    async with valkey(tmp_path) as server:
        async with redis.asyncio.from_url(server.url) as client:
            await client.hset("eb:config", mapping={"partitions": 4, "schema": 1})
        code, _, err = await everbus(
            "manager", EVERBUS_REDIS_URL=server.url, EVERBUS_JWT_SECRET=SECRET
        )

    assert code == 5
    assert "set EVERBUS_PARTITIONS=4" in err
