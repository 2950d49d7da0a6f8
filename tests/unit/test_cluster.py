"""
Where commands go on a Redis Cluster, and what is done when they are told to go on.

The nodes are paper: each answers by what its script says, and keeps what it was sent.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
import pytest_asyncio

from everbus.bus.blocking_wire import BlockingWires
from everbus.bus.cluster_nodes import MAX_HOPS
from everbus.bus.cluster_routing import (
    by_slot,
    cluster_address,
    key_of,
    node_urls,
    slot_of,
)
from everbus.bus.cluster_wire import ClusterWire, Unreached, wire_to
from everbus.bus.errors import Unauthenticated, Unavailable
from everbus.bus.messages import Reply, pack
from everbus.bus.reply_receiver import ReplyReceiver
from everbus.bus.server_errors import refusal
from everbus.bus.single_node_wire import SingleNodeWire
from everbus.bus.wire import Wire, WireFailed

# Tags of three slots, and the slots.
A, B, C = "{0}", "{1}", "{2}"
Answer = Callable[[list[bytes]], bytes]


class PaperNode:
    """
    A node that says what `answer` makes of each command.

    Attributes:
        sent: the commands that it was sent, but for the handshake.
    """

    def __init__(self) -> None:
        self.port = 0
        self.sent: list[tuple[str, ...]] = []
        self.answer: Answer = lambda _: b"+OK"
        self.free = asyncio.Event()
        self.free.set()
        self.writers: set[asyncio.StreamWriter] = set()
        self.serving: set[asyncio.Task[None]] = set()
        self.listening: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def open(self) -> None:
        self.listening = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.listening.sockets[0].getsockname()[1]

    async def die(self) -> None:
        if self.listening is not None:
            self.listening.close()
        for writer in tuple(self.writers):
            writer.close()
        if self.serving:
            await asyncio.wait(self.serving, timeout=5)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.writers.add(writer)
        serving = asyncio.current_task()
        assert serving is not None
        self.serving.add(serving)
        serving.add_done_callback(self.serving.discard)
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            await self.free.wait()
            parser.feed(data)
            while (command := parser.gets()) is not False:
                if command[0] not in (b"CLIENT", b"CLUSTER"):
                    self.sent.append(tuple(part.decode() for part in command))
                said = b"+OK" if command[0] == b"CLIENT" else self.answer(command)
                writer.write(said + b"\r\n")
        self.writers.discard(writer)
        writer.close()


def echo(command: list[bytes]) -> bytes:
    """
    The last word of the command.
    """
    return b"$%d\r\n%s" % (len(command[-1]), command[-1])


def elsewhere(key: str, node: PaperNode, word: str = "MOVED") -> bytes:
    return f"-{word} {slot_of(key)} {node.address}".encode()


@asynccontextmanager
async def paper(count: int) -> AsyncIterator[list[PaperNode]]:
    nodes = [PaperNode() for _ in range(count)]
    for node in nodes:
        await node.open()
    try:
        yield nodes
    finally:
        for node in nodes:
            await node.die()


@pytest_asyncio.fixture
async def nodes() -> AsyncIterator[list[PaperNode]]:
    """
    Two nodes: the first serves A, the second B; both know it.
    """
    async with paper(2) as (one, two):
        one.answer = lambda c: elsewhere(B, two) if B.encode() in c[1] else echo(c)
        two.answer = lambda c: elsewhere(A, one) if A.encode() in c[1] else echo(c)
        for node in (one, two):
            node.answer = _pings(node.answer)
        yield [one, two]


def _pings(answer: Answer) -> Answer:
    """
    *answer*, of a node that also lets everybody in.
    """
    return lambda c: b"+OK" if c[0] in (b"PING", b"AUTH") else answer(c)


@pytest_asyncio.fixture
async def wire(nodes: list[PaperNode]) -> AsyncIterator[ClusterWire]:
    wire = ClusterWire(f"redis+cluster://{nodes[0].address}")
    yield wire
    await wire.close()


def commands_of(node: PaperNode, verb: str = "SET") -> list[str]:
    return [words[-1] for words in node.sent if words[0] == verb]


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), "k"),
        (("XADD", "k", "*", "c", b"1"), "k"),
        (("EVALSHA", "0f", 2, "k", "l", "a"), "k"),
        (("EVALSHA", "0f", 0, "a"), None),
        (("XREAD", "COUNT", 1, "BLOCK", 5, "STREAMS", "k", "l", "0", "0"), "k"),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "k", ">"), "k"),
        (("XGROUP", "CREATE", "k", "g", "0"), "k"),
        (("XINFO", "GROUPS", "k"), "k"),
        (("UNLINK", "k", "l"), "k"),
        (("PING",), None),
        (("PUBLISH", "channel", "said"), None),
        (("TIME",), None),
        (("WAIT", 1, 10), None),
        (("SCRIPT", "LOAD", "return 1"), None),
        (("INFO", "replication"), None),
    ],
)
def test_the_key_of_a_command_decides_where_it_goes(command, key):
    assert key == key_of(command)


def test_slots_are_those_of_the_cluster_specification():
    """
    https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
    """
    assert slot_of("123456789") == 0x31C3
    assert slot_of("{user1000}.following") == slot_of(b"{user1000}.followers")
    assert slot_of("foo{bar}{zap}") == slot_of("bar")
    # An empty tag is none, and only the first brace counts.
    assert slot_of("foo{}{bar}") != slot_of("bar")
    assert slot_of("foo{{bar}}zap") == slot_of("{bar")


def test_keys_are_put_together_by_slot_and_on_one_server_all_of_them():
    keys = [f"eb:{A}:x", f"eb:{B}:x", f"eb:{A}:y"]

    assert [[keys[0], keys[2]], [keys[1]]] == by_slot(keys)
    assert [keys] == wire_to("redis://nowhere").group_by_slot(keys)
    assert wire_to("redis://nowhere").group_by_slot([]) == []
    assert by_slot(keys) == wire_to("redis+cluster://nowhere").group_by_slot(keys)


def test_a_clusters_url_names_nodes_that_are_reached_alike():
    url = "rediss+cluster://ann:p%40ss@one,two:7000,[::1]:7001?ssl_cert_reqs=none"

    assert node_urls(url) == [
        "rediss://ann:p%40ss@one:6379?ssl_cert_reqs=none",
        "rediss://ann:p%40ss@two:7000?ssl_cert_reqs=none",
        "rediss://ann:p%40ss@[::1]:7001?ssl_cert_reqs=none",
    ]
    assert (
        cluster_address("redis+cluster://ann:x@h").url("fe80::1:7")
        == "redis://ann:x@[fe80::1]:7"
    )
    assert "p%40ss" not in repr(cluster_address(url))
    assert node_urls("redis://one:6379/1") == ["redis://one:6379/1"]


def test_the_scheme_of_the_url_chooses_the_wire():
    assert type(wire_to("redis://one")) is Wire
    assert type(wire_to("redis://one", at="k")) is Wire
    assert type(wire_to("redis+cluster://one")) is ClusterWire
    assert type(wire_to("redis+cluster://one", at="k")) is SingleNodeWire


async def test_replies_come_in_the_order_of_the_commands_whatever_node_they_are_of(
    nodes, wire
):
    """
    A node that is told of first is asked first, and from then on the right one.
    """
    batch = [("SET", f"{tag}:k", n) for n, tag in enumerate((A, B, A, B, B, A))]

    assert await wire.exchange(batch) == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert commands_of(nodes[1]) == ["1", "3", "4"]
    await wire.exchange(batch)

    assert commands_of(nodes[0]) == ["0", "1", "2", "3", "4", "5", "0", "2", "5"]


async def test_an_answer_that_sends_in_circles_ends(nodes, wire):
    nodes[0].answer = _pings(lambda _: elsewhere(A, nodes[1]))
    nodes[1].answer = _pings(lambda _: elsewhere(A, nodes[0]))

    with pytest.raises(Unavailable):
        await wire.call("SET", f"{A}:k", 1)

    assert len(commands_of(nodes[0]) + commands_of(nodes[1])) == MAX_HOPS


async def test_a_key_that_went_ahead_of_its_slot_is_asked_for_there_just_once(
    nodes, wire
):
    one, two = nodes
    one.answer = _pings(lambda _: elsewhere(A, two, "ASK"))
    two.answer = echo

    assert await wire.call("SET", f"{A}:k", 1) == b"1"
    assert [("ASKING",), ("SET", f"{A}:k", "1")] == two.sent
    await wire.call("SET", f"{A}:k", 2)

    # The slot itself is where it was.
    assert commands_of(one) == ["1", "2"]


async def test_a_node_that_is_away_keeps_nobody_elses_reply_back(nodes, wire):
    await wire.exchange([("SET", f"{A}:k", 1), ("SET", f"{B}:k", 2)])
    await nodes[1].die()

    mine, lost = await wire.exchange([("SET", f"{A}:k", 3), ("SET", f"{B}:k", 4)])

    assert mine == b"3"
    assert isinstance(lost, Unreached)
    assert isinstance(refusal(lost), Unavailable)


async def test_what_no_node_answered_failed_as_a_whole(nodes, wire):
    await wire.exchange([("SET", f"{A}:k", 1), ("SET", f"{B}:k", 2)])
    for node in nodes:
        await node.die()

    with pytest.raises(WireFailed):
        await wire.exchange([("SET", f"{A}:k", 3), ("SET", f"{B}:k", 4)])
    assert not wire.connected


async def test_a_slot_whose_node_died_is_asked_for_elsewhere(nodes, wire):
    one, two = nodes
    await wire.exchange([("SET", f"{A}:k", 1), ("SET", f"{B}:k", 2)])
    await two.die()
    await wire.exchange([("SET", f"{A}:k", 3), ("SET", f"{B}:k", 4)])
    one.answer = _pings(echo)

    assert await wire.call("SET", f"{B}:k", 5) == b"5"


async def test_a_lost_node_is_noticed_by_who_must_say_something_again(nodes, wire):
    await wire.exchange([("SET", f"{A}:k", 1), ("SET", f"{B}:k", 2)])
    await nodes[1].die()

    await wire.exchange([("SET", f"{A}:k", 3), ("SET", f"{B}:k", 4)])

    assert not wire.connected
    await wire.exchange([("PING",)])
    assert wire.connected


async def test_a_node_that_went_while_idle_is_lost_once_and_not_for_ever(nodes, wire):
    await wire.exchange([("SET", f"{A}:k", 1), ("SET", f"{B}:k", 2)])
    await nodes[1].die()
    async with asyncio.timeout(5):
        while wire.connected:  # noqa: ASYNC110 - a socket has no event for that
            await asyncio.sleep(0)

    await wire.exchange([("PING",)])

    assert wire.connected


async def test_where_moves_fail_a_command_does_not_follow_its_slot(nodes):
    """
    The first redirection only tells where the slot is; a later one that it has left.
    """
    one, two = nodes
    wire = ClusterWire(f"redis+cluster://{one.address}", moves_fail=True)
    await wire.exchange([("SET", f"{A}:k", 1), ("SET", f"{B}:k", 2)])
    connected = wire.connected
    one.answer = _pings(lambda _: elsewhere(A, two))
    two.answer = _pings(echo)

    lost, lost_too, kept = await wire.exchange(
        [("SET", f"{A}:k", 3), ("SET", f"{A}:k", 4), ("SET", f"{B}:k", 5)]
    )

    assert (connected, wire.connected) == (True, False)
    assert isinstance(lost, Unreached)
    assert isinstance(lost_too, Unreached)
    assert kept == b"5"
    assert commands_of(two) == ["2", "5"]
    assert await wire.exchange([("SET", f"{A}:k", 6)]) == [b"6"]
    await wire.close()


async def test_a_refused_login_leaves_no_exchange_behind(nodes):
    """
    One node turns us away while another has yet to answer: that answer must not be
    taken for one to a later command.
    """
    one, two = nodes
    wire = ClusterWire(f"redis+cluster://ann:secret@{one.address}")
    await wire.exchange([("SET", f"{A}:k", 1), ("SET", f"{B}:k", 2)])
    await two.die()
    await wire.exchange([("SET", f"{A}:k", 3), ("SET", f"{B}:k", 4)])
    await two.open()
    two.answer = lambda c: b"-WRONGPASS no" if c[0] == b"AUTH" else b"+OK"
    one.answer = _pings(lambda c: elsewhere(B, two) if B.encode() in c[1] else echo(c))
    await wire.exchange([("SET", f"{A}:k", 5)])
    wire._nodes._slots[slot_of(B)] = two.address
    one.free.clear()

    both = [("SET", f"{A}:k", 6), ("SET", f"{B}:k", 7)]
    asking = asyncio.create_task(wire.exchange(both))
    await asyncio.wait({asking}, timeout=0.1)
    assert not asking.done()
    one.free.set()

    with pytest.raises(Unauthenticated):
        await asking
    assert await wire.exchange([("SET", f"{A}:k", 8)]) == [b"8"]
    await wire.close()


async def test_a_script_is_on_every_node_before_it_is_needed_there(nodes, wire):
    """
    Also on a node that comes later, or has lost its connection since.
    """
    sha = await wire.call("SCRIPT", "LOAD", b"return 1")
    runs = [("EVALSHA", sha, 1, f"{tag}:k", 1) for tag in (A, B)]
    for node in nodes:
        node.answer = _moving(node.answer)
    await wire.exchange(runs)
    await wire.exchange(runs)
    for node in nodes:
        assert len(commands_of(node, "SCRIPT")) == 1
    await wire.close()
    await wire.exchange(runs)

    for node in nodes:
        words = [sent[0] for sent in node.sent if sent[0] != "PING"]
        assert words.count("SCRIPT") == 2
        assert words.index("SCRIPT") < words.index("EVALSHA")


def _moving(answer: Answer) -> Answer:
    def told(command: list[bytes]) -> bytes:
        if command[0] == b"EVALSHA":
            return answer([command[0], *command[3:]])
        return answer(command)

    return told


async def test_what_one_node_answers_for_itself_is_not_asked_of_all(nodes, wire):
    for command in (("INFO",), ("CONFIG", "GET", "x"), ("FLUSHALL",), ("SCAN", 0)):
        [reply] = await wire.exchange([command])
        assert "for itself" in str(reply)
    assert [sent for node in nodes for sent in node.sent if sent != ("PING",)] == []


async def test_a_pinned_wire_sends_everything_to_the_node_of_its_key(nodes):
    wire = SingleNodeWire(f"redis+cluster://{nodes[0].address}", f"{B}:owner")
    nodes[1].answer = lambda c: b":1" if c[0] != b"SET" else echo(c)

    replies = await wire.exchange([("SET", f"{B}:k", 1), ("WAIT", 1, 10)])
    await wire.close()

    assert replies == [b"1", 1]
    assert [("EXISTS", f"{B}:owner")] == nodes[0].sent
    assert [("SET", f"{B}:k", "1"), ("WAIT", "1", "10")] == nodes[1].sent[-2:]


@pytest.mark.parametrize("word", ["MOVED", "ASK"])
async def test_a_pinned_wire_sends_nothing_twice_when_its_slot_moves(nodes, word):
    """
    WAIT would answer for a node on which nothing was committed.
    """
    one, two = nodes
    wire = SingleNodeWire(f"redis+cluster://{one.address}", f"{A}:owner")
    await wire.exchange([("SET", f"{A}:k", 1)])
    one.answer = lambda c: elsewhere(A, two, word) if c[0] != b"WAIT" else b":0"
    two.answer = lambda c: echo(c) if c[0] == b"SET" else b":1"

    with pytest.raises(WireFailed):
        await wire.exchange([("SET", f"{A}:k", 2), ("WAIT", 1, 10)])
    assert commands_of(two) == []
    assert not wire.connected
    one.answer = lambda _: elsewhere(A, two)
    await wire.exchange([("SET", f"{A}:k", 3)])
    await wire.close()

    assert commands_of(two) == ["3"]


async def test_a_blocking_line_follows_its_commands_to_their_nodes(nodes):
    one, two = nodes
    lines = BlockingWires.from_url(
        f"redis+cluster://{one.address}", protocol=2, driver_info=None
    )
    line = lines.make_connection()

    def said(*command: Any) -> bytes:
        line.send_command(*command, check_health=False)
        reply: bytes = line.read_response()
        return reply

    assert await asyncio.to_thread(said, "SET", f"{B}:k", 1) == b"1"
    assert await asyncio.to_thread(said, "SET", f"{B}:k", 2) == b"2"
    assert commands_of(one) == ["1"]
    two.answer = lambda _: elsewhere(B, one, "ASK")
    one.answer = echo
    assert await asyncio.to_thread(said, "SET", f"{B}:k", 3) == b"3"
    line.disconnect()

    assert [("ASKING",), ("SET", f"{B}:k", "3")] == one.sent[-2:]


async def test_replies_on_one_node_are_not_kept_back_by_a_node_that_is_away():
    """
    The one that is refused is looked for again; the other is there now.
    """
    replies = ReplyReceiver("redis+cluster://nowhere", "ann", "i")
    lost, here = (replies.expect(p, f"i.{p}.1") for p in (0, 1))
    entry = [b"1-0", [b"r", pack(Reply(id="i.1.1"))]]
    away = Unreached(WireFailed("away"))
    told = {0: away, 1: [[b"eb:{1}:reply:ann:i.1.1", [entry]]]}

    async def exchange(commands: list[Any]) -> list[Any]:
        return [told[p] for p, _ in enumerate(commands)]

    replies._wire.exchange = exchange  # type: ignore[method-assign]
    replies._ready = {"i.0.1": None, "i.1.1": None}
    with pytest.raises(Unavailable):
        await replies._fetch()

    assert here.done()
    assert not lost.done()
