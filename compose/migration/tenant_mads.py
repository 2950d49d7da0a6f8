"""
The MADs that write migrated sessions: one for each tenant.
"""

import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from everbus.bus import Mad, connect
from everbus.bus.messages import check_mad
from everbus.compose.contexts import printed_token
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.logs import configure_logs
from everbus.compose.migration.mapping import MigrationMapping
from everbus.compose.replay import bus_url
from everbus.compose.settings import Settings, load_settings

MAX_TENANTS = 32
TOKEN_TTL_S = 7 * 24 * 3600


class TenantMads:
    """
    One connection for each tenant, made when its first conversation comes.
    """

    def __init__(
        self, settings: Settings, name: str, opened: AsyncExitStack, *, tenants: bool
    ) -> None:
        self._settings, self._name = settings, check_mad(name)
        self._opened, self._tenants = opened, tenants
        self._mads: dict[str, Mad] = {}

    async def of(self, tenant: str) -> Mad:
        """
        The MAD that writes for *tenant*.

        Raises:
            Failed: there is no token for it, or there are too many tenants.
        """
        if tenant not in self._mads:
            if len(self._mads) >= MAX_TENANTS:
                raise Failed(
                    f"more than {MAX_TENANTS} tenants; split the old store", USAGE
                )
            url = bus_url(self._settings).replace("{mad}", self._name)
            one = connect(url, mad=self._name, token=self._token(tenant), lease=False)
            self._mads[tenant] = await self._opened.enter_async_context(one)
        return self._mads[tenant]

    def _token(self, tenant: str) -> str:
        secret = self._settings.jwt_secret.get_secret_value()
        given = self._settings.token.get_secret_value()
        if not given and self._settings.token_command:
            given = printed_token(self._settings.token_command)
        if given and not self._tenants:
            return given
        if not secret:
            raise Failed(
                "the mapping names tenants, and only EVERBUS_JWT_SECRET can make a "
                "token of each"
                if self._tenants
                else "neither EVERBUS_TOKEN nor EVERBUS_JWT_SECRET is set. For the "
                "stack of `everbus dev`: set -a; . .everbus/env; set +a",
                USAGE,
            )
        return self._minted(secret, tenant)

    def _minted(self, secret: str, tenant: str) -> str:
        # Late: PyJWT takes its time, and other commands do without.
        from everbus.gateway.identity.tokens import mint

        try:
            return mint(
                secret,
                name=self._name,
                role="admin",
                issuer=self._settings.jwt_issuer,
                audience=self._settings.jwt_audience,
                ttl_s=TOKEN_TTL_S,
                now=time.time(),
                tenant=tenant,
            )
        except ValueError as error:
            raise Failed(f"EVERBUS_JWT_SECRET: {error}", USAGE) from error


@asynccontextmanager
async def tenant_mads(
    mapping: MigrationMapping, name: str
) -> AsyncIterator[TenantMads]:
    """
    Connections to the bus in the environment, for the sessions of *mapping*.
    """
    settings = load_settings(os.environ)
    configure_logs(settings.log_format, settings.log_level)
    async with AsyncExitStack() as opened:
        yield TenantMads(settings, name, opened, tenants=mapping.has_tenants)
