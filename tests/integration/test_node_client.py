"""
The Node.js client of the docs: what it does on a bus, and through an outage of it.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from everbus.bus.wire import Wire
from everbus.compose.acl import mad_rules
from everbus.compose.bus_url import url_for_user
from everbus.compose.mad_users import set_user
from everbus.testing import TestBus
from tests.integration.conftest import a_replica, a_token
from tests.proxy import Proxy

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "node_client"
VECTORS = DOCS / "reference" / "vectors.json"
MAD, PASSWORD = "node", "of-this-test-only"
INSTALL_S = 60
WITHIN_S = 50
APPENDS = 6
# Appends one entry after the other, and tells of each; reads them all at the end, in a
# reply that is too large for the wake-up channel.
APPENDING = """
import { Mad } from "./client.mjs";

const { EVERBUS_REDIS_URL, EVERBUS_TOKEN, SESSION, APPENDS } = process.env;
const mad = await Mad.connect(EVERBUS_REDIS_URL, "node", EVERBUS_TOKEN);
for (let n = 1; n <= Number(APPENDS); n += 1) {
  const { seq } = await mad.append(SESSION, { n, text: "x".repeat(1000) });
  console.log(seq);
}
const { entries } = await mad.timeline(SESSION);
console.log(entries.length);
mad.close();
"""

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The example with its packages, which come from the configured index.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is not installed")
    made = tmp_path_factory.mktemp("node") / "client"
    strange = shutil.ignore_patterns("node_modules", "package-lock.json")
    shutil.copytree(EXAMPLE, made, ignore=strange)
    (made / "appending.mjs").write_text(APPENDING)
    quiet = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
    try:
        subprocess.run(
            ["npm", "install", *quiet],
            cwd=made,
            capture_output=True,
            check=True,
            timeout=INSTALL_S,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot install redis and @msgpack/msgpack: {error}")

    return made


def output_of(folder: Path, script: str, *arguments: str, **environment: str) -> str:
    """
    What a script prints; it ends well.
    """
    run = subprocess.run(
        ["node", script, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr

    return run.stdout


def conversation(output: str) -> list[str]:
    """
    What the demo prints, without the id of its session.
    """
    return [line for line in output.splitlines() if not line.startswith("session ")]


DEMO = [
    "appended 1",
    "appended 2",
    "read 1 node The moon pulls.",
    "read 2 node And the sun.",
    "event session.created ",
    "event timeline.appended The moon pulls.",
    "event timeline.appended And the sun.",
    "event timeline.appended Bye.",
]


def test_its_codec_agrees_with_the_test_vectors(folder):
    vectors = json.loads(VECTORS.read_text())
    counts = len(vectors["values"]), len(vectors["partitions"])

    printed = output_of(folder, "vectors.mjs", str(VECTORS))

    assert printed == f"agree {counts[0]} {counts[1]}\n"


def test_it_creates_appends_reads_and_watches(folder):
    with TestBus(partitions=16) as bus:
        printed = output_of(folder, "demo.mjs", **bus.environment(MAD))

    assert conversation(printed) == DEMO


@pytest.mark.parametrize("way", ["requests", "replies"])
async def test_cut_connections_lose_and_double_nothing(folder, way):
    """
    After each append the next bytes from or to the bus are lost, with their connection.
    """
    with TestBus() as bus:
        host, port = urlsplit(bus.url).hostname, urlsplit(bus.url).port
        async with (
            Proxy(host, port) as proxy,
            bus.connect(mad=MAD, lease=False) as reader,
        ):
            session = (await reader.create_session(MAD)).id
            environment = {
                **bus.environment(MAD),
                "EVERBUS_REDIS_URL": proxy.url(),
                "SESSION": session,
                "APPENDS": str(APPENDS),
            }
            seqs = []
            async with asyncio.timeout(WITHIN_S):
                async for line in printed_by(folder, "appending.mjs", environment):
                    seqs.append(int(line))
                    getattr(proxy, way).cut_after(0)
            page = await reader.timeline(session)

    assert proxy.connections_cut >= APPENDS - 1
    assert [one.entry["n"] for one in page.entries] == list(range(1, APPENDS + 1))
    assert seqs == [*range(1, APPENDS + 1), APPENDS]


async def printed_by(
    folder: Path, script: str, environment: dict[str, str]
) -> AsyncIterator[bytes]:
    """
    The lines of a script as it prints them; it ends well.
    """
    process = await asyncio.create_subprocess_exec(
        *("node", script),
        cwd=folder,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            yield line
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.asyncio(loop_scope="module")
async def test_it_works_under_the_user_of_a_mad(folder, bus):
    """
    On a real server, with the rights of a MAD and no more.
    """
    admin = Wire(bus.url)
    await bus.register(MAD)
    await set_user(admin, MAD, PASSWORD, mad_rules(MAD))
    await admin.close()
    environment = {
        "EVERBUS_REDIS_URL": url_for_user(bus.url, MAD, PASSWORD),
        "EVERBUS_TOKEN": a_token(MAD),
    }

    async with a_replica(bus.url, "one"):
        await bus.until_served()
        printed = await asyncio.to_thread(output_of, folder, "demo.mjs", **environment)

    assert conversation(printed) == DEMO


def test_a_bad_token_is_refused(folder):
    with TestBus() as bus:
        environment = {**bus.environment(MAD), "EVERBUS_TOKEN": "no.token.atall"}
        with pytest.raises(AssertionError, match="unauthenticated"):
            output_of(folder, "demo.mjs", **environment)
