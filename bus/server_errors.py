"""
The one table of error replies of a server: which pass, which last, which are ours.

Passing ones end by themselves or by an operator's hand, and none of them has an
effect: the part that meets one is unready, says why, and tries again within seconds.
That holds for rights and passwords too: users are gone for a moment after a restart,
an `ACL LOAD` or a rotation. Lasting ones need a change of the command or of the data.
Ours belong to the normal course of a part, which knows what to do.
"""

from typing import Literal, NamedTuple

from redis.exceptions import AuthenticationError, ResponseError

from everbus.bus.errors import (
    Defect,
    EverbusError,
    Forbidden,
    Overloaded,
    Unauthenticated,
    Unavailable,
)

Kind = Literal["passing", "lasting", "ours"]


class RightsRefused(Forbidden):
    """
    The bus refuses a command to the user in the URL of this process.
    """


class CredentialsRefused(Unauthenticated):
    """
    The bus refuses the user or the password in the URL of this process; no token of a
    client has a part in it.
    """


class CommandRefused(Defect, ResponseError):
    """
    The bus refuses a command for a reason that does not pass by itself.
    """


class ServerError(NamedTuple):
    """
    The meaning of an error reply.

    Attributes:
        kind: see above.
        error: the class of EverbusError that stands for it.
        message: its text, with the server's in place of `{}`.
    """

    kind: Kind
    error: type[EverbusError]
    message: str


_WAITS = ServerError("passing", Unavailable, "the bus refuses for now: {}")
_FULL = ServerError("passing", Overloaded, "the bus is out of memory: {}")
_RIGHTS = ServerError(
    "passing", RightsRefused, "the bus refuses: {}. Rights of a MAD: bus/README.md"
)
_CREDENTIALS = ServerError(
    "passing", CredentialsRefused, "the bus refuses the credentials: {}"
)
_LASTING = ServerError("lasting", CommandRefused, "the bus refuses: {}")
_OURS = ServerError("ours", CommandRefused, "the bus refuses: {}")

SERVER_ERRORS: dict[str, ServerError] = {
    "ASK": _WAITS,
    "BUSY": _WAITS,
    "CLUSTERDOWN": _WAITS,
    "FAILOVER": _WAITS,
    "LOADING": _WAITS,
    "MASTERDOWN": _WAITS,
    "MISCONF": _WAITS,
    "MOVED": _WAITS,
    "NOREPLICAS": _WAITS,
    "NOTREADY": _WAITS,
    "READONLY": _WAITS,
    "TRYAGAIN": _WAITS,
    "UNBLOCKED": _WAITS,
    "UNREACHED": _WAITS,
    "OOM": _FULL,
    "NOPERM": _RIGHTS,
    "NOAUTH": _CREDENTIALS,
    "WRONGPASS": _CREDENTIALS,
    "BUSYGROUP": _OURS,
    "NOGROUP": _OURS,
    "NOSCRIPT": _OURS,
    "CROSSSLOT": _LASTING,
    "EXECABORT": _LASTING,
    "NOPROTO": _LASTING,
    "WRONGTYPE": _LASTING,
}
# Errors without a code of their own, by the begin of their text.
# A Cluster's text goes on differently: "… + cluster connections reached".
_BY_TEXT = {"max number of clients": _WAITS}


def server_error(error: ResponseError) -> ServerError:
    """
    The meaning of an error reply; an error that is not in the table lasts.
    """
    known = SERVER_ERRORS.get(error_word(error))
    if known is not None:
        return known
    text = str(error).removeprefix("ERR ")

    return next((row for t, row in _BY_TEXT.items() if text.startswith(t)), _LASTING)


def refusal(error: ResponseError) -> EverbusError:
    """
    The EverbusError for an error reply of the server.
    """
    found = server_error(error)

    return found.error(found.message.format(error))


def translated(error: BaseException) -> BaseException:
    """
    EverbusError for an error on a connection; *error* itself if there is none.
    """
    if isinstance(error, AuthenticationError):
        return CredentialsRefused(_CREDENTIALS.message.format(error))
    return refusal(error) if isinstance(error, ResponseError) else error


def as_passing(error: EverbusError) -> EverbusError:
    """
    *error* as a part sees it that goes on trying: refused rights and passwords of this
    process come back, so they are Unavailable there. Others stay as they are.
    """
    if isinstance(error, RightsRefused | CredentialsRefused):
        return Unavailable(error.message)
    return error


def error_word(error: ResponseError) -> str:
    """
    Code at the begin of an error reply, for example `NOGROUP`.
    """
    # redis-py removes the codes that it knows from the text.
    return getattr(error, "status_code", None) or str(error).partition(" ")[0]
