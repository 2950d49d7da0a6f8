"""
What ends a lane's work, or makes it begin anew; never seen by a caller.
"""

from bus.errors import Unavailable


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
