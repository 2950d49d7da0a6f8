"""
Replay of recorded conversations through one MAD per role, and the check afterwards.

Within a conversation the order of the file holds across all MADs: a MAD appends its
message only after the message before is committed. Then every timeline is read back
and compared with its recording, entry by entry.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import msgspec

from everbus.bus import Mad, NotFound, Overloaded, connect
from everbus.bus.messages import TimelinePage
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.recordings import Message, Recording, Run, roles_of
from everbus.compose.retried_calls import GIVE_UP_AFTER_S, read_retrying, write_once
from everbus.compose.settings import Settings
from everbus.compose.verify.contents import ContentCheck, ExpectedEntry
from everbus.compose.verify.readers import timeline_entries
from everbus.compose.verify.violations import KINDS, Kind, Violation, Violations
from everbus.compose.worker_pool import each

AT_ONCE = 64
# Reading back asks MongoDB, which may still be busy writing what was played.
CHECKED_AT_ONCE = 8
PAGE_ENTRIES = 100
TOKEN_TTL_S = 24 * 3600
# How far behind its rate a replay may fall and still catch up.
CATCH_UP_S = 0.1
# Violations of each kind that a report has word for word.
REPORTED = 1_000

Progress = Callable[[str, int], None]


class ReplayReport(msgspec.Struct, frozen=True):
    """
    The result of a replay.

    Attributes:
        seconds: from the first command to the last commit, without reading back.
        counts: kind of violation → number.
        violations: the first REPORTED of each kind.
    """

    conversations: int
    messages: int
    seconds: float
    counts: Mapping[Kind, int] = {}
    violations: tuple[Violation, ...] = ()

    @property
    def clean(self) -> bool:
        """
        Whether every session holds exactly its recording, in its order.
        """
        return not self.counts

    def summary(self) -> dict[str, int | float]:
        """
        Size, speed, and the number of violations of each kind.
        """
        return {
            "conversations": self.conversations,
            "messages": self.messages,
            "seconds": round(self.seconds, 3),
            "messages_per_s": round(self.messages / max(self.seconds, 1e-9), 1),
            **{kind: self.counts.get(kind, 0) for kind in KINDS},
        }


def bus_url(settings: Settings) -> str:
    """
    Where MADs connect; `{mad}` in it stands for the name.
    """
    return settings.mad_url or settings.redis_url


def tokens_for(settings: Settings, roles: Sequence[str]) -> dict[str, str]:
    """
    A token for the MAD of each role: minted if there is a secret, else the given one.

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
) -> ReplayReport:
    """
    Play *recordings*, at most AT_ONCE at a time, then check their sessions.

    Args:
        url: the bus; `{mad}` in it stands for the MAD's name.
        tokens: role → the token of the MAD that plays it.
        rate: messages per second, all together; None for as many as possible.
        progress: called with "played" or "checked", and the number of messages.

    Raises:
        EverbusError: the bus is away for longer than GIVE_UP_AFTER_S, or refuses.
    """
    async with _connected(roles_of(recordings), url, tokens) as mads:
        player = _Player(mads, _Pace(rate), progress)
        started = time.monotonic()
        await each(player.play, recordings, AT_ONCE)
        seconds = time.monotonic() - started
        await each(player.check, recordings, CHECKED_AT_ONCE)

    messages = sum(len(recording.messages) for recording in recordings)
    counts, first = player.violations.counts, player.violations.first
    return ReplayReport(len(recordings), messages, seconds, dict(counts), tuple(first))


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
        self.violations = Violations(REPORTED)
        self._mads = mads
        self._pace = pace
        self._progress = progress

    async def play(self, recording: Recording) -> None:
        """
        Create the session, and append every message in its order.
        """
        first, *others = recording.roles
        mad, session = self._mads[first], recording.session_id
        create = partial(mad.create_session, recording.user_id, session_id=session)
        await write_once(mad, create)
        for role in others:
            await write_once(mad, partial(mad.add_participant, session, role))
        for run in recording.runs():
            await self._say(session, run)
            self._progress("played", len(run.messages))

    async def check(self, recording: Recording) -> None:
        """
        Read the whole timeline back, and compare it with the recording.
        """
        mad, session = self._mads[recording.roles[0]], recording.session_id

        async def page(after: int) -> TimelinePage:
            read = partial(mad.timeline, session, after=after, limit=PAGE_ENTRIES)
            return await read_retrying(read)

        check = content_check(recording, self.violations)
        with suppress(NotFound):  # then every message is lost
            async for entry in timeline_entries(page):
                check.see(entry)
        check.end()
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
        await write_once(mad, partial(mad.append_and_wait, session, last))


def content_check(recording: Recording, violations: Violations) -> ContentCheck:
    """
    The check of the session that *recording* was played into.
    """
    expected = [ExpectedEntry(one["role"], one) for one in recording.messages]

    return ContentCheck(recording.session_id, expected, violations)


async def _queued(mad: Mad, session: str, message: Message) -> None:
    while True:
        try:
            mad.append(session, message)
        except Overloaded:
            await mad.flush(timeout=GIVE_UP_AFTER_S)
        else:
            return


def _minted(settings: Settings, secret: str, role: str) -> str:
    # Late: PyJWT takes its time, and other commands do without.
    from everbus.gateway.identity.tokens import mint

    return mint(
        secret,
        name=role,
        role="mad",
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        ttl_s=TOKEN_TTL_S,
        now=time.time(),
    )
