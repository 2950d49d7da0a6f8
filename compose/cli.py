"""
The `everbus` command: which commands there are, and how they end.

Each command lives in a module of its own; this one only registers them and
turns errors into exit codes, once.
"""

import sys

import typer

from compose.acl_command import acl
from compose.archive_command import archive
from compose.bench_command import bench
from compose.dead_command import dead_app
from compose.demo import demo
from compose.dev import dev
from compose.doctor_command import doctor
from compose.edge_command import edge
from compose.exits import exit_code_of, told
from compose.explanations import explain
from compose.mads_command import mads_app
from compose.replay_command import replay_file
from compose.roles import archiver, manager
from compose.session_command import session_app
from compose.timeline_command import timeline
from compose.tokens import token
from compose.watch_command import watch

# Tracebacks of defects stay plain: rich's would print locals, secrets among them.
app = typer.Typer(
    name="everbus",
    help="The SessionManager for multi-agent systems. Example: everbus dev",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(demo)
app.command()(dev)
app.command()(manager)
app.command()(archiver)
app.command()(edge)
app.command()(archive)
app.command()(doctor)
app.add_typer(session_app, name="session")
app.command()(timeline)
app.command()(watch)
app.add_typer(mads_app, name="mads")
app.command()(acl)
app.add_typer(dead_app, name="dead")
app.command("replay")(replay_file)
app.command()(bench)
app.command()(token)
app.command()(explain)


def main() -> None:
    """
    Run the command that sys.argv names, and exit with its code.
    """
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        typer.echo(f"everbus: {told(error)}", err=True)
        sys.exit(code)


if __name__ == "__main__":
    main()
