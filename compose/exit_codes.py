"""
Exit codes of the `everbus` command, and error texts for people.

0 ok, 1 finding, 2 usage, 3 unreachable, 4 denied, 5 conflict (DESIGN.md section 5).
A user's mistake never shows a traceback; a defect of everbus does.
"""

from everbus.bus.errors import (
    AlreadyExists,
    Defect,
    EverbusError,
    Forbidden,
    Invalid,
    Rejection,
    Unauthenticated,
    Unavailable,
    VersionConflict,
)
from everbus.compose.settings import SettingsError, masked_url
from everbus.compose.stack_folder import StackError

FINDING, USAGE, UNREACHABLE, DENIED, CONFLICT = 1, 2, 3, 4, 5

_CODES: dict[type[EverbusError], int] = {
    Unavailable: UNREACHABLE,
    Forbidden: DENIED,
    Unauthenticated: DENIED,
    VersionConflict: CONFLICT,
    AlreadyExists: CONFLICT,
    Invalid: USAGE,
    Rejection: FINDING,
    Defect: FINDING,
}


class Failed(Exception):
    """
    A command failed; it has a message for people and an exit code.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code_of(error: Exception) -> int | None:
    """
    The exit code for *error*; None for a defect of everbus.
    """
    if isinstance(error, Failed):
        return error.exit_code
    if isinstance(error, SettingsError):
        return USAGE
    if isinstance(error, StackError) or _is_connection_failure(error):
        return UNREACHABLE
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code

    return None


def describe(error: Exception) -> str:
    """
    The text of *error* for people, without passwords.
    """
    return masked_url(str(error)) or type(error).__name__


def _is_connection_failure(error: Exception) -> bool:
    # Imported late, compared by name: drivers load slowly, a MAD has no pymongo.
    from redis.exceptions import ConnectionError as RedisAway
    from redis.exceptions import TimeoutError as RedisSlow

    known = (ConnectionError, TimeoutError, RedisAway, RedisSlow)
    names = {kind.__module__ + "." + kind.__name__ for kind in type(error).__mro__}

    return isinstance(error, known) or "pymongo.errors.ConnectionFailure" in names
