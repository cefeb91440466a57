"""Rebuilds whose processes are killed, frozen or stopped, while others append, project and read.

The log is large enough that a rebuild takes some seconds; where it is when it is hit is read from
its own tables. Whatever happens, it can be gone on with, and in the end the views are the fold.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from eventlog import EventLog, MessageAdded
from eventlog.testing import message, until
from projections.checkpoint import postgres_of
from projections.projection import VIEWS
from projections.rebuild import begin_rebuild, find_rebuild, progress_of
from tests.faults.children import end, start_python
from tests.projections.checks import differences, project_all
from tests.projections.test_rebuild import catalogue, whole_rows, without_numbers
from workers.projector import run_projector
from workers.rebuilder import run_rebuild

pytestmark = pytest.mark.faults

SECONDS_MAX = 60.0
SESSIONS = 150
MESSAGES = 60
STOPPED = 130


async def fill(log: EventLog) -> None:
    """Sessions whose messages have words to be indexed, all projected."""

    async def one(number: int) -> None:
        session = await log.create_session(user_id="ada", title=f"session {number}")
        words = " ".join(f"word{number}x{each}" for each in range(60))
        await session.append(
            [MessageAdded(role="user", content=f"{words} {each}") for each in range(MESSAGES)]
        )
        if number % 10 == 0:
            fork = await session.fork(at=20)
            await fork.append(message("elsewhere"))

    await asyncio.gather(*(one(number) for number in range(SESSIONS)))
    await project_all(log)


class Command:
    """`eventlog rebuild …` as a process of its own."""

    def __init__(self, child: asyncio.subprocess.Process, output: Path) -> None:
        self.child = child
        self.output = output

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(SECONDS_MAX):
            return await self.child.wait()


@asynccontextmanager
async def command(folder: Path, urls: tuple[str, str], *arguments: str) -> AsyncIterator[Command]:
    """The command for as long as the block lasts."""
    output = folder / "rebuild.log"
    child = await start_python(
        *("-m", "workers", *arguments),
        output=output,
        EVENTLOG_POSTGRES_URL=urls[0],
        EVENTLOG_REDIS_URL=urls[1],
    )
    try:
        yield Command(child, output)
    finally:
        await end(child)


async def sessions_folded(log: EventLog) -> int:
    """How many sessions the rebuild has written so far; 0 without one."""
    found = await find_rebuild(postgres_of(log))
    return 0 if found is None else (await progress_of(postgres_of(log), found)).sessions


async def jobs_have_ended(log: EventLog) -> bool:
    """Whether no process but this one is connected to the database."""
    async with postgres_of(log).connection() as connection:
        records = await connection.fetch(
            "select owner from eventlog.leases where name like 'rebuild:%'"
            " and owner <> '' and expires_at > now()"
        )
    return not records


@asynccontextmanager
async def life(log: EventLog) -> AsyncIterator[list[int]]:
    """Appends, a projector and readers; yields the lengths of the lists that were read."""
    stop = asyncio.Event()
    listed: list[int] = []
    session = await log.create_session(user_id="ada")
    await project_all(log)

    async def append() -> None:
        while not stop.is_set():
            await session.append(message("meanwhile"))
            await asyncio.sleep(0.02)

    async def read() -> None:
        while not stop.is_set():
            listed.append(len((await log.sessions(user_id="ada", limit=100)).items))
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for each in (append(), read(), run_projector(log, stop)):
            group.create_task(each)
        try:
            yield listed
        finally:
            stop.set()


Reached = Callable[[EventLog], Awaitable[bool]]


async def has_begun(log: EventLog) -> bool:
    """The tables are there."""
    return await find_rebuild(postgres_of(log)) is not None


async def has_folded_some(log: EventLog) -> bool:
    """In the middle of the first phase."""
    return await sessions_folded(log) > SESSIONS // 8


async def is_behind_folding(log: EventLog) -> bool:
    """At the indexes, or behind them."""
    found = await find_rebuild(postgres_of(log))
    return found is not None and found.phase != "fold"


@pytest.mark.parametrize("reached", [has_begun, has_folded_some, is_behind_folding])
async def test_rebuild_when_killed_is_gone_on_with(
    log: EventLog, postgres_url: str, redis_url: str, tmp_path: Path, reached: Reached
) -> None:
    """Killed at each phase, children left alone with their pipe closed; then the same command."""
    await fill(log)
    shape = without_numbers(await catalogue(log))
    urls = (postgres_url, redis_url)
    async with life(log) as listed:
        async with command(tmp_path, urls, "rebuild", "all", "--jobs", "2") as first:
            await until(lambda: reached(log), seconds=SECONDS_MAX)
            first.child.kill()
            await first.ended()
        begun = await find_rebuild(postgres_of(log))
        assert begun is not None
        folded = await sessions_folded(log)
        async with command(tmp_path, urls, "rebuild", "all", "--jobs", "2", "--json") as second:
            assert await second.ended() == 0, second.output.read_text()

    said = msgspec.json.decode(second.output.read_text().splitlines()[-1])
    assert (said["done"], said["resumed"]) == (True, True)
    assert said["sessions"] >= max(folded, SESSIONS)
    assert set(listed) == {100}
    assert without_numbers(await catalogue(log)) == shape
    await project_all(log)
    before = await whole_rows(log)
    assert await differences(log) == []
    anew = await begin_rebuild(postgres_of(log), VIEWS)
    assert await run_rebuild(log, anew, asyncio.Event())
    assert await whole_rows(log) == before


async def test_rebuild_when_interrupted_says_how_to_go_on(
    log: EventLog, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Ctrl-C: exit code 130, its processes are gone, nothing is switched; --abandon tidies up."""
    await fill(log)
    before, shape = await whole_rows(log), without_numbers(await catalogue(log))
    urls = (postgres_url, redis_url)
    async with command(tmp_path, urls, "rebuild", "messages", "--jobs", "2") as stopped:
        await until(lambda: has_begun(log), seconds=SECONDS_MAX)
        stopped.child.send_signal(signal.SIGINT)
        assert await stopped.ended() == STOPPED, stopped.output.read_text()
    assert "Go on: eventlog rebuild messages" in stopped.output.read_text()
    assert await jobs_have_ended(log)
    assert await has_begun(log)
    assert await whole_rows(log) == before

    async with command(tmp_path, urls, "rebuild", "messages", "--abandon") as given_up:
        assert await given_up.ended() == 0
    assert not await has_begun(log)
    assert without_numbers(await catalogue(log)) == shape


