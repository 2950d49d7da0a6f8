"""
The check of arguments of the SDK's calls, before anything is sent.

Each function returns the value, or raises Invalid with the name of the argument.
Among them are the JSON values that every tier can store.
"""

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from everbus.bus.errors import EverbusError, Invalid, TooLarge
from everbus.bus.quotation import quoted

MAX_DEPTH = 32
MAX_INTEGER = 2**53
# No value is larger than the command that carries it.
MAX_VALUE_BYTES = 256 * 1024
# Shorter ASCII text counts as one byte, which saves its measuring.
UNMEASURED_CHARS = 256

# A value of so few fields and levels stays far below MAX_VALUE_BYTES if its texts are
# short; most values are like that.
SMALL_FIELDS = 8
SMALL_LEVELS = 3

# Field names that passed the check: the same names come again and again. When the set
# is full, other names are checked each time.
MAX_SOUND_KEYS = 4096
MAX_SOUND_KEY = 64
_valid_keys: set[object] = set()
# A year; more is a mistake in the unit, and deadlines stay small integers.
MAX_TIMEOUT_S = 366 * 86_400
MAX_PAGE = 1_000
MAX_PATH_BYTES = 4_095  # PATH_MAX of Linux, without the NUL at its end


def check_json(value: object, field: str) -> None:
    """
    Accept *value* if every tier can store it unchanged.

    Allowed: null, booleans, integers within ±2^53, finite floats, text without
    lone surrogates, lists, and objects whose keys are text without NUL or `.`
    and do not begin with `$` (MongoDB reads those as operators and paths), at
    most MAX_DEPTH deep. Subclasses count as their JSON type, as for `json.dumps`.

    The time is bounded by MAX_VALUE_BYTES, not by the number of paths through
    *value*: a value that refers to itself, or to one part very often, ends there.
    Walks without recursion, so depth cannot exhaust it.

    Raises:
        Invalid: naming *field* and the fault in its value.
        TooLarge: it has more than MAX_VALUE_BYTES when it is written out.
    """
    if _is_plain(value, SMALL_LEVELS):
        return
    walk = _Walk(value, field)
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        # Most values are short ASCII text, which is always valid.
        level = [
            child
            for item in level
            for child in walk.children(item)
            if not (
                type(child) is str
                and child.isascii()
                and len(child) <= UNMEASURED_CHARS
            )
        ]
        if not level:
            return
    # The rest lies in MAX_DEPTH containers; an empty one counts as well.
    for item in level:
        if isinstance(item, dict | list | tuple):
            raise walk.too_deep()
        walk.children(item)


