"""
Strict JSON: RFC 8259 and I-JSON (RFC 7493) only.

Python's own parser accepts UTF-16, NaN, numbers that overflow to infinity, and the last
of two equal keys. Two readers that disagree on a text let an attacker bypass checks.
"""

import json
import math
from typing import Any


def strict_json(text: bytes) -> Any:  # a JSON value
    """
    The value in *text*: UTF-8, finite numbers, no key twice in an object.

    Raises:
        ValueError: not strict JSON (UnicodeDecodeError, json.JSONDecodeError); its
            message quotes nothing of *text* but the name of a constant.
        RecursionError: nested too deep.
    """
    return json.loads(
        text.decode(),
        object_pairs_hook=_unique,
        parse_float=_finite,
        parse_constant=_no_constant,
    )


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