async def test_worker_when_frozen_past_its_lease_writes_nothing_more(
    log: EventLog, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Another process folds its shard to the end; when it wakes up its batch is refused."""
    await fill(log)
    before = await whole_rows(log)
    begun = await begin_rebuild(postgres_of(log), VIEWS)
    urls = (postgres_url, redis_url)
    async with AsyncExitStack() as stack:
        frozen = await stack.enter_async_context(
            command(tmp_path, urls, "rebuild", "all", "--jobs", "1")
        )
        await until(lambda: has_folded_some(log), seconds=SECONDS_MAX)
        frozen.child.send_signal(signal.SIGSTOP)

        async def is_folded() -> bool:
            return await is_behind_folding(log)

        # Everything else is done by this process, which must wait for the lease to run out.
        stop = asyncio.Event()
        finishing = asyncio.create_task(run_rebuild(log, begun, stop, lease_seconds=1.0))
        await until(is_folded, seconds=SECONDS_MAX)
        frozen.child.send_signal(signal.SIGCONT)
        assert await finishing
        await frozen.ended()

    assert await whole_rows(log) == before


async def test_rebuild_when_its_jobs_are_killed_goes_on_with_those_that_are_left(
    log: EventLog, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """One of two: the other takes its shard over. Both: exit code 1, and what to do about it."""
    await fill(log)
    before = await whole_rows(log)
    urls = (postgres_url, redis_url)
    async with command(tmp_path, urls, "rebuild", "all", "--jobs", "2") as first:
        await until(lambda: has_folded_some(log), seconds=SECONDS_MAX)
        for job in psutil.Process(first.child.pid).children():
            job.kill()
        assert await first.ended() == 1
    assert "eventlog rebuild all" in first.output.read_text().splitlines()[-1]
    assert await whole_rows(log) == before

    async with command(tmp_path, urls, "rebuild", "all", "--jobs", "2") as second:

        def jobs() -> list[psutil.Process]:
            found: list[psutil.Process] = psutil.Process(second.child.pid).children()
            return found

        await until(lambda: len(jobs()) == 2, seconds=SECONDS_MAX)
        jobs()[0].kill()
        assert await second.ended() == 0, second.output.read_text()
    assert await whole_rows(log) == before
