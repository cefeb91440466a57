"""The relay makes the feeds a copy of the log again, whatever happened to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio

from eventlog import EventLog, InvalidSetting
from eventlog.embedded.temporary import ValkeyServer
from eventlog.envelope import Row, pack_row, unpack_row
from eventlog.feeds import last_position
from eventlog.testing import message, refused, until
from tests.conftest import OpenLog
from tests.projections.checks import session_in_shard
from workers.relay import run_relay, sweep

SHARD = 2


@pytest.fixture
async def deaf_log(open_log: OpenLog) -> EventLog:
    """A log that publishes nothing, as if its process died after each commit."""
    return await open_log(redis="none")


@pytest.fixture
async def relay(own_log: EventLog) -> AsyncIterator[None]:
    """A relay that runs."""
    stop = asyncio.Event()
    task = asyncio.create_task(run_relay(own_log, stop, every_seconds=0.02))
    yield
    stop.set()
    await task


async def feed_of(log: EventLog, client: redis.asyncio.Redis, shard: int) -> list[Row]:
    """What the shard's feed holds now."""
    assert log.fanout is not None
    name = (await log.fanout.keys()).feed(shard)
    found = client.execute_command("XRANGE", name, "-", "+")  # type: ignore[no-untyped-call]
    entries: list[Any] = await found
    rows = [unpack_row(fields[b"r"]) for _, fields in entries]
    assert [last_position([entry]) for entry in entries] == [row.position for row in rows]
    return rows


async def assert_feeds_are_copies(log: EventLog, client: redis.asyncio.Redis) -> None:
    """Wait until every feed holds exactly the log's rows."""
    for shard in range(log.store.shards):
        rows = await log.store.read_feed(shard, after=0, limit=10_000)

        async def same(shard: int = shard, rows: list[Row] = rows) -> bool:
            return await feed_of(log, client, shard) == rows

        await until(same)


async def fill(log: EventLog) -> None:
    """A few sessions in several shards."""
    for _ in range(8):
        session = await log.create_session()
        await session.append([message("one"), message("two")])


async def test_relay_when_nobody_published_copies_all(
    own_log: EventLog, deaf_log: EventLog, client: redis.asyncio.Redis, relay: None
) -> None:
    """Crashes between commit and publish: the rows come all the same."""
    await fill(deaf_log)

    await assert_feeds_are_copies(own_log, client)


async def test_relay_when_redis_was_flushed_fills_it(
    own_log: EventLog, client: redis.asyncio.Redis, relay: None
) -> None:
    """FLUSHALL, twice."""
    for _ in range(2):
        await fill(own_log)
        await client.flushall()
        await assert_feeds_are_copies(own_log, client)


async def test_relay_when_a_feed_lost_its_end_appends_it(
    own_log: EventLog, deaf_log: EventLog, client: redis.asyncio.Redis
) -> None:
    """A failover to a replica that was behind: the copy goes on where it stops."""
    session = await session_in_shard(deaf_log, SHARD)
    await session.append([message(str(each)) for each in range(9)])
    assert await sweep(own_log) == 10
    assert own_log.fanout is not None
    name = (await own_log.fanout.keys()).feed(SHARD)
    rows = await feed_of(own_log, client, SHARD)
    await client.delete(name)
    for row in rows[:4]:
        await client.xadd(name, {"r": pack_row(row)}, id=f"{row.position}-0")

    assert await sweep(own_log) == 6

    assert await feed_of(own_log, client, SHARD) == rows
    assert await sweep(own_log) == 0


async def test_relay_when_the_log_went_back_leaves_the_feeds_behind(
    own_log: EventLog, client: redis.asyncio.Redis
) -> None:
    """A feed ahead of Postgres belongs to a past that was lost: the epoch keeps it apart."""
    session = await session_in_shard(own_log, SHARD)
    assert own_log.fanout is not None
    await own_log.fanout.drained()
    before = await own_log.store.identity()
    lost = (await feed_of(own_log, client, SHARD))[-1]
    name = (await own_log.fanout.keys()).feed(SHARD)
    await client.xadd(name, {"r": pack_row(lost)}, id=f"{lost.position + 1}-0")

    await sweep(own_log)
    await sweep(own_log)

    after = await own_log.store.identity()
    assert after.epoch != before.epoch
    assert after.log_id == before.log_id
    assert (await own_log.fanout.keys()).feed(SHARD) != name
    await session.append(message())
    await assert_feeds_are_copies(own_log, client)


async def test_relay_when_redis_is_away_goes_on_when_it_is_back(
    own_log: EventLog, valkey: ValkeyServer, client: redis.asyncio.Redis, relay: None
) -> None:
    """A restart that empties Redis, while sessions are appended to."""
    await fill(own_log)
    await asyncio.to_thread(valkey.kill)
    await fill(own_log)
    await asyncio.to_thread(valkey.start)

    await assert_feeds_are_copies(own_log, client)


async def test_relays_when_several_run_leave_one_copy(
    own_log: EventLog,
    deaf_log: EventLog,
    open_log: OpenLog,
    valkey: ValkeyServer,
    client: redis.asyncio.Redis,
) -> None:
    """Five relays, an appender and a flush in between: no row twice, none missing."""
    others = [await open_log(redis=valkey.url) for _ in range(4)]
    await fill(deaf_log)
    await asyncio.gather(fill(own_log), *(sweep(each) for each in (own_log, *others)))
    await client.flushall()
    await asyncio.gather(fill(own_log), *(sweep(each) for each in (own_log, *others)))
    await sweep(own_log)

    await assert_feeds_are_copies(own_log, client)


async def test_relay_when_there_is_no_redis_says_so(deaf_log: EventLog) -> None:
    """It has nothing to do, and that is a mistake in the settings."""
    with refused(InvalidSetting):
        await run_relay(deaf_log, asyncio.Event())
