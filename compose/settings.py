"""
The one frozen settings object of a process, read from the environment.

Only the composition root builds it, and nothing else reads the environment:
a misspelt name, a bad value or an unreadable secret ends the process before it
connects to anything. No message here ever contains a secret.
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

from gateway.store.pricing import Prices

DEFAULT_PRICES = Prices()
PREFIX = "EVERBUS_"
# Settings that may be given as `<NAME>_FILE`, the path of a file that holds them.
FROM_FILE = frozenset(
    {
        "jwt_secret",
        "jwt_keys",
        "jwt_public_key",
        "grant_key",
        "grant_key_previous",
        "token",
        "s3_secret_key",
        "redis_url",
        "mongo_url",
    }
)
# Settings whose value may be told to the person who set it wrongly.
_UNTOLD = FROM_FILE | {"mad_url", "s3_access_key", "s3_endpoint", "edge_url"}
# To the last `@`: a password may itself contain one.
_PASSWORD = re.compile(r"(://[^\s:/?#@]*):[^\s]*@")
_SECRET_QUERY = re.compile(
    r"(?i)([?&][^=&\s]*(?:password|secret|token)[^=&\s]*=)[^&\s]+"
)

_FILLER = re.compile(r"^(Value error, |Input should be (a valid )?|String should )")


class SettingsError(Exception):
    """
    The environment does not say how to run; the message names the remedy.
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


def _lowered(value: Any) -> Any:  # whatever was given
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
_REDIS = _url("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
_HTTP = _url("http", "https")
_JWKS = _url("https", "http", "file")
_MONGO = _url("mongodb", "mongodb+srv")


class Settings(BaseSettings):
    """
    How one process runs; each field is `EVERBUS_<NAME>` in the environment.

    Attributes:
        mad_url: the Redis URL for MADs, `{mad}` in it standing for the name.
        mad: the name under which commands connect to the bus.
        jwt_keys: JSON list of {"kid", "algorithm", "key"}, for key rotation.
        jwt_jwks: where the issuer publishes its keys: an https or file URL.
        grant_key: what managers and edges seal grants with, the same in all of them;
            32 bytes or more. Without one it follows from jwt_secret.
        grant_key_previous: what grants were sealed with before, while it changes.
        edge_host: the address that the edge serves on; also its edge_port.
        edge_rate: requests a second that one principal may make of one edge;
            edge_tenant_rate: that all of one tenant may.
        edge_concurrency: how many of a principal's requests an edge works on at
            once; edge_tenant_concurrency: of a tenant's.
        edge_streams: live streams that one principal may have open at one edge.
        edge_drain_s: how long requests under way may take when the edge stops.
        replica: this process's name among the replicas; empty = generated.
        lease_ttl_s: how long after its last heartbeat a MAD counts as alive.
        outbox_max_records: records per partition that MongoDB may lag behind.
        warm_store: `mongo`, or the dotted path of a class of your own.
        cold_store: `s3`, `folder`, or the dotted path of a class of your own.
        cold_folder: where `folder` keeps its objects.
        session_fields: dotted path of a msgspec Struct that types `fields`.
        hot_ttl_s: how long a session stays in Redis after its last write.
        archive_after_days: how long a session is idle before it goes to the cold
            tier; a fraction is allowed.
        archive_every_s: how often the archiver looks for such sessions.
        retention_days: how long idle before it is deleted for good; 0 = never.
        replicas_wanted: Redis replicas that must have what is `replicated`.
        replicated_timeout_ms: how long to wait for them.
        redis_unsafe: serve on a Redis that may lose sessions: without AOF, evicting.
        price_hot_gib_month: cost of 1 GiB for a month, for `stats`; also warm, cold.
        health_host: the address on which manager and archiver tell of themselves; also
            health_port: /livez, /readyz, /startupz, /health and /metrics; 0 = nowhere.
        log_format: auto is console on a terminal, else json.
        fail_point: where to die in a test, `<point>:<n>`; development only.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    redis_url: Annotated[str, _REDIS] = Field("redis://127.0.0.1:6379", repr=False)
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
    jwt_jwks: Annotated[str, _JWKS] = ""
    grant_key: SecretStr = SecretStr("")
    grant_key_previous: SecretStr = SecretStr("")
    token: SecretStr = SecretStr("")
    partitions: int = Field(16, ge=1, le=1024)
    replica: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,63})?$")
    lane_ttl_ms: int = Field(5000, ge=500, le=60_000)
    lease_ttl_s: float = Field(30, ge=1, le=3600)
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
        Only what load_settings() passes: no second look at os.environ or .env.
        """
        return (init_settings,)


def load_settings(environ: Mapping[str, str]) -> Settings:
    """
    The settings in *environ*; an empty variable counts as one that is not set.

    Raises:
        SettingsError: a name is unknown, a value unfit or a file unreadable.
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
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # `from None`: pydantic's own message may quote what was given.
        raise SettingsError(_told(error, values)) from None


def shown_url(url: str) -> str:
    """
    *url* for people: its password and secret parameters are `***`.
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


def _told(error: ValidationError, values: Mapping[str, str]) -> str:
    """
    What is wrong, one line per variable; a value only if it is no secret.
    """
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        wanted = _FILLER.sub("", problem["msg"])
        if not problem["loc"]:
            lines.append(wanted)
            continue
        field = str(problem["loc"][0])
        shown = "" if field in _UNTOLD else f"={values[field]}"
        lines.append(f"{PREFIX}{field.upper()}{shown}: wanted {wanted}")
    return "\n".join(lines)
