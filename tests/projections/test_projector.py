"""The projector as a worker: it follows the log live, and shares shards with others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from eventlog import EventLog, InvalidSetting
from eventlog.embedded.temporary import ValkeyServer
from eventlog.testing import message, refused, rich_history, until
from projections.checkpoint import Leases, postgres_of
from tests.conftest import OpenLog
from tests.projections.checks import append_raw, differences, session_in_shard
from tests.support.servers import connected
from workers.projector import Projector, lag, run_projector

LEASE_SECONDS = 0.9
Start = Callable[[EventLog], "Running"]


class Running:
    """A projector as a task."""

    def __init__(self, log: EventLog) -> None:
        self.projector = Projector(log, lease_seconds=LEASE_SECONDS)
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.projector.run(self.stop))

    @property
    def shards(self) -> list[int]:
        """The shards that it holds."""
        return self.projector.shards

    async def end(self) -> None:
        """Stop it as a signal does."""
        self.stop.set()
        await self.task

    async def freeze(self) -> None:
        """It stops renewing and gives nothing back, as a process that was killed."""
        self.projector._leave = nothing  # type: ignore[method-assign]
        self.task.cancel()
        for each in self.projector._shards.values():
            each.task.cancel()
        tasks = [each.task for each in self.projector._shards.values()]
        await asyncio.gather(self.task, *tasks, return_exceptions=True)


async def nothing() -> None:
    """What a dead process does."""


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts projectors that end with the test."""
    started: list[Running] = []

    def begin(log: EventLog) -> Running:
        started.append(Running(log))
        return started[-1]

    yield begin
    for each in started:
        if not each.task.done():
            await each.end()


async def caught_up(log: EventLog) -> bool:
    """Whether the views show everything."""
    return not any((await lag(log)).values())


async def test_projector_when_it_runs_follows_the_log(log: EventLog, start: Start) -> None:
    """History first, then live; the lag says how far it is behind."""
    session = await rich_history(log)
    assert (await lag(log))[session.shard] > 0
    running = start(log)
    await until(lambda: caught_up(log))
    assert await differences(log) == []

    async with session.reply(agent="planner") as reply:
        for _ in range(100):
            await reply.write("word ")
    await until(lambda: caught_up(log))

    assert await differences(log) == []
    view = await session.view()
    assert view.seq == await session.head()  # the cache was written after the commit
    await running.end()
    async with postgres_of(log).connection() as connection:
        assert not await connection.fetchval(
            "select count(*) from eventlog.leases where expires_at > now()"
        )
        assert not await connection.fetchval("select count(*) from eventlog.workers")


async def test_projectors_when_one_arrives_or_leaves_share_fairly(
    log: EventLog, open_log: OpenLog, start: Start
) -> None:
    """Shards move within seconds, each has one owner, and the views stay right all the time."""
    writing = asyncio.create_task(write_until_cancelled(log))
    first = start(log)
    await until(lambda: len(first.shards) == 16)

    second = start(await open_log())
    await until(lambda: shared([first, second], at_most=8), seconds=10)
    third = start(await open_log())
    await until(lambda: shared([first, second, third], at_most=6), seconds=10)
    await first.end()
    await until(lambda: shared([second, third], at_most=8), seconds=10)

    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await until(lambda: caught_up(log))
    assert await differences(log) == []


def shared(workers: list[Running], *, at_most: int) -> bool:
    """Whether each shard has one owner, and no owner has more than so many."""
    held = [shard for each in workers for shard in each.shards]
    return sorted(held) == list(range(16)) and all(len(each.shards) <= at_most for each in workers)


async def write_until_cancelled(log: EventLog) -> None:
    """Appends to sessions in all shards, all the time."""
    sessions = [await log.create_session() for _ in range(20)]
    while True:
        for session in sessions:
            await session.append([message("one"), message("two")])
        await asyncio.sleep(0.005)


async def test_projector_when_another_is_killed_takes_its_shards(
    log: EventLog, open_log: OpenLog, start: Start
) -> None:
    """After the time of a lease, and not before."""
    first, second = start(log), start(await open_log())
    await until(lambda: shared([first, second], at_most=8))

    await first.freeze()
    session = await session_in_shard(log, first.shards[0])
    await session.append(message())
    await until(lambda: len(second.shards) == 16, seconds=10)
    await until(lambda: caught_up(log))

    assert await differences(log) == []


async def test_projector_when_its_lease_was_taken_away_stops_and_comes_back(
    log: EventLog, start: Start
) -> None:
    """As `retry_parked` does it: the worker is fenced, and begins anew where the checkpoint is."""
    running = start(log)
    session = await session_in_shard(log, 4)
    await until(lambda: caught_up(log))
    await postgres_of(log).fetch("take_away_lease", "views", 4)
    await session.append(message())

    await until(lambda: caught_up(log))

    assert await differences(log) == []
    assert not running.task.done()


async def test_projector_when_redis_comes_and_goes_reads_postgres(
    own_log: EventLog, valkey: ValkeyServer, start: Start
) -> None:
    """Redis is killed and comes back empty: the views go on."""
    start(own_log)
    session = await own_log.create_session()
    await until(lambda: caught_up(own_log))
    await asyncio.to_thread(valkey.kill)
    await session.append(message("without Redis"))
    await until(lambda: caught_up(own_log))
    await asyncio.to_thread(valkey.start)
    await session.append(message("with it again"))
    await until(lambda: caught_up(own_log))

    assert await differences(own_log) == []


async def test_projector_when_connections_are_cut_goes_on(
    log: EventLog, start: Start, postgres_url: str
) -> None:
    """Every backend of the database is ended again and again while it works."""
    running = start(log)
    sessions = [await log.create_session() for _ in range(10)]
    for _ in range(5):
        for session in sessions:
            await session.append([message("one"), message("two")])
        async with connected(postgres_url) as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
    await until(lambda: caught_up(log))

    assert await differences(log) == []
    assert not running.task.done()


async def test_projector_when_a_session_is_broken_parks_it_and_goes_on(
    log: EventLog, start: Start
) -> None:
    """The worker doesn't stumble over it again."""
    start(log)
    bad, good = await session_in_shard(log, 6), await session_in_shard(log, 6)
    await append_raw(log, bad, b"null")
    await good.append(message())

    await until(lambda: caught_up(log))

    assert await differences(log) == []


async def test_leases_when_all_want_them_have_one_owner_each(log: EventLog) -> None:
    """Ten workers take at once: every shard is given out once."""
    store = postgres_of(log)
    rivals = [Leases(store, "some work", f"rival {each}") for each in range(10)]
    await asyncio.gather(*(each.join() for each in rivals))

    taken = await asyncio.gather(*(each.take(16) for each in rivals))
    shards = sorted(lease.shard for leases in taken for lease in leases)
    assert shards == list(range(16))

    owner = next(place for place, leases in enumerate(taken) if leases)
    renewed = await rivals[owner].renew(taken[owner])
    assert renewed.kept == taken[owner]
    await rivals[owner].release(taken[owner])
    assert (await rivals[owner].renew(taken[owner])).kept == []


async def test_workers_when_the_log_is_in_memory_say_so() -> None:
    """There is nothing to project: views are folded when asked for."""
    async with EventLog.in_memory() as log:
        with refused(InvalidSetting):
            await run_projector(log, asyncio.Event())
