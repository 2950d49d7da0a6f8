"""
`everbus context`: named buses, and as which MAD a person is seen on each.
"""

import os
from typing import Annotated
from urllib.parse import urlsplit

import typer

from everbus.compose.command_output import (
    OutputOption,
    notify,
    print_json,
    print_table,
)
from everbus.compose.contexts import (
    Context,
    Contexts,
    contexts_path,
    read_contexts,
    write_contexts,
)
from everbus.compose.exit_codes import USAGE, Failed
from everbus.compose.replay_command import Output
from everbus.compose.settings import masked_url

_Name = Annotated[str, typer.Argument(help="The context's name.", metavar="NAME")]
_Url = Annotated[str, typer.Option(help="The bus, without a password.")]
_UrlFile = Annotated[str, typer.Option(help="Path of a file with the URL, instead.")]
_MadName = Annotated[str, typer.Option(help="Name of the MAD.")]
_TokenFile = Annotated[str, typer.Option(help="Path of a file with the token.")]
_TokenCommand = Annotated[
    str, typer.Option(help="Command that prints the token, run without a shell.")
]
_PlainToken = Annotated[
    str, typer.Option(help="The token itself, stored in the contexts' file.")
]
_PlainUrl = Annotated[
    str, typer.Option(help="The bus with its password, stored in the contexts' file.")
]


def add(
    name: _Name,
    url: _Url = "",
    url_file: _UrlFile = "",
    plain_url: _PlainUrl = "",
    mad: _MadName = "",
    token_file: _TokenFile = "",
    token_command: _TokenCommand = "",
    plain_token: _PlainToken = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the context of this name.")
    ] = False,
) -> None:
    """
    Add a context: a bus, a MAD's name, and where its token comes from.

    The contexts' file, $XDG_CONFIG_HOME/everbus/contexts.json (mode 0600), holds a
    secret only by --plain-url or --plain-token.

    Example: everbus context add prod --url rediss://bus:6379 --token-command "pass eb"
    """
    _check_one("--url, --url-file and --plain-url", url, url_file, plain_url)
    if sum(map(bool, (token_file, token_command, plain_token))) > 1:
        raise Failed(
            "give one of --token-file, --token-command and --plain-token", USAGE
        )
    if url and (urlsplit(url).password or masked_url(url) != url):
        raise Failed(
            "--url has a password: put the URL into a file (--url-file), or store it "
            "as it is by --plain-url",
            USAGE,
        )
    made = Context(
        url=url or plain_url,
        url_file=_absolute(url_file),
        mad=mad,
        token_file=_absolute(token_file),
        token_command=token_command,
        token=plain_token,
    )
    _store(_stored().with_context(name, made, replace=replace))
    notify(f"{name} is stored. Use it: everbus context use {name}")


def use(name: _Name) -> None:
    """
    Use a context for all commands, until another one is used or it is removed.

    Variables of the environment win over it, and --context NAME over the one in use.

    Example: everbus context use prod
    """
    stored = _stored()
    stored.named(name)
    _store(Contexts(current=name, contexts=stored.contexts))
    notify(f"{name} is in use")


def list_(output: OutputOption = Output.table) -> None:
    """
    List the contexts, without secrets; a star marks the one in use.

    Example: everbus context list
    """
    stored = _stored()
    shown = {name: one.shown() for name, one in sorted(stored.contexts.items())}
    if output is Output.json:
        print_json({"current": stored.current, "contexts": shown})
        return
    print_table(
        ("context", "in use", "bus", "MAD", "token"),
        (
            (name, "*" if name == stored.current else "", *one.values())
            for name, one in shown.items()
        ),
    )


def show(name: _Name, output: OutputOption = Output.table) -> None:
    """
    Show a context, without secrets.

    Example: everbus context show prod
    """
    shown = _stored().named(name).shown()
    if output is Output.json:
        print_json(shown)
    else:
        print_table(("field", "value"), shown.items())


def remove(name: _Name) -> None:
    """
    Remove a context; files with its secrets stay.

    Example: everbus context remove prod
    """
    stored = _stored()
    stored.named(name)
    _store(stored.without(name))
    notify(f"{name} is removed")


def _stored() -> Contexts:
    return read_contexts(contexts_path(os.environ))


def _store(contexts: Contexts) -> None:
    write_contexts(contexts_path(os.environ), contexts)


def _check_one(names: str, *values: str) -> None:
    if sum(map(bool, values)) != 1:
        raise Failed(f"give one of {names}", USAGE)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if path else ""


context_app = typer.Typer(
    help="Name buses and switch between them. Example: everbus context list",
    no_args_is_help=True,
)
context_app.command()(add)
context_app.command()(use)
context_app.command("list")(list_)
context_app.command()(show)
context_app.command()(remove)
