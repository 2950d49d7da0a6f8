"""
The one frozen settings object of a process, read from the environment.

Only the composition root builds it, and no other module reads the environment. A
misspelt name, a bad value or an unreadable secret ends the process before its first
connection. No message of this module contains a secret.
"""

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from everbus.bus.bus_address import server_url, url_with_tls
from everbus.bus.errors import Invalid
from everbus.bus.sentinel import with_sentinel_login
from everbus.compose.bound_settings import BoundSettings
from everbus.compose.edge_settings import EdgeSettings
from everbus.compose.tls_settings import TlsSettings, mongo_url_with_tls
from everbus.gateway.sealing.sensitive_fields import SEALABLE, SENSITIVE
from everbus.gateway.store.pricing import Prices

DEFAULT_PRICES = Prices()
PREFIX = "EVERBUS_"
# Settings that may also come as `<NAME>_FILE`, the path of a file with the value.
FROM_FILE = frozenset(
    {
        "jwt_secret",
        "jwt_keys",
        "jwt_public_key",
        "grant_key",
        "grant_key_previous",
        "grant_private_key",
        "grant_public_keys",
        "sealing_kek",
        "token",
        "s3_secret_key",
        "redis_url",
        "mongo_url",
        "sentinel_password",
    }
)
_SENTINELS = "sentinel_password"
# Settings whose value no error message may contain.
_NEVER_SHOWN = FROM_FILE | {"mad_url", "s3_access_key", "s3_endpoint", "edge_url"}
# Up to the last `@`: a password may contain one.
_PASSWORD = re.compile(r"(://[^\s:/?#@]*):[^\s]*@")
_SECRET_QUERY = re.compile(
    r"(?i)([?&][^=&\s]*(?:password|secret|token)[^=&\s]*=)[^&\s]+"
)

_FILLER = re.compile(r"^(Value error, |Input should be (a valid )?|String should )")


class SettingsError(Exception):
    """
    A setting in the environment is wrong; the message names the remedy.
    """


def _url(*schemes: str) -> AfterValidator:
    """
    A check that a setting is empty or a URL of one of *schemes*.
    """

    def check(url: str) -> str:
        if url and not url.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError(f"a URL of the scheme {' or '.join(schemes)}")
        return url

    return AfterValidator(check)


def _bus_url(url: str) -> str:
    """
    The URL of a bus as the connections need it, or empty.
    """
    try:
        return server_url(url) if url else url
    except Invalid as error:
        raise ValueError(error.message) from None


def _key_list(keys: SecretStr) -> SecretStr:
    """
    *keys*, if it is empty or a JSON list of kid, algorithm and key.
    """
    wanted = {"kid", "algorithm", "key"}
    try:
        listed = json.loads(keys.get_secret_value() or "[]")
    except ValueError:
        listed = None
    if not isinstance(listed, list) or any(
        not isinstance(key, dict) or set(key) != wanted for key in listed
    ):
        # `from None`, and no value: these are keys.
        raise ValueError('a JSON list of {"kid", "algorithm", "key"}') from None
    return keys


def _lowered(value: Any) -> Any:  # any value from the environment
    return value.lower() if isinstance(value, str) else value


def _dotted(*words: str) -> AfterValidator:
    """
    A check that a setting is empty, one of *words*, or `package.module:Name`.
    """

    def check(value: str) -> str:
        if value and value not in words and not _DOTTED_PATH.fullmatch(value):
            wanted = ", ".join((*words, "package.module:Name"))
            raise ValueError(f"one of {wanted}")
        return value

    return AfterValidator(check)


_DOTTED_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_STORE = _dotted("mongo", "s3", "folder")
_DOTTED = _dotted()
_REDIS = AfterValidator(_bus_url)
_HTTP = _url("http", "https")
_JWKS = _url("https", "http", "file")
_MONGO = _url("mongodb", "mongodb+srv")


