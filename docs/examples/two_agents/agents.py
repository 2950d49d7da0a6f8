"""
Two agents that share one conversation: an author proposes, a critic objects or agrees.

It shows how to
- answer what others say and never oneself, each entry once, also after a restart;
- give each agent its model as an argument: a language model, or a script as here;
- end a conversation, and put what came of it into the session's shared state.

Run it: start `everbus dev`. Then, in another terminal:

    set -a; . .everbus/env; set +a
    python agents.py
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing

import everbus
from everbus import Mad

Model = Callable[[list[str]], Awaitable[str]]
AGREED = "I agree."


def scripted(lines: Iterable[str]) -> Model:
    """
    A model that says *lines*, one after the other: the same in every run.
    """
    rest = iter(lines)

    async def model(_: list[str]) -> str:
        return next(rest)

    return model


class Agent:
    """
    One participant, until the conversation ends.
    """

    def __init__(self, mad: Mad, name: str, model: Model) -> None:
        self.mad = mad
        self.name = name
        self.model = model

    async def take_part(self, session_id: str) -> None:
        """
        Answer each entry of the others, until somebody agrees.
        """
        await self.mad.join(session_id, role=self.name)
        answered = await self.answered(session_id)
        async with aclosing(self.mad.watch(session_id, after="0")) as events:
            async for event in events:
                if event.kind != "timeline.appended":
                    continue
                if event.mad != self.name and event.seq not in answered:
                    await self.answer(session_id, event.seq, event.entry["text"])
                if event.entry["text"] == AGREED:
                    return

    async def answered(self, session_id: str) -> set[int]:
        """
        The entries that an earlier process of this agent has answered.
        """
        seqs: set[int] = set()
        after: int | None = 0
        while after is not None:
            page = await self.mad.timeline(session_id, after=after)
            own = (one.entry for one in page.entries if one.author == self.name)
            seqs.update(entry["answers"] for entry in own)
            after = page.next

        return seqs

    async def answer(self, session_id: str, seq: int, said: str) -> None:
        """
        Say what the model says to entry *seq*; note what was agreed.
        """
        if said == AGREED:
            return
        page = await self.mad.timeline(session_id, before=seq + 1)
        text = await self.model([one.entry["text"] for one in page.entries])
        if text == AGREED:
            await self.mad.update_session(
                session_id, {"context_summary": {"agreed": said}}
            )
        await self.mad.append_and_wait(session_id, {"text": text, "answers": seq})


async def discuss(author: Agent, critic: Agent, topic: str) -> str:
    """
    Let both discuss *topic* in a new session; return its id when they agree.
    """
    session = await author.mad.create_session("ada")
    await author.mad.add_participant(session.id, critic.name)
    first = {"text": await author.model([topic]), "answers": 0}
    await author.mad.append_and_wait(session.id, first)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(author.take_part(session.id))
        tasks.create_task(critic.take_part(session.id))

    return session.id


async def main() -> None:
    """
    Print one discussion.
    """
    async with (
        everbus.connect(mad="author") as one,
        everbus.connect(mad="critic") as two,
    ):
        author = Agent(one, "author", scripted(["The wind.", "The moon pulls."]))
        critic = Agent(two, "critic", scripted(["Is it calm, too?", AGREED]))
        session_id = await discuss(author, critic, "Why are there tides?")
        for entry in (await one.timeline(session_id)).entries:
            print(f"{entry.author}: {entry.entry['text']}")
        print((await one.get_session(session_id)).context_summary)


if __name__ == "__main__":
    asyncio.run(main())
