"""
The bus of compose.yaml, for real: its configuration, its users, the script's secrets.

The wheel's Valkey runs it; of the container there is only the folder that is missing.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError
from typer.testing import CliRunner

from everbus.bus.wire import Wire
from everbus.compose.cli import app
from everbus.compose.processes import ProcessSpec, RunningProcess, start
from everbus.compose.servers import valkey_program
from everbus.compose.settings import load_settings
from everbus.compose.stack_folder import free_port
from everbus.gateway.health.server_report import COMMANDS, server_of, weaknesses
from tests.servers import inherited
from tests.unit.deployment.manifests import COMPOSE, loaded

(STACK,) = loaded(COMPOSE / "compose.yaml")
ROLES = ("manager", "archiver", "edge")

Address = Callable[[str], str]


def run_script(folder: Path, everbus: Path) -> None:
    """
    Have the script make the secrets in *folder*.
    """
    own = {"EVERBUS": f"sh {everbus}", "EVERBUS_SECRETS": str(folder)}
    ran = subprocess.run(
        ["sh", str(COMPOSE / "secrets.sh")],
        env=inherited() | own,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def everbus(tmp_path_factory) -> Path:
    """
    A stand-in that prints what `everbus acl --role ROLE` does, without its start.
    """
    folder = tmp_path_factory.mktemp("everbus")
    for role in ROLES:
        ran = CliRunner().invoke(app, ["acl", "--role", role])
        assert ran.exit_code == 0, ran.output
        (folder / role).write_text(ran.stdout)
    script = folder / "everbus"
    script.write_text(f'[ "$1 $2" = "acl --role" ] && cat "{folder}/$3"\n')

    return script


@pytest.fixture(scope="module")
def secrets(tmp_path_factory, everbus) -> Path:
    folder = tmp_path_factory.mktemp("compose") / "secrets"
    run_script(folder, everbus)

    return folder


@pytest.fixture
async def address(secrets, tmp_path) -> AsyncIterator[Address]:
    """
    What gives the URL of a user of the running bus.
    """
    data, port = tmp_path / "data", free_port()
    data.mkdir()
    (data / "users.acl").write_text((secrets / "users_acl").read_text())
    said = (COMPOSE / "valkey/valkey.conf").read_text()
    assert said.count("/data") == 2
    said = said.replace("/data", str(data)).replace("port 6379", f"port {port}")
    config = tmp_path / "valkey.conf"
    config.write_text(f"{said}\nbind 127.0.0.1\n")
    server = ProcessSpec(
        name="bus",
        data=tmp_path,
        argv=(valkey_program(), str(config)),
        env={"PATH": os.environ["PATH"]},
        ready=_accepts,
        port=port,
    )
    running = await start(server)
    host = {"operator": "127.0.0.1:6379"}

    def address(user: str) -> str:
        url = (secrets / f"{user}_redis_url").read_text()
        return url.replace(host.get(user, "bus:6379"), f"127.0.0.1:{port}")

    try:
        yield address
    finally:
        await running.stop()


async def _accepts(running: RunningProcess) -> bool:
    return "Ready to accept connections" in running.output()


def test_the_script_makes_every_secret_that_compose_mounts(secrets):
    made = {path.name for path in secrets.iterdir()}

    assert set(STACK["secrets"]) <= made
    assert all((secrets / name).stat().st_size for name in made)
    # Nobody else on the machine comes in, and in there the containers can read.
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert {(secrets / name).stat().st_mode & 0o777 for name in made} == {0o644}


def test_no_two_secrets_are_the_same(secrets):
    told = [path.read_text() for path in secrets.iterdir()]

    assert len(set(told)) == len(told)


def test_run_again_the_script_changes_nothing(secrets, everbus):
    before = {path.name: path.read_text() for path in secrets.iterdir()}

    run_script(secrets, everbus)

    assert {path.name: path.read_text() for path in secrets.iterdir()} == before


def test_the_secrets_are_fit_for_the_settings(secrets):
    for name in ROLES:
        environment = STACK["services"][name]["environment"]
        files = {
            key: str(secrets / Path(value).name)
            for key, value in environment.items()
            if key.endswith("_FILE")
        }
        settings = load_settings(environment | files)

        assert f"everbus-{name}:" in settings.redis_url
        assert settings.mongo_url.endswith("replicaSet=everbus")


def test_the_s3_server_knows_the_keys_of_those_who_ask_it(secrets):
    known = {
        (key["accessKey"], key["secretKey"])
        for identity in json.loads((secrets / "s3_identities").read_text())[
            "identities"
        ]
        for key in identity["credentials"]
    }
    asking = set()
    for name in ROLES:
        environment = STACK["services"][name]["environment"]
        file = Path(environment["EVERBUS_S3_SECRET_KEY_FILE"]).name
        secret = (secrets / file).read_text()
        asking.add((environment["EVERBUS_S3_ACCESS_KEY"], secret))

    assert asking == known


async def test_the_bus_keeps_what_it_is_given_and_tells_of_expiry(address):
    """
    What a manager looks at before it serves, asked as the manager's own user.
    """
    wire = Wire(address("manager"), name="test")
    try:
        server = server_of(await wire.exchange(list(COMMANDS)))
    finally:
        await wire.close()

    assert server.persists
    assert not server.evicts
    assert server.notifies
    assert not [one for one in weaknesses(server) if one.unsafe]


async def test_nobody_comes_in_without_a_password(address):
    host = address("manager").partition("@")[2]
    async with Redis.from_url(f"redis://{host}") as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.ping()
    async with Redis.from_url(f"redis://everbus-manager:guessed@{host}") as guesser:
        with pytest.raises(AuthenticationError):
            await guesser.ping()


async def test_the_probe_can_ping_and_no_more(address):
    host = address("manager").partition("@")[2]
    async with Redis.from_url(f"redis://probe:none@{host}") as probe:
        assert await probe.ping()
        for command in (("GET", "eb:config"), ("INFO",), ("CLIENT", "LIST")):
            with pytest.raises(NoPermissionError):
                await probe.execute_command(*command)


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_comes_in_and_may_not_harm_the_server(address, role):
    async with Redis.from_url(address(role)) as client:
        assert await client.ping()
        for command in (("FLUSHALL",), ("CONFIG", "SET", "appendonly", "no")):
            with pytest.raises(NoPermissionError):
                await client.execute_command(*command)


async def test_the_edge_reads_no_session_past_the_managers(address):
    async with (
        Redis.from_url(address("manager")) as manager,
        Redis.from_url(address("edge")) as edge,
    ):
        await manager.hset("eb:{0}:session:s1", "fields", "private")
        for key in ("eb:{0}:session:s1", "eb:{0}:in:ada"):
            with pytest.raises(NoPermissionError):
                await edge.hgetall(key)
        with pytest.raises(NoPermissionError):
            await edge.xadd("eb:{0}:in:ada", {"as": "somebody else"})
        assert await edge.xadd("eb:{0}:in:edge", {"as": "itself"})


async def test_a_manager_may_listen_to_all_that_it_listens_to(address):
    """
    Patterns have to be allowed letter by letter: `&eb:*` does not allow `eb:token:*`.
    """
    patterns = (
        *("eb:token:*", "__keyevent@*__:expired"),
        "__keyspace@*__:eb:{mads}:lease:*",
    )
    async with Redis.from_url(address("manager")) as manager, manager.pubsub() as heard:
        for pattern in patterns:
            await heard.psubscribe(pattern)
            async with asyncio.timeout(5):
                told = await heard.get_message(timeout=5)
            assert told["type"] == "psubscribe"


async def test_a_mad_that_the_operator_lets_in_is_in_the_file_of_users(address):
    """
    `everbus mads add` saves its users, for which the server must own that file.
    """
    async with Redis.from_url(address("operator")) as operator:
        await operator.execute_command("ACL", "SETUSER", "ada", "on", ">x", "+ping")
        await operator.execute_command("ACL", "SAVE")
        told = await operator.config_get("aclfile")

    saved = await asyncio.to_thread(Path(told["aclfile"]).read_text)
    assert "user ada on" in saved