def _sealable(names: str) -> str:
    """
    *names*, if each is one of SEALABLE; they are separated by commas.
    """
    for name in names.split(","):
        if name not in SEALABLE:
            raise ValueError(f"some of {','.join(SEALABLE)}")
    return names


class Settings(BoundSettings, EdgeSettings, TlsSettings):
    """
    How one process runs; each field is `EVERBUS_<NAME>` in the environment.

    Attributes:
        sentinel_username: a user of the Sentinels; sentinel_password: the password.
            Both are for the Sentinels only, not for the servers.
        mad_url: the Redis URL for MADs, `{mad}` in it standing for the name.
        mad: the name under which commands connect to the bus.
        jwt_keys: JSON list of {"kid", "algorithm", "key"}, for key rotation.
        jwt_require: optional parts that a token must have all the same: `typ`, `iat`
            or `typ,iat`.
        jwt_jwks: https or file URL of the issuer's published keys.
        revoked_unread: what becomes of tokens while the list of revoked ones cannot be
            read. open: those known as revoked stay so, others are served; the list is
            on the bus, without which nobody can revoke nor write anything. closed:
            after 5 s all are refused as unavailable, and their streams end.
        grant_key: the key of grants, the same in all managers and edges; 32 bytes or
            more. Without it the key is derived from jwt_secret.
        grant_key_previous: the former key of grants, during a rotation.
        grant_private_key: Ed25519 key that seals grants, of `everbus keys pair`: of
            kind `mad` in a manager, of kind `edge` in an edge.
        grant_public_keys: the keys whose grants count in a manager, and of which kind.
        grant_shared: whether grants of grant_key count, or of the key that follows
            from jwt_secret.
        sealing_kek: key-encryption keys, `<name>:<base64>`; one turns encryption at
            rest on. The first wraps, the others only unwrap.
        sealing_kms_key: a key of AWS KMS instead of it.
        sealing_fields: what is encrypted, see `gateway/sealing/README.md`.
        edge_host: the edge's address; edge_port: its port.
        edge_rate: requests a second that one principal may send to one edge;
            edge_tenant_rate: the same for a whole tenant.
        edge_concurrency: requests of one principal that an edge handles at once;
            edge_tenant_concurrency: the same for a whole tenant.
        edge_streams: live streams that one principal may have open at one edge.
        edge_drain_s: time for open requests when the edge stops.
        replica: this process's name among the replicas; empty = generated.
        lease_ttl_s: a MAD counts as alive so long after its last heartbeat.
        lost_after_disconnect_s: an instance of a MAD whose connections closed counts as
            lost so long after; 0: only its lease counts.
        doubt: what a lane does with a session whose hot copy may be behind MongoDB
            while MongoDB is away: `wait` (it is not available) or `serve` (it is
            served, and compared later).
        outbox_max_records: records per partition that MongoDB may lag behind.
        warm_store: `mongo`, or the dotted path of a class of your own.
        cold_store: `s3`, `folder`, or the dotted path of a class of your own.
        cold_folder: the folder of the objects, for cold_store `folder`.
        session_fields: dotted path of a msgspec Struct that types `fields`.
        hot_ttl_s: a session stays in Redis so long after its last write.
        archive_after_days: idle days before a session goes to the cold tier; a
            fraction is allowed.
        archive_every_s: the interval between two archiving passes.
        retention_days: idle days before a session is deleted for good; 0 = never.
        replicas_wanted: Redis replicas that must have a `replicated` write.
        replicated_timeout_ms: time to wait for them.
        redis_unsafe: serve on a Redis that may lose sessions: without AOF, evicting,
            or with replicas and `min-replicas-to-write 0`.
        price_hot_gib_month: cost of 1 GiB for a month, for `stats`; also warm, cold.
        health_host: the address of the health port; health_port: /livez, /readyz,
            /startupz, /health and /metrics on a port of their own; 0 = off. An edge
            without it serves them on its own port.
        log_format: auto is console on a terminal, else json.
        fail_point: where a test kills this process, `<point>:<n>`; development only.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    redis_url: Annotated[str, _REDIS] = Field("redis://127.0.0.1:6379", repr=False)
    sentinel_username: str = ""
    sentinel_password: SecretStr = SecretStr("")
    mongo_url: Annotated[str, _MONGO] = Field("", repr=False)
    mongo_database: str = Field("everbus", pattern=r"^[A-Za-z0-9_-]{1,63}$")
    s3_endpoint: Annotated[str, _HTTP] = Field("", repr=False)
    s3_bucket: str = Field("everbus", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    s3_access_key: str = Field("", repr=False)
    s3_secret_key: SecretStr = SecretStr("")
    mongo_driver: Literal["motor", "pymongo"] = "motor"
    warm_store: Annotated[str, _STORE] = "mongo"
    cold_store: Annotated[str, _STORE] = "s3"
    cold_folder: str = ""
    session_fields: Annotated[str, _DOTTED] = ""
    hot_ttl_s: float = Field(3600, gt=0, le=86_400)
    archive_after_days: float = Field(365, ge=0)
    archive_every_s: float = Field(3600, gt=0)
    retention_days: float = Field(0, ge=0)
    replicas_wanted: int = Field(1, ge=1, le=10)
    replicated_timeout_ms: int = Field(1000, ge=1, le=30_000)
    redis_unsafe: bool = False
    warm_timeout_s: float = Field(10, gt=0, le=60)
    cold_timeout_s: float = Field(10, gt=0, le=60)
    price_hot_gib_month: float = Field(DEFAULT_PRICES.hot, ge=0)
    price_warm_gib_month: float = Field(DEFAULT_PRICES.warm, ge=0)
    price_cold_gib_month: float = Field(DEFAULT_PRICES.cold, ge=0)
    edge_url: Annotated[str, _HTTP] = Field("", repr=False)
    mad_url: Annotated[str, _REDIS] = Field("", repr=False)
    mad: str = "dev"
    jwt_secret: SecretStr = SecretStr("")
    jwt_algorithm: Literal["HS256", "RS256", "ES256", "EdDSA"] = "HS256"
    jwt_public_key: str = Field("", repr=False)
    jwt_keys: Annotated[SecretStr, AfterValidator(_key_list)] = SecretStr("")
    jwt_issuer: str = "everbus"
    jwt_audience: str = "everbus"
    jwt_require: Literal["", "typ", "iat", "typ,iat"] = ""
    jwt_jwks: Annotated[str, _JWKS] = ""
    revoked_unread: Literal["open", "closed"] = "open"
    grant_key: SecretStr = SecretStr("")
    grant_key_previous: SecretStr = SecretStr("")
    grant_private_key: SecretStr = SecretStr("")
    grant_public_keys: str = Field("", repr=False)
    grant_shared: bool = True
    sealing_kek: SecretStr = SecretStr("")
    sealing_kms_key: str = ""
    sealing_kms_region: str = ""
    sealing_kms_endpoint: Annotated[str, _HTTP] = ""
    sealing_fields: Annotated[str, AfterValidator(_sealable)] = ",".join(SENSITIVE)
    token: SecretStr = SecretStr("")
    token_command: str = ""
    partitions: int = Field(16, ge=1, le=1024)
    replica: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,63})?$")
    lane_ttl_ms: int = Field(5000, ge=500, le=60_000)
    lease_ttl_s: float = Field(30, ge=1, le=3600)
    lost_after_disconnect_s: float = Field(5, ge=0, le=3600)
    doubt: Literal["wait", "serve"] = "wait"
    outbox_max_records: int = Field(50_000, ge=1)
    ledger_ttl_s: int = Field(600, ge=600)
    reply_ttl_s: int = Field(60, ge=1, le=3600)
    batch_commands: int = Field(256, ge=1, le=1000)
    health_host: str = "127.0.0.1"
    health_port: int = Field(0, ge=0, le=65_535)
    edge_host: str = "127.0.0.1"
    edge_port: int = Field(8080, ge=0, le=65_535)
    edge_rate: float = Field(200, gt=0)
    edge_tenant_rate: float = Field(2000, gt=0)
    edge_concurrency: int = Field(64, ge=1)
    edge_tenant_concurrency: int = Field(1024, ge=1)
    edge_streams: int = Field(1000, ge=1)
    edge_drain_s: float = Field(10, ge=0, le=300)
    log_format: Annotated[
        Literal["auto", "console", "json"], BeforeValidator(_lowered)
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], BeforeValidator(_lowered)
    ] = "info"
    fail_point: str = ""
    development: bool = False

    @model_validator(mode="after")
    def _fails_only_in_development(self) -> Self:
        if self.fail_point and not self.development:
            raise ValueError(
                f"{PREFIX}FAIL_POINT kills this process, so it is refused unless "
                f"{PREFIX}DEVELOPMENT=true"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """
        Only the values from load_settings(); neither os.environ nor .env again.
        """
        return (init_settings,)


def load_settings(environ: Mapping[str, str]) -> Settings:
    """
    The settings in *environ*; an empty variable counts as not set.

    Raises:
        SettingsError: a name is unknown, a value is bad or a file is unreadable.
    """
    given = {
        name: value
        for name, value in environ.items()
        if name.startswith(PREFIX) and value
    }
    _refuse_unknown(given)
    values = {}
    for name, value in given.items():
        field = name.removeprefix(PREFIX).lower()
        if field in Settings.model_fields:
            values[field] = value
        else:
            values[field.removesuffix("_file")] = _content(name, value, given)
    for field in ("redis_url", "mad_url"):
        if url := values.get(field):
            login = (values.get("sentinel_username", ""), values.get(_SENTINELS, ""))
            files = (values.get(f"redis_{one}", "") for one in ("ca", "cert", "key"))
            values[field] = url_with_tls(with_sentinel_login(url, *login), *files)
    if url := values.get("mongo_url"):
        ca, cert = values.get("mongo_ca", ""), values.get("mongo_cert", "")
        values["mongo_url"] = mongo_url_with_tls(url, ca, cert)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # `from None`: pydantic's own message may quote the value.
        raise SettingsError(_describe(error, values)) from None


def masked_url(url: str) -> str:
    """
    *url* for people, with `***` for its password and secret parameters.
    """
    return _SECRET_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***@", url))


def _refuse_unknown(given: Mapping[str, str]) -> None:
    known = [*Settings.model_fields, *(f"{field}_file" for field in FROM_FILE)]
    for name in sorted(given):
        field = name.removeprefix(PREFIX).lower()
        if field not in known:
            nearest = get_close_matches(field, sorted(known), n=1, cutoff=0)[0]
            raise SettingsError(
                f"{name} is no setting of everbus; did you mean "
                f"{PREFIX}{nearest.upper()}? Rename it, or unset it"
            )


def _content(name: str, path: str, given: Mapping[str, str]) -> str:
    direct = name.removesuffix("_FILE")
    if direct in given:
        raise SettingsError(f"{direct} and {name} are both set; unset one of them")
    try:
        content = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "not text"
        raise SettingsError(
            f"{name}={path}: {cause}; wanted a text file that this user may read"
        ) from None
    return content.strip()


def _describe(error: ValidationError, values: Mapping[str, str]) -> str:
    """
    All problems, one line per variable; a value appears only if it is no secret.
    """
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        wanted = _FILLER.sub("", problem["msg"])
        if not problem["loc"]:
            lines.append(wanted)
            continue
        field = str(problem["loc"][0])
        shown = "" if field in _NEVER_SHOWN else f"={values[field]}"
        lines.append(f"{PREFIX}{field.upper()}{shown}: wanted {wanted}")
    return "\n".join(lines)
