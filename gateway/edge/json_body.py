"""
Request bodies as strict JSON, with an error for every fault.
"""

import json
from typing import Any

import msgspec

from everbus.bus.errors import Invalid
from everbus.bus.messages import MAX_DEPTH
from everbus.gateway.edge.problem import RefusedRequest
from everbus.gateway.identity.strict_json import strict_json

# One level more than a value: the body's own object.
MAX_BODY_DEPTH = MAX_DEPTH + 1


def parse_body(body: bytes) -> Any:  # a JSON value
    """
    The value in *body*.

    Raises:
        RefusedRequest: 400, the body is not strict JSON.
        Invalid: it is nested too deep.
    """
    try:
        value = strict_json(body)
    except UnicodeDecodeError:
        raise _refusal("is not UTF-8") from None
    except RecursionError:
        raise _refusal(f"is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise _refusal(f"is not JSON: {error.msg} at byte {error.pos}") from None
    except ValueError as error:
        # From strict_json, or Python's for an integer of thousands of digits.
        raise _refusal(str(error).partition(":")[0]) from None
    _check_depth(value)

    return value


def parse_message(text: str) -> Any:  # a JSON value
    """
    The value in a WebSocket's message, which strangers may fill with anything.

    Raises:
        RefusedRequest: 400, the message is not strict JSON.
        Invalid: it is nested too deep.
    """
    try:
        # Ten times faster than strict JSON, and stricter than most of what is sent.
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise _refusal("is not a JSON object") from None
    return parse_body(text.encode())


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


def _refusal(what: str) -> RefusedRequest:
    message = f"body {what}; send strict JSON in UTF-8"

    return RefusedRequest(Invalid, 400, message, field="body")
