"""
The refusals of everbus, one class and one permanent code each.

Four families decide what happens to a command: a Rejection is replied and
settled, Unavailable leaves it to be tried again, Malformed makes it a dead
letter, and anything else is a Defect: retried, then a dead letter.
"""

from typing import Any, ClassVar


class EverbusError(Exception):
    """
    Something everbus refused; `code` is the same on bus, REST and CLI.

    Attributes:
        code: snake_case, permanent.
        status: the HTTP status that REST answers with.
        message: what was refused, where, what was wanted and the remedy.
        details: what a program can act on; JSON-compatible.
    """

    code: ClassVar[str] = "defect"
    status: ClassVar[int] = 500

    # Positional only, since a detail from the wire may have any name.
    def __init__(self, message: str, /, **details: Any) -> None:  # JSON values
        super().__init__(message)
        self.message = message
        self.details = details


class Rejection(EverbusError):
    """
    The command was judged and refused; it had no effect and never will.
    """


class Unavailable(EverbusError):
    """
    A part is away for now; sending the same command id again is safe.
    """

    code = "unavailable"
    status = 503


class Malformed(EverbusError):
    """
    The entry is no command of ours; it becomes a dead letter with its cause.
    """

    code = "invalid"
    status = 422


class Defect(EverbusError):
    """
    The command failed for a fault of ours and lies in the dead letters.
    """


class VersionConflict(Rejection):
    """
    The session has another version than expected; read it and decide anew.
    """

    code = "version_conflict"
    status = 409

    @property
    def current_version(self) -> int:
        """
        The version the session had when the command was judged.
        """
        return int(self.details["current_version"])


class NotFound(Rejection):
    """
    There is no such thing, or no longer.
    """

    code = "not_found"
    status = 404


class AlreadyExists(Rejection):
    """
    The id is taken by something that an earlier command made.
    """

    code = "already_exists"
    status = 409


class Forbidden(Rejection):
    """
    The principal is known, but may not do this to that session.
    """

    code = "forbidden"
    status = 403


class Unauthenticated(Rejection):
    """
    The token is missing, expired, forged or not for us.
    """

    code = "unauthenticated"
    status = 401


class Invalid(Rejection):
    """
    A field is missing, unknown, protected or has a value it cannot have.
    """

    code = "invalid"
    status = 422


class TooLarge(Rejection):
    """
    A command, an entry or a session's hot state exceeds its limit in bytes.
    """

    code = "too_large"
    status = 413


class Expired(Rejection):
    """
    The command's deadline had passed before it could be applied.
    """

    code = "expired"
    status = 408


class Superseded(Rejection):
    """
    The instance was declared lost; what it sends counts again once it has joined
    again, which the SDK does by itself.
    """

    code = "superseded"
    status = 409


class Cancelled(Rejection):
    """
    Its sender cancelled it before it was applied; it never will be.
    """

    code = "cancelled"
    status = 409


class Overloaded(Rejection):
    """
    A queue is at its stated limit; slow down and send again.
    """

    code = "overloaded"
    status = 429


class ReplyTimeout(Unavailable):
    """
    No reply came in time; the outcome is unknown until it is asked for.
    """

    code = "timeout"
    status = 504

    @property
    def command_id(self) -> str:
        """
        The id to ask `outcome()` with.
        """
        return str(self.details["command_id"])


ERRORS: dict[str, type[EverbusError]] = {
    kind.code: kind
    for kind in (
        Unavailable,
        Defect,
        VersionConflict,
        NotFound,
        AlreadyExists,
        Forbidden,
        Unauthenticated,
        Invalid,
        TooLarge,
        Expired,
        Superseded,
        Cancelled,
        Overloaded,
        ReplyTimeout,
    )
}


def error_of(code: str, message: str, details: dict[str, Any]) -> EverbusError:
    """
    The exception that a reply's *code* stands for; an unknown code is a Defect.
    """
    return ERRORS.get(code, Defect)(message, **details)
