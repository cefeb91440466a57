"""Redis flushed, shortened, stopped, paused, full or absent: later, never wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from eventlog import EventLog, Session, Settings
from eventlog.embedded.temporary import ValkeyServer, temporary_valkey
from eventlog.fanout import FanOut
from eventlog.feeds import Run, last_position
from eventlog.testing import message
from tests.conftest import OpenLog

SECONDS = 30.0


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey of the test's own, which it may treat as it likes."""
    with temporary_valkey(tmp_path) as server:
        yield server


@pytest.fixture
async def own_log(postgres_url: str, valkey: ValkeyServer) -> AsyncIterator[EventLog]:
    """A log on that Valkey."""
    async with EventLog.open(postgres_url, valkey.url, settings=Settings()) as log:
        yield log


async def until(fact: Callable[[], bool]) -> None:
    """Wait for a fact, `SECONDS` at most."""
    async with asyncio.timeout(SECONDS):
        while not fact():  # noqa: ASYNC110 - facts of other processes have no event
            await asyncio.sleep(0.005)


class Follower:
    """A subscriber that notes what it gets."""

    def __init__(self, session: Session, *, after: int = 0) -> None:
        self.seqs: list[int] = []
        self._task = asyncio.create_task(self._follow(session, after))

    async def _follow(self, session: Session, after: int) -> None:
        async for event in session.subscribe(after=after):
            self.seqs.append(event.seq)

    async def has(self, seq: int) -> None:
        """Wait until it got everything up to `seq`; each once and in order."""
        await until(lambda: bool(self.seqs) and self.seqs[-1] >= seq)
        assert self.seqs == list(range(self.seqs[0], self.seqs[-1] + 1))

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def append(session: Session, count: int) -> int:
    done = None
    for number in range(count):
        done = await session.append(message(str(number)))
    assert done is not None
    return done.last_seq


async def test_subscriber_when_redis_is_flushed_again_and_again_misses_nothing(
    own_log: EventLog, valkey: ValkeyServer
) -> None:
    """FLUSHALL between and during appends: the feed is made anew, the gap is read from Postgres."""
    session = await own_log.create_session("k")
    follower = Follower(session)
    client = redis.asyncio.from_url(valkey.url)
    for _ in range(5):
        await append(session, 5)
        appending = asyncio.create_task(append(session, 20))
        await client.flushall()
        await appending
    await follower.has(await session.head())
    await follower.stop()
    await client.aclose()


async def test_subscriber_when_the_feed_lost_its_end_misses_nothing(
    own_log: EventLog, valkey: ValkeyServer
) -> None:
    """As after a failover to a replica that lagged: the feed goes on contiguously."""
    session = await own_log.create_session("k")
    follower = Follower(session)
    await append(session, 20)
    await follower.has(21)
    client = redis.asyncio.from_url(valkey.url)
    assert own_log.fanout is not None
    feed = (await own_log.fanout.keys()).feed(session.shard)
    entries: Any = await client.xrange(feed)
    await client.delete(feed)
    for entry_id, fields in entries[:-7]:
        await client.xadd(feed, fields, id=entry_id)

    await append(session, 5)

    await follower.has(26)
    await own_log.fanout.drained()
    entries = await client.xrange(feed)
    positions = [last_position([entry]) for entry in entries]
    assert positions == list(range(1, 27))
    await follower.stop()
    await client.aclose()


async def test_appends_when_redis_is_down_go_on_and_subscribers_poll(
    own_log: EventLog, valkey: ValkeyServer
) -> None:
    """No append waits for Redis; when it is back, the feeds are repaired and live again."""
    session = await own_log.create_session("k")
    follower = Follower(session)
    await append(session, 3)
    await until(lambda: own_log.hub.live)
    valkey.kill()

    last = await append(session, 50)
    await follower.has(last)
    assert not own_log.hub.live

    valkey.start()
    await until(lambda: own_log.hub.live)
    last = await append(session, 5)
    await follower.has(last)
    assert own_log.fanout is not None
    await until(lambda: own_log.fanout is not None and own_log.fanout.healthy)
    await own_log.fanout.drained()
    assert (await own_log.fanout.ends())[session.shard] == last
    await follower.stop()


async def test_appends_when_redis_hangs_are_not_delayed(
    own_log: EventLog, valkey: ValkeyServer
) -> None:
    """A Redis that takes connections and never answers costs an append nothing."""
    session = await own_log.create_session("k")
    await append(session, 3)
    valkey.pause()
    try:
        async with asyncio.timeout(5):
            await append(session, 100)
    finally:
        valkey.resume()
    follower = Follower(session)
    await follower.has(104)
    await follower.stop()


async def test_subscriber_when_redis_is_full_misses_nothing(
    own_log: EventLog, valkey: ValkeyServer
) -> None:
    """XADD refused for want of memory: Postgres serves until there is room."""
    session = await own_log.create_session("k")
    follower = Follower(session)
    client = redis.asyncio.from_url(valkey.url)
    await client.config_set("maxmemory-policy", "noeviction")
    await client.config_set("maxmemory", "1")
    last = await append(session, 30)
    await follower.has(last)
    assert own_log.fanout is not None
    assert (await own_log.fanout.ends())[session.shard] < last

    await client.config_set("maxmemory", "0")
    last = await append(session, 3)
    await follower.has(last)
    await own_log.fanout.drained()
    assert (await own_log.fanout.ends())[session.shard] == last
    await follower.stop()
    await client.aclose()


async def test_subscriber_when_there_is_no_redis_polls(open_log: OpenLog) -> None:
    """Two processes without Redis: what one appends the other gets."""
    writing, reading = await open_log(redis="none"), await open_log(redis="none")
    session = await writing.create_session("k")
    followers = [Follower(reading.handle(session.id)) for _ in range(20)]
    async with session.reply(agent="a") as reply:
        for number in range(200):
            await reply.write(f"{number} ")

    for follower in followers:
        await follower.has(await session.head())
        await follower.stop()


async def test_feed_when_two_processes_publish_alternately_is_contiguous(
    log: EventLog, open_log: OpenLog
) -> None:
    """Rows of one shard from two processes: each publishes its own, none leaves a hole."""
    other = await open_log()
    session = await log.create_session("k")
    follower = Follower(other.handle(session.id))

    await asyncio.gather(append(session, 150), append(other.handle(session.id), 150))

    await follower.has(301)
    assert log.fanout is not None
    assert other.fanout is not None
    await log.fanout.drained()
    await other.fanout.drained()
    keys = await log.fanout.keys()
    entries = await log.fanout.call("XRANGE", keys.feed(session.shard), "-", "+")
    assert isinstance(entries, list)
    assert [last_position([entry]) for entry in entries] == list(range(1, 302))
    await follower.stop()


async def test_publish_when_rows_are_missing_before_answers_behind_and_empty(
    log: EventLog,
) -> None:
    """The script never leaves a hole, and takes what is there already as done."""
    fanout = log.fanout
    assert isinstance(fanout, FanOut)
    rows = [b"x" * 64, b"y" * 64]

    assert await fanout.publish([Run(3, 5, rows)]) == [-1]
    assert await fanout.publish([Run(3, 5, rows)], may_start=True) == [6]
    assert await fanout.publish([Run(3, 5, rows)]) == [6]
    assert await fanout.publish([Run(3, 6, rows)]) == [7]
    assert await fanout.publish([Run(3, 9, rows), Run(4, 1, rows)]) == [-9, 2]
