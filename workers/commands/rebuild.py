"""`eventlog rebuild`: make views anew from the log, while everybody goes on reading and writing.

The command looks on and switches in the end; the work is done by child processes, one for each
core (rebuild_job.py). A child ends when the rebuild does, or when its stdin is closed: so none
outlives a parent that was killed. All that is done is kept in Postgres, and the same command goes
on with it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Final

from cyclopts import Parameter
from rich.text import Text

from eventlog import EventLog
from eventlog.errors import EventLogError, InvalidRequest
from eventlog.postgres import PostgresStore
from projections.checkpoint import postgres_of
from projections.parking import parked_sessions
from projections.projection import View
from projections.rebuild import (
    Rebuild,
    abandon_rebuild,
    begin_rebuild,
    check_same,
    choose_views,
    find_rebuild,
)
from workers.commands import look
from workers.commands.arguments import AsJson
from workers.commands.opening import open_log
from workers.commands.rebuild_progress import Watch
from workers.rebuilder import run_rebuild
from workers.runtime import stop_on_signals
from workers.terminal import make_console, print_line, safe_json

STOPPED: Final = 130
"""Exit code after Ctrl-C or SIGTERM: nothing is lost, and nothing is switched yet."""
JOB: Final = "workers.commands.rebuild_job"
"""What each of the child processes runs."""
CHILD_SECONDS_MAX: Final = 10.0
"""How long children are waited for when they are to end: each finishes its batch."""


class JobsEnded(EventLogError):
    """All processes that worked on a rebuild have ended before it was done."""


async def rebuild(
    *views: str,
    jobs: Annotated[
        int | None, Parameter(help="Processes that share the work; else one for each core.")
    ] = None,
    start_over: Annotated[
        bool, Parameter(help="Give an unfinished rebuild up, and begin anew.")
    ] = False,
    abandon: Annotated[bool, Parameter(help="Give an unfinished rebuild up; that's all.")] = False,
    as_json: AsJson = False,
) -> int:
    """Make views anew from the log, and put them into service.

    Views: sessions, messages, agents, runs, usage, scratchpad; or all. Reads
    and writes go on. Stopped or killed, it goes on where it was when it is
    called again. Takes as much room on disk again as the views have.

        eventlog rebuild all
        eventlog rebuild messages usage --jobs 2
        eventlog rebuild all --abandon

    Parameters
    ----------
    views
        Names of views.
    """
    if jobs is not None and jobs < 1:
        raise InvalidRequest(f"--jobs is {jobs}; it must be 1 or more")
    if abandon and start_over:
        raise InvalidRequest("--abandon gives up, --start-over begins anew; say one of them")
    chosen = choose_views(views)
    with stop_on_signals() as stop:
        async with open_log() as log:
            store = postgres_of(log)
            if abandon or start_over:
                await _give_up(store, chosen, say=abandon and not as_json)
            if abandon:
                return 0
            resumed = await find_rebuild(store) is not None
            begun = await begin_rebuild(store, chosen)
            count = min(jobs or os.cpu_count() or 1, store.shards)
            watch = Watch(begun, resumed=resumed, jobs=count, quiet=as_json)
            done = await _work(log, begun, stop, watch, count)
            parked = len(await parked_sessions(log)) if done else 0
    if as_json:
        print_line(safe_json(watch.summary(done=done, parked=parked)))
    else:
        watch.print_end(done=done, parked=parked)
    return 0 if done else STOPPED


async def _give_up(store: PostgresStore, views: Sequence[View], *, say: bool) -> None:
    found = await find_rebuild(store)
    if found is not None:
        check_same(found, views)
        await abandon_rebuild(store, found)
    if say:
        what = f"given up: rebuild of {found.what}" if found else "there is no rebuild to give up"
        make_console().print(Text(what, look.QUIET))


async def _work(
    log: EventLog, begun: Rebuild, stop: asyncio.Event, watch: Watch, jobs: int
) -> bool:
    """Until the views are in service; False: stopped before."""
    async with AsyncExitStack() as stack:
        stack.enter_context(watch)
        if jobs == 1:
            return await run_rebuild(log, begun, stop, show=watch.show)
        ending = await stack.enter_async_context(_children(begun, jobs))
        coordinating = asyncio.create_task(
            run_rebuild(log, begun, stop, workers=0, show=watch.show)
        )
        await asyncio.wait((coordinating, ending), return_when=asyncio.FIRST_COMPLETED)
        if not coordinating.done() and not stop.is_set() and await _is_unfinished(log, begun):
            coordinating.cancel()
            await asyncio.gather(coordinating, return_exceptions=True)
            raise JobsEnded(
                "all processes that worked on the rebuild have ended; what they did is kept: "
                f"eventlog rebuild {begun.what}"
            )
        return await coordinating


async def _is_unfinished(log: EventLog, begun: Rebuild) -> bool:
    found = await find_rebuild(postgres_of(log))
    return found is not None and found.number == begun.number


@asynccontextmanager
async def _children(begun: Rebuild, count: int) -> AsyncIterator[asyncio.Future[list[int]]]:
    """So many processes at work; yields what is done when all of them have ended."""
    children: list[asyncio.subprocess.Process] = []
    try:
        for _ in range(count):
            children.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", JOB, str(begun.number)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.DEVNULL,
                )
            )
        yield asyncio.gather(*(each.wait() for each in children))
    finally:
        for each in children:
            assert each.stdin is not None
            each.stdin.close()
        await asyncio.gather(*(_end(each) for each in children))


async def _end(child: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(CHILD_SECONDS_MAX):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
