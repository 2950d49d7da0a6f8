"""
A chat service with FastAPI: one MAD serves all users of a web application.

It shows how to
- keep one connection for the life of the process, in FastAPI's lifespan;
- find each user's conversation again, also after a restart (`get_or_create_session`);
- answer in the background, with a model of yours in place of `model`;
- give a refusal of everbus to the browser, with its code and HTTP status.

Run it: start `everbus dev`. Then, in another terminal:

    set -a; . .everbus/env; set +a
    pip install uvicorn
    uvicorn chat:app --port 8001 &
    curl -d '{"text": "Why tides?"}' -H 'Content-Type: application/json' \\
         localhost:8001/chats/ada
    curl localhost:8001/chats/ada

The service trusts the name in the URL. Behind a login, take it from the user's token.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

import everbus

NAME = "chat_service"


class Message(BaseModel):
    """
    What a user says.
    """

    text: str


async def model(history: list[str]) -> str:
    """
    Stand in for a language model.
    """
    return f"You said: {history[-1]}"


@asynccontextmanager
async def connection(app: FastAPI) -> AsyncIterator[None]:
    """
    Connect at the start of the process; at its end, flush and disconnect.
    """
    async with everbus.connect(mad=NAME) as app.state.mad:
        yield


def connected(request: Request) -> everbus.Mad:
    """
    The connection of this process.
    """
    mad: everbus.Mad = request.app.state.mad
    return mad


app = FastAPI(lifespan=connection)
Connected = Annotated[everbus.Mad, Depends(connected)]


@app.post("/chats/{user}", status_code=201)
async def say(
    user: str, message: Message, mad: Connected, later: BackgroundTasks
) -> dict[str, int]:
    """
    Append the user's message; the answer follows.
    """
    chat = await mad.get_or_create_session(user)
    entry = {"role": "user", "text": message.text}
    seq = await mad.append_and_wait(chat.id, entry)
    later.add_task(answer, mad, chat.id, seq)

    return {"seq": seq}


@app.get("/chats/{user}")
async def read(user: str, mad: Connected, after: int = 0) -> dict[str, Any]:
    """
    The messages behind *after*; `next` is the `after` of the next page, or null.
    """
    chat = await mad.get_or_create_session(user)
    page = await mad.timeline(chat.id, after=after, limit=50)
    messages = [{"seq": one.seq, **one.entry} for one in page.entries]

    return {"messages": messages, "next": page.next}


async def answer(mad: everbus.Mad, chat: str, seq: int) -> None:
    """
    Append the model's answer to message *seq*, with the last twenty as its context.
    """
    page = await mad.timeline(chat, before=seq + 1, newest_first=True, limit=20)
    history = [one.entry["text"] for one in reversed(page.entries)]
    text = await model(history)
    mad.append(chat, {"role": "assistant", "text": text, "answers": seq})


@app.exception_handler(everbus.EverbusError)
async def refused(_: Request, error: everbus.EverbusError) -> JSONResponse:
    """
    A refusal as the browser gets it.
    """
    body = {"code": error.code, "detail": error.message}

    return JSONResponse(body, status_code=error.status)
