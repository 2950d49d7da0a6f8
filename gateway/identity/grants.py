"""
Who asks, as it travels on the bus: sealed by the gateway, worthless elsewhere.

A bearer token lets in whoever holds it, so none may rest on a stream, in the AOF or
in a dead letter. What rests there is a grant: the principal and an HMAC-SHA-256 over
it and over what it is for. That of a MAD is for the commands of one instance on that
MAD's own ingress, which nobody else can write to; that of the edge for one command.
"""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from bus.codec import ordinal_of, pack
from bus.errors import Unauthenticated
from bus.keys import EDGE
from bus.messages import Envelope
from bus.outgoing import AFTERLIFE, GRANT_BYTES
from gateway.identity.principal import Principal

MIN_KEY_BYTES = 32
LEEWAY_S = 5  # a grant counts as long as the token did, see tokens.py
MAX_REMEMBERED = 10_000  # grants, the oldest goes first
SEAL_BYTES = 32

NO_GRANT = "no grant; connect with a token"
BAD_GRANT = "the grant is not valid here; connect anew with a token"

_UNFIT = (ValueError, RecursionError, msgspec.MsgspecError)


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """
    A principal, and whose commands ask in its name.

    Attributes:
        mad: on whose ingress it counts.
        instance: of that MAD; empty for a grant that is for one command.
    """

    principal: Principal
    mad: str
    instance: str


_grant = msgspec.msgpack.Decoder(Grant)


class Grants:
    """
    Seals grants, and tells who asks from them.
    """

    def __init__(
        self,
        key: bytes,
        previous: Sequence[bytes] = (),
        *,
        leeway_s: float = LEEWAY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Seal with *key*; what was sealed with one of *previous* counts as well.

        Clocks may differ by *leeway_s*; *clock* tells seconds since 1970.

        Raises:
            ValueError: a key is shorter than MIN_KEY_BYTES.
        """
        if any(len(one) < MIN_KEY_BYTES for one in (key, *previous)):
            raise ValueError(f"a key for grants has {MIN_KEY_BYTES} bytes or more")
        self._keys = (key, *previous)
        self._leeway_s = leeway_s
        self._clock = clock
        self._remembered: OrderedDict[bytes, Grant] = OrderedDict()

    def for_instance(self, principal: Principal, mad: str, instance: str) -> bytes:
        """
        The grant for all commands of an instance, while *principal* may ask.
        """
        told = pack(Grant(principal, mad, instance))

        return _seal(self._keys[0], told) + told

    def ends_at(self, principal: Principal) -> float:
        """
        When the grants for *principal* count no more, in seconds since 1970.
        """
        return principal.expires_at + self._leeway_s

    def for_command(self, principal: Principal, envelope: Envelope) -> bytes:
        """
        The grant of the edge for one command, as *envelope* has it.
        """
        told = pack(Grant(principal, EDGE, ""))

        return _seal(self._keys[0], told, _covered(envelope)) + told

    def principal_of(self, mad: str, envelope: Envelope) -> Principal:
        """
        Who asks by a command that came on the ingress of *mad*.

        Raises:
            Unauthenticated: with the same words for every kind of bad grant.
        """
        sealed = envelope.grant
        if not sealed:
            raise Unauthenticated(NO_GRANT)
        if mad == EDGE:
            grant = self._opened(sealed, _covered(envelope))
        else:
            grant = self._remembered.get(sealed) or self._admitted(sealed)
            # What an earlier instance left on disk, the next one sends in its name.
            if envelope.epoch != AFTERLIFE and _is_anothers(envelope.id, grant):
                raise Unauthenticated(BAD_GRANT)
        if grant.mad != mad or self._clock() >= self.ends_at(grant.principal):
            raise Unauthenticated(BAD_GRANT)
        return grant.principal

    def _admitted(self, sealed: bytes) -> Grant:
        grant = self._remembered[sealed] = self._opened(sealed)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return grant

    def _opened(self, sealed: bytes, covered: bytes = b"") -> Grant:
        seal, told = sealed[:SEAL_BYTES], sealed[SEAL_BYTES:]
        fits = len(sealed) <= GRANT_BYTES and any(
            hmac.compare_digest(seal, _seal(key, told, covered)) for key in self._keys
        )
        if not fits:
            raise Unauthenticated(BAD_GRANT)
        try:
            return _grant.decode(told)
        except _UNFIT:
            raise Unauthenticated(BAD_GRANT) from None


def _is_anothers(identifier: str, grant: Grant) -> bool:
    """
    Whether a command id is a number of another instance than the grant's.
    """
    # As a rule it begins with the grant's, which settles it at a fifth of the cost.
    if identifier.partition(".")[0] == grant.instance:
        return False
    return ordinal_of(identifier) is not None


def derived_key(secret: str) -> bytes:
    """
    A key for grants that follows from the secret of tokens, where none is set.
    """
    return hmac.digest(secret.encode(), b"everbus grants", "sha256")


def _seal(key: bytes, told: bytes, covered: bytes = b"") -> bytes:
    # Lengths, so that nothing can move from the one part into the other.
    head = len(told).to_bytes(4, "big") + len(covered).to_bytes(4, "big")

    return hmac.digest(key, head + told + covered, "sha256")


def _covered(envelope: Envelope) -> bytes:
    """
    What of a command the edge answers for: all that decides about its effect.
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
