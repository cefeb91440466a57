"""Several projector processes share the shards while sessions are written to, as they come and go.

A process that arrives gets its share, one that is told to stop gives its shards back at once, one
that is killed loses them when its lease runs out. Meanwhile each batch is written by one of them.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from eventlog import EventLog
from eventlog.testing import until
from tests.faults.children import Process, append_until, process
from tests.faults.test_zombies import has_caught_up, held_by
from tests.projections.checks import differences, project_all

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SECONDS_MAX = 30.0


async def test_processes_when_they_come_and_go_share_the_shards(
    log: EventLog, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """One, two, three processes; one is told to stop, one is killed; the last has all again."""
    sessions = [await log.create_session() for _ in range(8)]
    stop = asyncio.Event()

    async with AsyncExitStack() as stack:

        async def start(name: str) -> Process:
            return await stack.enter_async_context(
                process(
                    *("-m", "workers.cli", "project", "--name", name),
                    output=tmp_path / f"{name}.log",
                    EVENTLOG_POSTGRES_URL=postgres_url,
                    EVENTLOG_REDIS_URL=redis_url,
                )
            )

        async def until_shared(*names: str) -> float:
            """Wait until these have a fair share each; how long that took."""
            begin = time.monotonic()
            await until(lambda: is_shared(log, names), seconds=SECONDS_MAX)
            return round(time.monotonic() - begin, 1)

        appending = asyncio.create_task(append_until(stop, sessions))
        one = await start("one")
        took = {"first arrives": await until_shared("one")}
        two = await start("two")
        took["second arrives"] = await until_shared("one", "two")
        await start("three")
        took["third arrives"] = await until_shared("one", "two", "three")
        two.signal(signal.SIGTERM)
        took["one is told to stop"] = await until_shared("one", "three")
        one.signal(signal.SIGKILL)
        took["one is killed"] = await until_shared("three")
        await until(lambda: has_caught_up_with(log, stop), seconds=SECONDS_MAX)
        await appending
    sys.stdout.write(f"\nseconds until the shards were shared again: {took}\n")
    await project_all(log)
    assert await differences(log) == []


async def is_shared(log: EventLog, names: tuple[str, ...]) -> bool:
    """Whether these hold every shard between them, and none has more than its share."""
    held = await held_by(log)
    shares = [count for owner, count in held.items() if owner.split(":")[0] in names]
    most = -(-log.store.shards // len(names))
    return len(shares) == len(names) and sum(shares) == log.store.shards and max(shares) <= most


async def has_caught_up_with(log: EventLog, stop: asyncio.Event) -> bool:
    """Let writers end, and see whether the views show all of it."""
    stop.set()
    return await has_caught_up(log)
