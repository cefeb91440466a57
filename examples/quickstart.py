"""The first ten minutes: append, stream a reply, read back, look into the past, follow live.

    python examples/quickstart.py

Nothing has to run before: without EVENTLOG_POSTGRES_URL the servers are embedded, and keep their
data between runs.
"""

from __future__ import annotations

import asyncio

from eventlog import EventLog, MessageAdded
from eventlog.telemetry import configure_logging


async def main() -> None:
    async with EventLog.open() as log:
        # A session is one conversation. `key` is your own name for it; the same key again is the
        # same session, so a second run of this file goes on where the first one ended.
        session = await log.create_session(key="quickstart", user_id="ada", title="First steps")

        # Returning means committed and flushed.
        asked = await session.append(MessageAdded(role="user", content="What is an event log?"))
        print(f"asked: seq {asked.last_seq}")

        # A reply is streamed: every piece is an event with a seq of its own, durable in a moment.
        async with session.reply(agent="guide", model="none") as reply:
            for word in ["A ", "list ", "of ", "facts ", "that ", "only ", "grows."]:
                await reply.write(word)
        print(f"answered: up to seq {reply.last_seq}")

        # The state is the fold of all events, now or at any seq or time of the past.
        now = await session.replay()
        then = await session.replay(at=reply.last_seq - 4)
        print(f"now: {now.messages[-1].content!r}")
        print(f"at seq {then.seq}: {then.messages[-1].content!r}, {then.messages[-1].status}")

        # What a model sees next, in the form of the chat completions API.
        context = await session.context()
        print(f"context: {[message['role'] for message in context][-2:]}")

        # A subscription gives history first, then what happens from now on, without a gap. It would
        # go on for ever; this one stops at what is there.
        count = 0
        async for event in session.subscribe(after=asked.last_seq - 1):
            count += 1
            if event.seq == reply.last_seq:
                break
        print(f"subscribed: {count} events")


if __name__ == "__main__":
    configure_logging("warning")
    asyncio.run(main())
