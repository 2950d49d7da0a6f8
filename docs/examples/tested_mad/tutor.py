"""
A small agent: it answers the questions of a session, each once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import everbus

Model = Callable[[list[str]], Awaitable[str]]


class Tutor:
    """
    Answers what `role: user` says, and keeps the topic in the session's summary.
    """

    def __init__(self, mad: everbus.Mad, model: Model) -> None:
        self.mad = mad
        self.model = model

    async def teach(self, session_id: str) -> None:
        """
        Take part until the session ends.
        """
        await self.mad.join(session_id, role="tutor")
        async with aclosing(self.mad.watch(session_id, after="0")) as events:
            async for event in events:
                if event.kind == "timeline.appended" and event.entry["role"] == "user":
                    await self.answer(session_id, event.entry["text"])

    async def answer(self, session_id: str, question: str) -> None:
        """
        Append the model's answer, then note the topic.
        """
        page = await self.mad.timeline(session_id)
        history = [entry.entry["text"] for entry in page.entries]
        text = await self.model(history)
        await self.mad.append_and_wait(session_id, {"role": "tutor", "text": text})
        await self.note_topic(session_id, question)

    async def note_topic(self, session_id: str, topic: str) -> None:
        """
        Write the topic; whoever changed the session first makes us read it again.
        """
        while True:
            session = await self.mad.get_session(session_id)
            summary = {**session.context_summary, "topic": topic}
            try:
                await self.mad.update_session(
                    session_id,
                    {"context_summary": summary},
                    expected_version=session.version,
                )
            except everbus.VersionConflict:
                continue
            except everbus.ReplyTimeout as error:
                # Its outcome is unknown: ask, and write again only if it is not there.
                if await self.was_applied(error.command_id):
                    return
            else:
                return

    async def was_applied(self, command_id: str) -> bool:
        """
        Whether a command took effect; waits while that is open.
        """
        while True:
            outcome = await self.mad.outcome(command_id)
            if outcome.state != "pending":
                return outcome.state == "applied"
            await asyncio.sleep(0.05)
