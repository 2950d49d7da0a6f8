"""
Revoked tokens: whom an entry refuses, what a copy of the list keeps, and what a list
that cannot be read means.
"""

import msgspec
import pytest
from structlog.testing import capture_logs

from everbus.bus.errors import Overloaded, Unauthenticated, Unavailable
from everbus.compose.exit_codes import Failed
from everbus.compose.revocation_command import of_token
from everbus.gateway.identity.grants import BAD_GRANT
from everbus.gateway.identity.token_revocation_reader import read_list
from everbus.gateway.identity.token_revocations import (
    UNREAD_S,
    TokenRevocation,
    TokenRevocations,
)
from everbus.gateway.identity.tokens import BAD_TOKEN, MAX_LEEWAY_S, Identity
from everbus.gateway.lane.decision import Decision
from tests.unit.forging import (
    AUDIENCE,
    HONEST,
    ISSUER,
    KEYS,
    NOW,
    Clock,
    minted,
    with_claims,
)
from tests.unit.test_subscribers import BOB, ALane

YEAR_S = 366 * 86_400


class Tried:
    """
    An identity, its copy of the list, and both of their clocks.
    """

    def __init__(self, **options):
        self.clock, self.passed_s = Clock(), 100.0
        self.revocations = TokenRevocations(
            clock=self.clock, monotonic=lambda: self.passed_s, **options
        )
        self.identity = Identity(
            KEYS, ISSUER, AUDIENCE, revocations=self.revocations, clock=self.clock
        )

    def hears(self, *entries):
        return self.revocations.heard({one.field: one for one in entries})

    def admits(self, token):
        try:
            self.identity.principal_of(token)
        except Unauthenticated as error:
            return error.message != BAD_TOKEN
        return True


def a_jti(name="t-1", tenant="", **fields):
    known = {"kind": "jti", "expires_at": NOW + 600, "made_at": NOW}
    return TokenRevocation(**known | fields, name=name, tenant=tenant)


def a_subject(name="ada", tenant="", **fields):
    known = {"kind": "subject", "expires_at": NOW + 600, "made_at": NOW}
    return TokenRevocation(
        **{"issued_until": NOW} | known | fields, name=name, tenant=tenant
    )


def named(jti="t-1", tenant=..., **more):
    return with_claims(jti=jti, tenant=tenant, **more)


@pytest.mark.parametrize(
    ("entry", "token", "admitted"),
    [
        (a_jti(), named(), False),
        (a_jti(), named("t-2"), True),
        (a_jti(), HONEST, True),
        (a_jti(tenant="acme"), named(), True),
        (a_jti(tenant="acme"), named(tenant="acme"), False),
        (a_jti(), named(tenant="acme"), True),
        (a_jti("7"), with_claims(jti=7), True),
        (a_jti(expires_at=NOW), named(), True),
        (a_subject(), with_claims(iat=int(NOW)), False),
        (a_subject(), with_claims(iat=int(NOW) + 1), True),
        (a_subject(), with_claims(iat=...), False),
        (a_subject("bob"), HONEST, True),
        (a_subject(tenant="acme"), HONEST, True),
        (a_subject(), with_claims(tenant="acme"), True),
        (a_subject(expires_at=NOW), HONEST, True),
        (of_token(HONEST, NOW), HONEST, False),
        (of_token(HONEST, NOW), with_claims(exp=NOW + 59), True),
        (of_token(named(), NOW), named(exp=NOW + 59), False),
    ],
)
def test_an_entry_refuses_its_tokens_and_no_others(entry, token, admitted):
    tried = Tried()
    assert tried.admits(token)

    tried.hears(entry)

    assert tried.admits(token) == admitted


def test_a_token_is_known_by_what_is_signed():
    """
    Other bytes of a signature can be valid, too.
    """
    head, payload, seal = HONEST.split(".")

    other = of_token(f"{head}.{payload}.{seal[::-1]}", NOW)

    assert other.field == of_token(HONEST, NOW).field


@pytest.mark.parametrize(
    "token", ["", "eyJ", "a.b.c", "e30.e30.x", with_claims(exp=NOW - MAX_LEEWAY_S)]
)
def test_only_a_token_that_somebody_may_accept_is_revoked(token):
    with pytest.raises(Failed) as refused:
        of_token(token, NOW)

    assert not token or token not in str(refused.value)


def test_a_copy_forgets_nothing_that_the_bus_has_lost():
    tried = Tried()
    tried.hears(a_jti(), a_subject("bob"))

    lacks = tried.hears()

    assert lacks
    assert not tried.admits(named())
    assert set(tried.revocations.kept()) == {a_jti().field, a_subject("bob").field}


