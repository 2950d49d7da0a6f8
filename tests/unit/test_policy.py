"""
The decision: what it rests on, and that its refusals give nothing away.

Whether the table says what it should is in `test_policy_model.py`.
"""

from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest

from everbus.bus.errors import Forbidden
from everbus.bus.messages import Session
from everbus.gateway.identity.policy import HOUSE_WIDE, RULES, Policy, relation_of
from everbus.gateway.identity.principal import Principal
from everbus.handlers.routes import HANDLERS

ABOUT_COMMANDS = ["request.outcome", "request.cancel", "request.settled"]
GATEWAYS = ["session.archive", "participant.lost", "instance.lost"]
KINDS = [*HANDLERS, *ABOUT_COMMANDS, "instance.lost"]
ROLES = ["user", "mad", "operator", "admin", "gateway"]
RELATIONS = ["owner", "member", "stranger", "absent"]
THEN = datetime(2027, 1, 1, tzinfo=UTC)
SECRETS = ("s-1234", "grace", "tides", "boat")


def a_session(
    owner: str = "grace", acl: tuple[str, ...] = (), tenant: str = ""
) -> Session:
    return Session(
        id="s-1234",
        version=7,
        tenant=tenant,
        owner_id=owner,
        created_at=THEN,
        last_active=THEN,
        acl=acl,
        context_summary={"topic": "tides"},
        work_in_progress={"thing": "boat"},
    )


def a_principal(role: Any = "user", name: str = "ada", tenant: str = "") -> Principal:
    return Principal(name, role, 2e9, tenant)


def session_for(relation: str, name: str) -> Session | None:
    return {
        "owner": a_session(owner=name),
        "member": a_session(acl=("bob", name)),
        "stranger": a_session(acl=("bob",)),
        "absent": None,
    }[relation]


def verdict(*request: Any) -> bool | None:
    """
    What allow() returned, or None if it refused.
    """
    try:
        return Policy(KINDS).allow(*request)
    except Forbidden:
        return None


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
    session = a_session(owner="ada", acl=("ada",))

    assert relation_of(a_principal(name="ada"), session) == "owner"


TENANTS = [("", "acme"), ("acme", ""), ("acme", "globex"), ("acme", "Acme")]
PEOPLE = ["user", "mad", "operator", "admin"]


@pytest.mark.parametrize(("asks", "owns"), TENANTS)
@pytest.mark.parametrize("role", PEOPLE)
def test_a_session_of_another_tenant_is_not_there(
    role: str, asks: str, owns: str
) -> None:
    """
    Answer, words and details are those for no session at all, whatever the other one
    has to do with somebody of the same name; and nobody is shown it.
    """
    policy, principal = Policy(KINDS), a_principal(role, "ada", asks)
    for kind, new_owner in product(KINDS, ("ada", "bob")):
        told = {
            told_of(policy, principal, kind, session, new_owner)
            for session in (
                None,
                a_session("ada", tenant=owns),
                a_session("bob", ("ada",), tenant=owns),
                a_session("bob", tenant=owns),
            )
            # Whoever names an id of its own choice must learn that it is taken.
            if session is None or kind != "session.create"
        }

        assert len(told) == 1
    assert policy.seen(principal, a_session("ada", ("ada",), tenant=owns)) is None


def told_of(policy: Policy, principal: Principal, *asked: Any) -> tuple[object, ...]:
    kind, session, new_owner = asked
    try:
        return (policy.allow(principal, kind, principal.name, session, new_owner),)
    except Forbidden as error:
        return (error.code, error.message, tuple(error.details.items()))


@pytest.mark.parametrize("role", ["user", "mad", "admin"])
def test_an_id_that_another_tenant_has_is_refused_without_a_reason(role: str) -> None:
    """
    The same words whoever owns it, and whatever it is.
    """
    told = {
        told_of(Policy(KINDS), a_principal(role), "session.create", session, "ada")
        for session in (
            a_session("ada", tenant="acme"),
            a_session("bob", ("ada",), tenant="globex"),
        )
    }

    [(code, message, _)] = told
    assert code == "forbidden"
    assert "choose another id" in str(message)
    assert not [word for word in (*SECRETS, "tenant", "acme") if word in str(message)]


@pytest.mark.parametrize("tenant", ["", "acme"])
def test_the_gateway_is_of_every_tenant(tenant: str) -> None:
    session = a_session(tenant=tenant)
    gateway = a_principal("gateway", "gateway")

    assert Policy(KINDS).seen(gateway, session) is session
    assert verdict(gateway, "session.delete", "gateway", session) is not None


@pytest.mark.parametrize("role", ["operator", "admin"])
@pytest.mark.parametrize("kind", sorted(HOUSE_WIDE))
def test_what_is_about_all_tenants_is_for_none_of_them(role: str, kind: str) -> None:
    refused = verdict(a_principal(role, tenant="acme"), kind, "ada", None)

    assert verdict(a_principal(role), kind, "ada", None) is not None
    assert refused is None


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
