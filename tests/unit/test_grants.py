"""
Grants: who asks, sealed for one instance or for one command, and worthless elsewhere.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everbus.bus.errors import Unauthenticated
from everbus.bus.keys import EDGE
from everbus.bus.messages import MAX_COMMAND_BYTES, pack
from everbus.bus.outgoing_command import GRANT_BYTES, INHERITED_EPOCH
from everbus.gateway.identity import grants as module
from everbus.gateway.identity.grants import BAD_GRANT, NO_GRANT, Grants, derived_key
from everbus.gateway.identity.principal import Principal
from tests.builders import an_envelope

KEY, OTHER = b"k" * 32, b"o" * 32
NOW = 1_800_000_000.0
ADA = Principal("ada", "user", NOW + 60, "acme")
LONG = "n" * 64


class Clock:
    now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def grants(clock):
    return Grants(KEY, clock=clock)


def refused(grants, mad, envelope, words=BAD_GRANT):
    with pytest.raises(Unauthenticated) as told:
        grants.principal_of(mad, envelope)
    assert told.value.message == words
    # The cause quotes what was sealed, and must reach no log.
    assert told.value.__cause__ is None
    return True


def a_command(**fields):
    """
    What the edge sends for somebody.
    """
    known = {"session": "s1", "id": "order-7", "body": {"patch": {}}}
    return an_envelope("session.update", **known | {"expected_version": 3} | fields)


def signed(grants, envelope, principal=ADA):
    grant = grants.for_command(principal, envelope)
    return type(envelope)(**{**fields_of(envelope), "grant": grant})


def fields_of(envelope):
    return {name: getattr(envelope, name) for name in envelope.__struct_fields__}


def changed(envelope, **fields):
    return type(envelope)(**fields_of(envelope) | fields)


class TestOfAnInstance:
    @pytest.fixture
    def sent(self, grants):
        grant = grants.for_instance(ADA, "fiedler", "i1")
        return an_envelope("session.get", id="i1.0.1", grant=grant)

    def test_tells_who_asks(self, grants, sent):
        assert grants.principal_of("fiedler", sent) == ADA
        # Remembered, and the same.
        assert grants.principal_of("fiedler", sent) is grants.principal_of(
            "fiedler", sent
        )

    def test_counts_in_every_manager_that_has_the_key(self, clock, sent):
        assert Grants(KEY, clock=clock).principal_of("fiedler", sent) == ADA
        assert refused(Grants(OTHER, clock=clock), "fiedler", sent)

    @pytest.mark.parametrize("mad", ["hymir", "fiedler2", "edge", "gateway", ""])
    def test_on_no_other_ingress(self, grants, sent, mad):
        for _ in range(2):
            assert refused(grants, mad, sent)
        assert grants.principal_of("fiedler", sent) == ADA
        assert refused(grants, mad, sent)

    def test_for_no_other_instance(self, grants, sent):
        other = changed(sent, id="i2.0.1")

        assert refused(grants, "fiedler", other)
        grants.principal_of("fiedler", sent)
        assert refused(grants, "fiedler", other)

    def test_for_any_id_made_freely_of_the_same_mad(self, grants, sent):
        assert grants.principal_of("fiedler", changed(sent, id="order-7")) == ADA

    def test_for_what_an_earlier_instance_left_on_disk(self, grants, sent):
        left = changed(sent, id="i0.0.1", epoch=INHERITED_EPOCH)

        assert grants.principal_of("fiedler", left) == ADA
        assert refused(grants, "fiedler", changed(left, epoch=INHERITED_EPOCH - 1))

    def test_until_the_token_would_have_ended(self, grants, clock, sent):
        clock.now = grants.ends_at(ADA) - 0.1
        assert grants.principal_of("fiedler", sent) == ADA
        clock.now = grants.ends_at(ADA)
        assert refused(grants, "fiedler", sent)
        assert refused(Grants(KEY, clock=clock), "fiedler", sent)

    def test_no_byte_of_it_can_be_changed(self, clock, sent):
        grants = Grants(KEY, clock=clock)
        grants.principal_of("fiedler", sent)
        for at in range(len(sent.grant)):
            for bit in (0, 7):
                forged = bytearray(sent.grant)
                forged[at] ^= 1 << bit
                assert refused(grants, "fiedler", changed(sent, grant=bytes(forged)))

    @pytest.mark.parametrize("end", [0, 1, 31, 32, 33, -1])
    def test_nothing_can_be_cut_off_or_added(self, grants, sent, end):
        if end:
            cut = changed(sent, grant=sent.grant[:end])
            assert refused(grants, "fiedler", cut)
        longer = changed(sent, grant=sent.grant + bytes(abs(end) + 1))
        assert refused(grants, "fiedler", longer)

    def test_none_is_told_apart_since_it_tells_no_forger_anything(self, grants, sent):
        assert refused(grants, "fiedler", changed(sent, grant=b""), NO_GRANT)

    @given(st.binary(min_size=1, max_size=600))
    def test_garbage_is_refused_in_the_same_words(self, garbage):
        grants = Grants(KEY, clock=Clock())
        for mad in ("fiedler", EDGE):
            assert refused(grants, mad, an_envelope("session.get", grant=garbage))

    def test_what_is_sealed_but_none_is_refused_too(self, grants):
        """
        As after an upgrade that changes what is in a grant.
        """
        for told in (b"", b"\xc1", pack([1, 2, 3]), pack(["x"] * 3), b"\x91" * 500):
            sealed = module._seal(KEY, told) + told
            assert refused(grants, "fiedler", an_envelope("session.get", grant=sealed))

    def test_the_largest_fits_into_the_room_that_publishers_leave(self, grants):
        principal = Principal(LONG, "operator", NOW + 60.5, LONG)
        grant = grants.for_instance(principal, LONG, LONG)
        sent = an_envelope("session.get", id=f"{LONG}.0.1", grant=grant)

        assert len(grant) <= GRANT_BYTES
        assert grants.principal_of(LONG, sent) == principal

    def test_one_that_is_too_large_is_not_even_hashed(self, grants, monkeypatch):
        monkeypatch.setattr(module, "_seal", None)
        large = an_envelope("session.get", grant=bytes(MAX_COMMAND_BYTES // 2))

        assert refused(grants, "fiedler", large)

    def test_so_many_are_remembered_and_no_more(self, clock, monkeypatch):
        monkeypatch.setattr(module, "MAX_VERIFIED", 3)
        grants = Grants(KEY, clock=clock)
        for n in range(9):
            grant = grants.for_instance(ADA, "fiedler", f"i{n}")
            sent = an_envelope("session.get", id=f"i{n}.0.1", grant=grant)
            grants.principal_of("fiedler", sent)

        assert len(grants._verified) == 3


class TestOfACommand:
    def test_tells_who_asks_on_the_ingress_of_the_edge(self, grants):
        assert grants.principal_of(EDGE, signed(grants, a_command())) == ADA

    @pytest.mark.parametrize(
        "fields",
        [
            {"id": "order-8"},
            {"id": "order-7", "kind": "session.delete"},
            {"session": "s2"},
            {"expected_version": 4},
            {"expected_version": None},
            {"durability": "warm"},
            {"body": a_command(body={"patch": {"tags": ["x"]}}).body},
            {"session": "s1order-7", "id": "o"},
        ],
    )
    def test_for_that_one_and_for_no_other(self, grants, fields):
        sent = signed(grants, a_command())

        assert refused(grants, EDGE, changed(sent, **fields))
        assert grants.principal_of(EDGE, sent) == ADA

    @pytest.mark.parametrize(
        "fields",
        [{"deadline_ms": 9}, {"trace": "t"}, {"wake": "i"}, {"reply": True}],
    )
    def test_what_decides_about_no_effect_may_change_on_the_way(self, grants, fields):
        """
        The publisher sets the deadline again when it writes.
        """
        sent = signed(grants, a_command())

        assert grants.principal_of(EDGE, changed(sent, **fields)) == ADA

    def test_on_no_ingress_of_a_mad(self, grants):
        sent = signed(grants, a_command())

        assert refused(grants, "fiedler", sent)
        assert refused(grants, "", sent)

    def test_that_of_an_instance_does_not_count_there(self, grants):
        for instance in ("", "i1"):
            grant = grants.for_instance(ADA, EDGE, instance)
            assert refused(grants, EDGE, a_command(grant=grant))
            grant = grants.for_instance(ADA, "fiedler", instance)
            assert refused(grants, EDGE, a_command(grant=grant))

    def test_no_byte_of_it_can_be_changed(self, grants):
        sent = signed(grants, a_command())
        for at in range(len(sent.grant)):
            forged = bytearray(sent.grant)
            forged[at] ^= 1
            assert refused(grants, EDGE, changed(sent, grant=bytes(forged)))

    def test_no_byte_of_the_body_can_be_changed(self, grants):
        sent = signed(grants, a_command())
        for at in range(len(sent.body)):
            body = bytearray(sent.body)
            body[at] ^= 1
            forged = changed(sent, body=type(sent.body)(bytes(body)))
            assert refused(grants, EDGE, forged)

    def test_until_the_principals_time_is_over(self, grants, clock):
        sent = signed(grants, a_command())
        clock.now = grants.ends_at(ADA)

        assert refused(grants, EDGE, sent)

    def test_none_is_verified(self, grants):
        """
        Each comes once, and would only drive the others out.
        """
        grants.principal_of(EDGE, signed(grants, a_command()))

        assert len(grants._verified) == 0


class TestKeys:
    def test_the_previous_one_counts_and_seals_nothing(self, clock):
        old, both = Grants(KEY, clock=clock), Grants(OTHER, [KEY], clock=clock)
        new = Grants(OTHER, clock=clock)
        for made, there in ((old, both), (both, new), (both, both)):
            grant = made.for_instance(ADA, "fiedler", "i1")
            sent = an_envelope("session.get", id="i1.0.1", grant=grant)
            assert there.principal_of("fiedler", sent) == ADA
            command = signed(made, a_command())
            assert there.principal_of(EDGE, command) == ADA
        assert refused(new, EDGE, signed(old, a_command()))

    @pytest.mark.parametrize("keys", [(b"", []), (b"k" * 31, []), (KEY, [b"short"])])
    def test_a_short_one_is_refused(self, keys):
        with pytest.raises(ValueError, match="32 bytes or more") as refused:
            Grants(*keys)
        assert "short" not in str(refused.value)

    def test_one_that_is_derived_is_not_the_secret(self):
        secret = "a secret of the tests, 32 bytes or more"

        assert len(derived_key(secret)) == 32
        assert derived_key(secret) != secret.encode()
        assert derived_key(secret) == derived_key(secret) != derived_key(secret + "x")

    def test_none_is_shown(self):
        assert "kkkk" not in repr(Grants(KEY))
