"""Views that are up to date: what commands that ask them do about being behind.

A projector that runs somewhere gets a moment to bring what the log holds now. On embedded servers,
where often none does, one of our own is run. If neither helps, the command says so, and shows what
the views have.
"""

from __future__ import annotations

import asyncio
from typing import Final

from eventlog import EventLog
from projections.checkpoint import checkpoints, postgres_of
from workers.commands import look
from workers.commands.opening import waiting
from workers.projector import run_projector
from workers.terminal import make_console

CATCH_UP_SECONDS_MAX: Final = 30.0
"""How long a command on embedded servers waits for its own projector; then it says it is behind."""
PATIENCE_SECONDS: Final = 0.3
"""How long it waits for the projector of someone else."""
POLL_SECONDS: Final = 0.03


async def catch_up(log: EventLog) -> None:
    """Bring the views up to what the log holds now, or say on stderr that they are behind."""
    behind = await _rows_behind(log)
    if behind:
        make_console(stderr=True).print(
            f"this is {look.plural(behind, 'row')} behind the log; does a projector run? "
            "Start one with: eventlog project",
            style="yellow",
        )


async def _rows_behind(log: EventLog) -> int:
    heads = await log.store.feed_heads()
    behind = await _wait_for(log, heads, seconds=PATIENCE_SECONDS)
    if not behind or log.servers is None or not log.servers.postgres_embedded:
        return behind
    stop = asyncio.Event()
    with waiting("bringing the views up to date …"):
        async with asyncio.TaskGroup() as group:
            group.create_task(run_projector(log, stop))
            behind = await _wait_for(log, heads, seconds=CATCH_UP_SECONDS_MAX)
            stop.set()
    return behind


async def _wait_for(log: EventLog, heads: list[int], *, seconds: float) -> int:
    """Wait until the views are as far as `heads`; how many rows they lack when time is up."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while True:
        done = await checkpoints(postgres_of(log))
        behind = sum(max(0, head - at) for head, at in zip(heads, done, strict=True))
        if not behind or loop.time() > until:
            return behind
        await asyncio.sleep(POLL_SECONDS)
