"""
The `everbus` command: its subcommands and its exit codes.

Each subcommand lives in a module of its own. This module registers them and turns
errors into exit codes, in one place.
"""

import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from everbus.compose.lazy_commands import LazyGroup, read_table

# Name, place below `everbus.compose`, and line in the list of commands.
COMMANDS = """
demo     demo_command:demo             See a replica killed, and every message counted
dev      dev_command:dev               Run the whole stack on this machine
session  session_command:session_app   Find, show and change sessions
append   append_command:append         Append an entry to a timeline
turn     turn_command:turn             Append entries and merge a patch, all or nothing
join     append_command:join           Take part in a session
timeline timeline_command:timeline     Print the entries of a timeline
watch    watch_command:watch           Print a session's events as they happen
call     call_command:call             Send a command of any kind
request  request_command:request_app   Show what became of a command
manager  role_processes:manager        Serve commands: one replica
archiver role_processes:archiver       Drain commits into MongoDB, move sessions
edge     edge_command:edge             Serve REST and live updates over HTTP
doctor   doctor_command:doctor         Examine a bus, with a remedy for each problem
lanes    lanes_command:lanes           List the lanes, their owners and what waits
top      top_command:top               Show what the bus does now, live
verify   verify_command:verify         Compare Redis, MongoDB and S3, without a write
backup   backup_command:backup         Copy MongoDB's side into a folder
restore  restore_command:restore       Write a backup into an empty database
archive  archive_command:archive       Move idle sessions to S3, once and now
dead     dead_command:dead_app         List, redrive and drop dead letters
keys     keys_command:keys_app         Keys of encryption at rest, and of grants
mads     mads_command:mads_app         List, add and remove MADs
acl      acl_command:acl               Print the Redis ACL rules of MADs and roles
context  context_command:context_app   Name buses and switch between them
token    token_command:token_app       Print a JWT for development; revoke tokens
migrate  migrate_command:migrate_app   Move conversations out of a store of your own
replay   replay_command:replay_file    Play recorded conversations and compare
bench    bench_command:bench           Put load on a bus, and check what it did
explain  explain_command:explain       Explain a code, cause, indicator or log event
"""


class Everbus(LazyGroup):
    """
    All commands of `everbus`.
    """

    table = read_table(COMMANDS, "everbus.compose")


# Plain tracebacks: those of rich print local variables, secrets among them.
app = typer.Typer(
    name="everbus",
    cls=Everbus,
    help="The SessionManager for multi-agent systems. Example: everbus dev",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"everbus {version('everbus')}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    context: Annotated[
        str,
        typer.Option(metavar="NAME", help="A context of `everbus context`."),
    ] = "",
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """
    Options of `everbus` itself; each takes effect before any command.
    """
    from everbus.compose.contexts import apply_context

    apply_context(ctx.invoked_subcommand or "", context)


def main() -> None:
    """
    Run the command that sys.argv names, and exit with its code.
    """
    _never_fail_to_print()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # Late, like the commands: it knows the errors of every part.
        from everbus.compose.exit_codes import describe, exit_code_of

        code = exit_code_of(error)
        if code is None:
            raise
        typer.echo(f"everbus: {describe(error)}", err=True)
        sys.exit(code)


def _never_fail_to_print() -> None:
    """
    Escape what the terminal's encoding lacks; output must not end a command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
