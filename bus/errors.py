"""
The refusals of everbus, one class and one permanent code each.

Four families decide what happens to a command: a Rejection is replied and
settled, Unavailable leaves it to be tried again, Malformed makes it a dead
letter, and anything else is a Defect: retried, then a dead letter.
"""

from typing import Any, ClassVar, Self


class EverbusError(Exception):
    """
    A refusal of everbus; `code` is the same on bus, REST and CLI.

    Attributes:
        code: snake_case, permanent.
        status: the HTTP status that REST answers with.
        message: the refused value, its place, the limit and the remedy.
        details: fields for programs; JSON-compatible.
    """

    code: ClassVar[str] = "defect"
    status: ClassVar[int] = 500

    # Positional only, since a detail from the wire may have any name.
    def __init__(self, message: str, /, **details: Any) -> None:  # JSON values
        super().__init__(message)
        self.message = message
        self.details = details

    def copy(self) -> Self:
        """
        The same refusal to raise once more: each raise adds to a traceback.
        """
        return type(self)(self.message, **self.details)


class Rejection(EverbusError):
    """
    The command was decided and refused; it had no effect and never will.
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
    The session has another version or last seq than expected; read it and decide anew.
    """

    code = "version_conflict"
    status = 409

    @property
    def current_version(self) -> int:
        """
        Version of the session when the command was decided.
        """
        return int(self.details["current_version"])

    @property
    def current_last_seq(self) -> int:
        """
        Seq of the session's newest entry when the command was decided; 0 without one.
        """
        return int(self.details["current_last_seq"])


class NotFound(Rejection):
    """
    There is no such object, or no longer.
    """

    code = "not_found"
    status = 404


class AlreadyExists(Rejection):
    """
    An earlier command has created an object with this id.
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
    A field is missing, unknown, protected or has an invalid value.
    """

    code = "invalid"
    status = 422


class TooLarge(Rejection):
    """
    A command, an entry or a session's hot state exceeds its limit in bytes, or a turn
    its limit of entries.
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
    The managers declared the instance lost. Its commands count again after its next
    `instance.join`, which the SDK sends by itself.
    """

    code = "superseded"
    status = 409


class Cancelled(Rejection):
    """
    The sender cancelled the command in time; it is never applied.
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
    No reply came in time; ask `outcome()` for the outcome.
    """

    code = "timeout"
    status = 504

    @property
    def command_id(self) -> str:
        """
        Id of the command, for `outcome()`.
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
    The exception for a reply's *code*; an unknown code gives a Defect.
    """
    return ERRORS.get(code, Defect)(message, **details)
