"""
`everbus mads`: how the roll is told, and how users are found and replaced.
"""

import hashlib

import pytest
from redis.exceptions import ResponseError

from everbus.bus.errors import AlreadyExists, Forbidden
from everbus.compose import mads_command
from everbus.compose.exit_codes import Failed
from everbus.compose.mad_overview import MAX_SESSIONS, MadRow, mad_rows
from everbus.compose.mad_users import (
    User,
    check_replaceable,
    find_user,
    save_users,
    set_user,
    user_warnings,
)
from everbus.gateway.store.lease_records import InstanceRecord, SweepStatus

OURS = User(frozenset({"on"}), frozenset({"&eb:wake:ada:*"}), digests=("x",))


class FakeWire:
    """
    Answers by the first words of a command, and notes what it was asked.
    """

    def __init__(self, **answers):
        self.answers = {name.replace("_", " "): told for name, told in answers.items()}
        self.asked = []

    async def call(self, *command):
        self.asked.append(command)
        told = self.answers[" ".join(map(str, command[:2]))]
        if isinstance(told, Exception):
            raise told
        return told

    async def exchange(self, commands):
        self.asked += commands
        return [self.answers.get(command[1:2], []) for command in commands]


class FakeAccess:
    def __init__(self, wire, partitions=1):
        self.wire = wire
        self.partitions = partitions


def a_record(instance, mad="ada", **fields):
    known = {"state": "living", "epoch": 1, "since_ms": 1000, "heard_ms": 2000}
    return InstanceRecord(mad=mad, instance=instance, **known | fields)


async def test_the_roll_has_every_mad_and_instance_in_order():
    records = [
        a_record("i2", left_ms=1500),
        a_record("i1", state="lost", ended_ms=9000, noticed="sweep"),
        a_record("i1", mad="removed", state="left", ended_ms=5000),
    ]

    rows = await mad_rows(FakeAccess(FakeWire()), ["bob", "ada"], records)

    assert [(r.mad, r.instance, r.state, r.registered) for r in rows] == [
        ("ada", "i1", "lost", True),
        ("ada", "i2", "alive", True),
        ("bob", "", "", True),
        ("removed", "i1", "left", False),
    ]
    assert [r.lease_left_s for r in rows] == [None, 1.5, None, None]
    assert rows[0].ended.timestamp() == 9


async def test_sessions_of_an_instance_are_counted_once_over_its_epochs():
    members = [b"i:ada:i1:s1:1", b"i:ada:i1:s1:2", b"i:ada:i1:s2:2"]
    wire = FakeWire()
    wire.answers = {("eb:{0}:attached",): members, ("eb:{1}:attached",): []}

    [row] = await mad_rows(FakeAccess(wire, 2), ["ada"], [a_record("i1")])

    assert (row.sessions, row.more_sessions) == (("s1", "s2"), False)


async def test_more_sessions_than_are_told_are_hinted_at():
    wire = FakeWire()
    many = [b"i:ada:i1:s%d:1" % n for n in range(MAX_SESSIONS)]
    wire.answers = {("eb:{0}:attached",): many}

    [row] = await mad_rows(FakeAccess(wire), ["ada"], [a_record("i1")])

    assert row.more_sessions
    assert mads_command._row(row)[6] == "1,000+"


def test_a_mad_without_instances_has_an_empty_row():
    assert mads_command._row(MadRow(mad="ada", registered=True)) == (
        *("ada", "", "", "", "-", None, "", ""),
    )


@pytest.mark.parametrize(
    ("watched", "told"),
    [
        ({"idle_ms": None}, "no manager watches"),
        ({"idle_ms": 65_000}, "for 65 s"),
        ({"idle_ms": 900, "untold": 3}, "3 losses are not yet announced"),
        ({"idle_ms": 900}, ""),
    ],
)
def test_a_list_that_may_be_out_of_date_says_so(watched, told, capsys):
    known = {"grace_ms": 0, "notified": "keyevent", "living": 1, "untold": 0}

    mads_command._warn_of_sweep(SweepStatus(**known | watched))

    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err
    assert bool(said.err) == bool(told)


async def test_only_the_digest_of_a_password_travels():
    wire = FakeWire(ACL_SETUSER=b"OK")

    await set_user(wire, "ada", "secret", ("+ping",))

    digest = hashlib.sha256(b"secret").hexdigest()
    assert wire.asked == [
        ("ACL", "SETUSER", "ada", "reset", "on", f"#{digest}", "+ping")
    ]


@pytest.mark.parametrize("channels", [b"&eb:wake:ada:*", [b"&eb:wake:ada:*"]])
async def test_a_user_is_read_in_either_form(channels):
    told = [b"flags", [b"on"], b"passwords", [b"x"], b"channels", channels]

    assert await find_user(FakeWire(ACL_GETUSER=told), "ada") == OURS
    assert await find_user(FakeWire(ACL_GETUSER=None), "ada") is None


async def test_servers_without_such_acls_give_the_remedy():
    unknown = ResponseError("ERR unknown command 'ACL'")

    with pytest.raises(Failed, match="--no-acl"):
        await find_user(FakeWire(ACL_GETUSER=unknown), "ada")
    with pytest.raises(Failed, match="Redis 7"):
        await set_user(FakeWire(ACL_SETUSER=unknown), "ada", "x", ())


def test_a_user_is_replaced_only_if_asked_and_only_a_mads_own():
    check_replaceable(None, "ada", rotate=False)
    check_replaceable(OURS, "ada", rotate=True)
    with pytest.raises(AlreadyExists, match="--rotate"):
        check_replaceable(OURS, "ada", rotate=False)
    for rotate in (True, False):
        with pytest.raises(AlreadyExists, match="no MAD's"):
            check_replaceable(OURS, "bob", rotate=rotate)


async def test_users_are_saved_where_the_server_has_a_file():
    assert await save_users(FakeWire(ACL_SAVE=b"OK"))
    assert not await save_users(FakeWire(ACL_SAVE=ResponseError("ERR no file")))
    assert not await save_users(FakeWire(ACL_SAVE=Forbidden("no")))


async def test_what_weakens_the_users_of_a_server_is_told():
    nopass = [b"flags", [b"on", b"nopass"], b"channels", b"&*"]
    off = [b"flags", [b"off"], b"channels", b""]
    weak = FakeWire(
        ACL_SAVE=ResponseError("ERR no file"),
        ACL_GETUSER=nopass,
    )
    sound = FakeWire(ACL_SAVE=b"OK", ACL_GETUSER=off)

    assert [one.split()[1] for one in await user_warnings(weak)] == ["server", "user"]
    assert await user_warnings(sound) == []
