"""
Grants: the principal of a command on the bus, sealed by the gateway.

A bearer token admits every holder, so none may rest on a stream, in the AOF or in a
dead letter. A grant rests there instead: the principal, sealed together with its
purpose. A MAD's grant is for the commands of one instance on that MAD's own ingress,
which nobody else can write to; a grant of the edge is for one command.

The seal is an Ed25519 signature by a key of the grant's kind, or an HMAC-SHA-256 by a
secret that all managers and edges share, with which each of them could make any grant.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence

import msgspec
from cachetools import LRUCache

from everbus.bus.errors import Unauthenticated
from everbus.bus.keys import EDGE
from everbus.bus.messages import Envelope, ordinal_of, pack
from everbus.bus.outgoing_command import GRANT_BYTES, INHERITED_EPOCH
from everbus.gateway.identity.grant_keys import (
    MARK,
    GrantKind,
    IssuingKey,
    TrustedKeys,
)
from everbus.gateway.identity.principal import Principal

MIN_KEY_BYTES = 32
LEEWAY_S = 5  # a grant is valid as long as its token, see tokens.py
MAX_VERIFIED = 10_000  # remembered grants; the least used goes first
# Signed grants of one command: a lane asks for the sender of a command several times,
# and a signature takes some 0.1 ms to verify. At most 4 MB.
MAX_VERIFIED_COMMANDS = 2_000
SEAL_BYTES = 32

NO_GRANT = "no grant; connect with a token"
BAD_GRANT = "the grant is not valid here; connect anew with a token"

_UNFIT = (ValueError, RecursionError, msgspec.MsgspecError)


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """
    A principal, and the source of its commands.

    Attributes:
        mad: the MAD whose ingress the grant is for.
        instance: of that MAD; empty in a grant for one command.
    """

    principal: Principal
    mad: str
    instance: str


_grant = msgspec.msgpack.Decoder(Grant)


class Grants:
    """
    Seals grants, and verifies them.
    """

    def __init__(
        self,
        key: bytes | None,
        previous: Sequence[bytes] = (),
        *,
        issuing: IssuingKey | None = None,
        trusted: TrustedKeys | None = None,
        leeway_s: float = LEEWAY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Seal with *issuing*, else with the shared *key*; accept seals of *trusted* keys,
        of *key* and of *previous* shared keys.

        *key* None: no shared secret counts. Clocks may differ by *leeway_s*; *clock*
        tells seconds since 1970.

        Raises:
            ValueError: a shared key is shorter than MIN_KEY_BYTES.
        """
        self._keys = () if key is None else (key, *previous)
        if any(len(one) < MIN_KEY_BYTES for one in self._keys):
            raise ValueError(f"a key for grants has {MIN_KEY_BYTES} bytes or more")
        self._issuing = issuing
        self._trusted = trusted or TrustedKeys()
        self._leeway_s = leeway_s
        self._clock = clock
        self._verified: LRUCache[bytes, Grant] = LRUCache(MAX_VERIFIED)
        self._commands: LRUCache[tuple[bytes, bytes], Grant] = LRUCache(
            MAX_VERIFIED_COMMANDS
        )

    def for_instance(self, principal: Principal, mad: str, instance: str) -> bytes:
        """
        The grant for all commands of an instance, valid until the token expires.

        Raises:
            ValueError: no key here seals grants of instances.
        """
        return self._sealed("mad", pack(Grant(principal, mad, instance)))

    def ends_at(self, principal: Principal) -> float:
        """
        The expiry of grants for *principal*, in seconds since 1970.
        """
        return principal.expires_at + self._leeway_s

    def for_command(self, principal: Principal, envelope: Envelope) -> bytes:
        """
        The edge's grant for the one command in *envelope*.

        Raises:
            ValueError: no key here seals grants of commands.
        """
        payload = pack(Grant(principal, EDGE, ""))

        return self._sealed("edge", payload, _covered_fields(envelope))

    def principal_of(self, mad: str, envelope: Envelope) -> Principal:
        """
        The principal of a command from the ingress of *mad*.

        Raises:
            Unauthenticated: with the same message for every kind of bad grant.
        """
        sealed = envelope.grant
        if not sealed:
            raise Unauthenticated(NO_GRANT)
        if mad == EDGE:
            grant = self._of_command(sealed, _covered_fields(envelope))
        else:
            grant = self._verified.get(sealed) or self._verify(sealed)
            # The next instance sends the spool of an earlier one under its own grant.
            if envelope.epoch != INHERITED_EPOCH and _is_of_another_instance(
                envelope.id, grant
            ):
                raise Unauthenticated(BAD_GRANT)
        if grant.mad != mad or self._clock() >= self.ends_at(grant.principal):
            raise Unauthenticated(BAD_GRANT)
        return grant.principal

    def _sealed(self, kind: GrantKind, payload: bytes, covered: bytes = b"") -> bytes:
        if self._issuing is not None and self._issuing.kind == kind:
            return self._issuing.seal(payload, covered)
        if not self._keys:
            raise ValueError(f"no key here seals grants of kind {kind}")
        return _seal(self._keys[0], payload, covered) + payload

    def _verify(self, sealed: bytes) -> Grant:
        grant = self._verified[sealed] = self._unsealed("mad", sealed)
        return grant

    def _of_command(self, sealed: bytes, covered: bytes) -> Grant:
        if not sealed.startswith(MARK):
            return self._unsealed("edge", sealed, covered)
        # A copy elsewhere is no hit: what it covers is a part of the key.
        known = self._commands.get((sealed, covered))
        if known is None:
            known = self._unsealed("edge", sealed, covered)
            self._commands[sealed, covered] = known
        return known

    def _unsealed(self, kind: GrantKind, sealed: bytes, covered: bytes = b"") -> Grant:
        try:
            if len(sealed) > GRANT_BYTES:
                raise ValueError(f"more than {GRANT_BYTES} bytes")
            # A signed grant is never tried as one of the shared secret.
            if sealed.startswith(MARK):
                payload = self._trusted.payload_of(kind, sealed, covered)
            else:
                payload = self._shared_payload(sealed, covered)
            return _grant.decode(payload)
        except _UNFIT:
            raise Unauthenticated(BAD_GRANT) from None

    def _shared_payload(self, sealed: bytes, covered: bytes) -> bytes:
        seal, payload = sealed[:SEAL_BYTES], sealed[SEAL_BYTES:]
        for key in self._keys:
            if hmac.compare_digest(seal, _seal(key, payload, covered)):
                return payload
        raise ValueError("seal")


def _is_of_another_instance(identifier: str, grant: Grant) -> bool:
    """
    Whether a command id is numbered by another instance than the grant's.
    """
    # Usually it begins with the grant's instance: a check at a fifth of the cost.
    if identifier.partition(".")[0] == grant.instance:
        return False
    return ordinal_of(identifier) is not None


def derived_key(secret: str) -> bytes:
    """
    A grant key derived from the token secret, where no grant key is set.
    """
    return hmac.digest(secret.encode(), b"everbus grants", "sha256")


def _seal(key: bytes, payload: bytes, covered: bytes = b"") -> bytes:
    # Lengths, so that no byte can move from one part into the other.
    head = len(payload).to_bytes(4, "big") + len(covered).to_bytes(4, "big")

    return hmac.digest(key, head + payload + covered, "sha256")


def _covered_fields(envelope: Envelope) -> bytes:
    """
    The fields of a command under the edge's seal: all that decide its effect.
    """
    body = hashlib.sha256(envelope.body).digest()

    return pack(
        (
            envelope.id,
            envelope.kind,
            envelope.session,
            envelope.expected_version,
            envelope.durability,
            body,
        )
    )
