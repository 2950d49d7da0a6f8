"""
Access lists: name spaces of users and MADs, and what adding a participant gives.
"""

import msgspec
import pytest

from everbus.bus.errors import Forbidden, Invalid
from everbus.gateway.store.catalogue_query import is_visible
from everbus.handlers.access_list import admits, check_entry, entry_for
from tests.builders import a_session
from tests.unit.commands import add, after, handle, remove, the_event, update

USER, MAD = {"is_mad": False}, {"is_mad": True}


@pytest.mark.parametrize(
    ("entry", "name", "admitted"),
    [
        ("ada", "ada", {"user", "mad"}),
        ("user:ada", "ada", {"user"}),
        ("mad:ada", "ada", {"mad"}),
        ("participant:ada", "ada", {"mad"}),
        ("host:ada", "ada", {"mad"}),
        ("user:ada", "user:ada", set()),
        ("mad:ada", "mad:ada", set()),
        ("participant:ada", "participant:ada", set()),
        ("user:mad:ada", "mad:ada", {"user"}),
        ("system:serviceaccount:a:b", "system:serviceaccount:a:b", {"user", "mad"}),
        ("mad:ada", "bob", set()),
    ],
)
def test_an_entry_admits_a_name_in_its_space_alone(entry, name, admitted):
    """
    Neither a MAD called like a user nor a user called like an entry gets in by it; the
    lists of sessions show the same as the policy admits.
    """
    roles = {"user": USER, "mad": MAD}
    found = {role for role, how in roles.items() if admits((entry,), name, **how)}
    session = a_session(owner_id="eve", acl=(entry,))
    shown = {
        role
        for role, how in roles.items()
        if is_visible(session, entry_for(name, **how))
    }

    assert found == admitted
    assert shown == admitted


@pytest.mark.parametrize("owner", ["user:bob", "mad:bob", "host:bob"])
@pytest.mark.parametrize("how", [USER, MAD], ids=["user", "mad"])
def test_an_owner_is_never_taken_for_an_entry(owner, how):
    session = a_session(owner_id=owner)

    assert not is_visible(session, entry_for("bob", **how))
    assert is_visible(session, entry_for(owner, **USER))


@pytest.mark.parametrize("entry", ["user:", "mad:a b", "user:*", 7, "participant:"])
def test_an_entry_without_a_name_is_refused(entry):
    with pytest.raises(Invalid) as refused:
        check_entry(entry, "acl")

    assert refused.value.details == {"field": "acl"}


def test_a_longest_name_fits_behind_a_prefix():
    name = "n" * 255

    changed = after(a_session(), update({"acl": [f"user:{name}"]}, may_share=True))

    assert changed.acl == (f"user:{name}",)


def test_a_member_adds_nobody_whom_the_acl_does_not_admit():
    there = a_session(acl=("bo",))

    with pytest.raises(Forbidden, match="eve"):
        handle(there, add("eve", may_share=False))


def test_a_member_joins_with_its_own_mad_and_gives_it_nothing():
    """
    A user's token on a MAD of another name: it is the user who is admitted.
    """
    there = a_session(acl=("user:bo",))

    command = add("worker", may_share=False, principal="bo")
    joined = after(there, msgspec.structs.replace(command, mad="worker"))

    assert (joined.acl, list(joined.participants)) == (("user:bo",), ["worker"])


@pytest.mark.parametrize(
    ("entry", "by", "added"),
    [
        ("host:bo", {"principal": "bo", "is_mad": True}, True),
        ("host:bo", {"principal": "bo"}, False),
        ("host:bo", {"principal": "cy", "is_mad": True}, False),
        ("mad:bo", {"principal": "bo", "is_mad": True}, False),
        ("participant:bo", {"principal": "bo", "is_mad": True}, False),
        ("bo", {"principal": "bo", "is_mad": True}, False),
    ],
)
def test_only_a_host_adds_others_beside_those_who_may_share(entry, by, added):
    """
    The MAD that creates a session for its user brings in the MADs that work on it; it
    cannot change the list otherwise.
    """
    there, command = a_session(acl=(entry,)), add("eve", may_share=False, **by)

    if added:
        assert after(there, command).acl == (entry, "participant:eve")
    else:
        with pytest.raises(Forbidden):
            handle(there, command)
    with pytest.raises(Forbidden, match="acl"):
        handle(there, update({"acl": [entry, "mad:eve"]}, **by))


@pytest.mark.parametrize("entry", ["eve", "mad:eve", "participant:eve"])
def test_a_member_adds_whom_the_acl_admits_and_gives_nothing(entry):
    joined = after(a_session(acl=("bo", entry)), add("eve", may_share=False))

    assert (joined.acl, list(joined.participants)) == (("bo", entry), ["eve"])


def test_a_users_entry_does_not_let_a_mad_of_that_name_be_added():
    with pytest.raises(Forbidden):
        handle(a_session(acl=("user:eve",)), add("eve", may_share=False))


def test_a_member_gives_no_access_by_another_role_for_a_participant():
    """
    The owner may have taken the participant out of the list.
    """
    there = after(a_session(), add("eve", "critic"))
    there = after(there, update({"acl": ["bo"]}, may_share=True))

    with pytest.raises(Forbidden):
        handle(there, add("eve", "author", may_share=False))
    assert handle(there, add("eve", "critic", may_share=False)).session is there


def test_the_owner_gives_access_again_by_adding_again():
    there = after(a_session(), add("eve"))
    there = after(there, update({"acl": []}, may_share=True))

    assert after(there, add("eve")).acl == ("participant:eve",)


def test_the_owner_needs_no_entry_of_its_own():
    assert after(a_session(owner_id="ada"), add("ada")).acl == ()


@pytest.mark.parametrize("entry", ["eve", "mad:eve", "user:eve"])
def test_removing_keeps_what_adding_did_not_give(entry):
    there = after(a_session(acl=(entry,)), add("eve"))

    removed = after(there, remove("eve"))

    assert entry in removed.acl
    assert "participant:eve" not in removed.acl


def test_a_mad_that_leaves_may_come_back_until_somebody_removes_it():
    there = after(a_session(), add("eve"))

    left = after(there, remove("eve", principal="eve", is_mad=True))
    back = after(left, add("eve", may_share=False))
    put_out = handle(left, remove("eve"))

    assert (left.acl, left.participants) == (("participant:eve",), {})
    assert list(back.participants) == ["eve"]
    assert put_out.session is not None
    assert put_out.session.acl == ()
    # Subscribers ask anew once the list changes.
    assert the_event(put_out).patch == {"acl": []}


def test_a_user_called_like_a_participant_does_not_leave_for_it():
    there = after(a_session(), add("eve"))

    assert after(there, remove("eve", principal="eve")).acl == ()
