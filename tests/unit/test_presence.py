"""
Heartbeats as they are read, hints as they are heard, losses as they are told.
"""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from everbus.bus.errors import Forbidden
from everbus.bus.messages import SCHEMA, Envelope, pack, pack_envelope, unpack_envelope
from everbus.gateway.lane.fencing import LOST_KIND, InstanceLost
from everbus.gateway.presence.announcements import _command
from everbus.gateway.presence.expiry import MAX_HINTS, ExpiryHints, notification_mode
from everbus.gateway.presence.heartbeats import Beat, parse_heartbeats
from everbus.gateway.store.lease_records import InstanceRecord, parse_record

MAX_ID = b"18446744073709551615-18446744073709551615"


def said(kind, instance="i1", epoch=1, **fields):
    """
    The fields of a stream entry that carries one heartbeat.
    """
    body = msgspec.Raw(pack({"instance": instance, "epoch": epoch} | fields))
    envelope = Envelope(v=SCHEMA, id="x", kind=f"instance.{kind}", body=body)
    return [b"c", pack_envelope(envelope)]


def test_heartbeats_of_one_epoch_count_as_their_newest():
    heard = parse_heartbeats(
        [
            (b"1000-0", said("join")),
            (b"2000-0", said("beat", "i2")),
            (b"3000-7", said("beat")),
        ]
    )

    assert (Beat("i1", 1, False, 3000), Beat("i2", 1, False, 2000)) == heard.beats
    assert heard.ids == ("1000-0", "2000-0", "3000-7")
    assert heard.kinds == {"join": 1, "beat": 2}
    assert heard.problem == ""


def test_epochs_and_goodbyes_keep_their_order():
    heard = parse_heartbeats(
        [
            (b"1-0", said("beat")),
            (b"2-0", said("leave")),
            (b"3-0", said("join", epoch=2)),
        ]
    )

    assert [(beat.epoch, beat.leaving) for beat in heard.beats] == [
        (1, False),
        (1, True),
        (2, False),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [b"x", b"y"],
        [b"c"],
        [b"c", b""],
        [b"c", b"\xff" * 100],
        [b"c", b"x" * 300_000],
        [b"c", b"\x91" * 5000],
        [b"c", pack_envelope(Envelope(v=SCHEMA, id="x", kind="session.get"))],
        [b"c", pack_envelope(Envelope(v=SCHEMA + 1, id="x", kind="instance.beat"))],
        [b"c", pack_envelope(Envelope(v=SCHEMA, id="x", kind="instance.beat"))],
        *(said("beat", epoch=epoch) for epoch in (0, -1, 2**53 + 1, 1.5, "1", None)),
        *(said("beat", epoch=flag) for flag in (True, False)),
        *(
            said("beat", name)
            for name in ("", "-a", "a:b", "a.b", "a b", "a\n", "ä", "a" * 65, 7, None)
        ),
    ],
)
def test_what_is_no_heartbeat_is_counted_and_hurts_no_other(fields):
    heard = parse_heartbeats([(b"1-0", fields), (MAX_ID, said("beat", "good"))])

    assert ("1-0", MAX_ID.decode()) == heard.ids
    assert [beat.instance for beat in heard.beats] == ["good"]
    assert heard.kinds == {"garbled": 1, "beat": 1}
    assert 0 < len(heard.problem) <= 200


@given(st.lists(st.lists(st.binary(max_size=50), max_size=6), max_size=5))
def test_no_bytes_make_reading_fail(entries):
    heard = parse_heartbeats((b"%d-0" % n, fields) for n, fields in enumerate(entries))

    assert len(heard.ids) == len(entries)


def test_of_an_entry_without_end_only_the_beginning_is_looked_at():
    fields = said("beat") * 1000

    assert parse_heartbeats([(b"1-0", fields)]).kinds.total() == 64


def test_a_record_reads_as_it_was_written():
    lost = parse_record(b"ann:i1", b"lost 3 100 200 300 event")
    living = parse_record(b"ann:i1", b"living 1 100 200 0 -", 7)

    assert lost == InstanceRecord(
        mad="ann",
        instance="i1",
        state="lost",
        epoch=3,
        since_ms=100,
        heard_ms=200,
        ended_ms=300,
        noticed="event",
    )
    assert (living.state, living.left_ms, living.noticed) == ("living", 7, "")


class Server:
    """
    A server that answers CONFIG GET so.
    """

    def __init__(self, answer):
        self.answer = answer

    async def call(self, *_):
        if isinstance(self.answer, Exception):
            raise self.answer
        return [b"notify-keyspace-events", self.answer]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "off"),
        (b"x", "off"),
        (b"KE", "off"),
        (b"Eg", "off"),
        (b"Kx", "keyspace"),
        (b"AK", "keyspace"),
        (b"Ex", "keyevent"),
        (b"AE", "keyevent"),
        (b"xKE", "keyspace"),
        (Forbidden("no"), "forbidden"),
        (ResponseError("unknown command 'CONFIG'"), "forbidden"),
    ],
)
async def test_it_finds_out_how_the_server_tells_of_expiries(answer, told):
    assert told == await notification_mode(Server(answer))


async def test_a_server_without_that_setting_does_not_tell():
    class Bare:
        async def call(self, *_):
            return []

    assert await notification_mode(Bare()) == "off"


@pytest.mark.parametrize(
    ("channel", "said", "hint"),
    [
        (b"__keyspace@0__:eb:{mads}:lease:ann:i1", b"expired", {"ann:i1"}),
        (b"__keyspace@0__:eb:{mads}:lease:ann:i1", b"set", set()),
        (b"__keyevent@0__:expired", b"eb:{mads}:lease:ann:i1", {"ann:i1"}),
        (b"__keyevent@0__:expired", b"eb:{0}:ledger:x", set()),
        (
            b"__keyevent@0__:expired",
            b"eb:{mads}:lease:\xff",
            {"\N{REPLACEMENT CHARACTER}"},
        ),
    ],
)
def test_only_expired_leases_are_hints(channel, said, hint):
    woken = []
    expiries = ExpiryHints(list, lambda: woken.append(1))

    expiries._on_message(channel, said)

    assert bool(expiries) is bool(hint) is bool(woken)
    assert hint == expiries.take()
    assert not expiries


def test_a_flood_of_hints_is_bounded():
    expiries = ExpiryHints(list, lambda: None)

    for n in range(2 * MAX_HINTS):
        expiries._on_message(b"__keyevent@0__:expired", b"eb:{mads}:lease:ann:%d" % n)

    assert len(expiries.take()) == MAX_HINTS


def lost(mad, epoch=1):
    return InstanceLost(mad=mad, instance="i1", epoch=epoch)


def test_losses_are_told_under_ids_of_their_own():
    """
    Else a MAD that names its instance like another's could settle that one's loss.
    """
    told = [lost("ann"), lost("bob"), lost("ann", 2)]

    envelopes = [unpack_envelope(_command(one, p)[4]) for one in told for p in (0, 1)]

    assert len({envelope.id for envelope in envelopes}) == 6
    assert {LOST_KIND} == {envelope.kind for envelope in envelopes}
    assert all(len(envelope.id) <= 80 for envelope in envelopes)
    assert told[0] == msgspec.msgpack.decode(envelopes[0].body, type=InstanceLost)
    assert _command(told[0], 0) == _command(told[0], 0)
