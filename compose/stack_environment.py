"""
The settings that an embedded stack writes for its users: one file for each role.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from everbus.compose.servers import BUCKET, HOST
from everbus.compose.stack_folder import ENVIRONMENTS, write_whole

TOKEN_TTL_S = 30 * 24 * 3600
EDGE = "edge"
STORES = (
    "EVERBUS_REDIS_URL",
    "EVERBUS_MONGO_URL",
    "EVERBUS_S3_ENDPOINT",
    "EVERBUS_S3_BUCKET",
    "EVERBUS_S3_ACCESS_KEY",
    "EVERBUS_S3_SECRET_KEY",
)
MADS = ("EVERBUS_REDIS_URL", "EVERBUS_MAD_URL", "EVERBUS_EDGE_URL")
# Only processes that check tokens may know the key that makes them.
JUDGES = (
    "EVERBUS_JWT_SECRET",
    "EVERBUS_JWT_ISSUER",
    "EVERBUS_JWT_AUDIENCE",
    "EVERBUS_GRANT_PUBLIC_KEYS",
    "EVERBUS_GRANT_SHARED",
)
PRIVATE_KEY = "EVERBUS_GRANT_PRIVATE_KEY"


def write_environments(data: Path, environment: Mapping[str, str]) -> None:
    """
    Write `env`, the developer's, and a file with what one process of each role needs.

    A MAD's file has no key of tokens, no MongoDB and no S3: with these one can read and
    forge everything.
    """
    stores = _known(STORES, environment)
    judging = stores | _known(JUDGES, environment)
    mad = _known(MADS, environment)
    mad["EVERBUS_TOKEN"] = _token(environment["EVERBUS_JWT_SECRET"], "mad")
    manager, edge = (judging | own_key(kind, environment) for kind in ("mad", "edge"))
    files = (environment, mad, manager, edge, stores)
    for name, settings in zip(ENVIRONMENTS, files, strict=True):
        lines = (f"{setting}={value}\n" for setting, value in settings.items())
        write_whole(data / name, "".join(lines))


def own_key(kind: str, environment: Mapping[str, str]) -> dict[str, str]:
    """
    The setting of the private key of *kind*, for the role that seals such grants.
    """
    both = environment.get(PRIVATE_KEY, "").split(",")
    mine = [text for text in both if text.startswith(f"{kind}:")]

    return {PRIVATE_KEY: mine[0]} if mine else {}


def _known(names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """
    The settings of those *names* that the stack has: a bench's may be a bus alone.
    """
    return {name: environment[name] for name in names if name in environment}


def environment_of(
    redis: str, ports: Mapping[str, int], secrets: Mapping[str, str]
) -> dict[str, str]:
    """
    The settings by which any everbus command finds a stack.
    """
    edge = {"EVERBUS_EDGE_URL": f"http://{HOST}:{ports[EDGE]}"} if EDGE in ports else {}

    return edge | {
        "EVERBUS_REDIS_URL": redis,
        # Direct: SecantusDB has no replica set to discover.
        "EVERBUS_MONGO_URL": f"mongodb://{HOST}:{ports['secantus']}/?directConnection=true",
        "EVERBUS_S3_ENDPOINT": f"http://{HOST}:{ports['nanio']}",
        "EVERBUS_S3_BUCKET": BUCKET,
        "EVERBUS_S3_ACCESS_KEY": secrets["s3_access_key"],
        "EVERBUS_S3_SECRET_KEY": secrets["s3_secret_key"],
        "EVERBUS_JWT_SECRET": secrets["jwt_secret"],
        "EVERBUS_JWT_ISSUER": "everbus",
        "EVERBUS_JWT_AUDIENCE": "everbus",
        "EVERBUS_GRANT_PUBLIC_KEYS": _both("public", secrets),
        "EVERBUS_GRANT_SHARED": "false",
        # A developer may start any role from here; each takes the key of its kind.
        PRIVATE_KEY: _both("private", secrets),
        "EVERBUS_TOKEN": _token(secrets["jwt_secret"], "admin"),
        "EVERBUS_MAD_URL": redis + "?client_name={mad}",
    }


def _both(half: str, secrets: Mapping[str, str]) -> str:
    # No space: shells read the file.
    return ",".join(secrets[f"grant_{kind}_{half}"] for kind in ("mad", "edge"))


def _token(secret: str, role: Literal["admin", "mad"]) -> str:
    # Imported late: a stack of servers alone needs no PyJWT.
    from everbus.gateway.identity.tokens import mint

    return mint(
        secret,
        name="dev",
        role=role,
        issuer="everbus",
        audience="everbus",
        ttl_s=TOKEN_TTL_S,
        now=time.time(),
    )
