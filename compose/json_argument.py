"""
JSON given on the command line: in the argument, in a file (`@path`), on stdin (`-`).
"""

import sys
from pathlib import Path
from typing import Any

import msgspec
import typer

from everbus.bus.messages import MAX_DEPTH


def parse_json(text: str) -> Any:
    """
    The JSON value that *text* holds or names.

    Raises:
        BadParameter: there is no such file, or its content is no JSON.
    """
    source: bytes | str = text
    try:
        # Bytes: JSON is UTF-8, whatever the terminal's encoding is.
        if text == "-":
            source = sys.stdin.buffer.read()
        elif text.startswith("@"):
            source = Path(text[1:]).read_bytes()
        return msgspec.json.decode(source)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {text!a}: {error}") from error
    except UnicodeError as error:
        raise typer.BadParameter(f"{text[:60]!a} holds what is not UTF-8") from error
    except RecursionError as error:
        raise typer.BadParameter(
            f"{text[:60]!a} is nested deeper than {MAX_DEPTH} levels"
        ) from error
    except msgspec.DecodeError as error:
        raise typer.BadParameter(
            f"{source[:60]!a} is no JSON ({error}); text needs quotes inside the "
            "shell's: '\"hello\"'"
        ) from error


def parse_object(text: str) -> dict[str, Any]:
    """
    As `parse_json`; the value must be an object.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{text[:60]!a}: wanted an object, such as {{}}")
    return value
