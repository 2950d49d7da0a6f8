"""
A TCP proxy on loopback that breaks connections on purpose.

Each direction is a `Way` with at most one fault at a time; `heal()` ends all.
`delay`, `throttle` and `stall` only withhold: every byte arrives in the end.
`black_hole` and cuts lose bytes, and the counters say how many, so that a test
can prove that its fault bit. `strand` holds back what one connection sends, its end
too, while later connections pass: so bytes come late, behind those of a connection
that was opened after it.
"""

import asyncio
import contextlib
import socket
import struct
import time
from typing import Literal, Self

Kind = Literal["pass", "delay", "throttle", "stall", "black_hole"]

CHUNK_BYTES = 64 * 1024
# What a stalled direction buffers before it stops reading from its source.
CHUNKS = 256
CONNECT_TIMEOUT_S = 5.0
THROTTLE_STEP_S = 0.02
# In its first bytes a client tells its name.
GREETING_BYTES = 1024


class Way:
    """
    One direction of every connection, and the fault that it has now.

    Attributes:
        fault: `pass` if there is none.
        passed_bytes: how many bytes were delivered.
        dropped_bytes: how many bytes were swallowed or cut; they never arrive.
        held_bytes: how many bytes were read and wait to be delivered.
    """

    def __init__(self) -> None:
        self.fault: Kind = "pass"
        self.passed_bytes = 0
        self.dropped_bytes = 0
        self.held_bytes = 0
        self._cut_at: int | None = None
        self._seconds = 0.0
        self._rate = 1.0
        self._changed = asyncio.Event()

    def heal(self) -> None:
        """
        Pass everything on from now on, what is held first.
        """
        self._cut_at = None
        self._set("pass")

    def delay(self, seconds: float) -> None:
        """
        Deliver every byte *seconds* after it came, in order.
        """
        self._seconds = seconds
        self._set("delay")

    def throttle(self, bytes_per_s: float) -> None:
        """
        Deliver at most *bytes_per_s* on each connection.
        """
        self._rate = bytes_per_s
        self._set("throttle")

    def stall(self) -> None:
        """
        Hold everything back until the fault changes.
        """
        self._set("stall")

    def black_hole(self) -> None:
        """
        Swallow everything, an end of stream too; the connection stays up.
        """
        self._set("black_hole")

    def cut_after(self, count: int) -> None:
        """
        Deliver *count* more bytes, then abort the connection that sent the last.

        Once only, later connections live; 0 cuts at the next byte that comes.
        """
        self._cut_at = self.passed_bytes + count

    async def admit(self, chunk: bytes, arrived_s: float) -> bytes:
        """
        The first bytes of *chunk* that may go on, as soon as they may.
        """
        while True:
            part = self._step(chunk)
            wait_s = self._wait_s(part, arrived_s)
            if wait_s <= 0 or not await self._changes(wait_s):
                return part

    def account(self, part: bytes) -> bytes:
        """
        What is delivered of an admitted *part*, after counting both kinds.
        """
        self.held_bytes -= len(part)
        delivered = part
        if self.fault == "black_hole":
            delivered = b""
        elif self._cut_at is not None:
            delivered = part[: max(0, self._cut_at - self.passed_bytes)]
        self.passed_bytes += len(delivered)
        self.dropped_bytes += len(part) - len(delivered)
        return delivered

    def cuts(self) -> bool:
        """
        Whether the bytes that `cut_after` allowed have gone; true only once.
        """
        due = self._cut_at is not None and self.passed_bytes >= self._cut_at
        if due:
            self._cut_at = None
        return due

    def lose(self, count: int) -> None:
        """
        Count *count* held bytes as dropped, since their connection is gone.
        """
        self.held_bytes -= count
        self.dropped_bytes += count

    def _step(self, chunk: bytes) -> bytes:
        if self.fault != "throttle":
            return chunk
        return chunk[: max(1, int(self._rate * THROTTLE_STEP_S))]

    def _wait_s(self, part: bytes, arrived_s: float) -> float:
        if self.fault == "stall":
            return float("inf")
        if self.fault == "delay":
            return arrived_s + self._seconds - time.monotonic()
        if self.fault == "throttle":
            return len(part) / self._rate
        return 0.0

    async def _changes(self, within_s: float) -> bool:
        changed = self._changed
        limit_s = None if within_s == float("inf") else within_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await changed.wait()
        return changed.is_set()

    def _set(self, fault: Kind) -> None:
        self.fault = fault
        # Wakes those who wait now; who comes later waits for the next change.
        self._changed.set()
        self._changed = asyncio.Event()


