"""
The principal: an authenticated caller.
"""

import math
from typing import Literal

import msgspec

from everbus.bus.keys import GATEWAY

# Roles that a token may claim.
Claimed = Literal["user", "mad", "operator", "admin"]
# Commands of the gateway itself have a role that no token can claim.
Role = Claimed | Literal["gateway"]


class Principal(msgspec.Struct, frozen=True):
    """
    An authenticated caller, from a verified token.

    Attributes:
        name: the token's `sub`.
        expires_at: the token's `exp`, in seconds since 1970.
        tenant: the token's `tenant`; empty without tenants.
        token_id: what a revocation names it by, see `identity.token_revocations`;
            empty for a grant of an older version.
        issued_at: the token's `iat`; 0 without one.
    """

    name: str
    role: Role
    expires_at: float
    tenant: str = ""
    token_id: str = ""
    issued_at: float = 0.0


GATEWAY_PRINCIPAL = Principal(GATEWAY, "gateway", math.inf)
