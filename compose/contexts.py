"""
Named contexts: which bus a person means, and as which MAD.

One file of this user, mode 0600. A context becomes settings of the environment before
the command runs, and what the environment has already wins. Processes that serve read
no context: their settings are their deployment's.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec

from everbus.compose.exit_codes import CONFLICT, USAGE, Failed
from everbus.compose.settings import masked_url
from everbus.compose.stack_folder import write_whole

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_CONTEXTS = 100
MAX_FILE_BYTES = 2**20
COMMAND_WITHIN_S = 30.0
# A command of these takes its settings from its deployment alone.
SERVING = frozenset({"dev", "demo", "manager", "archiver", "edge", "context"})
_BUS = ("EVERBUS_REDIS_URL", "EVERBUS_REDIS_URL_FILE", "EVERBUS_MAD_URL")
_TOKEN = ("EVERBUS_TOKEN", "EVERBUS_TOKEN_FILE", "EVERBUS_TOKEN_COMMAND")


class Context(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One bus, and who is to be seen on it.

    Attributes:
        url: the bus; a password is in it only if it was asked to be.
        url_file: the path of a file with the URL, instead.
        mad: name of the MAD.
        token_file: the path of a file with the token.
        token_command: a command that prints the token.
        token: the token itself, only if it was asked to be here.
    """

    url: str = ""
    url_file: str = ""
    mad: str = ""
    token_file: str = ""
    token_command: str = ""
    token: str = ""

    def shown(self) -> dict[str, str]:
        """
        What people may see: no password, no token.
        """
        token = self.token_file or (
            f"$({self.token_command})" if self.token_command else ""
        )
        return {
            "url": masked_url(self.url) or f"in {self.url_file}",
            "mad": self.mad,
            "token": token or ("in the contexts' file" if self.token else "none"),
        }

    def settings(self) -> dict[str, str]:
        """
        The context as settings of the environment.
        """
        found = {
            "EVERBUS_REDIS_URL": self.url,
            "EVERBUS_REDIS_URL_FILE": self.url_file,
            "EVERBUS_MAD": self.mad,
            "EVERBUS_TOKEN": self.token,
            "EVERBUS_TOKEN_FILE": self.token_file,
            "EVERBUS_TOKEN_COMMAND": self.token_command,
        }
        return {name: value for name, value in found.items() if value}


class Contexts(msgspec.Struct, frozen=True, kw_only=True):
    """
    All contexts of this user; *current* is in use, if it is not empty.
    """

    current: str = ""
    contexts: dict[str, Context] = {}

    def named(self, name: str) -> Context:
        """
        The context *name*.

        Raises:
            Failed: there is none.
        """
        if name not in self.contexts:
            known = ", ".join(sorted(self.contexts)) or "none"
            raise Failed(
                f"there is no context {name[:64]!a}; known are: {known}. Make one by "
                "`everbus context add`",
                USAGE,
            )
        return self.contexts[name]

    def with_context(self, name: str, context: Context, *, replace: bool) -> "Contexts":
        """
        The same with *context*.

        Raises:
            Failed: the name is bad or taken, or there are MAX_CONTEXTS.
        """
        if not NAME.fullmatch(name):
            raise Failed(
                f"{name[:80]!a} is no name of a context; wanted up to 64 of letters, "
                "digits, dot, dash and underscore",
                USAGE,
            )
        if name in self.contexts and not replace:
            raise Failed(f"there is a context {name}; change it by --replace", CONFLICT)
        if name not in self.contexts and len(self.contexts) >= MAX_CONTEXTS:
            raise Failed(f"there are {MAX_CONTEXTS} contexts; remove one", USAGE)

        return Contexts(current=self.current, contexts={**self.contexts, name: context})

    def without(self, name: str) -> "Contexts":
        """
        The same without the context *name*.
        """
        left = {one: kept for one, kept in self.contexts.items() if one != name}

        return Contexts(
            current="" if name == self.current else self.current, contexts=left
        )


def contexts_path(environ: Mapping[str, str]) -> Path:
    """
    The file of the contexts, by the XDG base directory specification.
    """
    home = environ.get("XDG_CONFIG_HOME", "")
    # The specification ignores relative paths.
    folder = Path(home) if Path(home).is_absolute() else Path.home() / ".config"

    return folder / "everbus" / "contexts.json"


def read_contexts(path: Path) -> Contexts:
    """
    The contexts in *path*; none without the file.

    Raises:
        Failed: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_FILE_BYTES), type=Contexts)
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise Failed(f"cannot read the contexts: {error}", USAGE) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failed(
            f"{path} is damaged ({error}); mend it, or delete it and add the contexts "
            "anew",
            USAGE,
        ) from error


def write_contexts(path: Path, contexts: Contexts) -> None:
    """
    Store the contexts, readable by this user only.

    Raises:
        Failed: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = msgspec.json.format(msgspec.json.encode(contexts)).decode()
        write_whole(path, f"{text}\n")
    except OSError as error:
        raise Failed(f"cannot write the contexts: {error}", USAGE) from error


def settings_of(environ: Mapping[str, str], name: str) -> dict[str, str]:
    """
    The settings that the context *name*, or else the one in use, adds to *environ*.

    A token belongs to the context's bus: where *environ* names a bus, it is not taken.

    Raises:
        Failed: there is no context *name*, or the file cannot be read.
    """
    stored = read_contexts(contexts_path(environ))
    chosen = name or stored.current
    if not chosen:
        return {}
    added = stored.named(chosen).settings()
    taken = {one for one in ("EVERBUS_MAD",) if environ.get(one)}
    if any(environ.get(one) for one in _BUS):
        taken |= {*_BUS, *_TOKEN}
    if any(environ.get(one) for one in _TOKEN):
        taken |= {*_TOKEN}

    return {one: value for one, value in added.items() if one not in taken}


def apply_context(command: str, name: str) -> None:
    """
    Add the context's settings to the environment of this process, for *command*.

    Raises:
        Failed: *command* takes no context, or as `settings_of`.
    """
    if command in SERVING:
        if name:
            raise Failed(
                f"`everbus {command}` takes no context: set its settings in the "
                "environment",
                USAGE,
            )
        return
    os.environ.update(settings_of(os.environ, name))


def printed_token(command: str) -> str:
    """
    The token that *command* prints; nothing of its output is in an error.

    Raises:
        Failed: it cannot run, fails, takes too long, or prints nothing.
    """
    try:
        ran = subprocess.run(  # noqa: S603 - this user's own command, without a shell
            shlex.split(command),
            stdout=subprocess.PIPE,
            timeout=COMMAND_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        problem = f"has not ended within {COMMAND_WITHIN_S:g} s"
    except (OSError, ValueError) as error:
        problem = f"cannot run: {error}"
    else:
        token = ran.stdout.decode(errors="replace").strip()
        if ran.returncode == 0 and token:
            return token
        problem = "printed nothing" if not token else f"ended with {ran.returncode}"
    raise Failed(f"the command for the token, {command!a}, {problem}", USAGE)
