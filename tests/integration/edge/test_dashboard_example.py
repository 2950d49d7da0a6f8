"""
The dashboard of the docs: its module follows a session at a real edge, in Node.js.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from everbus.compose.stack_folder import free_port
from tests.integration.edge.conftest import WITHIN_S, House, a_token, fresh

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "dashboard"
ORIGIN = "http://localhost:8001"
# Prints each event and the state after it, one JSON a line.
FOLLOWING = """
import { follow, patched } from "./follow.mjs";

const { EDGE, SESSION, TOKEN } = process.env;
let state = {};
for await (const event of follow(EDGE, SESSION, TOKEN)) {
  state = patched(state, event.patch);
  console.log(JSON.stringify({ kind: event.kind, entry: event.entry, state }));
}
"""

pytestmark = pytest.mark.timeout(120)
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no node here")


def serving(house: House, port: int) -> AbstractAsyncContextManager[str]:
    """
    An edge that serves pages of ORIGIN.
    """
    return house.served(edge_port=port, edge_cors_origins=ORIGIN)


@asynccontextmanager
async def following(
    folder: Path, edge: str, session: str, token: str
) -> AsyncIterator[asyncio.StreamReader]:
    """
    A process that follows a session, and what it prints.
    """
    shutil.copy(EXAMPLE / "follow.mjs", folder)
    (folder / "following.mjs").write_text(FOLLOWING)
    process = await asyncio.create_subprocess_exec(
        *("node", "following.mjs"),
        cwd=folder,
        env={**os.environ, "EDGE": edge, "SESSION": session, "TOKEN": token},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield process.stdout
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@needs_node
@pytest.mark.asyncio(loop_scope="module")
async def test_it_follows_a_session_through_restarts_of_the_edge(house, tmp_path):
    """
    It begins while no edge is there, and goes on at the next one where it was.
    """
    ada, port = fresh("ada"), free_port()
    token = a_token(ada)
    headers = {"Authorization": f"Bearer {token}"}
    seen: list[dict[str, Any]] = []

    async with (
        asyncio.timeout(60),
        httpx.AsyncClient(timeout=WITHIN_S, headers=headers) as client,
    ):
        async with serving(house, port) as edge:
            made = (await client.post(f"{edge}/sessions", json={"user_id": ada})).json()
            session = f"{edge}/sessions/{made['id']}"
            await client.post(f"{session}/timeline", json={"entry": {"n": 1}})
        async with following(tmp_path, edge, made["id"], token) as printed:
            async with serving(house, port):
                seen += [json.loads(await printed.readline()) for _ in range(2)]
            async with serving(house, port):
                change = {"context_summary": {"topic": "tides"}}
                await client.patch(session, json={"patch": change})
                await client.post(f"{session}/timeline", json={"entry": {"n": 2}})
                seen += [json.loads(await printed.readline()) for _ in range(2)]
                await client.delete(session)
                seen += [json.loads(line) async for line in printed]

    assert [(one["kind"], one.get("entry")) for one in seen] == [
        ("session.created", None),
        ("timeline.appended", {"n": 1}),
        ("session.updated", None),
        ("timeline.appended", {"n": 2}),
        ("session.deleted", None),
    ]
    assert seen[2]["state"]["context_summary"] == {"topic": "tides"}
    assert seen[2]["state"]["owner_id"] == ada


@pytest.mark.asyncio(loop_scope="module")
async def test_an_edge_lets_a_page_of_a_named_origin_follow(house):
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization",
    }

    async with serving(house, free_port()) as edge, httpx.AsyncClient() as client:
        allowed = await client.options(f"{edge}/sessions/s1/events", headers=asked)

    assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "authorization" in allowed.headers["Access-Control-Allow-Headers"].lower()


@needs_node
def test_the_script_of_the_page_runs_and_finds_its_elements(tmp_path):
    """
    Against a page that has the elements of this one, and no browser.
    """
    page = (EXAMPLE / "dashboard.html").read_text()
    [script] = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    there = [*re.findall(r'id="(\w+)"', page), *re.findall(r"<(form)>", page)]
    shutil.copy(EXAMPLE / "follow.mjs", tmp_path)
    (tmp_path / "page.mjs").write_text(
        f"const there = {json.dumps(there)};\n"
        "globalThis.document = { querySelector: (name) => "
        "there.includes(name.replace('#', '')) ? new EventTarget() : null };\n"
        "const asked = document.querySelector; let missed = 0;\n"
        "document.querySelector = (name) => asked(name) ?? (missed += 1);\n"
        f"{script}\nconsole.log(missed);"
    )

    run = subprocess.run(
        ["node", "page.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (run.stdout, run.stderr) == ("0\n", "")
