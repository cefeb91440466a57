"""Lag, in rows and in seconds by the database's clock; who holds what; and one look at it all."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from eventlog import EventLog, Settings
from eventlog.postgres import SERVER_SETTINGS
from eventlog.queries import query
from eventlog.testing import message
from projections.checkpoint import PROJECTION, Leases, postgres_of
from projections.lag import (
    ShardLag,
    held_by,
    lag,
    projection_names,
    rows_behind,
    seconds_behind,
    shard_ranges,
    worker_name,
    worst_first,
)
from projections.projection import Projection
from projections.watching import Watch
from tests.conftest import OpenLog
from tests.projections.checks import (
    project_all,
    session_in_shard,
    step,
    take_over,
    take_shards,
)
from tests.support.proxy import Proxy, proxy
from tests.support.servers import connected
from workers.projector import run_projector

SHARD = 9
WAIT_SECONDS_MAX = 20.0


async def until(fact: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not await fact():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


async def test_lag_when_no_projector_runs_grows_until_one_does(log: EventLog) -> None:
    """Seconds go up by themselves while rows wait, and are 0 once all is projected."""
    store = postgres_of(log)
    session = await session_in_shard(log, SHARD)
    await session.append([message("one"), message("two")])
    first = await lag(store)
    await until(lambda: _longer_than(log, first[SHARD].seconds_behind + 0.3))
    stop = asyncio.Event()

    assert [each.shard for each in worst_first(first)] == [SHARD]
    assert (first[SHARD].rows_behind, first[SHARD].done_position) == (3, 0)
    assert rows_behind(first) == 3
    assert set(held_by(first)) == {None}
    async with asyncio.TaskGroup() as group:
        group.create_task(run_projector(log, stop, name="one"))
        await until(lambda: _caught_up(log))
        last = await lag(store)
        stop.set()
    assert seconds_behind(last) == 0
    assert last[SHARD].done_position == last[SHARD].head_position == 3
    assert {worker_name(str(each.owner)) for each in last} == {"one"}
    assert set(held_by(await lag(store))) == {None}, "it gave its shards back"


async def test_lag_when_some_rows_are_done_counts_from_the_first_that_is_not(log: EventLog) -> None:
    """Not from the newest row, whose age says nothing, nor from one that is done."""
    store = postgres_of(log)
    session = await session_in_shard(log, SHARD)
    await until(lambda: _longer_than(log, 0.3))
    await session.append(message("later"))
    (lease,) = [each for each in await take_shards(log) if each.shard == SHARD]
    projection = Projection(log)

    before = (await lag(store))[SHARD]
    await step(log, projection, await projection.begin(lease), limit=1)
    after = (await lag(store))[SHARD]

    assert (before.rows_behind, after.rows_behind) == (2, 1)
    assert before.seconds_behind > 0.3
    assert after.seconds_behind < before.seconds_behind


async def test_lag_when_a_lease_ran_out_names_nobody(log: EventLog) -> None:
    """A name in the table of leases means nothing after its time."""
    store = postgres_of(log)
    leases = await take_shards(log, owner="gone")
    every = {each.shard for each in leases}
    held = await lag(store)
    await take_over(log, next(each for each in leases if each.shard == SHARD))
    taken = await lag(store)
    async with store.connection() as connection:
        await connection.execute("update eventlog.leases set expires_at = now() - interval '1 s'")

    assert {owner: set(shards) for owner, shards in held_by(held).items()} == {"gone": every}
    assert held_by(taken)["other"] == [SHARD]
    assert set(held_by(await lag(store))) == {None}


async def test_projection_names_when_a_rebuild_runs_have_it_behind_the_views(log: EventLog) -> None:
    """Whatever has leases or checkpoints; the views are there from the beginning."""
    store = postgres_of(log)
    bare = await projection_names(store)
    await Leases(store, "rebuild:views", "somebody").join()

    assert bare == [PROJECTION]
    assert await projection_names(store) == [PROJECTION, "rebuild:views"]
    session = await session_in_shard(log, SHARD)
    await project_all(log)
    await session.append(message("one"))
    await project_all(log)
    assert rows_behind(await lag(store)) == 0
    assert rows_behind(await lag(store, "rebuild:views")) == 2


def test_rows_behind_when_the_log_lost_its_end_is_not_negative() -> None:
    """A checkpoint beyond the log is for the relay and the projector to deal with."""

    assert ShardLag(0, 5, 7, 0.0, None).rows_behind == 0


def test_shard_ranges_when_shards_follow_one_another_are_short() -> None:
    """4,096 shards in a line."""

    assert shard_ranges([8, 0, 1, 2, 3, 6, 9]) == "0-3 6 8-9"
    assert shard_ranges(range(4096)) == "0-4095"
    assert shard_ranges([]) == ""
    assert worker_name("host:1234:abcd") == "host:1234"
    assert worker_name("bare") == "bare"


# --- one look at everything ----------------------------------------------------------------------


@pytest.fixture
async def postgres_proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the test's database."""
    async with proxy(postgres_url) as made:
        yield made


