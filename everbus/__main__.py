"""
The `everbus` command; it needs the extra `server`, which a MAD does without.
"""

import sys

EXIT_USAGE = 2


def main() -> None:
    """
    Run the command, or name the extra that is not installed and exit with 2.
    """
    try:
        from everbus.compose.cli import main as run
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {"", "everbus"}:
            raise
        sys.stderr.write(
            f"everbus: {missing} is not installed; the command needs the extra "
            "'server': pip install 'everbus[server]'\n"
        )
        raise SystemExit(EXIT_USAGE) from None
    run()


if __name__ == "__main__":
    main()
