"""
Who asks, once that is known.
"""

import math
from typing import Literal

import msgspec

from bus.keys import GATEWAY

# What a token may claim.
Claimed = Literal["user", "mad", "operator", "admin"]
# The gateway's own commands have a role that no token can claim.
Role = Claimed | Literal["gateway"]


class Principal(msgspec.Struct, frozen=True):
    """
    Who asks, as a verified token says.

    Attributes:
        name: the token's `sub`.
        expires_at: the token's `exp`, in seconds since 1970.
        tenant: the token's `tenant`; empty in a house without tenants.
    """

    name: str
    role: Role
    expires_at: float
    tenant: str = ""


GATEWAY_PRINCIPAL = Principal(GATEWAY, "gateway", math.inf)
