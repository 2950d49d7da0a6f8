"""
AES-256-GCM with a tenant's data key: the one file that encrypts.

A sealed value is `0xC1, key id (8 bytes), nonce (12), ciphertext and tag`. Msgpack
never begins with 0xC1, and JSON values hold no bytes, so a sealed value is told from a
plain one wherever it lies. The additional data name the place of the value, so that a
ciphertext that was moved to another place does not open there.
"""

import hmac
import os
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from everbus.bus.errors import Unavailable
from everbus.bus.messages import pack

MARK = b"\xc1"
KEY_ID_BYTES = 8
SECRET_BYTES = 32
NONCE_BYTES = 12
_HEAD_BYTES = len(MARK) + KEY_ID_BYTES
_BODY_AT = _HEAD_BYTES + NONCE_BYTES
# SP 800-38D allows 2^32 random nonces under one key; up to 16 processes use a key.
MOST_SEALED = 2**28
# Nonces of one read from the system: a read costs as much as sealing a small value.
_NONCES_AT_ONCE = 256


class SealBroken(Unavailable):
    """
    A sealed value does not open: it was changed, or moved to another place.
    """


class KeyMissing(Unavailable):
    """
    The data key of a sealed value is unknown to this process, or was dropped.
    """


class ValuePlace(NamedTuple):
    """
    The place of a value: the additional data beside its tenant.

    Attributes:
        generation_ms: the session's created_at, in milliseconds.
        name: the field, or `entry:<seq>`.
    """

    session: str
    generation_ms: int
    name: str


class _Nonces:
    """
    Random nonces, read from the system many at a time.
    """

    def __init__(self) -> None:
        self._left = b""
        self._at = 0

    def next(self) -> bytes:
        """
        A nonce that nobody had before.
        """
        if self._at == len(self._left):
            self._left, self._at = os.urandom(NONCE_BYTES * _NONCES_AT_ONCE), 0
        self._at += NONCE_BYTES
        return self._left[self._at - NONCE_BYTES : self._at]


class DataKey:
    """
    The secret that seals the values of one tenant.

    Attributes:
        id: 8 random bytes in hexadecimal; stands in each sealed value.
        sealed: number of values that this process sealed with it.
    """

    __slots__ = ("_aead", "_head", "_nonces", "_secret", "id", "sealed", "tenant")

    def __init__(self, key_id: str, tenant: str, secret: bytes) -> None:
        self.id = key_id
        self.tenant = tenant
        self.sealed = 0
        self._aead = AESGCM(secret)
        self._secret = secret
        self._head = MARK + bytes.fromhex(key_id)
        self._nonces = _Nonces()

    def seal(self, plain: bytes, place: ValuePlace) -> bytes:
        """
        *plain* sealed for *place*.
        """
        self.sealed += 1
        nonce = self._nonces.next()
        inner = self._aead.encrypt(nonce, plain, self._bound_to(place))

        return self._head + nonce + inner

    def seal_repeatably(self, plain: bytes, place: ValuePlace) -> bytes:
        """
        As `seal`, with equal bytes for equal values at one place: an archive that is
        made twice has one name. The nonce is a keyed hash of value and place.
        """
        bound = self._bound_to(place)
        keyed = hmac.digest(self._secret, pack([b"nonce", bound, plain]), sha256)
        nonce = keyed[:NONCE_BYTES]

        return self._head + nonce + self._aead.encrypt(nonce, plain, bound)

    def open(self, sealed: bytes, place: ValuePlace) -> bytes:
        """
        What was sealed for *place*.

        Raises:
            SealBroken: the value was changed, or sealed for another place.
        """
        nonce = sealed[_HEAD_BYTES:_BODY_AT]
        try:
            return self._aead.decrypt(nonce, sealed[_BODY_AT:], self._bound_to(place))
        except (InvalidTag, ValueError) as error:
            raise SealBroken(
                f"the sealed {place.name} of session {place.session} does not open: "
                "it was changed, or moved from another place; restore it from a backup"
            ) from error

    def _bound_to(self, place: ValuePlace) -> bytes:
        return pack((self.tenant, *place))


def key_id_of(sealed: bytes) -> str:
    """
    The id of the key that sealed a value.
    """
    return sealed[len(MARK) : _HEAD_BYTES].hex()


def is_sealed(value: object) -> bool:
    """
    Whether a stored value is sealed.
    """
    return isinstance(value, bytes) and value[:1] == MARK and len(value) > _BODY_AT


def new_secret() -> bytes:
    """
    A fresh 256-bit key.
    """
    return AESGCM.generate_key(bit_length=256)


def new_key_id() -> str:
    """
    A fresh key id; random, so that two processes never give out the same.
    """
    return os.urandom(KEY_ID_BYTES).hex()


def wrap_secret(wrapping: bytes, secret: bytes, bound: bytes) -> bytes:
    """
    *secret* under the key *wrapping*; it opens with the same *bound* only.
    """
    nonce = os.urandom(NONCE_BYTES)

    return nonce + AESGCM(wrapping).encrypt(nonce, secret, bound)


def unwrap_secret(wrapping: bytes, wrapped: bytes, bound: bytes) -> bytes | None:
    """
    The secret in *wrapped*; None if *wrapping* or *bound* is another one.
    """
    nonce = wrapped[:NONCE_BYTES]
    try:
        return AESGCM(wrapping).decrypt(nonce, wrapped[NONCE_BYTES:], bound)
    except (InvalidTag, ValueError):
        return None
