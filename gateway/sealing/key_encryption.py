"""
Key-encryption keys: what wraps the data keys of tenants.

A key-encryption key never leaves its place: a file or variable of this process, or a
key management service. `KeyEncryption` is the protocol of all of them.
"""

import base64
import binascii
import re
from typing import Protocol

from everbus.gateway.sealing.cipher import (
    SECRET_BYTES,
    KeyMissing,
    unwrap_secret,
    wrap_secret,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")


class KeyEncryption(Protocol):
    """
    Wraps and unwraps data keys.

    Attributes:
        name: of the key that wraps from now on; it is kept beside each wrapped key.
    """

    name: str

    async def wrap(self, secret: bytes, tenant: str) -> bytes:
        """
        The *secret* of a tenant, wrapped by the key `name`.

        Raises:
            Unavailable: the key cannot be used now.
        """
        ...

    async def unwrap(self, wrapped: bytes, tenant: str, name: str) -> bytes:
        """
        The secret that the key *name* wrapped for *tenant*.

        Raises:
            KeyMissing: there is no such key, or it did not wrap this for the tenant.
            Unavailable: the key cannot be used now.
        """
        ...

    def close(self) -> None:
        """
        Give connections back.
        """
        ...


class LocalKeyEncryption:
    """
    Key-encryption keys from a file or a variable.

    Args:
        text: one or more `<name>:<32 bytes in base64>`, separated by space or line
            breaks. The first one wraps; the others only unwrap, during a rotation.

    Raises:
        ValueError: a key is no such thing; the message contains no key.
    """

    def __init__(self, text: str) -> None:
        self._keys = dict(map(_parsed, text.split()))
        if not self._keys:
            raise ValueError("no key-encryption key; wanted <name>:<base64>")
        self.name = next(iter(self._keys))

    async def wrap(self, secret: bytes, tenant: str) -> bytes:
        """
        The *secret* of a tenant, wrapped by the first key.
        """
        return wrap_secret(self._keys[self.name], secret, tenant.encode())

    async def unwrap(self, wrapped: bytes, tenant: str, name: str) -> bytes:
        """
        The secret that the key *name* wrapped for *tenant*.

        Raises:
            KeyMissing: there is no such key, or it did not wrap this for the tenant.
        """
        if name not in self._keys:
            raise KeyMissing(
                f"a data key is wrapped by the key-encryption key {name}, which is "
                f"not among {', '.join(self._keys)}; add it to EVERBUS_SEALING_KEK"
            )
        secret = unwrap_secret(self._keys[name], wrapped, tenant.encode())
        if secret is None:
            raise KeyMissing(
                f"a data key does not open with the key-encryption key {name}: its "
                "value is another one, or the wrapped key was changed"
            )
        return secret

    def close(self) -> None:
        """
        Nothing is open.
        """


def _parsed(part: str) -> tuple[str, bytes]:
    name, _, coded = part.rpartition(":")
    try:
        key = base64.b64decode(coded, validate=True)
    except binascii.Error:
        key = b""
    if not _NAME.fullmatch(name) or len(key) != SECRET_BYTES:
        # Without the part itself: it is a key.
        raise ValueError(
            f"a key-encryption key is <name>:<{SECRET_BYTES} bytes in base64>; make "
            "one with `everbus keys new`"
        )
    return name, key