def check_text(value: object, field: str) -> str:
    """
    Return *value* if it is text without lone surrogates.

    Raises:
        Invalid: naming *field*.
    """
    if not isinstance(value, str):
        raise invalid(field, f"is {quoted(value)}; wanted text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise invalid(field, "holds text that is not valid Unicode") from error
    return value


def invalid(field: str, what: str) -> Invalid:
    """
    The refusal of the value of *field*.
    """
    return Invalid(f"{field} {what}", field=field)


def _is_plain(item: Any, levels: int) -> bool:
    """
    Whether *item* is short ASCII text, a whole number in bounds, a truth value or null;
    or a small object of those under known names, at most *levels* deep.

    Exact types only: a subclass is written out by its content.
    """
    kind = type(item)
    if kind is str:
        return len(item) <= UNMEASURED_CHARS and item.isascii()
    if kind is dict:
        if levels == 0 or len(item) > SMALL_FIELDS or not item.keys() <= _valid_keys:
            return False
        for value in item.values():  # noqa: SIM110 - a generator costs as much again
            if not _is_plain(value, levels - 1):
                return False
        return True
    if kind is int:
        return bool(-MAX_INTEGER <= item <= MAX_INTEGER)
    return item is None or kind is bool


class _Walk:
    """
    One check of one value; it counts a lower bound of the bytes.
    """

    def __init__(self, value: object, field: str) -> None:
        self._value = value
        self._field = field
        self._room = MAX_VALUE_BYTES

    def children(self, item: object) -> Iterable[object]:
        """
        The values in *item*, after the check of *item* itself.
        """
        kind = type(item)
        if kind is dict:
            return self._object(item)  # type: ignore[arg-type]
        if kind is list or kind is tuple:
            return self._array(item)  # type: ignore[arg-type]
        if kind is str:
            return self._text(item)  # type: ignore[arg-type]
        if item is None or kind is bool:
            return ()
        if kind is int:
            return self._integer(item)  # type: ignore[arg-type]
        if kind is float and math.isfinite(item):  # type: ignore[arg-type]
            return ()
        return self._subclassed(item)

    def too_deep(self) -> EverbusError:
        """
        The refusal of a value of too many levels.
        """
        if _refers_to_itself(self._value):
            return self._circular()
        return invalid(self._field, f"is nested deeper than {MAX_DEPTH} levels")

    def _subclassed(self, item: object) -> Iterable[object]:
        if isinstance(item, dict):
            return self._object(item)
        if isinstance(item, list | tuple):
            return self._array(item)
        if isinstance(item, str):
            return self._text(item)
        if isinstance(item, int):
            return self._integer(item)
        if isinstance(item, float) and math.isfinite(item):
            return ()
        raise invalid(self._field, f"holds {quoted(item)}, which JSON cannot carry")

    def _object(self, item: dict[object, object]) -> Iterable[object]:
        self._take(len(item))
        # The methods of dict: a subclass is written out by its content.
        if not dict.keys(item) <= _valid_keys:
            self._check_keys(item)
        return dict.values(item)

    def _array(self, item: list[object] | tuple[object, ...]) -> Iterable[object]:
        self._take(len(item))
        return item

    def _text(self, item: str) -> Iterable[object]:
        self._take(len(item))
        check_text(item, self._field)
        return ()

    def _integer(self, item: int) -> Iterable[object]:
        if -MAX_INTEGER <= item <= MAX_INTEGER:
            return ()
        raise invalid(self._field, "holds an integer beyond ±2^53; send it as text")

    def _check_keys(self, item: dict[object, object]) -> None:
        for key in dict.keys(item):
            if type(key) is str and key.isidentifier() and key.isascii():
                self._take(len(key))
            else:
                self._check_key(key)
        if len(_valid_keys) + len(item) <= MAX_SOUND_KEYS:
            texts = (str.__str__(key) for key in dict.keys(item))
            _valid_keys.update(text for text in texts if len(text) <= MAX_SOUND_KEY)

    def _check_key(self, key: object) -> None:
        if not isinstance(key, str):
            raise invalid(self._field, f"has a key {quoted(key)} that is not text")
        if "\0" in key or "." in key or key.startswith("$"):
            raise invalid(
                self._field, f"has the key {quoted(key)}; no NUL, '.' or leading $"
            )
        self._text(key)

    def _take(self, size_bytes: int) -> None:
        self._room -= size_bytes
        if self._room < 0:
            raise self._too_large()

    def _too_large(self) -> EverbusError:
        if _refers_to_itself(self._value):
            return self._circular()
        return TooLarge(
            f"{self._field} has more than {MAX_VALUE_BYTES} bytes when it is written "
            "out, each part as often as it occurs. Store large things elsewhere and "
            "send a reference",
            field=self._field,
            size=MAX_VALUE_BYTES - self._room,
            limit=MAX_VALUE_BYTES,
        )

    def _circular(self) -> EverbusError:
        return invalid(self._field, "refers back to itself, which JSON cannot carry")


def _refers_to_itself(value: object) -> bool:
    """
    Whether a container of *value* contains itself; visits each container once.
    """
    above: set[int] = set()
    done: set[int] = set()
    path: list[tuple[int, Iterator[object]]] = []
    entered: object = value
    while True:
        if isinstance(entered, dict | list | tuple) and id(entered) not in done:
            if id(entered) in above:
                return True
            above.add(id(entered))
            path.append((id(entered), _contents(entered)))
        while path and (entered := next(path[-1][1], _END)) is _END:
            left, _ = path.pop()
            above.remove(left)
            done.add(left)
        if not path:
            return False


_END = object()


def _contents(
    item: dict[object, object] | list[object] | tuple[object, ...],
) -> Iterator[object]:
    return iter(dict.values(item) if isinstance(item, dict) else item)


def check_timeout(value: object, field: str = "timeout") -> float:
    """
    Seconds from 0 to MAX_TIMEOUT_S; no call waits without a limit.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN fails both comparisons.
    if number and 0 <= value <= MAX_TIMEOUT_S:  # type: ignore[operator]
        return value  # type: ignore[return-value]
    raise invalid(
        field, f"is {quoted(value)}; wanted seconds from 0 to {MAX_TIMEOUT_S:,}"
    )


def check_integer(
    value: object, field: str, *, least: int = 0, most: int = MAX_INTEGER
) -> int:
    """
    An integer from *least* to *most*; neither bool nor float.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and least <= value <= most:  # type: ignore[operator]
        return value  # type: ignore[return-value]
    raise invalid(
        field, f"is {quoted(value)}; wanted an integer from {least} to {most:,}"
    )


def check_version(value: object) -> int | None:
    """
    An expected version; None for any.
    """
    return None if value is None else check_integer(value, "expected_version")


def check_limit(value: object) -> int:
    """
    The most items of a page.
    """
    return check_integer(value, "limit", least=1, most=MAX_PAGE)


def check_flag(value: object, field: str) -> bool:
    """
    True or False; other truthy or falsy values are refused.
    """
    if isinstance(value, bool):
        return value
    raise invalid(field, f"is {quoted(value)}; wanted True or False")


def check_choice(value: object, field: str, choices: Collection[str]) -> str:
    """
    One of *choices*.
    """
    if isinstance(value, str) and value in choices:
        return value
    raise invalid(field, f"is {quoted(value)}; one of {', '.join(sorted(choices))}")


def check_time(value: object, field: str) -> datetime:
    """
    A time with time zone that the calendar of UTC has, as a plain datetime in UTC.
    """
    if not isinstance(value, datetime):
        raise invalid(field, f"is {quoted(value)}; wanted a datetime")
    try:
        naive = value.utcoffset() is None
        utc = value if naive else value.astimezone(UTC)
        plain = datetime.combine(utc.date(), utc.time(), UTC)
    except OverflowError:
        raise invalid(field, "is beyond the calendar") from None
    except Exception as error:  # of a foreign time or time zone
        raise invalid(field, f"is no time: {quoted(str(error))}") from error
    if naive:
        shown = plain.replace(tzinfo=None).isoformat()
        raise invalid(field, f"is {shown}, without a time zone; for example UTC")
    return plain


def check_patch(value: object) -> dict[str, Any]:
    """
    A merge patch: a JSON object.
    """
    if not isinstance(value, Mapping):
        raise invalid("patch", f"is {quoted(value)}; wanted a mapping")
    # A mapping of somebody's own may have no end.
    names = islice(value, MAX_VALUE_BYTES + 1)
    patch = dict(value) if isinstance(value, dict) else {n: value[n] for n in names}
    check_json(patch, "patch")

    return patch


def check_optional_text(**given: object) -> None:
    """
    Each argument is text or None.
    """
    for field, value in given.items():
        if value is not None:
            check_text(value, field)


def check_optional_time(value: object, field: str) -> datetime | None:
    """
    None, or the time as `check_time` returns it.
    """
    return None if value is None else check_time(value, field)


def check_optional_integers(**given: object) -> None:
    """
    Each argument is an integer from 0 or None.
    """
    for field, value in given.items():
        if value is not None:
            check_integer(value, field)


def check_connect(
    url: object,
    token: object,
    timeout: object,
    lease: object,
    callbacks: tuple[object, object],
    spool: object,
    spool_bytes: object,
) -> None:
    """
    The arguments of `connect`, the name excepted.
    """
    check_optional_text(url=url)
    if token is not None and not isinstance(token, str) and not callable(token):
        # Not quoted: it may be a token.
        kind = type(token).__name__
        raise invalid(
            "token", f"is a {kind}; wanted text or a function that returns it"
        )
    check_timeout(timeout)
    check_flag(lease, "lease")
    for field, callback in zip(("on_lost", "on_refused"), callbacks, strict=True):
        if callback is not None and not callable(callback):
            raise invalid(field, f"is {quoted(callback)}; wanted a function")
    if spool is not None:
        _check_path(spool, "spool")
    check_integer(spool_bytes, "spool_bytes", least=1)


def _check_path(value: object, field: str) -> None:
    """
    The path of a file, as an operating system takes it.
    """
    if not isinstance(value, str | os.PathLike):
        raise invalid(field, f"is {quoted(value)}; wanted the path of a file")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError as error:
        raise invalid(field, "holds text that is not valid Unicode") from error
    if b"\0" in encoded or len(encoded) > MAX_PATH_BYTES:
        shown = quoted(os.fsdecode(value))
        raise invalid(
            field, f"is {shown}; wanted at most {MAX_PATH_BYTES:,} bytes without NUL"
        )
