"""
Commands without a reply under ids of the caller's own: kept within bounds.
"""

import pytest

from everbus.bus import own_commands
from everbus.bus.errors import Invalid, Overloaded
from everbus.bus.own_commands import OwnCommands
from tests.builders import an_envelope


def kept(count):
    own = OwnCommands()
    for n in range(count):
        own.keep(an_envelope("timeline.append", id=f"o-{n}", body={"entry": n}), 3)
    return own


def test_what_is_kept_is_sent_once_more_with_a_reply_in_its_order():
    own = kept(3)

    some = own.some(2)

    assert [(one.id, one.reply, place) for one, place in some] == [
        ("o-0", True, 3),
        ("o-1", True, 3),
    ]


def test_what_is_settled_is_forgotten_and_makes_room():
    own = kept(2)

    own.settled("o-0")
    own.settled("never kept")

    assert len(own) == 1
    own.check("o-0")
    with pytest.raises(Invalid, match="may not be settled yet"):
        own.check("o-1")


@pytest.mark.parametrize(("bound", "most"), [("MAX_COMMANDS", 4), ("MAX_BYTES", 30)])
def test_it_is_bounded_in_number_and_bytes(monkeypatch, bound, most):
    monkeypatch.setattr(own_commands, bound, most)
    own = kept(4)

    assert own.crowded
    with pytest.raises(Overloaded, match=r"flush\(settled=True\)") as refused:
        own.check("o-9")
    assert refused.value.details["waiting"] == 4
    for n in range(4):
        own.settled(f"o-{n}")
    own.check("o-9")
    assert not own.crowded
