"""
What a MAD finds in its environment: where the bus is, and who it is.
"""

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class BusSettings(BaseSettings):
    """
    `EVERBUS_MAD_URL` (with `{mad}` in it), else `EVERBUS_REDIS_URL`; the token.
    """

    model_config = SettingsConfigDict(env_prefix="EVERBUS_", frozen=True)

    redis_url: str = "redis://127.0.0.1:6379"
    mad_url: str = ""
    mad: str = "dev"
    token: SecretStr = SecretStr("")

    def url_for(self, mad: str) -> str:
        """
        The bus's URL for the MAD of that name.
        """
        return self.mad_url.replace("{mad}", mad) or self.redis_url
