"""
Foreign values in the texts of errors: short, in ASCII, and at a bounded price.

`repr` of a value whose parts occur in many places writes each of them out, without
end; that of somebody's own class may do anything. Neither is ever asked for.
"""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from reprlib import Repr
from uuid import UUID

MAX_QUOTED_CHARS = 80

# Types whose repr is as short as the value itself; no subclasses.
_BOUNDED = frozenset(
    {
        *(type(None), type(...), type(NotImplemented), bool, int, float, complex),
        *(Decimal, Fraction, date, datetime, time, timedelta, UUID),
    }
)


def quoted(value: object) -> str:
    """
    The begin of *value* for an error text, of any object.
    """
    try:
        text = _quotation.repr(value)
    except Exception:  # noqa: BLE001 - the keys of foreign objects, and huge integers
        text = _type_of(value)
    return text.encode("ascii", "backslashreplace").decode()[:MAX_QUOTED_CHARS]


class _Quotation(Repr):
    """
    The first items of a container, two levels deep.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2

    def repr1(self, x: object, level: int) -> str:
        kind = type(x)
        if kind is str or kind is bytes:
            return repr(x[:MAX_QUOTED_CHARS])  # type: ignore[index]
        if kind in _BOUNDED:
            return repr(x)
        if kind in (dict, list, tuple, set, frozenset):
            return super().repr1(x, level)
        return _type_of(x)


def _type_of(value: object) -> str:
    return f"a value of type {type(value).__name__}"


_quotation = _Quotation()
