"""A process that streams one reply for ever: `python -m tests.faults.streamer POSTGRES SESSION`.

It writes the increments "0 ", "1 ", "2 ", … and says on its output when it began, and when it was
told that someone else closed the message.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

from eventlog import EventLog, MessageFenced


async def main(postgres: str, session_id: str) -> None:
    """Stream until fenced."""
    async with EventLog.open(postgres, "none") as log:
        session = await log.session(session_id)
        try:
            async with session.reply(agent="streamer") as reply:
                say(reply.message_id)
                for number in itertools.count():
                    await reply.write(f"{number} ")
                    await asyncio.sleep(0.002)
        except MessageFenced:
            say("fenced")


def say(what: str) -> None:
    """A line for whoever started this process."""
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
