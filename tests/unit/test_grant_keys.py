"""
Grants sealed by Ed25519 keys: each key for one kind, and worthless for the other.
"""

import base64
import shlex

import pytest
from typer.testing import CliRunner

from everbus.bus.errors import Unauthenticated
from everbus.bus.keys import EDGE
from everbus.bus.messages import pack
from everbus.bus.outgoing_command import GRANT_BYTES
from everbus.compose.cli import app
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.keyring import grants_of
from everbus.compose.settings import load_settings
from everbus.gateway.identity import grants as module
from everbus.gateway.identity.grant_keys import (
    MARK,
    MAX_TRUSTED,
    SIGNATURE_BYTES,
    IssuingKey,
    TrustedKeys,
    issuing_key,
    new_pair,
)
from everbus.gateway.identity.grants import BAD_GRANT, Grant, Grants
from everbus.gateway.identity.principal import Principal
from tests.builders import an_envelope

NOW = 1_800_000_000.0
ADA = Principal("ada", "user", NOW + 60, "acme")
SHARED = b"s" * 32
SECRET = "a secret of the tests, 32 bytes or more"


def a_pair(kind, key_id, byte):
    """
    As `new_pair`, the same in each process of the tests.
    """
    coded = base64.b64encode(byte * 32).decode()
    public = IssuingKey(kind, key_id, byte * 32).public_text

    return f"{kind}:{key_id}:ed25519-private:{coded}", public


MAD, EDGES = a_pair("mad", "m1", b"a"), a_pair("edge", "e1", b"b")
# Keys under the same names that nobody trusts.
FALSE_MAD, FALSE_EDGES = a_pair("mad", "m1", b"c"), a_pair("edge", "e1", b"d")
NEXT_MAD, NEXT_EDGES = a_pair("mad", "m2", b"e"), a_pair("edge", "e2", b"f")
PUBLIC = (MAD[1], EDGES[1])


def clock():
    return NOW


def issuer(pair, shared=None, public=PUBLIC):
    kind = pair[0].partition(":")[0]
    key = issuing_key([pair[0]], kind)

    return Grants(shared, issuing=key, trusted=TrustedKeys(public), clock=clock)


def manager(*public, shared=None):
    return Grants(shared, trusted=TrustedKeys(public or PUBLIC), clock=clock)


def of_instance(grants, **fields):
    grant = grants.for_instance(ADA, "fiedler", "i1")
    return an_envelope("session.get", id="i1.0.1", grant=grant, **fields)


def of_command(grants, **fields):
    known = {"session": "s1", "id": "order-7", "expected_version": 3}
    sent = an_envelope("session.update", **known)
    grant = grants.for_command(ADA, sent)

    return changed(sent, **{"grant": grant, **fields})


def changed(envelope, **fields):
    before = {name: getattr(envelope, name) for name in envelope.__struct_fields__}
    return type(envelope)(**before | fields)


def refused(grants, mad, envelope):
    with pytest.raises(Unauthenticated) as refusal:
        grants.principal_of(mad, envelope)
    assert refusal.value.message == BAD_GRANT
    # The cause quotes what was sealed, and must reach no log.
    assert refusal.value.__cause__ is None
    return True


def test_public_keys_are_enough_to_verify():
    here = manager()

    assert here.principal_of("fiedler", of_instance(issuer(MAD))) == ADA
    assert here.principal_of(EDGE, of_command(issuer(EDGES))) == ADA


class TestKinds:
    def test_each_key_seals_its_kind_alone(self):
        with pytest.raises(ValueError, match="no key here seals"):
            issuer(EDGES).for_instance(ADA, "fiedler", "i1")
        with pytest.raises(ValueError, match="no key here seals"):
            issuer(MAD).for_command(ADA, an_envelope("session.get"))

    def test_an_edges_key_makes_no_grant_of_a_mad(self):
        """
        With all that an edge has: its key, and any name for it.
        """
        [_, key_id, what, coded] = EDGES[0].split(":")
        for name in (key_id, "m1"):
            stolen = (f"mad:{name}:{what}:{coded}", "")
            assert refused(manager(), "fiedler", of_instance(issuer(stolen)))

        edge = issuing_key([EDGES[0]], "edge")
        sealed = edge.seal(pack(Grant(ADA, "fiedler", "i1")))
        sent = an_envelope("session.get", id="i1.0.1", grant=sealed)
        assert refused(manager(), "fiedler", sent)

    def test_the_key_of_mads_makes_no_grant_of_an_edge(self):
        [_, key_id, what, coded] = MAD[0].split(":")
        for name in (key_id, "e1"):
            stolen = (f"edge:{name}:{what}:{coded}", "")
            assert refused(manager(), EDGE, of_command(issuer(stolen)))

    def test_one_key_of_two_kinds_is_refused(self):
        [_, _, what, coded] = EDGES[1].split(":")
        with pytest.raises(ValueError, match="another kind"):
            TrustedKeys([EDGES[1], f"mad:m9:{what}:{coded}"])

    def test_the_kind_is_signed(self):
        """
        Even where one key was trusted for both.
        """
        both = TrustedKeys([EDGES[1]])
        [key] = both._keys.values()
        both._keys = {("mad", "e1"): key, ("edge", "e1"): key}
        here = Grants(None, trusted=both, clock=clock)
        edge = issuing_key([EDGES[0]], "edge")
        sealed = edge.seal(pack(Grant(ADA, "fiedler", "i1")))
        sent = an_envelope("session.get", id="i1.0.1", grant=sealed)

        assert refused(here, "fiedler", sent)