def test_a_copy_drops_what_has_ended():
    tried = Tried()
    tried.hears(a_jti(), a_subject(expires_at=NOW + 6))
    tried.clock.now = NOW + 7

    lacks = tried.hears(a_jti())

    assert not lacks
    assert set(tried.revocations.kept()) == {a_jti().field}


def test_of_two_entries_for_one_subject_the_stronger_counts():
    """
    A failover brings back the older one.
    """
    tried = Tried()
    tried.hears(a_subject(issued_until=NOW + 5))

    assert tried.hears(a_subject(issued_until=NOW - 5))
    assert not tried.admits(with_claims(iat=int(NOW) + 4))


def test_a_copy_beyond_its_bound_keeps_what_lasts_longest():
    tried = Tried(max_items=10)
    many = [a_jti(f"t-{n}", expires_at=NOW + n) for n in range(1, 100)]

    with capture_logs() as logs:
        lacks = tried.hears(*many)

    assert not lacks
    assert len(tried.revocations) == 10
    assert not tried.admits(named("t-99"))
    assert tried.admits(named("t-1"))
    assert "revocations.too_many" in {one["event"] for one in logs}


def test_an_open_copy_judges_by_what_it_knows_however_old():
    tried = Tried()
    tried.hears(a_jti())
    tried.passed_s += YEAR_S

    assert tried.admits(HONEST)
    assert not tried.admits(named())


def test_a_closed_copy_refuses_all_once_the_list_is_unread():
    tried = Tried(unread="closed")
    with pytest.raises(Unavailable, match="cannot be read"):
        tried.admits(HONEST)

    tried.hears(a_jti())
    tried.passed_s += UNREAD_S
    assert tried.admits(HONEST)
    tried.passed_s += 0.1
    with pytest.raises(Unavailable):
        tried.admits(HONEST)
    tried.revocations.note_read()
    assert tried.admits(HONEST)


def test_changes_are_told_and_the_same_list_is_none():
    tried, told = Tried(), []
    tried.revocations.on_change.append(lambda: told.append(len(tried.revocations)))

    tried.hears(a_jti())
    tried.hears(a_jti())
    tried.hears(a_jti(), a_subject())

    assert told == [1, 2]


def test_a_refusal_is_logged_without_the_token():
    tried = Tried()
    tried.hears(a_jti())

    with capture_logs() as logs:
        tried.admits(named())

    assert [(one["event"], one["reason"]) for one in logs] == [
        ("token.refused", "revoked")
    ]


class TestInALane:
    def lane(self, **options):
        lane = ALane()
        self.revocations = TokenRevocations(**options)
        lane.decider._revoked_tokens = self.revocations
        lane.decider.subscribers._hears = lane.decider.may_hear
        return lane

    def revoke(self, name):
        until = 2e9
        one = a_subject(name, issued_until=until, expires_at=2 * until)
        self.revocations.heard({one.field: one})

    def test_commands_under_a_revoked_tokens_grant_are_refused(self):
        lane = self.lane()
        self.revoke("ann")

        refused, _ = lane.append(mad="ann")
        lane.append(mad="bob")

        with pytest.raises(Unauthenticated, match=BAD_GRANT):
            lane.decider.sender_of(refused)
        assert lane.decider.cache.sessions["s1"].last_seq == 1

    def test_a_watch_of_a_revoked_token_gets_no_push(self):
        lane = self.lane()
        lane.watch("bob")
        lane.watch("cyd")
        lane.commit()
        self.revoke("bob")

        lane.append("secret")
        pushed = lane.pushed()

        assert BOB not in pushed
        assert pushed

    def test_a_write_waits_while_nobody_can_tell(self):
        """
        It is refused for now only: one that wants no reply would be lost otherwise.
        """
        lane = self.lane(unread="closed")
        asked, settled = lane.append(mad="ann")
        _, waits = lane.append(mad="ann", reply=False)

        assert (settled, waits) == (Decision.SETTLED, Decision.DEFERRED)
        with pytest.raises(Overloaded, match="cannot be read"):
            lane.decider.sender_of(asked)


def test_a_minted_token_has_a_name_for_its_revocation():
    assert Tried().identity.principal_of(minted("HS256")).token_id.startswith("token:")


async def test_an_entry_nested_without_end_hides_no_other():
    deep = b'{"z":' + b"[" * 200_000
    fine = a_jti()

    class Wire:
        async def call(self, *_command, **_options):
            return [b"bad", deep, fine.field.encode(), msgspec.json.encode(fine)]

    assert list(await read_list(Wire())) == [fine.field]
