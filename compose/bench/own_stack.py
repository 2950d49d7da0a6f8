"""
A throw-away stack of the bench's own: a Valkey and replicas.

No archiver and no lower tier: commits stay in the outboxes, where the check reads all
of them, so the figures are of the bus and the replicas alone.
"""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from everbus.compose.process_records import Say
from everbus.compose.servers import HOST, valkey_server
from everbus.compose.stack import EmbeddedStack
from everbus.compose.stack_folder import remembered_ports
from everbus.compose.supervision import SupervisedProcess

# Nobody drains the outboxes here.
OUTBOX_RECORDS = 1_000_000_000


class OwnStack(EmbeddedStack):
    """
    A Valkey with *replicas* managers on one folder, for as long as its `async with`.
    """

    def __init__(
        self,
        data: Path,
        replicas: int,
        *,
        aof: bool,
        extra: Mapping[str, str],
        say: Say,
    ) -> None:
        super().__init__(data, managers=replicas, archiver=False, extra=extra, say=say)
        self._aof = aof

    @property
    def replicas(self) -> list[str]:
        """
        The names of the replicas.
        """
        return [name for name in self.parts if name != "valkey"]

    def _prepare(self) -> None:
        [port] = remembered_ports(self.data, ("valkey",)).values()
        self._environment = {
            "EVERBUS_REDIS_URL": f"redis://{HOST}:{port}/0",
            "EVERBUS_JWT_SECRET": secrets.token_hex(32),
            "EVERBUS_OUTBOX_MAX_RECORDS": f"{OUTBOX_RECORDS}",
            # Without AOF it is meant to forget.
            "EVERBUS_REDIS_UNSAFE": "false" if self._aof else "true",
        }
        servers = [valkey_server(self.data, port, aof=self._aof)]
        for n in range(1, self._managers + 1):
            settings = self._environment | {"EVERBUS_REPLICA": f"manager-{n}"}
            servers.append(self._role(f"manager-{n}", "manager", settings))
        self.parts = {
            server.name: SupervisedProcess(replace(server, rank=rank), self._say)
            for rank, server in enumerate(servers)
        }
