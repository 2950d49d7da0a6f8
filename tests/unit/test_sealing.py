"""
Sealed values: what opens, what does not, and where keys come from.
"""

import base64
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
import pytest
from botocore.stub import Stubber

from everbus.bus.errors import Unavailable
from everbus.bus.messages import Session, TimelineEntry, pack
from everbus.gateway.sealing.aws_kms import AwsKeyEncryption
from everbus.gateway.sealing.cipher import (
    DataKey,
    KeyMissing,
    SealBroken,
    ValuePlace,
    is_sealed,
    new_key_id,
    new_secret,
)
from everbus.gateway.sealing.key_encryption import LocalKeyEncryption
from everbus.gateway.sealing.keyring import Keyring, WrappedKey
from everbus.gateway.sealing.sealing import Sealing
from everbus.gateway.store.cold.sealed_document import opened, with_sealed
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.operations import Insert
from everbus.gateway.store.mongo.sealed import SealedMongo

NOW = datetime(2026, 11, 28, tzinfo=UTC)
PLACE = ValuePlace("s1", 1000, "context_summary")


def kek(letter: bytes, name: str = "k") -> str:
    return f"{name}:{base64.b64encode(letter * 32).decode()}"


class Kept:
    """
    A store of keys in memory.
    """

    def __init__(self) -> None:
        self.keys: dict[str, WrappedKey] = {}
        self.kept = 0

    async def changes(self) -> int:
        return self.kept

    async def all(self) -> Mapping[str, WrappedKey]:
        return dict(self.keys)

    async def keep(self, key: WrappedKey) -> None:
        self.keys[key.id] = key
        self.kept += 1


@pytest.fixture
def hot() -> Kept:
    return Kept()


@pytest.fixture
def warm() -> Kept:
    return Kept()


@pytest.fixture
def keyring(hot, warm) -> Keyring:
    return Keyring(LocalKeyEncryption(kek(b"a")), hot, warm)


def a_key(tenant: str = "acme") -> DataKey:
    return DataKey(new_key_id(), tenant, new_secret())


class TestValues:
    def test_a_value_opens_where_it_was_sealed(self):
        key = a_key()

        sealed = key.seal(b"plain", PLACE)

        assert is_sealed(sealed)
        assert b"plain" not in sealed
        assert key.open(sealed, PLACE) == b"plain"

    @pytest.mark.parametrize(
        "elsewhere",
        [
            PLACE._replace(session="s2"),
            PLACE._replace(generation_ms=1001),
            PLACE._replace(name="work_in_progress"),
        ],
    )
    def test_a_value_does_not_open_elsewhere(self, elsewhere):
        key = a_key()

        with pytest.raises(SealBroken, match="moved"):
            key.open(key.seal(b"plain", PLACE), elsewhere)

    def test_a_value_does_not_open_for_another_tenant(self):
        secret, key_id = new_secret(), new_key_id()
        sealed = DataKey(key_id, "acme", secret).seal(b"plain", PLACE)

        with pytest.raises(SealBroken):
            DataKey(key_id, "other", secret).open(sealed, PLACE)

    def test_every_changed_byte_is_noticed(self):
        key = a_key()
        sealed = key.seal(b"plain", PLACE)

        for at in range(9, len(sealed)):
            changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
            with pytest.raises(SealBroken):
                key.open(changed, PLACE)

    def test_nonces_are_never_used_twice(self):
        key = a_key()

        nonces = {key.seal(b"plain", PLACE)[9:21] for _ in range(2000)}

        assert len(nonces) == 2000

    def test_an_archive_is_sealed_to_equal_bytes_and_no_other_value_is(self):
        key = a_key()

        one, other = (key.seal_repeatably(b"plain", PLACE) for _ in range(2))

        assert one == other
        assert key.open(one, PLACE) == b"plain"
        assert key.seal_repeatably(b"plant", PLACE)[9:21] != one[9:21]

    @pytest.mark.parametrize("value", [b"", b"\xc1", b"\xc1 no msgpack", {}, "\xc1", 7])
    def test_plain_values_count_as_plain(self, value):
        assert not is_sealed(value)