@pytest.fixture
async def redis_proxy(redis_url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the test's Redis."""
    async with proxy(redis_url) as made:
        yield made


async def test_look_when_all_is_well_has_both_servers(log: EventLog) -> None:
    """Positions, sessions, open replies, and feeds that are where the log is."""
    session = await session_in_shard(log, SHARD, key="a \x00 key", title="t")
    async with session.reply(agent="planner") as reply:
        await reply.write("Hi")
        await project_all(log)
        assert log.fanout is not None
        await log.fanout.drained()
        watch = Watch(log)
        look = await watch.look()
    await watch.aclose()

    assert look.postgres is not None
    assert look.redis is not None
    assert (look.postgres_error, look.redis_error) == ("", "")
    assert look.postgres.heads[SHARD] == look.redis.feed_ends[SHARD] > 0
    assert look.redis.feed_lengths[SHARD] == look.postgres.heads[SHARD]
    assert (look.postgres.active_soon, look.postgres.active_recently) == (1, 1)
    assert look.postgres.open_replies == 1
    assert [(each.key, each.title) for each in look.postgres.newest] == [("a \x00 key", "t")]
    assert look.redis.used_bytes > 0


async def test_look_when_frames_came_estimates_events_from_their_rows(log: EventLog) -> None:
    """A row of increments counts for as many events as it holds."""
    watch = Watch(log)
    session = await session_in_shard(log, SHARD)
    before = (await watch.look()).postgres
    async with session.reply() as reply:
        for _ in range(200):
            await reply.write("x")
    now = (await watch.look()).postgres
    await watch.aclose()

    assert before is not None
    assert now is not None
    events = await session.head() - 1
    rows = sum(now.heads) - sum(before.heads)
    estimate = await watch.events_per_row(before, now)
    assert estimate == pytest.approx(events / rows)
    assert await watch.events_per_row(now, now) is None


async def test_look_when_a_server_stalls_is_bounded_and_has_the_other(
    postgres_proxy: Proxy, redis_proxy: Proxy
) -> None:
    """No answer is a fact after a moment; neither server waits for the other."""
    async with EventLog.open(postgres_proxy.url, redis_proxy.url, settings=Settings()) as log:
        watch = Watch(log, seconds_max=0.5)
        well = await watch.look()
        redis_proxy.stall()
        begin = time.monotonic()
        without_redis = await watch.look()
        seconds = time.monotonic() - begin
        redis_proxy.stall(False)
        postgres_proxy.stall()
        begin = time.monotonic()
        without_postgres = await watch.look()
        assert (await watch.look()).postgres is None
        seconds = max(seconds, time.monotonic() - begin)
        postgres_proxy.stall(False)
        await until(lambda: _answers(watch))
        await watch.aclose()

    assert well.postgres is not None
    assert well.redis is not None
    assert seconds < 2
    assert without_redis.postgres is not None
    assert without_redis.redis is None
    assert without_redis.has_redis
    assert "0.5 s" in without_redis.redis_error
    assert without_postgres.postgres is None
    assert without_postgres.redis is not None
    assert "0.5 s" in without_postgres.postgres_error


@pytest.mark.parametrize(
    ("name", "arguments", "indexes"),
    [
        ("projection_lag", ("'views'", 16), {"events_feed"}),
        (
            "activity",
            (0, 60, 300, 10_000),
            {"session_views_newest", "session_views_pkey", "message_views_open"},
        ),
        ("newest_sessions", (0, 200), {"session_views_newest"}),
    ],
)
async def test_look_when_planned_on_empty_tables_uses_the_indexes_that_stay_good(
    postgres_url: str, name: str, arguments: tuple[object, ...], indexes: set[str]
) -> None:
    """Such plans are kept for as long as the connection, however large the tables become."""
    text = query(name).rstrip(";")
    for number, value in reversed(list(enumerate(arguments, 1))):
        text = text.replace(f"${number}", str(value))
    connection = await asyncpg.connect(postgres_url, server_settings=SERVER_SETTINGS)
    try:
        lines = [record[0] for record in await connection.fetch(f"explain {text}")]
    finally:
        await connection.close()
    scans = [line for line in lines if re.search("events|session_views|message_views", line)]

    assert not any("Seq Scan" in line for line in scans), lines
    assert {found[1] for line in scans if (found := re.search(r"using (\w+)", line))} == indexes


async def test_look_when_there_is_no_redis_says_so(open_log: OpenLog) -> None:
    """On purpose is not the same as down."""
    log = await open_log(redis="none")
    look = await Watch(log).look()

    assert look.postgres is not None
    assert (look.has_redis, look.redis, look.redis_error) == (False, None, "")


async def test_look_when_a_table_is_missing_is_an_error_in_words(
    new_database: Callable[..., Awaitable[str]], redis_url: str
) -> None:
    """A schema of another version: said, not raised."""
    url = await new_database()
    async with EventLog.open(url, redis_url) as log:
        async with connected(url) as owner:
            await owner.execute("alter table eventlog.parked_sessions rename to other")
        watch = Watch(log)
        look = await watch.look()
        await watch.aclose()

    assert look.postgres is None
    assert "parked_sessions" in look.postgres_error
    assert look.redis is not None


async def _longer_than(log: EventLog, seconds: float) -> bool:
    return seconds_behind(await lag(postgres_of(log))) > seconds


async def _answers(watch: Watch) -> bool:
    return (await watch.look()).postgres is not None


async def _caught_up(log: EventLog) -> bool:
    found = await lag(postgres_of(log))
    return not rows_behind(found) and all(each.owner for each in found)
