"""
Where MADs show their tokens, and get grants for them.

A token comes over the channel of the MAD that shows it, which only that MAD's user
may publish on, and is forgotten when it is judged. Every manager answers: whichever
grant comes first counts, so that no single manager is needed.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from typing import Annotated, Any

import msgspec
import structlog
from redis.exceptions import ResponseError

from bus import keys
from bus.cluster import wire_to
from bus.codec import pack, unpack
from bus.credential import UNLOGGED
from bus.errors import EverbusError, Rejection, Unauthenticated
from bus.messages import check_mad
from bus.subscription import Subscription
from bus.wire import Command
from gateway.identity.grants import Grants
from gateway.identity.tokens import MAX_TOKEN_BYTES, Identity

log = structlog.get_logger()

# Showings that wait to be judged, of all MADs and of one; whoever is not heard shows
# its token again.
MAX_WAITING = 2_000
MAX_WAITING_OF_ONE = 500
MAX_SHOWN_BYTES = MAX_TOKEN_BYTES + 512
# So many are judged side by side, since a key may have to be looked for, and each
# with a pause: a flood must leave the lanes of this process their time.
JUDGES = 16
PAUSE_S = 0.01
# How often it is told that showings were not heard, or could not be read.
TELL_EVERY_S = 5.0
# For these the gateway itself answers, so nobody else gets a grant.
_OURS = frozenset({keys.EDGE, keys.GATEWAY})
_INSTANCE = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z"


class Shown(msgspec.Struct, frozen=True):
    """
    What a MAD says on its token channel.

    Attributes:
        showing: the asker's own number for it, told in the answer.
    """

    instance: Annotated[str, msgspec.Meta(pattern=_INSTANCE)]
    token: str
    showing: int = 0

    def __repr__(self) -> str:
        return f"Shown(instance={self.instance!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # rich prints locals in tracebacks, and msgspec would show every field.
        return [("instance", self.instance)]


class Granting:
    """
    Answers to the tokens that are shown on one bus, until cancelled.
    """

    def __init__(self, redis_url: str, identity: Identity, grants: Grants) -> None:
        self._identity = identity
        self._grants = grants
        self._wire = wire_to(redis_url, name="everbus-grants")
        # MAD → what it has shown; the MAD in front is served next, then goes behind.
        self._waiting: OrderedDict[str, deque[bytes]] = OrderedDict()
        self._count = 0
        self._news = asyncio.Semaphore(0)
        self._answers: list[Command] = []
        self._answered = asyncio.Event()
        self._unheard: Counter[str] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()
        self._subscription = Subscription(
            redis_url,
            keys.token("*"),
            on_match=self._heard,
            on_subscribed=lambda: None,
        )

    async def run(self) -> None:
        """
        Listen and answer.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._subscription.run())
                tasks.create_task(self._speak())
                tasks.create_task(self._tell())
                for _ in range(JUDGES):
                    tasks.create_task(self._answer_all())
        finally:
            await self._wire.close()

    def _heard(self, channel: bytes, message: bytes) -> None:
        try:
            mad = check_mad(channel.decode().removeprefix(keys.token("")))
        except (Rejection, UnicodeDecodeError):
            self._unheard["of no MAD"] += 1
            return
        theirs = self._waiting.get(mad, ())
        if len(message) > MAX_SHOWN_BYTES:
            self._unheard["too large"] += 1
        elif self._count >= MAX_WAITING or len(theirs) >= MAX_WAITING_OF_ONE:
            self._unheard["too many"] += 1
        else:
            self._waiting.setdefault(mad, deque()).append(message)
            self._count += 1
            self._news.release()

    def _next(self) -> tuple[str, bytes]:
        mad, theirs = self._waiting.popitem(last=False)
        self._count -= 1
        message = theirs.popleft()
        if theirs:
            self._waiting[mad] = theirs
        return mad, message

    async def _answer_all(self) -> None:
        while True:
            await self._news.acquire()
            await self._answer(*self._next())
            await asyncio.sleep(PAUSE_S)

    async def _answer(self, mad: str, message: bytes) -> None:
        try:
            shown: Shown = unpack(message[len(UNLOGGED) :], Shown)
        except msgspec.ValidationError:
            # The error may quote the message, and a token may be in it.
            self._unheard["garbled"] += 1
            return
        answer = {"showing": shown.showing, **await self._judged(mad, shown)}
        channel = keys.wake(mad, shown.instance)
        self._answers.append(("PUBLISH", channel, pack([answer])))
        self._answered.set()

    async def _speak(self) -> None:
        """
        Say all answers that have gathered in one write, so that a bus that is slow
        costs their askers one wait.
        """
        while True:
            await self._answered.wait()
            self._answered.clear()
            answers, self._answers = self._answers, []
            try:
                replies = await self._wire.exchange(answers)
            except EverbusError as error:
                # Their tokens will be shown again.
                log.warning("grants.unsaid", count=len(answers), error=error.message)
                continue
            refused = [one for one in replies if isinstance(one, ResponseError)]
            if refused:
                log.error("grants.refused", count=len(refused), error=str(refused[0]))

    async def _judged(self, mad: str, shown: Shown) -> dict[str, object]:
        if mad in _OURS:
            return {"refused": (Unauthenticated.code, f"{mad} is the gateway's own")}
        try:
            principal = await self._identity.admit(shown.token)
        except EverbusError as error:
            self._refused[mad, error.code] += 1
            if self._refused[mad, error.code] == 1:
                log.info("token.refused", mad=mad, code=error.code)
            return {"refused": (error.code, error.message)}
        except Exception as error:  # noqa: BLE001 - one token must not end the others
            # Without its text and its traceback, which may quote the token.
            log.error("token.failed", mad=mad, error=type(error).__name__)  # noqa: TRY400
            return {"refused": ("defect", "the manager failed to judge the token")}
        return {
            "grant": self._grants.for_instance(principal, mad, shown.instance),
            "lasts_s": self._grants.ends_at(principal) - time.time(),
            "tenant": principal.tenant,
        }

    async def _tell(self) -> None:
        """
        Log what comes often now and then: a flood must not become one of records.
        """
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            unheard, self._unheard = self._unheard, Counter()
            for cause, count in unheard.items():
                log.warning("token.unheard", cause=cause, count=count)
            refused, self._refused = self._refused, Counter()
            for (mad, code), count in refused.items():
                if count > 1:
                    log.info("token.refused", mad=mad, code=code, count=count)
