"""
Shared by all calls of the SDK: the way to the managers, and decoded replies.
"""

from typing import Any

from everbus.bus.bus_address import shown_address
from everbus.bus.lease import Lease
from everbus.bus.requests import Requests

DEFAULT_TIMEOUT_S = 10.0


class MadCalls:
    """
    Base of the SDK's calls, bound to one instance of a MAD.

    Attributes:
        name: name of the MAD.
        instance: id of this instance, unique for all time.
    """

    def __init__(
        self,
        name: str,
        requests: Requests,
        *,
        instance: str = "",
        lease: Lease | None = None,
        address: str = "",
    ) -> None:
        self.name = name
        self.instance = instance
        self._requests = requests
        self._lease = lease
        self._ask = requests.ask
        self._address = address

    def __repr__(self) -> str:
        where = f" at {shown_address(self._address)}" if self._address else ""
        state = f"instance {self.instance or 'none'}, {self._requests.state}"

        return f"<{type(self).__name__} {self.name}{where}, {state}>"


def without_none(**fields: Any) -> dict[str, Any]:
    """
    Body of a command: the *fields* that are not None.
    """
    return {name: value for name, value in fields.items() if value is not None}