class TestForged:
    @pytest.mark.parametrize("pair", [FALSE_MAD, NEXT_MAD])
    def test_a_mads_by_another_key(self, pair):
        assert refused(manager(), "fiedler", of_instance(issuer(pair)))

    @pytest.mark.parametrize("pair", [FALSE_EDGES, NEXT_EDGES])
    def test_an_edges_by_another_key(self, pair):
        assert refused(manager(), EDGE, of_command(issuer(pair)))

    def test_no_byte_of_it_can_be_changed(self):
        for mad, sent in (
            ("fiedler", of_instance(issuer(MAD))),
            (EDGE, of_command(issuer(EDGES))),
        ):
            here = manager()
            assert here.principal_of(mad, sent) == ADA
            for at in range(len(sent.grant)):
                forged = bytearray(sent.grant)
                forged[at] ^= 1
                assert refused(here, mad, changed(sent, grant=bytes(forged)))

    def test_nothing_can_be_cut_off_or_added(self):
        sent = of_instance(issuer(MAD))
        head = len(MARK) + 1 + len("m1")
        ends = {len(MARK), len(MARK) + 1, head, head + 1, head + SIGNATURE_BYTES, -1}
        for end in ends:
            short = changed(sent, grant=sent.grant[:end])
            assert refused(manager(), "fiedler", short)
        longer = changed(sent, grant=sent.grant + b"\0")
        assert refused(manager(), "fiedler", longer)

    @pytest.mark.parametrize("length", [0, 1, 2, 255])
    def test_whatever_length_its_key_id_claims(self, length):
        for tail in (b"", b"m1", b"\xff" * 99, b"m1" + bytes(200)):
            sealed = MARK + bytes((length,)) + tail
            for mad in ("fiedler", EDGE):
                sent = an_envelope("session.get", grant=sealed)
                assert refused(manager(), mad, sent)

    def test_signed_and_no_grant(self):
        """
        As after an upgrade that changes what is in a grant.
        """
        key = issuing_key([MAD[0]], "mad")
        for content in (b"", b"\xc1", pack([1, 2, 3]), b"\x91" * 500):
            sent = an_envelope("session.get", grant=key.seal(content))
            assert refused(manager(), "fiedler", sent)

    def test_the_shared_secret_makes_none_where_it_is_off(self):
        shared = Grants(SHARED, clock=clock)

        assert refused(manager(), "fiedler", of_instance(shared))
        assert refused(manager(), EDGE, of_command(shared))

    def test_a_signed_one_is_never_tried_as_one_of_the_shared_secret(self, monkeypatch):
        monkeypatch.setattr(module, "_seal", None)

        assert refused(manager(shared=SHARED), EDGE, of_command(issuer(NEXT_EDGES)))


