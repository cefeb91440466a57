"""A live view of one session: history first, then tokens as they are generated.

    python examples/live_ui.py              plays a conversation for itself, and shows it
    python examples/live_ui.py chat-42      follows a session of yours, until it is closed

A subscription survives the loss of Redis, restarts of Postgres and a slow reader; all a client has
to keep over a reconnect is the seq of the last event it has seen.
"""

from __future__ import annotations

import asyncio
import sys
import uuid

from eventlog import (
    EventLog,
    MessageAdded,
    MessageCompleted,
    MessageInterrupted,
    MessageStarted,
    Session,
    TokenAppended,
)
from eventlog.telemetry import configure_logging


async def show(session: Session, *, after: int = 0) -> int:
    """Print the conversation as it happens; returns the seq to go on from."""
    async for recorded in session.subscribe(after=after):
        after = recorded.seq
        match recorded.event:
            case MessageAdded() as message:
                print(f"{message.role}> {message.content}")
            case MessageStarted() as message:
                print(f"{message.agent or message.role}> ", end="", flush=True)
            case TokenAppended(channel="text") as token:
                # Text of models may hold anything: for a terminal, leave out what is no text.
                text = "".join(each for each in token.text if each.isprintable() or each == "\n")
                print(text, end="", flush=True)
            case MessageCompleted():
                print()
            case MessageInterrupted() as ended:
                print(f" [interrupted: {ended.reason}]")
            case _:
                pass  # agents, runs, compactions, your own events: as your UI needs them
    return after


async def play(session: Session) -> None:
    """Somebody else's process: a question, an answer, an answer that is cut off, the end."""
    await session.append(MessageAdded(role="user", content="Count to five."))
    async with session.reply(agent="counter") as reply:
        for word in ["one, ", "two, ", "three, ", "four, ", "five."]:
            await reply.write(word)
            await asyncio.sleep(0.05)
    await session.append(MessageAdded(role="user", content="And on."))
    try:
        async with asyncio.timeout(0.2), session.reply(agent="counter") as reply:
            for number in range(6, 1_000_000):
                await reply.write(f"{number}, ")
                await asyncio.sleep(0.03)
    except TimeoutError:
        pass  # whoever waited went away; what was seen is stored
    await session.close()


async def main(key: str | None) -> None:
    async with EventLog.open() as log:
        if key is not None:
            await show(await log.session(key))
            return
        session = await log.create_session(key=f"live-ui-{uuid.uuid4()}")
        async with asyncio.TaskGroup() as group:
            group.create_task(show(session))
            group.create_task(play(session))


if __name__ == "__main__":
    configure_logging("warning")
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
