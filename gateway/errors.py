"""
What ends a lane's work, or makes it begin anew; never seen by a caller.
"""

from typing import Any

from redis.exceptions import ResponseError

from bus.errors import Unavailable
from bus.wire import error_word, refusal


class Superseded(Exception):
    """
    The lane has another owner: nothing more may be read or committed.
    """


class Disturbed(Unavailable):
    """
    Something the lane relied on changed; what is pending must be read anew.
    """

    @property
    def cause(self) -> str:
        """
        Stable word for logs and metrics.
        """
        return str(self.details.get("cause", self.code))


def check_fenced(reply: Any) -> list[Any]:
    """
    The reply of a script that is fenced by the lane's epoch, if the fence let it in.

    Raises:
        Superseded: the lane has another owner; nothing was written.
        Disturbed: the server forgot its scripts; nothing was written.
        Exception: any other error reply, as `refusal` has it.
    """
    if isinstance(reply, ResponseError):
        if error_word(reply) == "NOSCRIPT":
            raise Disturbed("the server forgot its scripts", cause="noscript")
        raise refusal(reply)
    if reply[0] == b"superseded":
        raise Superseded
    answer: list[Any] = reply

    return answer