class TestReplay:
    """
    The rules are those of grants of the shared secret.
    """

    @pytest.mark.parametrize("mad", ["hymir", "fiedler2", EDGE, "gateway", ""])
    def test_a_mads_on_no_other_ingress(self, mad):
        here, sent = manager(), of_instance(issuer(MAD))

        for _ in range(2):
            assert refused(here, mad, sent)
        assert here.principal_of("fiedler", sent) == ADA
        assert refused(here, mad, sent)

    def test_a_mads_for_no_other_instance(self):
        here, sent = manager(), of_instance(issuer(MAD))
        here.principal_of("fiedler", sent)

        assert refused(here, "fiedler", changed(sent, id="i2.0.1"))

    @pytest.mark.parametrize(
        "fields",
        [
            {"id": "order-8"},
            {"kind": "session.delete"},
            {"session": "s2"},
            {"expected_version": None},
            {"durability": "warm"},
            {"body": an_envelope("session.update", body={"patch": {}}).body},
        ],
    )
    def test_an_edges_for_its_one_command(self, fields):
        """
        Also after it was verified, and is remembered.
        """
        here, sent = manager(), of_command(issuer(EDGES))

        assert refused(here, EDGE, changed(sent, **fields))
        assert here.principal_of(EDGE, sent) == ADA
        assert refused(here, EDGE, changed(sent, **fields))
        assert here.principal_of(EDGE, sent) == ADA

    def test_each_until_the_token_would_have_ended(self):
        time = [NOW]
        here = Grants(None, trusted=TrustedKeys(PUBLIC), clock=lambda: time[0])
        one, other = of_instance(issuer(MAD)), of_command(issuer(EDGES))
        assert here.principal_of("fiedler", one) == ADA
        assert here.principal_of(EDGE, other) == ADA

        time[0] = here.ends_at(ADA)

        assert refused(here, "fiedler", one)
        assert refused(here, EDGE, other)

    def test_a_signature_is_verified_once(self, monkeypatch):
        """
        A lane asks several times for the sender of one command.
        """
        here, sent = manager(), of_command(issuer(EDGES))
        assert here.principal_of(EDGE, sent) == ADA
        monkeypatch.setattr(here, "_trusted", None)

        assert here.principal_of(EDGE, sent) == ADA

    def test_so_many_of_commands_are_remembered_and_no_more(self, monkeypatch):
        monkeypatch.setattr(module, "MAX_VERIFIED_COMMANDS", 3)
        here, edge = manager(), issuer(EDGES)
        for n in range(9):
            sent = an_envelope("session.get", id=f"order-{n}")
            sent = changed(sent, grant=edge.for_command(ADA, sent))
            assert here.principal_of(EDGE, sent) == ADA

        assert len(here._commands) == 3


class TestRotation:
    def test_both_keys_count_until_the_old_one_is_dropped(self):
        both = manager(*PUBLIC, NEXT_MAD[1], NEXT_EDGES[1])
        after = manager(NEXT_MAD[1], NEXT_EDGES[1])
        for mads, edges in ((MAD, EDGES), (NEXT_MAD, NEXT_EDGES)):
            assert both.principal_of("fiedler", of_instance(issuer(mads))) == ADA
            assert both.principal_of(EDGE, of_command(issuer(edges))) == ADA

        assert refused(after, "fiedler", of_instance(issuer(MAD)))
        assert refused(after, EDGE, of_command(issuer(EDGES)))

    def test_the_shared_secret_counts_during_the_migration(self):
        here, old = manager(shared=SHARED), Grants(SHARED, clock=clock)

        assert here.principal_of("fiedler", of_instance(old)) == ADA
        assert here.principal_of(EDGE, of_command(old)) == ADA
        assert here.principal_of(EDGE, of_command(issuer(EDGES, SHARED))) == ADA
        # What has a key of its own seals with that one.
        assert of_command(issuer(EDGES, SHARED)).grant.startswith(MARK)


class TestTexts:
    @pytest.mark.parametrize(
        "text",
        [
            MAD[0],
            "",
            "mad",
            "mad:m1:ed25519:",
            "mad:m1:ed25519:AAAA",
            MAD[1].replace("mad:", "gateway:"),
            MAD[1].replace(":m1:", "::"),
            MAD[1].replace(":m1:", f":{'m' * 33}:"),
            MAD[1] + "!",
            MAD[1] + "\u00e9",
        ],
    )
    def test_what_is_no_public_key_is_refused_without_being_shown(self, text):
        with pytest.raises(ValueError, match="everbus keys pair") as refusal:
            TrustedKeys([text])
        assert len(text) < 10 or text not in str(refusal.value)

    @pytest.mark.parametrize("text", [MAD[1], EDGES[1], MAD[0][:-4]])
    def test_what_is_no_private_key_is_refused(self, text):
        with pytest.raises(ValueError, match="everbus keys pair"):
            issuing_key([text], "mad")

    def test_two_of_one_name_are_refused(self):
        with pytest.raises(ValueError, match="twice"):
            TrustedKeys([MAD[1], FALSE_MAD[1]])
        with pytest.raises(ValueError, match="two private keys"):
            issuing_key([MAD[0], NEXT_MAD[0]], "mad")

    def test_so_many_and_no_more(self):
        pairs = [new_pair("edge", f"e{n}")[1] for n in range(MAX_TRUSTED + 1)]

        assert len(TrustedKeys(pairs[:-1])) == MAX_TRUSTED
        with pytest.raises(ValueError, match="at most"):
            TrustedKeys(pairs)

    def test_no_private_key_is_shown(self):
        key = issuing_key([MAD[0]], "mad")

        assert repr(key) == "IssuingKey(kind='mad', id='m1')"
        assert key.public_text == MAD[1]

    def test_the_largest_grant_fits_into_the_room_that_publishers_leave(self):
        long, pair = "n" * 64, new_pair("mad", "k" * 32)
        principal = Principal("\U0001f600" * 255, "operator", NOW + 60.5, long)
        there = issuer(pair, public=[pair[1]])
        grant = there.for_instance(principal, long, long)
        sent = an_envelope("session.get", id=f"{long}.0.1", grant=grant)

        assert len(grant) <= GRANT_BYTES
        assert there.principal_of(long, sent) == principal


