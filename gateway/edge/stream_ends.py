"""
The ends of a live stream: their codes and messages.
"""

from typing import NamedTuple

from everbus.bus.errors import (
    EverbusError,
    Expired,
    Forbidden,
    Invalid,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unavailable,
)


class StreamEnd(NamedTuple):
    """
    The end of a stream, with its reason.

    Attributes:
        code: stable, snake_case: one of `bus.errors`, `slow_consumer`, `restart`.
        close_code: close code of a WebSocket (RFC 6455).
        resumable: whether a new connection can succeed at once.
    """

    code: str
    close_code: int
    resumable: bool
    message: str


RESTART = StreamEnd("restart", 1012, True, "this edge stops; connect again and resume")
SLOW_CONSUMER = StreamEnd(
    "slow_consumer", 4008, True, "events were not read in time; resume"
)
DELETED = StreamEnd("not_found", 4004, False, "the session was deleted")
EXPIRED = StreamEnd(
    "unauthenticated", 4001, False, "the token has expired; get a new one"
)
REVOKED = StreamEnd(
    "unauthenticated", 4001, False, "the token is not valid any more; get a new one"
)
BAD_MESSAGES = StreamEnd(
    "invalid", 1008, False, "too many messages of this client were refused"
)
# 4000 plus the last two digits of the HTTP status; 1011 and 1013 are RFC 6455's.
CLOSE_CODES: dict[str, int] = {
    Unauthenticated.code: 4001,
    Forbidden.code: 4003,
    NotFound.code: 4004,
    Expired.code: 4008,
    Invalid.code: 4022,
    Overloaded.code: 4029,
    Unavailable.code: 1013,
}
INTERNAL_ERROR_CLOSE = 1011


def end_of(error: EverbusError) -> StreamEnd:
    """
    The end of a stream that *error* causes.
    """
    resumable = isinstance(error, Unavailable)
    close_code = (
        1013 if resumable else CLOSE_CODES.get(error.code, INTERNAL_ERROR_CLOSE)
    )

    return StreamEnd(error.code, close_code, resumable, error.message)


class StreamRefused(Exception):
    """
    The client itself caused the end of its stream.
    """

    def __init__(self, end: StreamEnd) -> None:
        super().__init__(end.message)
        self.end = end
