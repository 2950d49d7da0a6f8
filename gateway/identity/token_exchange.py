"""
Exchange of a MAD's token for a grant.

A token arrives on the channel of its MAD, which only that MAD's user may publish on,
and is forgotten once verified. Every manager answers and the first grant wins, so that
no single manager is needed.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from typing import Annotated, Any

import msgspec
import structlog
from redis.exceptions import ResponseError

from everbus.bus import keys
from everbus.bus.cluster_wire import wire_to
from everbus.bus.credential import UNLOGGED
from everbus.bus.errors import EverbusError, Rejection, Unauthenticated
from everbus.bus.messages import MAX_TOKEN_BYTES, check_mad, pack, unpack
from everbus.bus.subscription import Subscription
from everbus.bus.wire import Command
from everbus.gateway.identity.grants import Grants
from everbus.gateway.identity.tokens import Identity

log = structlog.get_logger()

# Waiting requests of all MADs, and of one; an instance without an answer repeats its
# request.
MAX_WAITING = 2_000
MAX_WAITING_OF_ONE = 500
MAX_REQUEST_BYTES = MAX_TOKEN_BYTES + 512
# Concurrent verifications, since a key may have to be fetched, each followed by a
# pause: a flood must leave the lanes of this process their time.
WORKERS = 16
PAUSE_S = 0.01
# How often dropped and unreadable requests are logged.
LOG_EVERY_S = 5.0
# The gateway's own names: nobody gets a grant for them.
_RESERVED = frozenset({keys.EDGE, keys.GATEWAY})
_INSTANCE = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z"


class TokenRequest(msgspec.Struct, frozen=True):
    """
    The message of a MAD on its token channel.

    Attributes:
        showing: the request's number by its sender, returned in the answer.
    """

    instance: Annotated[str, msgspec.Meta(pattern=_INSTANCE)]
    token: str
    showing: int = 0

    def __repr__(self) -> str:
        return f"TokenRequest(instance={self.instance!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # rich prints locals in tracebacks, and msgspec would show every field.
        return [("instance", self.instance)]


class TokenExchange:
    """
    Answers the token requests of one bus until cancelled.
    """

    def __init__(self, redis_url: str, identity: Identity, grants: Grants) -> None:
        self._identity = identity
        self._grants = grants
        self._wire = wire_to(redis_url, name="everbus-grants")
        # MAD → its requests; the first MAD is served next, then goes to the end.
        self._waiting: OrderedDict[str, deque[bytes]] = OrderedDict()
        self._count = 0
        self._arrivals = asyncio.Semaphore(0)
        self._answers: list[Command] = []
        self._answers_ready = asyncio.Event()
        self._dropped: Counter[str] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()
        self._subscription = Subscription(
            redis_url,
            keys.token("*"),
            on_match=self._receive,
            on_subscribed=lambda: None,
        )

    async def run(self) -> None:
        """
        Subscribe and answer.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._subscription.run())
                tasks.create_task(self._publish_answers())
                tasks.create_task(self._log_counts())
                for _ in range(WORKERS):
                    tasks.create_task(self._answer_all())
        finally:
            await self._wire.close()

    def _receive(self, channel: bytes, message: bytes) -> None:
        try:
            mad = check_mad(channel.decode().removeprefix(keys.token("")))
        except (Rejection, UnicodeDecodeError):
            self._dropped["of no MAD"] += 1
            return
        queue = self._waiting.get(mad, ())
        if len(message) > MAX_REQUEST_BYTES:
            self._dropped["too large"] += 1
        elif self._count >= MAX_WAITING or len(queue) >= MAX_WAITING_OF_ONE:
            self._dropped["too many"] += 1
        else:
            self._waiting.setdefault(mad, deque()).append(message)
            self._count += 1
            self._arrivals.release()

    def _next(self) -> tuple[str, bytes]:
        mad, queue = self._waiting.popitem(last=False)
        self._count -= 1
        message = queue.popleft()
        if queue:
            self._waiting[mad] = queue
        return mad, message

    async def _answer_all(self) -> None:
        while True:
            await self._arrivals.acquire()
            await self._answer(*self._next())
            await asyncio.sleep(PAUSE_S)

    async def _answer(self, mad: str, message: bytes) -> None:
        try:
            request: TokenRequest = unpack(message[len(UNLOGGED) :], TokenRequest)
        except msgspec.ValidationError:
            # The error may quote the message, and a token may be in it.
            self._dropped["garbled"] += 1
            return
        answer = {"showing": request.showing, **await self._answer_for(mad, request)}
        channel = keys.wake(mad, request.instance)
        self._answers.append(("PUBLISH", channel, pack([answer])))
        self._answers_ready.set()

    async def _publish_answers(self) -> None:
        """
        Publish all gathered answers in one write, so that a slow bus costs their
        senders one wait.
        """
        while True:
            await self._answers_ready.wait()
            self._answers_ready.clear()
            answers, self._answers = self._answers, []
            try:
                replies = await self._wire.exchange(answers)
            except EverbusError as error:
                # The senders repeat their requests.
                log.warning("grants.unsaid", count=len(answers), error=error.message)
                continue
            refused = [one for one in replies if isinstance(one, ResponseError)]
            if refused:
                log.error("grants.refused", count=len(refused), error=str(refused[0]))

    async def _answer_for(self, mad: str, request: TokenRequest) -> dict[str, object]:
        if mad in _RESERVED:
            return {"refused": (Unauthenticated.code, f"{mad} is the gateway's own")}
        try:
            principal = await self._identity.authenticate(request.token)
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
            "grant": self._grants.for_instance(principal, mad, request.instance),
            "lasts_s": self._grants.ends_at(principal) - time.time(),
            "tenant": principal.tenant,
        }

    async def _log_counts(self) -> None:
        """
        Log counts at intervals: a flood of requests must not flood the log.
        """
        while True:
            await asyncio.sleep(LOG_EVERY_S)
            dropped, self._dropped = self._dropped, Counter()
            for cause, count in dropped.items():
                log.warning("token.unheard", cause=cause, count=count)
            refused, self._refused = self._refused, Counter()
            for (mad, code), count in refused.items():
                if count > 1:
                    log.info("token.refused", mad=mad, code=code, count=count)