class TestEntries:
    async def test_only_the_value_of_an_entry_is_sealed(self, keyring):
        await keyring.ready(["acme"])
        sealing, session = Sealing(keyring), a_session()
        packed = pack(TimelineEntry(7, NOW, "fiedler", {"text": "secret"}))

        sealed = sealing.entry(keyring.active("acme"), session, packed)

        entry = msgspec.msgpack.decode(sealed, type=TimelineEntry)
        assert (entry.seq, entry.at, entry.author) == (7, NOW, "fiedler")
        assert b"secret" not in sealed
        assert await sealing.open_entries("s1", NOW, [sealed]) == [packed]
        assert sealing.opened_entries("s1", NOW, [packed]) == [packed]

    async def test_the_turn_of_an_entry_stays_plain_and_comes_back(self, keyring):
        await keyring.ready(["acme"])
        sealing = Sealing(keyring)
        packed = pack(TimelineEntry(7, NOW, "fiedler", {"text": "secret"}, "run-7"))

        sealed = sealing.entry(keyring.active("acme"), a_session(), packed)

        assert msgspec.msgpack.decode(sealed)["turn"] == "run-7"
        assert sealing.opened_entries("s1", NOW, [sealed]) == [packed]

    async def test_an_entry_does_not_open_at_another_seq(self, keyring):
        await keyring.ready(["acme"])
        sealing = Sealing(keyring)
        packed = pack(TimelineEntry(7, NOW, "fiedler", {"text": "secret"}))
        sealed = sealing.entry(keyring.active("acme"), a_session(), packed)
        moved = msgspec.msgpack.decode(sealed) | {"seq": 8}

        with pytest.raises(SealBroken):
            sealing.opened_entries("s1", NOW, [pack(moved)])

    async def test_a_document_of_an_archive_comes_back(self, keyring):
        await keyring.ready(["acme"])
        sealing = Sealing(keyring)
        document = {"session": a_session(), "full_context": {"a": "secret"}}

        sealed = pack(with_sealed(document, sealing))

        assert b"secret" not in sealed
        assert sealed == pack(with_sealed(document, sealing))
        assert msgspec.msgpack.decode(opened(sealed, sealing)) == (
            msgspec.msgpack.decode(pack(document))
        )


def a_session() -> Session:
    return Session(
        id="s1",
        version=1,
        owner_id="ada",
        created_at=NOW,
        last_active=NOW,
        tenant="acme",
        context_summary={"topic": "secret"},
    )


class TestKeyring:
    async def test_a_key_is_kept_before_it_seals_and_in_mongodb_before_mongodb_has_any(
        self, keyring, hot, warm
    ):
        await keyring.ready(["acme"])
        assert set(hot.keys) == {keyring.active("acme").id}
        assert not warm.keys

        await keyring.ready(["acme"], warm=True)

        assert warm.keys == hot.keys

    async def test_another_process_opens_what_one_sealed(self, keyring, hot, warm):
        await keyring.ready(["acme"])
        sealed = keyring.active("acme").seal(b"plain", PLACE)
        other = Keyring(LocalKeyEncryption(kek(b"a")), hot, warm)

        await other.learn([sealed])

        assert other.key_of(sealed).open(sealed, PLACE) == b"plain"
        await other.ready(["acme"])
        assert other.active("acme").id == keyring.active("acme").id

    async def test_mongodb_gets_the_key_of_every_value_that_it_holds(
        self, keyring, hot, warm
    ):
        """
        Two processes made a key each, at once: both sealed what MongoDB is to hold.
        """
        first = await keyring.rotate("acme")
        other = Keyring(LocalKeyEncryption(kek(b"a")), hot, warm)
        await other.rotate("acme")
        await other.ready(["acme"], warm=True)
        assert first.id not in warm.keys

        await other.keep_in_warm([first.seal(b"plain", PLACE)])

        assert warm.keys == hot.keys
        kept = warm.kept
        await other.keep_in_warm([first.seal(b"again", PLACE)])
        assert warm.kept == kept

    async def test_mongodb_has_the_key_before_the_value(
        self, keyring, hot, warm, monkeypatch
    ):
        """
        An entry that a manager has sealed goes through the archiver as it is.
        """
        sealed = (await keyring.rotate("acme")).seal(b"plain", PLACE)
        other = Keyring(LocalKeyEncryption(kek(b"a")), hot, warm)
        await other.rotate("acme")
        held = []

        async def written(_self, _collection, _operations, _own):
            held.append(set(warm.keys))

        monkeypatch.setattr(Mongo, "bulk", written)
        place = ("mongodb://127.0.0.1:9", "d", "motor", 100)
        mongo = SealedMongo(*place, Sealing(other))
        entry = {"session": "s1", "life": NOW, "seq": 1, "entry": sealed}

        await mongo.bulk("timeline", [Insert(entry)])

        mongo.close()
        assert held == [{keyring.active("acme").id}]

    async def test_keys_come_back_from_mongodb_when_redis_lost_them(
        self, keyring, hot, warm
    ):
        await keyring.ready(["acme"], warm=True)
        hot.keys.clear()

        await Keyring(LocalKeyEncryption(kek(b"a")), hot, warm).load()

        assert hot.keys == warm.keys

    async def test_a_key_that_sealed_enough_is_followed_by_another(
        self, keyring, monkeypatch
    ):
        await keyring.ready(["acme"])
        first = keyring.active("acme")
        monkeypatch.setattr("everbus.gateway.sealing.keyring.MOST_SEALED", 3)
        sealed = [first.seal(b"plain", PLACE) for _ in range(3)]

        await keyring.ready(["acme"])

        assert keyring.active("acme").id != first.id
        assert keyring.key_of(sealed[0]).open(sealed[0], PLACE) == b"plain"

    async def test_both_keys_rotate(self, keyring, hot, warm):
        await keyring.ready(["acme"], warm=True)
        sealed = keyring.active("acme").seal(b"plain", PLACE)
        both = Keyring(LocalKeyEncryption(f"{kek(b'n', 'new')} {kek(b'a')}"), hot, warm)
        await both.load()

        assert [await both.rewrap(key) for key in list(both.wrapped.values())] == [True]
        fresh = await both.rotate("acme")

        alone = Keyring(LocalKeyEncryption(kek(b"n", "new")), hot, warm)
        await alone.load()
        assert alone.active("acme").id == fresh.id
        assert alone.key_of(sealed).open(sealed, PLACE) == b"plain"

    async def test_a_wrong_key_encryption_key_is_said_at_once(self, keyring, hot):
        await keyring.ready(["acme"])

        with pytest.raises(KeyMissing, match="does not open"):
            await Keyring(LocalKeyEncryption(kek(b"w")), hot, None).load()

    async def test_a_wrapped_key_of_another_tenant_does_not_open(self, keyring, hot):
        await keyring.ready(["acme"])
        [key] = hot.keys.values()
        hot.keys[key.id] = msgspec.structs.replace(key, tenant="other")

        with pytest.raises(KeyMissing):
            await Keyring(LocalKeyEncryption(kek(b"a")), hot, None).load()

    async def test_a_dropped_key_opens_nothing_in_any_process(self, keyring, hot, warm):
        await keyring.ready(["acme"], warm=True)
        sealed = keyring.active("acme").seal(b"plain", PLACE)
        other = Keyring(LocalKeyEncryption(kek(b"a")), hot, warm)
        await other.load()

        await keyring.drop(next(iter(keyring.wrapped.values())))
        await other.refresh()

        for one in (keyring, other):
            with pytest.raises(KeyMissing, match="dropped"):
                one.key_of(sealed)
            await one.ready(["acme"])
            assert one.active("acme").seal(b"new", PLACE)

    async def test_managers_go_on_while_mongodb_is_away(self, hot):
        class Away(Kept):
            async def all(self):
                raise Unavailable("away")

            async def keep(self, key):
                raise Unavailable("away")

        keyring = Keyring(LocalKeyEncryption(kek(b"a")), hot, Away())

        await keyring.load()
        await keyring.ready(["acme"])

        assert keyring.active("acme")
        with pytest.raises(Unavailable):
            await keyring.ready(["acme"], warm=True)


