"""
Ed25519 keys of grants: who issues grants has a private key, who verifies them only
public ones.

A key is of one kind, so that what seals the commands of an edge cannot make a MAD's
grant, and the reverse. The kind is in the signed bytes, too. Public and private keys
are as long as each other, so their texts say which one they are.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple, cast, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

# `mad`: for all commands of one instance, issued by managers; `edge`: for one command.
GrantKind = Literal["mad", "edge"]
GRANT_KINDS: tuple[GrantKind, ...] = get_args(GrantKind)

# Where a signed grant begins. An HMAC begins so once in 2^64.
MARK = b"\xc1ed25519"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
# Of one kind in one setting: some to rotate, some for several issuers.
MAX_TRUSTED = 64
PUBLIC, PRIVATE = "ed25519", "ed25519-private"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_DOMAIN = b"everbus grant 1\0"
_ID_AT = len(MARK) + 1


class _Named(NamedTuple):
    kind: GrantKind
    id: str


class IssuingKey:
    """
    A private key that seals grants of one kind; never shown.

    Attributes:
        kind: of the grants that it seals; id: its name in them.
    """

    def __init__(self, kind: GrantKind, key_id: str, secret: bytes) -> None:
        self.kind = kind
        self.id = key_id
        self._private = Ed25519PrivateKey.from_private_bytes(secret)
        self._head = MARK + bytes((len(key_id),)) + key_id.encode()

    def __repr__(self) -> str:
        return f"IssuingKey(kind={self.kind!r}, id={self.id!r})"

    def seal(self, payload: bytes, covered: bytes = b"") -> bytes:
        """
        A grant with *payload*, valid beside *covered* alone.
        """
        signature = self._private.sign(_message(self.kind, payload, covered))

        return self._head + signature + payload

    @property
    def public_text(self) -> str:
        """
        The public key for EVERBUS_GRANT_PUBLIC_KEYS; no secret.
        """
        return _text(self.kind, self.id, PUBLIC, self._private.public_key())


class TrustedKeys:
    """
    Public keys, each for the grants of one kind.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """
        Trust `<kind>:<id>:ed25519:<base64>` of *texts*.

        Raises:
            ValueError: one is no public key, is listed twice, or stands for two kinds.
        """
        self._keys: dict[_Named, Ed25519PublicKey] = {}
        kinds: dict[bytes, GrantKind] = {}
        for text in texts:
            named, raw = _parsed(text, PUBLIC)
            if named in self._keys:
                raise ValueError(f"the key {named.kind}:{named.id} is listed twice")
            if kinds.setdefault(raw, named.kind) != named.kind:
                # It could make the grants of both.
                raise ValueError(
                    f"the key {named.kind}:{named.id} is listed for another kind as "
                    "well; make one for each kind"
                )
            self._keys[named] = Ed25519PublicKey.from_public_bytes(raw)
        if len(self._keys) > MAX_TRUSTED:
            raise ValueError(f"{len(self._keys)} public keys; at most {MAX_TRUSTED}")

    def __len__(self) -> int:
        return len(self._keys)

    def trusts(self, key: IssuingKey) -> bool:
        """
        Whether grants that *key* seals count.
        """
        known = self._keys.get(_Named(key.kind, key.id))
        return known is not None and (
            _text(key.kind, key.id, PUBLIC, known) == key.public_text
        )

    def payload_of(self, kind: GrantKind, sealed: bytes, covered: bytes) -> bytes:
        """
        The payload of a signed grant of *kind*; *covered* are the bytes it is bound to.

        Raises:
            ValueError: no key of this kind signed it, or it was changed.
        """
        at = _ID_AT + sealed[len(MARK)] if len(sealed) > len(MARK) else 0
        # Compared as text: a key id is ASCII, other bytes name no key.
        name = sealed[_ID_AT:at].decode("ascii", "replace")
        key = self._keys.get(_Named(kind, name))
        if key is None:
            raise ValueError("no key of that kind and id")
        signature, payload = sealed[at : at + SIGNATURE_BYTES], sealed[at:]
        payload = payload[SIGNATURE_BYTES:]
        try:
            key.verify(signature, _message(kind, payload, covered))
        except InvalidSignature:
            raise ValueError("signature") from None
        return payload


def new_pair(kind: GrantKind, key_id: str) -> tuple[str, str]:
    """
    The texts of a new private key and of its public key.

    Raises:
        ValueError: *key_id* is no key id.
    """
    check_key_id(key_id)
    private = Ed25519PrivateKey.generate()
    secret = _text(kind, key_id, PRIVATE, private)

    return secret, _text(kind, key_id, PUBLIC, private.public_key())


def check_key_id(key_id: str) -> None:
    """
    Check a key id.

    Raises:
        ValueError: it is none.
    """
    if not _ID.fullmatch(key_id):
        raise ValueError(
            f"{key_id[:80]!a} is no key id; wanted 1 to 32 letters, digits, `_`, `.` "
            "and `-`, such as 2026-11"
        )


def issuing_key(texts: Iterable[str], kind: GrantKind) -> IssuingKey | None:
    """
    The private key of *kind* among *texts*; None without one.

    Raises:
        ValueError: one is no private key, or two are of one kind; shows no key.
    """
    found: dict[GrantKind, IssuingKey] = {}
    for text in texts:
        named, raw = _parsed(text, PRIVATE)
        if named.kind in found:
            raise ValueError(f"two private keys of kind {named.kind}; one seals")
        found[named.kind] = IssuingKey(*named, raw)

    return found.get(kind)


def _parsed(text: str, wanted: str) -> tuple[_Named, bytes]:
    kind, _, rest = text.partition(":")
    key_id, _, rest = rest.partition(":")
    what, _, coded = rest.partition(":")
    try:
        raw = base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    fits = kind in GRANT_KINDS and _ID.fullmatch(key_id) and len(raw) == KEY_BYTES
    if not fits or what != wanted:
        # Without the text: it may be a private key.
        raise ValueError(
            f"a key is <mad or edge>:<id>:{wanted}:<{KEY_BYTES} bytes in base64>; "
            "`everbus keys pair` makes both halves"
        )
    return _Named(cast(GrantKind, kind), key_id), raw


def _text(
    kind: str, key_id: str, what: str, key: Ed25519PrivateKey | Ed25519PublicKey
) -> str:
    if isinstance(key, Ed25519PrivateKey):
        raw = key.private_bytes_raw()
    else:
        raw = key.public_bytes_raw()

    return f"{kind}:{key_id}:{what}:{base64.b64encode(raw).decode()}"


def _message(kind: GrantKind, payload: bytes, covered: bytes) -> bytes:
    # Lengths, so that no byte can move from one part into the other.
    head = len(payload).to_bytes(4, "big") + len(covered).to_bytes(4, "big")

    return _DOMAIN + kind.encode() + b"\0" + head + payload + covered
