"""
Names of users and other principals, as issuers of tokens give them.

Issuers use more than letters (`auth0|5f7c…`, `system:serviceaccount:ns:agent`), so a
name is any visible text. One text is one name: there is one normal form, and no
invisible character.
"""

import re
import unicodedata

from everbus.bus.errors import Invalid
from everbus.bus.quotation import quoted

MAX_NAME_CHARS = 255
NAME_RULE = (
    f"1 to {MAX_NAME_CHARS} visible characters in NFC without *, {{ and }}, beginning "
    "with a letter, a digit, _, +, @ or |"
)
# Most names; no other check is needed then.
_PLAIN = re.compile(r"[A-Za-z0-9_+@|][!-)+-z|~]{0,254}")
# Names of tenants, and of what becomes part of an id.
_SHORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_@.-]{0,63}")
# Characters that are letters or marks by their category, and yet shown as nothing
# (Default_Ignorable_Code_Point in Unicode's DerivedCoreProperties).
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)


def check_name(value: str, field: str) -> str:
    """
    Return *value* if it is the name of a user or another principal: NAME_RULE.

    Raises:
        Invalid: naming *field*.
    """
    if isinstance(value, str) and (_PLAIN.fullmatch(value) or _is_name(value)):
        return value
    raise Invalid(f"{field} is {quoted(value)}; wanted {NAME_RULE}", field=field)


def check_short_name(value: str, field: str) -> str:
    """
    Return *value* if it has 1 to 64 letters, digits, `_`, `@`, `.` or `-`.

    Raises:
        Invalid: naming *field*.
    """
    if isinstance(value, str) and _SHORT.fullmatch(value):
        return value
    raise Invalid(f"{field} is {quoted(value)}; wanted {_SHORT.pattern}", field=field)


def _is_name(value: str) -> bool:
    return (
        1 <= len(value) <= MAX_NAME_CHARS
        and (value[0].isalnum() or value[0] in "_+@|")
        and all(map(_is_visible, value))
        and _IGNORABLE.search(value) is None
        and unicodedata.is_normalized("NFC", value)
    )


def _is_visible(character: str) -> bool:
    # Z: separators. C: controls, formats, surrogates, private and unassigned ones.
    return character not in "*{}" and unicodedata.category(character)[0] not in "CZ"