class TestKeyEncryption:
    @pytest.mark.parametrize("text", ["", "a", "a:b", "a:" + "QUFB", ":" + "QUFB" * 8])
    def test_no_key_is_told_without_being_shown(self, text):
        with pytest.raises(ValueError, match="key-encryption key") as refused:
            LocalKeyEncryption(text)

        assert "QUFB" not in str(refused.value)


class TestAwsKms:
    """
    Against the shape of KMS's API, as botocore knows it.
    """

    @pytest.fixture
    def kms(self, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
        made = AwsKeyEncryption("alias/everbus", region="eu-central-1")
        with Stubber(made._client) as stub:
            yield made, stub
        made.close()

    async def test_a_data_key_is_wrapped_for_its_tenant(self, kms):
        made, stub = kms
        asked = {"EncryptionContext": {"everbus:tenant": "acme"}}
        stub.add_response(
            "encrypt",
            {"CiphertextBlob": b"wrapped", "KeyId": "arn"},
            {"KeyId": "alias/everbus", "Plaintext": b"s" * 32, **asked},
        )
        stub.add_response(
            "decrypt",
            {"Plaintext": b"s" * 32, "KeyId": "arn"},
            {"KeyId": "alias/everbus", "CiphertextBlob": b"wrapped", **asked},
        )

        wrapped = await made.wrap(b"s" * 32, "acme")

        assert wrapped == b"wrapped"
        assert await made.unwrap(wrapped, "acme", made.name) == b"s" * 32
        stub.assert_no_pending_responses()

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("InvalidCiphertextException", KeyMissing),
            ("DisabledException", KeyMissing),
            ("KMSInternalException", Unavailable),
            ("ThrottlingException", Unavailable),
        ],
    )
    async def test_a_refusal_is_for_good_or_passes(self, kms, code, error):
        made, stub = kms
        stub.add_client_error("decrypt", code, expected_params=None)

        with pytest.raises(error, match=code) as refused:
            await made.unwrap(b"wrapped", "", made.name)

        assert type(refused.value) is error

    async def test_a_key_of_a_file_is_none_of_kms(self, kms):
        with pytest.raises(KeyMissing, match="none of AWS KMS"):
            await kms[0].unwrap(b"wrapped", "", "k")
