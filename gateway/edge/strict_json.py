"""
Bodies as strict JSON, and what is wrong with those that are none.
"""

import json
from typing import Any

from bus.errors import Invalid
from bus.messages import MAX_DEPTH
from gateway.edge.problem import Refused
from gateway.identity.strict_json import strict_json

# The body's own object, its fields' values, and a word more in the message.
MAX_BODY_DEPTH = MAX_DEPTH + 1


def parsed(body: bytes) -> Any:  # a JSON value
    """
    The value in *body*.

    Raises:
        Refused: with 400, it is not JSON, or not strictly.
    """
    try:
        value = strict_json(body)
    except UnicodeDecodeError:
        raise _unfit("is not UTF-8") from None
    except RecursionError:
        raise _unfit(f"is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise _unfit(f"is not JSON: {error.msg} at byte {error.pos}") from None
    except ValueError as error:
        # Of strict_json, and Python's for an integer of thousands of digits.
        raise _unfit(str(error).partition(":")[0]) from None
    _check_depth(value)

    return value


def _check_depth(value: Any) -> None:  # a JSON value
    level = [value]
    for _ in range(MAX_BODY_DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    if any(isinstance(item, dict | list) for item in level):
        raise Invalid(f"body is nested deeper than {MAX_DEPTH} levels", field="body")


def _children(item: Any) -> Any:  # JSON values
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def _unfit(what: str) -> Refused:
    told = f"body {what}; send strict JSON in UTF-8"

    return Refused(Invalid, 400, told, field="body")
