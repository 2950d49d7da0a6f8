"""
Settings → keys: the identity that checks tokens, and the seal of grants.
"""

import json

from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.settings import Settings
from everbus.gateway.identity.grant_keys import (
    GrantKind,
    IssuingKey,
    TrustedKeys,
    issuing_key,
)
from everbus.gateway.identity.grants import Grants, derived_key
from everbus.gateway.identity.jwks import PublishedKeys
from everbus.gateway.identity.keys import Key
from everbus.gateway.identity.token_revocations import TokenRevocations
from everbus.gateway.identity.tokens import Identity


def revocations_of(settings: Settings) -> TokenRevocations:
    """
    The copy of the list of revoked tokens of one process, empty at first.
    """
    return TokenRevocations(
        max_items=settings.revoked_max_items, unread=settings.revoked_unread
    )


def identity_of(
    settings: Settings, revocations: TokenRevocations | None = None
) -> Identity:
    """
    The identity that checks tokens, with the configured keys.

    Raises:
        Failed: no key is configured, or a key is unusable.
    """
    try:
        found = [
            Key(listed["algorithm"], listed["key"], listed["kid"])
            for listed in json.loads(settings.jwt_keys.get_secret_value() or "[]")
        ]
        secret = settings.jwt_secret.get_secret_value()
        if secret:
            found.append(Key("HS256", secret))
        if settings.jwt_public_key:
            found.append(Key(settings.jwt_algorithm, settings.jwt_public_key))
        return Identity(
            found,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            revocations=revocations,
            wanted=tuple(filter(None, settings.jwt_require.split(","))),
            published=PublishedKeys(settings.jwt_jwks) if settings.jwt_jwks else None,
        )
    except ValueError as error:
        raise Failed(
            f"no usable key for tokens: {error}. Set EVERBUS_JWT_SECRET (HS256), "
            "EVERBUS_JWT_PUBLIC_KEY with EVERBUS_JWT_ALGORITHM, EVERBUS_JWT_KEYS or "
            "EVERBUS_JWT_JWKS",
            USAGE,
        ) from error


def grants_of(settings: Settings, issues: GrantKind = "mad") -> Grants:
    """
    What seals the grants of kind *issues* in this process, and verifies all kinds.

    Raises:
        Failed: a key is missing, too short, of another kind, or not trusted here.
    """
    try:
        issuing, trusted = signing_keys(settings, issues)
        shared = _shared_keys(settings, needed=issuing is None)
        key = shared[0] if shared else None
        return Grants(key, shared[1:], issuing=issuing, trusted=trusted)
    except ValueError as error:
        raise Failed(
            f"no usable key for grants: {error}. Set EVERBUS_JWT_SECRET, from "
            "which it is derived, or EVERBUS_GRANT_KEY, to the same value in all "
            "managers and edges (`openssl rand -hex 32` makes one); or "
            f"EVERBUS_GRANT_PRIVATE_KEY, of kind {issues} here, and "
            "EVERBUS_GRANT_PUBLIC_KEYS: `everbus keys pair` makes both",
            USAGE,
        ) from error


def signing_keys(
    settings: Settings, issues: GrantKind
) -> tuple[IssuingKey | None, TrustedKeys]:
    """
    The private key of kind *issues*, if there is one, and the trusted public keys.

    Raises:
        ValueError: one is unusable; the text contains no private key.
    """
    private = listed_keys(settings.grant_private_key.get_secret_value())
    issuing = issuing_key(private, issues)
    if private and issuing is None:
        raise ValueError(f"EVERBUS_GRANT_PRIVATE_KEY has no key of kind {issues}")
    trusted = TrustedKeys(listed_keys(settings.grant_public_keys))
    # Edges only seal; a manager verifies what all managers seal.
    if issues == "mad" and issuing is not None and not trusted.trusts(issuing):
        raise ValueError(
            "EVERBUS_GRANT_PUBLIC_KEYS lacks the public half of "
            f"EVERBUS_GRANT_PRIVATE_KEY; add {issuing.public_text}"
        )
    return issuing, trusted


def listed_keys(text: str) -> list[str]:
    """
    The keys in *text*, between spaces, line breaks or commas.
    """
    return text.replace(",", " ").split()


def _shared_keys(settings: Settings, *, needed: bool) -> tuple[bytes, ...]:
    """
    The shared secrets that count, the sealing one first.

    Args:
        needed: without one nothing here seals grants.

    Raises:
        ValueError: it is needed and switched off.
    """
    if not settings.grant_shared:
        if needed:
            raise ValueError("EVERBUS_GRANT_SHARED is false, and no key of its own")
        return ()
    secret = settings.jwt_secret.get_secret_value()
    key = settings.grant_key.get_secret_value().encode()
    previous = settings.grant_key_previous.get_secret_value().encode()
    if not key and secret:
        key = derived_key(secret)
    if not key and not needed:
        return ()
    return (key, previous) if previous else (key,)
