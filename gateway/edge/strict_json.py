"""
JSON as RFC 8259 and I-JSON (RFC 7493) have it, and nothing beside it.

Python's own parser takes UTF-16, NaN, numbers that overflow to infinity, and the last
of two equal keys: what one reader takes for the one, and another for the other, is how
checks are got around.
"""

import json
import math
from typing import Any

from bus.errors import Invalid
from bus.messages import MAX_DEPTH
from gateway.edge.problem import Refused

# The body's own object, its fields' values, and a word more in the message.
MAX_BODY_DEPTH = MAX_DEPTH + 1


def parsed(body: bytes) -> Any:  # a JSON value
    """
    The value in *body*.

    Raises:
        Refused: with 400, it is not JSON, or not strictly.
    """
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except UnicodeDecodeError:
        raise _unfit("is not UTF-8") from None
    except RecursionError:
        raise _unfit(f"is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise _unfit(f"is not JSON: {error.msg} at byte {error.pos}") from None
    except ValueError as error:
        # Ours, and Python's for an integer of thousands of digits.
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # JSON values
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("has an object with the same key twice")
    return fields


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("holds a number beyond the range of a double")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"holds {text}, which JSON does not have")


def _unfit(what: str) -> Refused:
    told = f"body {what}; send strict JSON in UTF-8"

    return Refused(Invalid, 400, told, field="body")
