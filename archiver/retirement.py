"""
Clean-up by age: sessions that were idle beyond the retention time are deleted.

Their lanes delete them by an ordinary command, unless a command used them meanwhile.
"""

from datetime import datetime

import structlog

from everbus.archiver.gateway_commands import Send
from everbus.bus.errors import Rejection
from everbus.gateway.store.warm_roles import WarmCatalogue
from everbus.gateway.telemetry import metrics
from everbus.handlers.commands import DeleteSession, ListSessions

log = structlog.get_logger()

PAGE = 100


class Retirement:
    """
    Deletes sessions by age, in whichever tier.
    """

    def __init__(self, warm: WarmCatalogue, send: Send) -> None:
        self._warm = warm
        self._send = send

    async def run(self, idle_before: datetime) -> int:
        """
        Delete sessions last active before *idle_before*; returns their number.

        Raises:
            Unavailable: a tier is away; the next run deletes the rest.
        """
        retired = 0
        cursor: str | None = None
        while True:
            query = ListSessions(active_before=idle_before, cursor=cursor, limit=PAGE)
            page = await self._warm.find(query, "")
            for session in page.sessions:
                retired += await self._retire(session.id, idle_before)
            if page.next is None:
                return retired
            cursor = page.next

    async def _retire(self, session_id: str, idle_before: datetime) -> bool:
        try:
            await self._send(session_id, DeleteSession(idle_since=idle_before))
        except Rejection as error:
            log.info("session.not_retired", session=session_id, code=error.code)
            return False
        metrics.RETIRED.inc()
        log.info("session.retired", session=session_id)
        return True
