"""One of the processes that `eventlog rebuild` starts: `python -m … NUMBER`, not for people.

It works on the rebuild of that number until there is nothing left to do, or until its stdin is
closed, which is what happens to it when the command is killed.
"""

from __future__ import annotations

import asyncio
import sys

from eventlog import EventLog
from eventlog.errors import EventLogError
from projections.checkpoint import postgres_of
from projections.rebuild import find_rebuild
from workers.commands.opening import prepare
from workers.rebuilder import RebuildWorker
from workers.runtime import stop_on_signals
from workers.terminal import safe


async def work(number: int) -> None:
    """Work on a rebuild until it is in service or given up, or until nobody wants it any more."""
    with stop_on_signals() as stop:
        async with EventLog.open(settings=prepare()) as log:
            begun = await find_rebuild(postgres_of(log))
            if begun is None or begun.number != number:
                return
            watching = asyncio.create_task(_until_closed(stop))
            await RebuildWorker(log, begun).run(stop)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _until_closed(stop: asyncio.Event) -> None:
    """Set `stop` when nobody holds the other end of stdin any more."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while await reader.read(1_024):
            pass
        stop.set()
    finally:
        transport.close()


if __name__ == "__main__":
    try:
        asyncio.run(work(int(sys.argv[1])))
    except (EventLogError, OSError) as error:
        sys.stderr.write(f"eventlog: {safe(str(error))}\n")
        sys.exit(1)
