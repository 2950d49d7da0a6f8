"""
Settings → keys: the identity that checks tokens, and the seal of grants.
"""

import json

from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.settings import Settings
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


def grants_of(settings: Settings) -> Grants:
    """
    The seal of grants, which makes and opens them.

    Raises:
        Failed: the key is missing or too short.
    """
    secret = settings.jwt_secret.get_secret_value()
    key = settings.grant_key.get_secret_value().encode()
    previous = settings.grant_key_previous.get_secret_value().encode()
    if not key and secret:
        key = derived_key(secret)
    try:
        return Grants(key, [previous] if previous else [])
    except ValueError as error:
        raise Failed(
            f"no usable key for grants: {error}. Set EVERBUS_JWT_SECRET, from "
            "which it is derived, or EVERBUS_GRANT_KEY, to the same value in all "
            "managers and edges; `openssl rand -hex 32` makes one",
            USAGE,
        ) from error
