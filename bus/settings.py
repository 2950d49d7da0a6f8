"""
Settings of a MAD from its environment: the URL of the bus, its name, its token.
"""

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from everbus.bus.bus_address import url_with_tls
from everbus.bus.sentinel import with_sentinel_login


class BusSettings(BaseSettings):
    """
    `EVERBUS_MAD_URL` (with `{mad}` in it), else `EVERBUS_REDIS_URL`; the token.

    Behind Sentinels with a password also `EVERBUS_SENTINEL_PASSWORD`, or the path of a
    file with it in `EVERBUS_SENTINEL_PASSWORD_FILE`, and `EVERBUS_SENTINEL_USERNAME`.
    For `rediss://` the PEM files `EVERBUS_REDIS_CA`, `EVERBUS_REDIS_CERT` and
    `EVERBUS_REDIS_KEY`.
    """

    model_config = SettingsConfigDict(env_prefix="EVERBUS_", frozen=True)

    redis_url: str = "redis://127.0.0.1:6379"
    mad_url: str = ""
    mad: str = "dev"
    token: SecretStr = SecretStr("")
    sentinel_username: str = ""
    sentinel_password: SecretStr = SecretStr("")
    sentinel_password_file: str = ""
    redis_ca: str = ""
    redis_cert: str = ""
    redis_key: str = ""

    def url_for(self, mad: str) -> str:
        """
        URL of the bus for the MAD *mad*.
        """
        return self.mad_url.replace("{mad}", mad) or self.redis_url

    def reachable(self, url: str) -> str:
        """
        *url* with the credentials for its Sentinels, and with the files of TLS.
        """
        password = self.sentinel_password.get_secret_value()
        if not password and self.sentinel_password_file:
            password = Path(self.sentinel_password_file).read_text().strip()

        known = with_sentinel_login(url, self.sentinel_username, password)

        return url_with_tls(known, self.redis_ca, self.redis_cert, self.redis_key)