class TestSettings:
    @staticmethod
    def of(**values):
        named = {f"EVERBUS_{name.upper()}": value for name, value in values.items()}
        return load_settings(named)

    def pairs(self, private, public=PUBLIC, shared="false", **more):
        return self.of(
            grant_private_key=private,
            grant_public_keys=" ".join(public),
            grant_shared=shared,
            **more,
        )

    def test_a_role_takes_the_key_of_its_kind(self):
        both = f"{MAD[0]},{EDGES[0]}"
        here = grants_of(self.pairs(both), "mad")
        edge = grants_of(self.pairs(both), "edge")
        ada = Principal("ada", "user", 4e9)
        sent = an_envelope("session.get", id="order-7")

        sent = changed(sent, grant=edge.for_command(ada, sent))

        assert here.principal_of(EDGE, sent) == ada
        assert here.for_instance(ada, "fiedler", "i1").startswith(MARK)

    def test_an_edge_needs_no_public_keys_and_no_secret(self):
        alone = self.of(grant_private_key=EDGES[0])

        grant = grants_of(alone, "edge").for_command(ADA, an_envelope("session.get"))

        assert grant.startswith(MARK)

    def test_the_secret_of_tokens_seals_nothing_where_it_is_off(self):
        here = grants_of(self.pairs(MAD[0], jwt_secret=SECRET))
        old = grants_of(self.of(jwt_secret=SECRET))
        ada = Principal("ada", "user", 4e9)
        grant = old.for_instance(ada, "fiedler", "i1")
        sent = an_envelope("session.get", id="i1.0.1", grant=grant)

        assert old.principal_of("fiedler", sent) == ada
        assert refused(here, "fiedler", sent)
        during = grants_of(self.pairs(MAD[0], shared="true", jwt_secret=SECRET))
        assert during.principal_of("fiedler", sent) == ada

    @pytest.mark.parametrize(
        ("private", "public", "kind", "words"),
        [
            (EDGES[0], PUBLIC, "mad", "no key of kind mad"),
            (MAD[0], PUBLIC, "edge", "no key of kind edge"),
            ("", PUBLIC, "mad", "EVERBUS_GRANT_SHARED is false"),
            (MAD[0], [EDGES[1]], "mad", "lacks the public half"),
            (MAD[0], [FALSE_MAD[1], EDGES[1]], "mad", "lacks the public half"),
            (MAD[1], PUBLIC, "mad", "everbus keys pair"),
            (MAD[0], [MAD[0]], "mad", "everbus keys pair"),
        ],
    )
    def test_what_would_be_refused_later_ends_the_start(
        self, private, public, kind, words
    ):
        with pytest.raises(Failed, match=words) as refusal:
            grants_of(self.pairs(private, public), kind)
        for secret in (MAD[0], EDGES[0]):
            assert secret.rpartition(":")[2] not in str(refusal.value)


class TestCommand:
    def run(self, line):
        return CliRunner().invoke(app, ["keys", "pair", *shlex.split(line)])

    def test_a_pair_is_made_and_the_private_key_not_printed(self, tmp_path):
        path = tmp_path / "edge.key"
        ran = self.run(f"edge 2026-11 --private {path}")

        assert ran.exit_code == 0, ran.output
        secret = path.read_text()
        assert path.stat().st_mode & 0o777 == 0o600
        assert secret.split(":")[-1].strip() not in ran.output
        key = issuing_key(secret.split(), "edge")
        assert TrustedKeys(ran.stdout.split()).trusts(key)
        assert ran.stdout == f"{key.public_text}\n"

    def test_no_key_is_written_over(self, tmp_path):
        path = tmp_path / "edge.key"
        path.write_text("the only copy")
        ran = self.run(f"edge 2026-11 --private {path}")

        assert isinstance(ran.exception, Failed)
        assert ran.exception.exit_code == USAGE
        assert path.read_text() == "the only copy"
        assert str(path) in str(ran.exception)

    @pytest.mark.parametrize("words", ["gateway 1", "edge ''", "edge a:b", "mad ../m"])
    def test_another_kind_or_id_is_refused(self, tmp_path, words):
        path = tmp_path / "key"

        assert isinstance(self.run(f"{words} --private {path}").exception, Failed)
        assert not path.exists()