class Proxy:
    """
    Forwards a free loopback port to a target; use it with `async with`.

    Attributes:
        requests: the direction from clients to the target.
        replies: the direction from the target to clients.
        port: where it listens, from entering the context on.
        accepted: how many connections clients have opened.
        connections_cut: how many connections it has aborted with a RST.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.requests = Way()
        self.replies = Way()
        self.port = 0
        self.accepted = 0
        self.connections_cut = 0
        self._target = (target_host, target_port)
        self._links: set[_Link] = set()
        self._tasks = asyncio.TaskGroup()
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for link in tuple(self._links):
            link.abort()
        await self._tasks.__aexit__(None, None, None)
        await self._server.wait_closed()

    def url(self, scheme: str = "redis") -> str:
        """
        Where clients connect to instead of the target.
        """
        return f"{scheme}://127.0.0.1:{self.port}"

    def move(self, host: str, port: int) -> None:
        """
        Forward what connects from now on to another target.
        """
        self._target = (host, port)

    @property
    def connections(self) -> int:
        """
        How many connections are open now.
        """
        return len(self._links)

    @property
    def dropped_bytes(self) -> int:
        """
        How many bytes were lost, both ways together.
        """
        return self.requests.dropped_bytes + self.replies.dropped_bytes

    def heal(self) -> None:
        """
        End every fault; held bytes are delivered, swallowed ones are gone.
        """
        for way in (self.requests, self.replies):
            way.heal()

    def delay(self, seconds: float) -> None:
        """
        Deliver *seconds* late each way, so a round trip takes twice as long.
        """
        for way in (self.requests, self.replies):
            way.delay(seconds)

    def stall(self) -> None:
        """
        Hold back everything, both ways, until `heal()`.
        """
        for way in (self.requests, self.replies):
            way.stall()

    def black_hole(self) -> None:
        """
        Swallow everything, both ways; connections stay up.
        """
        for way in (self.requests, self.replies):
            way.black_hole()

    def drop_requests(self) -> None:
        """
        Swallow what clients say; `cut()` then tells them.
        """
        self.requests.black_hole()

    def drop_replies(self) -> None:
        """
        Let requests take effect, swallow the answers; `cut()` then tells.
        """
        self.replies.black_hole()

    def strand(self, name: bytes) -> "Stranded":
        """
        Hold back what the open connections say that introduced themselves with *name*.

        Their clients still get replies, and can close; the target learns of neither
        until `Stranded.deliver`.
        """
        stranded = [link for link in self._links if name in link.greeting]
        for link in stranded:
            link.strand()
        return Stranded(stranded)

    def cut(self) -> None:
        """
        Abort every open connection at once, with a RST to both ends.
        """
        for link in tuple(self._links):
            self._cut(link)

    def _cut(self, link: "_Link") -> None:
        self._links.discard(link)
        self.connections_cut += 1
        link.abort()

    def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.accepted += 1
        link = _Link(writer)
        self._links.add(link)
        link.task = self._tasks.create_task(self._serve(link, reader))

    async def _serve(self, link: "_Link", reader: asyncio.StreamReader) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                answers, target = await asyncio.open_connection(*self._target)
            link.target = target
            there = _Pump(reader, target, self.requests, link)
            back = _Pump(answers, link.client, self.replies, link)
            link.there = there
            await self._forward(link, there, back)
        except* OSError:
            # One end is gone; the other one shall learn of it.
            link.abort()
        finally:
            self._links.discard(link)
            link.close()

    async def _forward(self, link: "_Link", *pumps: "_Pump") -> None:
        async with asyncio.TaskGroup() as forwarding:
            for pump in pumps:
                forwarding.create_task(pump.read())
                forwarding.create_task(self._deliver(link, pump))

    async def _deliver(self, link: "_Link", pump: "_Pump") -> None:
        if not await pump.deliver():
            self._cut(link)


class Stranded:
    """
    Connections whose requests are held back.
    """

    def __init__(self, links: "list[_Link]") -> None:
        self._links = links

    @property
    def held_bytes(self) -> int:
        """
        How many bytes were said since, and wait to be delivered.
        """
        return sum(link.there.held_bytes for link in self._links if link.there)

    @property
    def given_up(self) -> bool:
        """
        Whether the clients have closed all of them.
        """
        return bool(self._links) and all(link.ended for link in self._links)

    @property
    def over(self) -> bool:
        """
        Whether the target has taken all that was delivered, and the end.
        """
        return all(link.task is None or link.task.done() for link in self._links)

    def deliver(self, count: int | None = None) -> None:
        """
        Deliver what is held, and the end behind it; only *count* bytes if given.
        """
        for link in self._links:
            link.left = count
            link.passing.set()


class _Pump:
    def __init__(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        way: Way,
        link: "_Link",
    ) -> None:
        self.source, self.sink, self.way = source, sink, way
        self.queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS)
        self.held_bytes = 0
        self._link = link
        self._asks = link.client is not sink

    async def read(self) -> None:
        chunk = b"begin"
        while chunk:
            try:
                chunk = await self.source.read(CHUNK_BYTES)
            except OSError:
                # A black hole swallows resets as well, and so does a late network.
                if self.way.fault != "black_hole" and not self._link.stranded:
                    raise
                chunk = b""
            if self._asks:
                self._link.note(chunk)
            self.held_bytes += len(chunk)
            self.way.held_bytes += len(chunk)
            await self.queue.put((time.monotonic(), chunk))

    async def deliver(self) -> bool:
        """
        Deliver until the source ends; False if the connection must be cut.
        """
        try:
            while True:
                arrived_s, chunk = await self.queue.get()
                if not chunk:
                    return await self._end(arrived_s)
                if not await self._pass(chunk, arrived_s):
                    return False
        finally:
            self.way.lose(self.held_bytes)

    async def _pass(self, chunk: bytes, arrived_s: float) -> bool:
        while chunk:
            part = await self.way.admit(chunk, arrived_s)
            if self._link.stranded:
                part = await self._late(part)
            chunk = chunk[len(part) :]
            if not self._asks and self._link.ended:
                self.held_bytes -= len(part)
                self.way.lose(len(part))
                continue  # nobody is there any more to take replies
            self.held_bytes -= len(part)
            self.sink.write(self.way.account(part))
            await self.sink.drain()
            if self.way.cuts():
                await self._flush()
                return False
        return True

    async def _end(self, arrived_s: float) -> bool:
        await self.way.admit(b"", arrived_s)
        if self._asks:
            await self._link.passing.wait()
        elif self._link.ended:
            return True
        if self.way.fault != "black_hole":
            self.sink.write_eof()
        return True

    async def _late(self, part: bytes) -> bytes:
        """
        What may go on of *part*: late, and at most as much as is left.
        """
        if not self._asks:
            return part
        await self._link.passing.wait()
        if self._link.left is None:
            return part
        part = part[: self._link.left]
        self._link.left -= len(part)
        if not part:
            raise ConnectionResetError("no more of it arrives")
        return part

    async def _flush(self) -> None:
        # Otherwise the RST would overtake what was still allowed.
        self.sink.transport.set_write_buffer_limits(0)
        await self.sink.drain()


class _Link:
    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.target: asyncio.StreamWriter | None = None
        self.task: asyncio.Task[None] | None = None
        self.there: _Pump | None = None
        self.greeting = b""
        self.stranded = False
        self.ended = False
        self.left: int | None = None
        self.passing = asyncio.Event()
        self.passing.set()

    def strand(self) -> None:
        """
        Hold back what the client says from now on, and its end.
        """
        self.stranded = True
        self.passing.clear()

    def note(self, chunk: bytes) -> None:
        """
        Remember the first of what the client says, and that it has ended.
        """
        self.ended = not chunk
        if len(self.greeting) < GREETING_BYTES:
            self.greeting += chunk

    def abort(self) -> None:
        for writer in self._writers():
            _reset(writer)
        if self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        for writer in self._writers():
            writer.close()

    def _writers(self) -> list[asyncio.StreamWriter]:
        return [self.client] if self.target is None else [self.client, self.target]


def _reset(writer: asyncio.StreamWriter) -> None:
    # A linger time of zero makes the close a RST instead of a FIN.
    linger = struct.pack("ii", 1, 0)
    with contextlib.suppress(OSError):
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
