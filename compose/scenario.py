"""
The scenes of `everbus demo`: each does something, tells it, and checks it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial

import msgspec
import uuid_utils

from archiver.archiving import Report as Archived
from bus import Mad, Session, VersionConflict, connect, keys
from bus.codec import COMMAND_FIELD, pack, pack_envelope
from bus.messages import SCHEMA, Envelope
from bus.wire import Wire
from compose.archive_command import archive_once
from compose.findings import Report
from compose.mortal import WORK, mortal
from compose.patience import settled, told
from compose.recordings import Recording
from compose.replay import replay, tokens_for
from compose.settings import load_settings
from compose.stack import EmbeddedStack
from gateway.store import names
from gateway.store.hot import RedisHot
from gateway.store.scripts import load_scripts

CONVERSATIONS = 20
# More than the hot tier holds of a timeline, so that MongoDB is read as well.
MESSAGES = 25
RATE_PER_S = 100.0
COPIES = 3
RESTING_MESSAGES = 60
TAKEOVER_WITHIN_S = 30.0
LOST_WITHIN_S = 20.0
# The MAD that is killed.
MORTAL = "tool"
POLL_S = 0.02
# Who speaks, over and over; the tool answers twice in a row.
TURNS = ("user", "assistant", "tool", "tool", "assistant")

Say = Callable[[str], None]


class Scenario:
    """
    What is shown on one stack.
    """

    def __init__(self, stack: EmbeddedStack, lease_s: float, say: Say) -> None:
        self._stack = stack
        self._say = say
        settings = self._settings = load_settings(stack.environment())
        self._lease_s = lease_s
        self._url = settings.redis_url
        self._partitions = settings.partitions
        self._tokens = tokens_for(settings, (*dict.fromkeys(TURNS), "witness"))
        self._wire = Wire(self._url, name="everbus-demo")
        self._held = True

    async def run(self) -> bool:
        """
        Show all scenes; whether everything held.
        """
        try:
            async with AsyncExitStack() as mads:
                user, assistant, witness = [
                    await mads.enter_async_context(
                        connect(self._url, mad=name, token=self._tokens[name])
                    )
                    for name in ("user", "assistant", "witness")
                ]
                await self._a_replica_dies(witness)
                await self._two_write_at_once(user, assistant)
                await self._a_command_comes_again(user)
                await self._a_conversation_rests(user)
                await self._a_mad_dies(user)
        finally:
            await self._wire.close()

        return self._held

    async def _a_replica_dies(self, witness: Mad) -> None:
        recordings = list(conversations())
        total = sum(len(recording.messages) for recording in recordings)
        self._say("\n1. A replica dies in the middle of many conversations")
        self._say(
            f"   {len(recordings)} conversations of the MADs user, assistant and tool: "
            f"{total} messages, {RATE_PER_S:g} a second"
        )
        count = Counter[str]()
        due = asyncio.Event()

        def progress(phase: str, messages: int) -> None:
            count[phase] += messages
            if count["played"] >= total // 3:
                due.set()

        played = replay(recordings, self._url, self._tokens, RATE_PER_S, progress)
        try:
            async with asyncio.TaskGroup() as tasks:
                playing = tasks.create_task(played)
                await asyncio.wait_for(due.wait(), TAKEOVER_WITHIN_S)
                await self._kill_one(witness, count)
        except BaseExceptionGroup as group:
            # The group is how we work, no affair of the caller's.
            raise group.exceptions[0] from None
        self._judge(playing.result())

    async def _kill_one(self, witness: Mad, count: Counter[str]) -> None:
        """
        Kill the replica with the most lanes, and time the next commit there.
        """
        before = await self._owners()
        lanes = Counter(map(_name, before.values()))
        [(victim, served)] = lanes.most_common(1)
        lost = {lane: owner for lane, owner in before.items() if _name(owner) == victim}
        probe = next(_ids_in(set(lost), self._partitions))
        await settled(witness, partial(witness.create_session, "ada", session_id=probe))
        pid = self._stack.pid(victim)
        self._say(
            f"   after {count['played']} messages: kill -9 {pid}, which is {victim} "
            f"and serves {served} of {self._partitions} lanes"
        )
        await self._stack.kill(victim)
        killed = time.monotonic()
        await settled(witness, partial(witness.append_and_wait, probe, {"alive": True}))
        took_s = time.monotonic() - killed
        heirs = Counter(map(_name, (await self._moved(lost)).values()))
        await self._stack.until_ready(victim)
        reborn = {victim: f"{victim}, started again as pid {self._stack.pid(victim)}"}
        to = ", ".join(f"{n} to {reborn.get(heir, heir)}" for heir, n in heirs.items())
        self._say(f"   {len(lost)} lanes moved: {to}")
        self._say(f"   {took_s:.2f} s after its death its lanes commit again")

    def _judge(self, report: Report) -> None:
        found = report.summary()
        there = report.messages - int(found["missing"])
        self._check(
            report.clean,
            f"{there} of {report.messages} messages are there, read back from Valkey "
            f"and MongoDB:\n   {found['missing']} missing, {found['doubled']} doubled, "
            f"{found['out_of_order']} out of order, {found['differing']} differing",
        )
        for finding in report.findings[:5]:
            self._say(f"   {finding}")

    async def _two_write_at_once(self, user: Mad, assistant: Mad) -> None:
        self._say("\n2. Two MADs change what they have read at the same version")
        session = await user.create_session("ada")
        session = await user.add_participant(session.id, assistant.name)
        seen = session.version
        change = partial(user.update_session, session.id)
        after = await change(
            {"context_summary": {"topic": "tides"}}, expected_version=seen
        )
        self._say(f"   user: expected version {seen}, now it is {after.version}")
        patch = {"context_summary": {"mood": "calm"}}
        change = partial(assistant.update_session, session.id, patch)
        try:
            await change(expected_version=seen)
        except VersionConflict as conflict:
            self._say(f"   assistant: expected version {seen}: {conflict.code}")
            current = conflict.current_version
        else:
            current = 0
        last = await change(expected_version=current or None)
        self._say(f"   assistant: reads anew, expects {current}, now {last.version}")
        both = last.context_summary == {"topic": "tides", "mood": "calm"}
        self._check(
            both and current == after.version and last.version == seen + 2,
            f"no change was overwritten: {last.context_summary}",
        )

    async def _a_command_comes_again(self, user: Mad) -> None:
        self._say("\n3. The same command is sent again, as after a lost connection")
        session = await user.create_session("ada")
        partition = keys.partition_of(session.id, self._partitions)
        envelope = Envelope(
            v=SCHEMA,
            id=f"demo-{uuid_utils.uuid7()}",
            kind="timeline.append",
            session=session.id,
            body=msgspec.Raw(pack({"entry": {"role": "user", "text": "once"}})),
            grant=user.grant,
        )
        fields = (COMMAND_FIELD, pack_envelope(envelope))
        for _ in range(COPIES):
            await self._wire.call("XADD", keys.ingress(partition, "user"), "*", *fields)
        self._say(f"   {COPIES} times on the bus: {envelope.id}")
        # On the same ingress, so when this is committed the copies are settled.
        await user.append_and_wait(session.id, {"role": "user", "text": "next"})
        page = await told(partial(user.timeline, session.id))
        texts = [entry.entry["text"] for entry in page.entries]
        self._check(texts == ["once", "next"], f"its timeline: {', '.join(texts)}")

    async def _a_conversation_rests(self, user: Mad) -> None:
        self._say("\n4. A conversation rests, goes to S3, and comes back")
        session = await user.create_session("ada")
        change = {
            "context_summary": {"topic": "tides"},
            "full_context": {"notes": ["spring", "neap"]},
        }
        await user.update_session(session.id, change)
        for k in range(1, RESTING_MESSAGES + 1):
            user.append(session.id, {"role": "user", "text": f"message {k}"})
        await user.flush()
        before = await user.suspend_session(session.id)
        keys_left = await self._hot_keys(session.id)
        was = await self._whole(user, session.id)
        self._say(
            f"   suspended: {before.last_seq} messages in MongoDB, "
            f"{keys_left} of its keys left in Redis"
        )
        report = await self._archived(session.id)
        page = await told(partial(user.list_sessions, state="archived"))
        stub = next((s for s in page.sessions if s.id == session.id), None)
        status = stub.archival_status if stub else "nowhere to be found"
        self._say(
            f"   archived, read back and verified: {report.bytes} bytes; "
            f"archival_status {status}"
        )
        started = time.monotonic()
        await told(partial(user.get_session, session.id))
        took_s = time.monotonic() - started
        now = await self._whole(user, session.id)
        self._say(f"   {took_s * 1000:.0f} ms after somebody asks, it is back")
        self._check(
            keys_left == 0 and status == "S3" and now == was,
            f"state, context and {len(now[1])} messages are what they were",
        )

    async def _a_mad_dies(self, user: Mad) -> None:
        self._say("\n5. A MAD dies without a word")
        session = await user.create_session("ada")
        await user.join(session.id)
        await user.add_participant(session.id, MORTAL)
        token = self._tokens[MORTAL]
        async with mortal(self._url, MORTAL, token, session.id) as process:
            self._say(
                f"   {MORTAL} joins and takes up work, in a process of its own; its "
                f"lease lasts {self._lease_s:g} s\n   kill -9 {process.pid}"
            )
            process.kill()
            killed = time.monotonic()
            now = await self._without(MORTAL, user, session.id)
        took_s = time.monotonic() - killed
        self._say(f"   {took_s:.2f} s after its death the session has heard of it")
        work = now.work_in_progress.get(WORK, {})
        self._check(
            list(now.participants) == [user.name] and work.get("orphaned") == MORTAL,
            f"{', '.join(now.participants)} goes on; its work waits to be taken up: "
            f"{work}",
        )

    async def _without(self, mad: str, user: Mad, session_id: str) -> Session:
        """
        The session as soon as *mad* takes part no longer, or at the end of our wait.
        """
        until = time.monotonic() + LOST_WITHIN_S
        while True:
            now = await told(partial(user.get_session, session_id))
            if mad not in now.participants or time.monotonic() > until:
                return now
            await asyncio.sleep(POLL_S)

    async def _whole(self, mad: Mad, session_id: str) -> tuple[Session, list[object]]:
        session = await told(partial(mad.get_session, session_id, full=True))
        page = await told(partial(mad.timeline, session_id, limit=1000))

        return session, list(page.entries)

    async def _hot_keys(self, session_id: str) -> int:
        p = keys.partition_of(session_id, self._partitions)
        found = (names.session(p, session_id), names.recent(p, session_id))

        return int(await self._wire.call("EXISTS", *found))

    async def _archived(self, session_id: str) -> Archived:
        """
        What a pass over all sessions that are not hot did; hot again by a look at
        it, the session has to leave Redis once more before.
        """
        await load_scripts(self._wire)
        hot = RedisHot(self._wire, self._partitions)
        await hot.forget(session_id)

        return await archive_once(self._settings, idle_days=0)

    def _check(self, held: bool, what: str) -> None:
        self._held = self._held and held
        self._say(f"   {'ok' if held else 'FAILED'}: {what}")

    async def _owners(self) -> dict[int, str]:
        lanes = range(self._partitions)
        values = await self._wire.call("MGET", *map(names.owner, lanes))

        return {
            lane: value.decode()
            for lane, value in zip(lanes, values, strict=True)
            if value is not None
        }

    async def _moved(self, lost: dict[int, str]) -> dict[int, str]:
        """
        The new owners of the lanes in *lost*, as soon as all have one.
        """
        async with asyncio.timeout(TAKEOVER_WITHIN_S):
            while True:
                now = await self._owners()
                moved = {n: now[n] for n in lost if now.get(n, lost[n]) != lost[n]}
                if len(moved) == len(lost):
                    return moved
                await asyncio.sleep(POLL_S)


def conversations() -> Iterator[Recording]:
    """
    CONVERSATIONS short ones, no two of their messages alike.
    """
    for n in range(1, CONVERSATIONS + 1):
        name = f"demo-{n}"
        messages = tuple(
            {"role": TURNS[k % len(TURNS)], "text": f"conversation {n}, message {k}"}
            for k in range(1, MESSAGES + 1)
        )
        yield Recording(name, f"customer-{n}", name, messages)


def _ids_in(lanes: set[int], partitions: int) -> Iterator[str]:
    """
    Fresh session ids that belong to one of *lanes*.
    """
    while True:
        identifier = str(uuid_utils.uuid7())
        if keys.partition_of(identifier, partitions) in lanes:
            yield identifier


def _name(owner: str) -> str:
    """
    The replica in an owner key's value.
    """
    return names.holder_of(owner)[0]
