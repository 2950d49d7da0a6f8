"""
Connections and tokens for a test, on any kind of bus.
"""

import time
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol

from everbus.bus import connect
from everbus.bus import sync as blocking
from everbus.bus.client import Mad
from everbus.gateway.identity.principal import Claimed
from everbus.gateway.identity.tokens import mint

ISSUER = AUDIENCE = "everbus"
TOKEN_TTL_S = 24 * 3600


class BusUnderTest(Protocol):
    """
    A bus that a test connects its MADs to.

    Attributes:
        url: for `connect`, and for `EVERBUS_REDIS_URL`.
        secret: what its tokens are signed with.
    """

    url: str
    secret: str

    def token(self, name: str, *, role: Claimed = "mad", tenant: str = "") -> str:
        """
        A token of this bus for the principal *name*, for a day.
        """
        return mint(
            self.secret,
            name=name,
            role=role,
            issuer=ISSUER,
            audience=AUDIENCE,
            ttl_s=TOKEN_TTL_S,
            now=time.time(),
            tenant=tenant,
        )

    def connect(
        self,
        *,
        mad: str,
        user: str = "",
        role: Claimed | None = None,
        tenant: str = "",
        **options: Any,  # those of everbus.connect
    ) -> AbstractAsyncContextManager[Mad]:
        """
        `everbus.connect` to this bus, with a token of the right name and role.

        Args:
            user: the principal of the token; default: the MAD itself.
            role: role of the principal; default: `mad` for the MAD, else `user`.

        *options* are those of `everbus.connect`: timeout, lease, on_lost, spool; also
        token, for one of your own.
        """
        token = self._token_for(mad, user, role, tenant)
        options.setdefault("token", token)

        return connect(self.url, mad=mad, **options)

    def connect_sync(
        self,
        *,
        mad: str,
        user: str = "",
        role: Claimed | None = None,
        tenant: str = "",
        **options: Any,  # those of everbus.bus.sync.connect
    ) -> AbstractContextManager[blocking.SyncMad]:
        """
        As `connect`, with the calls of `everbus.bus.sync`, which block.
        """
        token = self._token_for(mad, user, role, tenant)
        options.setdefault("token", token)

        return blocking.connect(self.url, mad=mad, **options)

    def environment(
        self,
        mad: str,
        *,
        user: str = "",
        role: Claimed | None = None,
        tenant: str = "",
    ) -> dict[str, str]:
        """
        The variables with which `everbus.connect()` without arguments is *mad* here.
        """
        return {
            "EVERBUS_REDIS_URL": self.url,
            "EVERBUS_MAD_URL": self.url,
            "EVERBUS_MAD": mad,
            "EVERBUS_TOKEN": self._token_for(mad, user, role, tenant),
        }

    def _token_for(self, mad: str, user: str, role: Claimed | None, tenant: str) -> str:
        """
        A token for *user*, or for the MAD itself.
        """
        name = user or mad
        claimed: Claimed = role or ("mad" if name == mad else "user")

        return self.token(name, role=claimed, tenant=tenant)
