"""
google-adk's session services: rows in sqlite through aiosqlite, or its own memory.

TARGET is `memory`, or a folder. In a folder COUNT 0 leaves a filled database, of which
every later run takes a copy: filling takes several times as long as measuring.
"""

import shutil
import time
from pathlib import Path

from google.adk.events import Event
from google.adk.sessions import BaseSessionService, InMemorySessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.database_session_service import DatabaseSessionService
from google.genai.types import Content, Part

from tests.bench.peers import store_script
from tests.bench.peers.store_script import SESSIONS, TAIL

APP, USER = "bench", "bench"
MEMORY = "memory"
FILLED, COPY = "filled.db", "copy.db"


class Sessions:
    """
    Sessions of one service.
    """

    _service: BaseSessionService

    async def open(self, target: str) -> bool:
        """
        Make the sessions, or take those of a filled database.
        """
        filled = Path(target) / FILLED
        if not filled.exists():
            self._service = (
                InMemorySessionService() if target == MEMORY else _database(filled)
            )
            self._sessions = [await self._made(n) for n in range(SESSIONS)]
            return False
        self._service = _database(Path(shutil.copy(filled, filled.with_name(COPY))))
        self._sessions = [await self._found(n) for n in range(SESSIONS)]
        return True

    async def append(self, session: int, text: str) -> object:
        """
        Add one event; returns when the service has it.
        """
        event = Event(
            author="user",
            timestamp=time.time(),
            content=Content(role="user", parts=[Part(text=text)]),
        )
        return await self._service.append_event(self._sessions[session], event)

    async def tail(self, session: int) -> int:
        """
        Read the newest events.
        """
        newest = GetSessionConfig(num_recent_events=TAIL)
        return len((await self._found(session, newest)).events)

    async def full(self, session: int) -> int:
        """
        Read all events.
        """
        return len((await self._found(session)).events)

    async def count(self, session: int) -> int:
        """
        How many events there are.
        """
        return await self.full(session)

    async def close(self) -> None:
        """
        Close the database, if there is one.
        """
        if isinstance(self._service, DatabaseSessionService):
            await self._service.close()

    async def _made(self, session: int) -> Session:
        return await self._service.create_session(
            app_name=APP, user_id=USER, session_id=f"s{session}"
        )

    async def _found(
        self, session: int, config: GetSessionConfig | None = None
    ) -> Session:
        found = await self._service.get_session(
            app_name=APP, user_id=USER, session_id=f"s{session}", config=config
        )
        if found is None:
            raise AssertionError(f"there is no session s{session}")
        return found


def _database(file: Path) -> DatabaseSessionService:
    return DatabaseSessionService(f"sqlite+aiosqlite:///{file}")


if __name__ == "__main__":
    store_script.run(Sessions())
