"""
fakeredis as everbus needs a server: commands in, replies out, on one event loop.

It closes the gaps of fakeredis: a script may begin with the line `#!lua`, a blocked
client and a subscriber get their reply at once, and HRANDFIELD of a missing hash is an
empty list.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import fakeredis
import redis
from fakeredis._helpers import NoResponse, SimpleError
from fakeredis._socket import AsyncFakeSocket

_SHEBANG = b"#!lua"

# Changes a message before its subscribers get it: channel, message → message.
Rewrite = Callable[[bytes, bytes], bytes]


class _Blocked(NamedTuple):
    attempt: Callable[[bool], Any]
    shape: Callable[[Any], Any] | None
    timer: asyncio.TimerHandle | None


class FakeRedisServer:
    """
    One server in memory, reached through any number of doors.

    Args:
        rewrite: changes every message before it is published.
    """

    def __init__(self, rewrite: Rewrite) -> None:
        self.fake = fakeredis.FakeServer(server_type="valkey")
        self.rewrite = rewrite
        self.blocked: dict[FakeRedisSocket, _Blocked] = {}
        self._changed = False
        self._inside = FakeRedisSocket(self, lambda _: None, lambda: None)
        self.fake.dbs[0].add_change_callback(self._note_change)

    def call(self, *command: str | int | bytes) -> Any:
        """
        The reply to a command of the bus's own, at once.
        """
        replies: list[Any] = []
        self._inside.answer = replies.append
        self._inside.run([_encoded(word) for word in command])
        self.settle()
        [reply] = replies
        if isinstance(reply, SimpleError):
            raise TypeError(f"{command[0]!r}: {reply.value}")
        return reply

    def settle(self) -> None:
        """
        Answer the blocked clients that the last command has given something.
        """
        while self._changed:
            self._changed = False
            for socket in list(self.blocked):
                socket.retry()

    def drop(self, key: str) -> None:
        """
        Remove a key; also allowed while a command runs.
        """
        self.fake.dbs[0].pop(key.encode(), None)

    def listeners(self, pattern: str) -> int:
        """
        How many listen to that pattern of channels.
        """
        return len(self.fake.psubscribers.get(pattern.encode(), ()))

    def _note_change(self) -> None:
        self._changed = True


class FakeRedisSocket(AsyncFakeSocket):
    """
    A client of fakeredis whose replies go to a function.
    """

    def __init__(
        self,
        server: FakeRedisServer,
        answer: Callable[[Any], None],
        go_on: Callable[[], None],
    ) -> None:
        super().__init__(server.fake, 0, client_class=redis.Redis)
        self.answer = answer
        self._go_on = go_on
        self._of = server

    @property
    def waits(self) -> bool:
        """
        Whether a command of this client blocks; the next one waits for it.
        """
        return self in self._of.blocked

    @property
    def protocol(self) -> int:
        """
        The RESP version that the client chose.
        """
        version: int = self._client_info.protocol_version
        return version

    def run(self, words: list[bytes]) -> None:
        """
        Run one command; the reply is given when there is one.
        """
        self._process_command(words)

    def put_response(self, msg: Any) -> None:
        """
        Give a reply, or a message of a channel.
        """
        self.answer(msg)

    def retry(self) -> None:
        """
        Try the blocked command again.
        """
        blocked = self._of.blocked[self]
        with self._server.lock:
            found = blocked.attempt(False)
        if found is not None:
            self._unblock(found)

    def leave(self) -> None:
        """
        Block no longer, listen no longer.
        """
        blocked = self._of.blocked.pop(self, None)
        if blocked is not None and blocked.timer is not None:
            blocked.timer.cancel()
        with self._server.lock:
            # fakeredis would do it with the next command, and count us until then.
            self._cleanup(self._server)
        self.close()

    def eval(self, script: bytes, numkeys: int, *rest: bytes) -> Any:
        """
        Run a script; a server takes the line that begins with `#!`.
        """
        if script.startswith(_SHEBANG):
            script = b"--" + script
        return super().eval(script, numkeys, *rest)

    def hrandfield(self, key: Any, *args: bytes) -> Any:
        """
        Fields of a hash; with a count an empty list where there are none.
        """
        found = super().hrandfield(key, *args)
        return [] if found is None and args else found

    def publish(self, channel: bytes, message: bytes) -> Any:
        """
        Publish a message, after `rewrite`.
        """
        return super().publish(channel, self._of.rewrite(channel, message))

    def _keyspace_notifications(self, *_: Any) -> None:
        """
        Publish no writes: everbus wants only expired keys, which `skipping` publishes.
        """

    def _decode_error(self, error: Any) -> Any:
        return error

    def _blocking(
        self,
        timeout: float | None,
        func: Callable[[bool], Any],
        shape: Callable[[Any], Any] | None = None,
    ) -> Any:
        found = func(True)
        if found is not None or self._in_transaction:
            return found if shape is None else shape(found)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(timeout, self._unblock, None) if timeout else None
        self._of.blocked[self] = _Blocked(func, shape, timer)
        return NoResponse()

    def _unblock(self, found: Any) -> None:
        blocked = self._of.blocked.pop(self)
        if blocked.timer is not None:
            blocked.timer.cancel()
        shaped = found if blocked.shape is None else blocked.shape(found)
        self.answer(self._decode_result(shaped))
        self._go_on()


def _encoded(word: str | int | bytes) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()
