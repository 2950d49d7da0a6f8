"""
Recorded conversations, played through one MAD per role and then checked.

Within a conversation the order of the file holds across all MADs: who speaks
next may only begin when the word before is committed. What was played is then
read back and compared, entry by entry.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from bus import Mad, NotFound, Overloaded, TimelineEntry, connect
from compose.exits import USAGE, Failed
from compose.findings import Finding, Report, compare
from compose.patience import PATIENCE_S, settled, told
from compose.recordings import Message, Recording, Run, roles_of
from compose.settings import Settings

AT_ONCE = 64
# Reading back asks MongoDB, which may still be busy writing what was played.
CHECKED_AT_ONCE = 8
PAGE_ENTRIES = 100
TOKEN_TTL_S = 24 * 3600
# How far behind its rate a replay may fall and still catch up.
CATCH_UP_S = 0.1

Progress = Callable[[str, int], None]


def bus_url(settings: Settings) -> str:
    """
    Where MADs connect; `{mad}` in it stands for the name.
    """
    return settings.mad_url or settings.redis_url


def tokens_for(settings: Settings, roles: Sequence[str]) -> dict[str, str]:
    """
    A token for the MAD of each role: minted if we can, else the given one.

    Raises:
        Failed: there is neither a secret nor a token.
    """
    secret = settings.jwt_secret.get_secret_value()
    given = settings.token.get_secret_value()
    if not secret and not given:
        raise Failed(
            "neither EVERBUS_JWT_SECRET nor EVERBUS_TOKEN is set. For the stack of "
            "`everbus dev`: set -a; . .everbus/env; set +a",
            USAGE,
        )
    if not secret:
        return dict.fromkeys(roles, given)
    try:
        return {role: _minted(settings, secret, role) for role in roles}
    except ValueError as error:
        raise Failed(f"EVERBUS_JWT_SECRET: {error}", USAGE) from error


async def replay(
    recordings: Sequence[Recording],
    url: str,
    tokens: Mapping[str, str],
    rate: float | None = None,
    progress: Progress = lambda _, __: None,
) -> Report:
    """
    Play *recordings*, at most AT_ONCE at a time, then check their sessions.

    Args:
        url: the bus; `{mad}` in it stands for the MAD's name.
        tokens: role → the token of the MAD that plays it.
        rate: messages per second, all together; None for as many as possible.
        progress: told "played" or "checked", and how many messages more.

    Raises:
        EverbusError: the bus is away for longer than PATIENCE_S, or refuses.
    """
    async with _connected(roles_of(recordings), url, tokens) as mads:
        player = _Player(mads, _Pace(rate), progress)
        started = time.monotonic()
        await _side_by_side(player.play, recordings, AT_ONCE)
        seconds = time.monotonic() - started
        await _side_by_side(player.check, recordings, CHECKED_AT_ONCE)

    messages = sum(len(recording.messages) for recording in recordings)
    return Report(len(recordings), messages, seconds, tuple(player.findings))


@asynccontextmanager
async def _connected(
    roles: Sequence[str], url: str, tokens: Mapping[str, str]
) -> AsyncIterator[dict[str, Mad]]:
    async with AsyncExitStack() as mads:
        yield {
            role: await mads.enter_async_context(
                connect(url.replace("{mad}", role), mad=role, token=tokens[role])
            )
            for role in roles
        }


class _Pace:
    """
    Lets through at most so many a second; without a rate, all at once.
    """

    def __init__(self, rate: float | None) -> None:
        self._step_s = 1 / rate if rate else 0.0
        self._due = 0.0

    async def wait(self) -> None:
        """
        Return when the next one may go.
        """
        if not self._step_s:
            return
        now = time.monotonic()
        self._due = max(self._due + self._step_s, now - CATCH_UP_S)
        await asyncio.sleep(self._due - now)


class _Player:
    """
    Plays and checks conversations, each through the MADs of its roles.
    """

    def __init__(
        self, mads: Mapping[str, Mad], pace: _Pace, progress: Progress
    ) -> None:
        self.findings: list[Finding] = []
        self._mads = mads
        self._pace = pace
        self._progress = progress

    async def play(self, recording: Recording) -> None:
        """
        Make the session, and append every message in its order.
        """
        first, *others = recording.roles
        mad, session = self._mads[first], recording.session_id
        create = partial(mad.create_session, recording.user_id, session_id=session)
        await settled(mad, create)
        for role in others:
            await settled(mad, partial(mad.add_participant, session, role))
        for run in recording.runs():
            await self._say(session, run)
            self._progress("played", len(run.messages))

    async def check(self, recording: Recording) -> None:
        """
        Read the whole timeline back, and note what is not as recorded.
        """
        mad = self._mads[recording.roles[0]]
        entries: list[TimelineEntry] = []
        after: int | None = 0
        read = partial(mad.timeline, recording.session_id, limit=PAGE_ENTRIES)
        while after is not None:
            try:
                page = await told(partial(read, after=after))
            except NotFound:
                break  # then every message is missing
            entries += page.entries
            after = page.next
        self.findings += compare(recording, entries)
        self._progress("checked", len(recording.messages))

    async def _say(self, session: str, run: Run) -> None:
        """
        Append a run of one MAD's messages; return when all are committed.
        """
        mad = self._mads[run.role]
        *early, last = run.messages
        for message in early:
            await self._pace.wait()
            await _queued(mad, session, message)
        await self._pace.wait()
        # A MAD's commands keep their order: with the last, all are committed.
        await settled(mad, partial(mad.append_and_wait, session, last))


async def _queued(mad: Mad, session: str, message: Message) -> None:
    while True:
        try:
            mad.append(session, message)
        except Overloaded:
            await mad.flush(timeout=PATIENCE_S)
        else:
            return


async def _side_by_side(
    work: Callable[[Recording], Awaitable[None]],
    recordings: Sequence[Recording],
    at_once: int,
) -> None:
    waiting = iter(recordings)

    async def worker() -> None:
        for recording in waiting:
            await work(recording)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(at_once, len(recordings))):
                workers.create_task(worker())
    except BaseExceptionGroup as group:
        # The group is how we work, no affair of the caller's.
        raise group.exceptions[0] from None


def _minted(settings: Settings, secret: str, role: str) -> str:
    # Late: PyJWT takes its time, and other commands do without.
    from gateway.identity.tokens import mint

    return mint(
        secret,
        name=role,
        role="mad",
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        ttl_s=TOKEN_TTL_S,
        now=time.time(),
    )
