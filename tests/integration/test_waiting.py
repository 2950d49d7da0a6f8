"""
Sessions that wait, and publishers that are first heard of meanwhile.
"""

import asyncio

import pytest

from everbus.bus import Defect
from everbus.handlers.routes import HANDLERS, update_session
from tests.commit_log import CommitLog
from tests.replicas import a_client, a_mad, replica_here, settled, until
from tests.servers import valkey


async def test_a_new_publisher_loses_nothing_that_has_to_wait(tmp_path):
    """
    Its first command joins a session that waits; its second, of another session,
    is settled first. That must not make the first look as if it were settled.
    """
    tried: list[str] = []

    def defective(session, command, now):
        if "work_in_progress" not in command.body.patch:
            return update_session(session, command, now)
        tried.append(command.id)
        raise ZeroDivisionError("a defect of ours")

    ordinary = HANDLERS["session.update"]
    routes = {**HANDLERS, "session.update": ordinary._replace(handler=defective)}
    async with (
        valkey(tmp_path) as server,
        a_client(server.url) as client,
        replica_here(server.url, routes=routes, partitions=1),
        a_mad(server.url) as old,
        a_mad(server.url, "second") as new,
    ):
        ill, well = [(await old.create_session("ada")).id for _ in range(2)]
        broken = asyncio.create_task(old.update_session(ill, {"work_in_progress": {}}))
        await until(lambda: tried)

        new.append(ill, {"n": 1})
        new.append(well, {"n": 2})
        with pytest.raises(Defect):
            await broken
        await settled(client)

        log = await CommitLog.read(client, 1)
        pages = [await new.timeline(session) for session in (ill, well)]

    assert [[e.entry for e in page.entries] for page in pages] == [
        [{"n": 1}],
        [{"n": 2}],
    ]
    log.check()
