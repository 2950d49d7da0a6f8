"""
The decision: the table agrees with a model that was written from its words.
"""

import random
from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest

from bus.errors import Forbidden
from bus.messages import Session
from gateway.identity import Principal
from gateway.policy import RULES, Policy, relation_of
from handlers.routes import HANDLERS

ABOUT_COMMANDS = ["request.outcome", "request.cancel"]
GATEWAYS = ["session.archive", "participant.lost", "instance.lost"]
KINDS = [*HANDLERS, *ABOUT_COMMANDS, "instance.lost"]
ROLES = ["user", "mad", "operator", "admin", "gateway"]
RELATIONS = ["owner", "member", "stranger", "absent"]
SESSIONLESS = ["session.list", "session.stats"]
NAMES = ["ada", "bob", "fiedler", "hopper", "gateway"]
THEN = datetime(2027, 1, 1, tzinfo=UTC)
SECRETS = ("s-1234", "grace", "tides", "boat")


def a_session(owner: str = "grace", acl: tuple[str, ...] = ()) -> Session:
    return Session(
        id="s-1234",
        version=7,
        owner_id=owner,
        created_at=THEN,
        last_active=THEN,
        acl=acl,
        context_summary={"topic": "tides"},
        work_in_progress={"thing": "boat"},
    )


def a_principal(role: Any = "user", name: str = "ada") -> Principal:
    return Principal(name, role, 2e9)


def session_for(relation: str, name: str) -> Session | None:
    return {
        "owner": a_session(owner=name),
        "member": a_session(acl=("bob", name)),
        "stranger": a_session(acl=("bob",)),
        "absent": None,
    }[relation]


def model(
    role: str, kind: str, relation: str, *, for_self: bool, own_ingress: bool = True
) -> bool:
    """
    Whether it is allowed, as the rules are told rather than as they are stored.
    """
    if role not in ROLES or kind not in KINDS:
        return False
    if role in ("mad", "gateway") and not own_ingress:
        return False
    if role == "gateway" or kind in GATEWAYS:
        return role == "gateway" and kind in (*GATEWAYS, "session.delete")
    if kind in SESSIONLESS:
        return relation == "absent" and (
            kind == "session.list" or role in ("operator", "admin")
        )
    return model_of_people(role, kind, relation, for_self=for_self)


def model_of_people(role: str, kind: str, relation: str, *, for_self: bool) -> bool:
    """
    The same for people and MADs, and what they do to one session.
    """
    if role == "admin" or kind in ABOUT_COMMANDS:
        return True
    if kind == "session.create" and relation == "absent":
        return role == "mad" or (role == "user" and for_self)
    if role == "operator":
        return kind != "session.delete"
    if relation == "stranger":
        return False

    return not (kind == "session.delete" and relation == "member")


def verdict(*request: Any) -> bool | None:
    """
    What allow() returned, or None if it refused.
    """
    try:
        return Policy(KINDS).allow(*request)
    except Forbidden:
        return None


@pytest.mark.parametrize("for_self", [True, False])
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("kind", [*KINDS, "session.steal", ""])
@pytest.mark.parametrize("role", [*ROLES, "root", ""])
def test_every_cell_of_the_table_is_as_told(
    role: str, kind: str, relation: str, for_self: bool
) -> None:
    principal, session = a_principal(role), session_for(relation, "ada")
    mad = "gateway" if role == "gateway" else "ada"

    answer = verdict(principal, kind, mad, session, "ada" if for_self else "bob")

    expected = model(role, kind, relation, for_self=for_self)
    assert (answer is not None) == expected
    if expected:
        assert answer == (relation == "owner" or role in ("operator", "admin"))


