"""
The folder of an embedded stack: its lock, ports, secrets and files.

All of it survives `kill -9` at any instant: files appear whole or not at all, and
locks belong to the kernel, so they end with their holder.
"""

import fcntl
import json
import os
import random
import secrets
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import msgspec

T = TypeVar("T")

LOCK = "lock"
PORTS = "ports.json"
SECRETS = "secrets.json"
TOPOLOGY = "topology"
# What a process of each role needs to know; `env` is the developer's.
ENVIRONMENTS = ("env", "mad.env", "manager.env", "edge.env", "archiver.env")
# Below every system's ephemeral range (32768 on Linux, 49152 elsewhere): a client
# may get an ephemeral port while its server restarts, and a client that reconnects
# to such a port may even connect to itself.
PORT_RANGE = range(15_000, 32_000)
# For the one stack of a user that takes them first, so that a URL stays the same.
DEFAULT_PORTS: Mapping[str, int] = {
    "edge": 18_080,
    "valkey": 16_379,
    "secantus": 17_017,
    "nanio": 19_000,
}


class StackError(Exception):
    """
    The embedded stack cannot run; the message says what, where and the remedy.
    """


class FolderLock:
    """
    The right to run a stack on one folder, held until close() or death.
    """

    def __init__(self, data: Path) -> None:
        """
        Take the lock of *data*.

        Raises:
            StackError: another living process holds it.
        """
        path = data / LOCK
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(self._file):
            holder = os.read(self._file, 32).decode().strip() or "unknown"
            os.close(self._file)
            raise StackError(
                f"{data} is in use by the everbus process {holder}. Stop that one "
                f"(Ctrl-C, or: kill {holder}), or give another folder by --data"
            )
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """
        Release the folder.
        """
        os.close(self._file)


def try_lock(file: int) -> bool:
    """
    Take the lock of an open file until its close; False if another holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_whole(path: Path, text: str, *, mode: int = 0o600) -> None:
    """
    Put *text* into *path* in one atomic step; by default only this user may read it.
    """
    draft = path.with_name(f".{path.name}.draft")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(file, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(path)


class DefaultPorts:
    """
    The right of one stack of this user to DEFAULT_PORTS, held until close() or death.
    """

    def __init__(self) -> None:
        """
        Take the right, if no other stack of this user has it.
        """
        path = Path(tempfile.gettempdir()) / f"everbus-ports-{os.getuid()}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._file: int | None = None
        # Whoever took that name from us in a folder of all users gets no error of ours.
        with suppress(OSError):
            self._file = os.open(path, flags, 0o600)
        self.ours = self._file is not None and try_lock(self._file)

    def close(self) -> None:
        """
        Give the right back.
        """
        if self._file is not None:
            os.close(self._file)


def remembered_ports(
    data: Path, names: Sequence[str], defaults: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int]:
    """
    The port of each of *names*, then stored in `ports.json`: the stored one, else its
    default, else a free one.

    A default port that somebody uses is left to them, also a stored one.

    Raises:
        StackError: another program uses a stored port that is no default.
    """
    path = data / PORTS
    ports = _read(path, int)
    for name in names:
        usual = defaults.get(name)
        # A stored default port may be another stack's by now.
        if ports.get(name) in (None, DEFAULT_PORTS.get(name)):
            others = {*ports.values(), *DEFAULT_PORTS.values()}
            ports[name] = usual if usual and _is_free(usual) else free_port(others)
        elif not _is_free(ports[name]):
            raise StackError(
                f"port {ports[name]} of {name}, remembered in {path}, is in use by "
                f"another program. Stop it (ss -ltnp 'sport = :{ports[name]}' "
                f'shows it), or delete "{name}" from {path} to get a new port'
            )
    write_whole(path, json.dumps(ports, indent=2) + "\n")
    return {name: ports[name] for name in names}


def holds_stack(data: Path) -> bool:
    """
    Whether a stack has ever run on *data*.
    """
    return (data / TOPOLOGY).exists() or (data / PORTS).exists()


def delete_data(data: Path, stores: Iterable[str]) -> None:
    """
    Delete the data of *stores*, the secrets, ports and settings of the folder's stack.

    By name, since the folder may hold files of others, and nothing where no stack ran;
    logs stay. The caller has the folder's lock, and no process runs.
    """
    if not holds_stack(data):
        return
    files = [*ENVIRONMENTS, SECRETS]
    for name in stores:
        folder = data / name
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            files.append(name)
        files += [f"{name}.conf", f"{name}.toml"]
    # Last what makes it a stack's folder: a reset that was cut off can be repeated.
    for path in (data / name for name in (*files, PORTS, TOPOLOGY)):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)


def generated_secrets(data: Path) -> Mapping[str, str]:
    """
    The stack's JWT secret, S3 keys and keys of grants; each generated once, then read
    from the folder.
    """
    path = data / SECRETS
    known = _read(path, str)
    # A folder of an earlier version lacks the newer ones.
    whole = _fresh_secrets() | known
    if whole != known:
        write_whole(path, json.dumps(whole, indent=2) + "\n")
    return whole


def _fresh_secrets() -> dict[str, str]:
    # Imported late: a stack of servers alone needs no `cryptography`.
    from everbus.gateway.identity.grant_keys import GRANT_KINDS, new_pair

    made = {
        "jwt_secret": secrets.token_hex(32),
        "s3_access_key": secrets.token_hex(10),
        "s3_secret_key": secrets.token_hex(20),
    }
    for kind in GRANT_KINDS:
        private, public = new_pair(kind, "dev")
        made |= {f"grant_{kind}_private": private, f"grant_{kind}_public": public}
    return made


def free_port(taken: Collection[int] = ()) -> int:
    """
    A loopback port, not one of *taken*, on which nothing listens.

    Raises:
        StackError: no port is free.
    """
    for _ in PORT_RANGE:
        port = random.choice(PORT_RANGE)  # noqa: S311 - no secret
        if port not in taken and _is_free(port):
            return port
    raise StackError(
        f"no free port on 127.0.0.1 from {PORT_RANGE.start} to {PORT_RANGE.stop}; "
        "stop a program that listens there (ss -ltn)"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a lingering closed connection is no listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _read(path: Path, kind: type[T]) -> dict[str, T]:
    """
    The flat JSON object in *path*; empty without the file.
    """
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, kind])  # type: ignore[valid-type]
    except msgspec.MsgspecError as error:
        raise StackError(
            f"{path} is damaged ({error}); delete it, and everbus makes a new one"
        ) from error
