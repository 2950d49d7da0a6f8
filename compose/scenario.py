"""
The scenes of `everbus demo`: each acts, describes the result, and checks it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import msgspec
import uuid_utils

from everbus.archiver.archiving import ArchiveReport as Archived
from everbus.bus import Mad, Session, VersionConflict, connect, keys
from everbus.bus.messages import COMMAND_FIELD, SCHEMA, Envelope, pack, pack_envelope
from everbus.bus.wire import Wire
from everbus.compose.archive_command import archive_once
from everbus.compose.recordings import Recording
from everbus.compose.replay import ReplayReport, replay, tokens_for
from everbus.compose.retried_calls import read_retrying, write_once
from everbus.compose.settings import load_settings
from everbus.compose.stack import EmbeddedStack
from everbus.compose.verify.contents import ExpectedEntry, check_contents, check_equal
from everbus.compose.verify.violations import Violations
from everbus.compose.worker_process import WORK, worker_process
from everbus.gateway.store import key_names
from everbus.gateway.store.hot_copy import RedisHot
from everbus.gateway.store.scripts import load_scripts

CONVERSATIONS = 20
# More entries than the hot tier keeps of a timeline, so MongoDB is read as well.
MESSAGES = 25
RATE_PER_S = 100.0
COPIES = 3
RESTING_MESSAGES = 60
TAKEOVER_WITHIN_S = 30.0
LOST_WITHIN_S = 20.0
KILLED_MAD = "tool"
POLL_S = 0.02
# The roles in turn, over and over; the tool answers twice in a row.
TURNS = ("user", "assistant", "tool", "tool", "assistant")

Say = Callable[[str], None]


class Scenario:
    """
    The scenes on one stack.
    """

    def __init__(self, stack: EmbeddedStack, lease_s: float, say: Say) -> None:
        self._stack = stack
        self._say = say
        settings = self._settings = load_settings(stack.environment())
        self._lease_s = lease_s
        self._url = settings.redis_url
        self._partitions = settings.partitions
        self._tokens = tokens_for(settings, (*dict.fromkeys(TURNS), "observer"))
        self._wire = Wire(self._url, name="everbus-demo")
        self._held = True

    async def run(self) -> bool:
        """
        Play all scenes; whether every check passed.
        """
        try:
            async with AsyncExitStack() as mads:
                user, assistant, observer = [
                    await mads.enter_async_context(
                        connect(self._url, mad=name, token=self._tokens[name])
                    )
                    for name in ("user", "assistant", "observer")
                ]
                await self._a_replica_dies(observer)
                await self._two_write_at_once(user, assistant)
                await self._a_command_comes_again(user)
                await self._a_conversation_rests(user)
                await self._a_mad_dies(user)
        finally:
            await self._wire.close()

        return self._held

    async def _a_replica_dies(self, observer: Mad) -> None:
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
                await self._kill_one(observer, count)
        except BaseExceptionGroup as group:
            # The group is an implementation detail; the caller wants the error.
            raise group.exceptions[0] from None
        self._report(playing.result())

    async def _kill_one(self, observer: Mad, count: Counter[str]) -> None:
        """
        Kill the replica with the most lanes, and time the next commit there.
        """
        before = await self._owners()
        lanes = Counter(map(_replica_in, before.values()))
        [(victim, served)] = lanes.most_common(1)
        lost = {
            lane: owner
            for lane, owner in before.items()
            if _replica_in(owner) == victim
        }
        probe = next(_ids_in(set(lost), self._partitions))
        await write_once(
            observer, partial(observer.create_session, "ada", session_id=probe)
        )
        pid = self._stack.pid(victim)
        self._say(
            f"   after {count['played']} messages: kill -9 {pid}, which is {victim} "
            f"and serves {served} of {self._partitions} lanes"
        )
        await self._stack.kill(victim)
        killed = time.monotonic()
        await write_once(
            observer, partial(observer.append_and_wait, probe, {"alive": True})
        )
        took_s = time.monotonic() - killed
        heirs = Counter(map(_replica_in, (await self._moved(lost)).values()))
        await self._stack.until_ready(victim)
        reborn = {victim: f"{victim}, started again as pid {self._stack.pid(victim)}"}
        to = ", ".join(f"{n} to {reborn.get(heir, heir)}" for heir, n in heirs.items())
        self._say(f"   {len(lost)} lanes moved: {to}")
        self._say(f"   {took_s:.2f} s after its death its lanes commit again")

    def _report(self, report: ReplayReport) -> None:
        found = report.summary()
        there = report.messages - int(found["lost"])
        self._check(
            report.clean,
            f"{there} of {report.messages} messages are there, read back from Valkey "
            f"and MongoDB:\n   {found['lost']} lost, {found['doubled']} doubled, "
            f"{found['out_of_order']} out of order, {found['unequal']} unequal",
        )
        for violation in report.violations[:5]:
            self._say(f"   {violation}")

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
        # Same ingress stream: when this is committed, the copies are settled.
        await user.append_and_wait(session.id, {"role": "user", "text": "next"})
        page = await read_retrying(partial(user.timeline, session.id))
        texts = [entry.entry["text"] for entry in page.entries]
        sent = [{"role": "user", "text": text} for text in ("once", "next")]
        expected = [ExpectedEntry(user.name, entry) for entry in sent]
        violations = Violations()
        check_contents(session.id, expected, page.entries, violations)
        self._check(violations.clean, f"its timeline: {', '.join(texts)}")

    async def _a_conversation_rests(self, user: Mad) -> None:
        self._say("\n4. A conversation rests, goes to S3, and comes back")
        session = await _suspended_session(user)
        keys_left = await self._hot_keys(session.id)
        was = await self._whole(user, session.id)
        self._say(
            f"   suspended: {session.last_seq} messages in MongoDB, "
            f"{keys_left} of its keys left in Redis"
        )
        report = await self._archived(session.id)
        page = await read_retrying(partial(user.list_sessions, state="archived"))
        stub = next((s for s in page.sessions if s.id == session.id), None)
        status = stub.archival_status if stub else "nowhere to be found"
        self._say(
            f"   archived, read back and verified: {report.bytes} bytes; "
            f"archival_status {status}"
        )
        started = time.monotonic()
        await read_retrying(partial(user.get_session, session.id))
        took_s = time.monotonic() - started
        now = await self._whole(user, session.id)
        violations = Violations()
        check_equal(session.id, was, now, violations)
        self._say(f"   {took_s * 1000:.0f} ms after the next read, it is back")
        self._check(
            keys_left == 0 and status == "S3" and violations.clean,
            f"state, context and {len(now['timeline'])} messages are unchanged",
        )

    async def _a_mad_dies(self, user: Mad) -> None:
        self._say("\n5. A MAD dies without a word")
        session = await user.create_session("ada")
        await user.join(session.id)
        await user.add_participant(session.id, KILLED_MAD)
        token = self._tokens[KILLED_MAD]
        async with worker_process(self._url, KILLED_MAD, token, session.id) as process:
            self._say(
                f"   {KILLED_MAD} joins and takes up work, in a process of its own; "
                f"its lease lasts {self._lease_s:g} s\n   kill -9 {process.pid}"
            )
            process.kill()
            killed = time.monotonic()
            now = await self._without(KILLED_MAD, user, session.id)
        took_s = time.monotonic() - killed
        self._say(
            f"   {took_s:.2f} s after its death the session has the event of the loss"
        )
        work = now.work_in_progress.get(WORK, {})
        self._check(
            list(now.participants) == [user.name]
            and work.get("orphaned") == KILLED_MAD,
            f"{', '.join(now.participants)} goes on; its work waits to be taken up: "
            f"{work}",
        )

    async def _without(self, mad: str, user: Mad, session_id: str) -> Session:
        """
        The session as soon as *mad* has left it, or after LOST_WITHIN_S.
        """
        until = time.monotonic() + LOST_WITHIN_S
        while True:
            now = await read_retrying(partial(user.get_session, session_id))
            if mad not in now.participants or time.monotonic() > until:
                return now
            await asyncio.sleep(POLL_S)

    async def _whole(self, mad: Mad, session_id: str) -> dict[str, Any]:
        """
        Every field of the session, and its timeline.
        """
        session = await read_retrying(partial(mad.get_session, session_id, full=True))
        page = await read_retrying(partial(mad.timeline, session_id, limit=1000))

        return msgspec.structs.asdict(session) | {"timeline": page.entries}

    async def _hot_keys(self, session_id: str) -> int:
        p = keys.partition_of(session_id, self._partitions)
        found = (key_names.session(p, session_id), key_names.recent(p, session_id))

        return int(await self._wire.call("EXISTS", *found))

    async def _archived(self, session_id: str) -> Archived:
        """
        Archive all sessions that are not hot. A read has made this session hot
        again, so it leaves Redis once more first.
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
        values = await self._wire.call("MGET", *map(key_names.owner, lanes))

        return {
            lane: value.decode()
            for lane, value in zip(lanes, values, strict=True)
            if value is not None
        }

    async def _moved(self, lost: dict[int, str]) -> dict[int, str]:
        """
        The new owners of the lanes in *lost*, when each lane has one.
        """
        async with asyncio.timeout(TAKEOVER_WITHIN_S):
            while True:
                now = await self._owners()
                moved = {n: now[n] for n in lost if now.get(n, lost[n]) != lost[n]}
                if len(moved) == len(lost):
                    return moved
                await asyncio.sleep(POLL_S)


async def _suspended_session(user: Mad) -> Session:
    """
    A session with both contexts and RESTING_MESSAGES messages, suspended.
    """
    session = await user.create_session("ada")
    change = {
        "context_summary": {"topic": "tides"},
        "full_context": {"notes": ["spring", "neap"]},
    }
    await user.update_session(session.id, change)
    for k in range(1, RESTING_MESSAGES + 1):
        user.append(session.id, {"role": "user", "text": f"message {k}"})
    await user.flush()

    return await user.suspend_session(session.id)


def conversations() -> Iterator[Recording]:
    """
    CONVERSATIONS short conversations; no two messages are equal.
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
    New session ids whose lane is one of *lanes*.
    """
    while True:
        identifier = str(uuid_utils.uuid7())
        if keys.partition_of(identifier, partitions) in lanes:
            yield identifier


def _replica_in(owner: str) -> str:
    """
    The replica in an owner key's value.
    """
    return key_names.holder_of(owner)[0]