def test_a_hundred_thousand_random_requests_are_judged_as_told() -> None:
    """
    Checklist S5: no difference to the model, whoever asks for what of whom.
    """
    chance, policy, allowed = random.Random(5), Policy(KINDS), 0
    for _ in range(100_000):
        role, kind = chance.choice([*ROLES, "root"]), chance.choice([*KINDS, "x.y"])
        name, mad, owner, new_owner = chance.choices(NAMES, k=4)
        acl = tuple(chance.sample(NAMES, chance.randrange(4)))
        session = chance.choice([None, a_session(owner, acl)])
        relation = "absent" if session is None else "stranger"
        if session is not None and name in {owner, *acl}:
            relation = "owner" if name == owner else "member"

        try:
            policy.allow(a_principal(role, name), kind, mad, session, new_owner)
            answer = True
        except Forbidden:
            answer = False

        own_ingress = mad == ("gateway" if role == "gateway" else name)
        told = model(
            role, kind, relation, for_self=new_owner == name, own_ingress=own_ingress
        )
        assert answer == told, (role, kind, relation, name, mad, new_owner)
        allowed += answer
    assert 20_000 < allowed < 80_000


def test_every_kind_has_a_rule_for_every_role() -> None:
    """
    The table is complete and holds only words that the decision knows.
    """
    assert set(RULES) == set(KINDS)
    for kind, by_role in RULES.items():
        assert list(by_role) == ROLES, kind
        assert all(allowed <= set(RELATIONS) for allowed in by_role.values()), kind


def test_start_fails_for_a_kind_without_a_rule() -> None:
    with pytest.raises(ValueError, match=r"without a rule: \['a\.one', 'a\.two'\]"):
        Policy([*KINDS, "a.two", "a.one"])


def test_start_fails_for_a_rule_without_a_kind() -> None:
    rest = [kind for kind in KINDS if kind not in ("session.get", "timeline.read")]

    with pytest.raises(ValueError, match=r"a kind: \['session\.get', 'timeline\.read'"):
        Policy(rest)


@pytest.mark.parametrize(("kind", "relation"), list(product(KINDS, RELATIONS)))
def test_a_mad_cannot_speak_by_the_ingress_of_another(kind: str, relation: str) -> None:
    """
    A stolen or shared MAD token is of no use to another MAD.
    """
    principal = a_principal("mad", "fiedler")
    session = session_for(relation, "fiedler")

    assert verdict(principal, kind, "hopper", session, "fiedler") is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_gateways_role_is_worth_nothing_on_the_ingress_of_a_mad(kind: str) -> None:
    for relation in RELATIONS:
        session = session_for(relation, "gateway")

        principal = a_principal("gateway", "gateway")
        assert verdict(principal, kind, "fiedler", session) is None


@pytest.mark.parametrize("role", ["user", "operator", "admin"])
def test_people_may_speak_by_any_ingress(role: str) -> None:
    owned = a_session(owner="ada")

    assert verdict(a_principal(role), "session.get", "hopper", owned) is True


@pytest.mark.parametrize("role", ROLES)
def test_operators_and_admins_find_every_session(role: str) -> None:
    policy = Policy(KINDS)

    assert policy.sees_all(a_principal(role)) == (role in ("operator", "admin"))


def test_an_owner_on_the_acl_is_still_the_owner() -> None:
    assert relation_of("ada", a_session(owner="ada", acl=("ada",))) == "owner"


@pytest.mark.parametrize(("role", "kind"), list(product(ROLES, KINDS)))
def test_a_refusal_says_what_to_do_and_nothing_of_the_session(
    role: str, kind: str
) -> None:
    """
    Role, kind and remedy; the same words for any session.
    """
    told = {}
    for secret in ("boat", "ship"):
        session = a_session(owner=secret)
        try:
            Policy(KINDS).allow(a_principal(role), kind, "ada", session, "bob")
        except Forbidden as error:
            told[secret] = (error.message, error.details)
    if not told:
        return

    message, details = told["boat"]
    assert told["boat"] == told["ship"]
    assert role in message
    assert kind in message
    assert "; ask" in message
    assert details == {"role": role, "kind": kind}
    assert not [word for word in SECRETS if word in message]


@pytest.mark.parametrize(
    ("role", "mad", "remedy"),
    [("user", "fiedler", "user_id"), ("mad", "hopper", "token of the MAD")],
)
def test_a_refusal_to_create_names_its_remedy(role: str, mad: str, remedy: str) -> None:
    with pytest.raises(Forbidden, match=remedy):
        Policy(KINDS).allow(a_principal(role), "session.create", mad, None, "bob")
