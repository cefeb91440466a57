"""Feeds that hold something else than what was published: slower, and still every event once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis.asyncio

from eventlog import EventLog, InvalidRequest, RecordedEvent, Session, Settings
from eventlog.embedded.temporary import ValkeyServer, temporary_valkey
from eventlog.envelope import Row, new_id, pack_row
from eventlog.testing import message, read_all, take, until


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey of the test's own."""
    with temporary_valkey(tmp_path) as server:
        yield server


@pytest.fixture
async def own_log(postgres_url: str, valkey: ValkeyServer) -> AsyncIterator[EventLog]:
    """A log on that Valkey."""
    async with EventLog.open(postgres_url, valkey.url, settings=Settings()) as log:
        yield log


@pytest.fixture(autouse=True)
def frequent_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the checker repairs is repaired soon."""
    monkeypatch.setattr("eventlog.hub.CHECK_SECONDS", 0.2)


DAMAGE = ("too short", "no event", "other field", "no stream", "far ahead")


async def damage(log: EventLog, session: Session, client: Any, kind: str) -> None:
    """Put something into the feed, at the place where the next row belongs."""
    assert log.fanout is not None
    await log.fanout.drained()
    feed = (await log.fanout.keys()).feed(session.shard)
    place = (await log.fanout.ends())[session.shard] + 1
    row = Row(place, 1_000, 0, session.id, new_id(), 1, 60, 0, b"\xff no event")
    match kind:
        case "too short":
            await client.xadd(feed, {"r": "x"}, id=f"{place}-0")
        case "no event":
            await client.xadd(feed, {"r": pack_row(row)}, id=f"{place}-0")
        case "other field":
            await client.xadd(feed, {"": ""}, id=f"{place}-0")
        case "no stream":
            await client.set(feed, "mine")
        case "far ahead":
            await client.xadd(feed, {"r": "x"}, id=f"{2**50}-0")


@pytest.mark.parametrize("kind", DAMAGE)
async def test_subscriber_when_the_feed_holds_something_else_misses_nothing(
    own_log: EventLog, valkey: ValkeyServer, kind: str
) -> None:
    """What can't be read is not believed: Postgres has the truth, and what is read goes on."""
    session = await own_log.create_session(user_id="ada")
    subscription = session.subscribe()
    seen: list[RecordedEvent] = await take(subscription, 1)
    theirs = own_log.subscribe(user_id="ada", from_start=True)
    assert await take(theirs, 1) == seen
    await until(lambda: own_log.hub.live)
    async with redis.asyncio.from_url(valkey.url) as client:
        await damage(own_log, session, client, kind)

        for number in range(3):
            await session.append([message(f"{number}")] * 3)
            seen += await take(subscription, 3)
            if kind != "no event":  # rows of feeds are not looked into
                assert await take(theirs, 3) == seen[-3:]

        assert seen == await read_all(session)
        assert own_log.hub._tasks
        assert not any(task.done() for task in own_log.hub._tasks)
        assert own_log.fanout is not None
        assert own_log.fanout._task is not None
        assert not own_log.fanout._task.done()

        await client.flushall()
        await session.append(message("whole again"))
        assert len(await take(subscription, 1)) == 1
        await until(lambda: own_log.hub.live)


async def test_sweep_when_a_feed_is_ahead_of_the_log_leaves_it_behind(
    own_log: EventLog, valkey: ValkeyServer
) -> None:
    """A feed that knows more than Postgres is of another past: the epoch is raised, once."""
    session = await own_log.create_session()
    await session.append(message())
    assert own_log.fanout is not None
    before = await own_log.fanout.keys()
    async with redis.asyncio.from_url(valkey.url) as client:
        await damage(own_log, session, client, "far ahead")

        await asyncio.gather(own_log.fanout.sweep(), own_log.fanout.sweep())

        await own_log.fanout.sweep()

    after = await own_log.fanout.keys()
    assert after != before
    assert (await own_log.fanout.ends())[session.shard] == 2
    subscription = session.subscribe()
    await take(subscription, 2)
    await session.append(message("goes on"))
    assert len(await take(subscription, 1)) == 1


async def test_subscribers_when_the_log_lost_its_end_are_told(
    own_log: EventLog, postgres_url: str
) -> None:
    """A backup was restored: who stands beyond the end is refused, who doesn't sees what is new."""
    session = await own_log.create_session(user_id="ada")
    await session.append([message(str(number)) for number in range(5)])
    ahead, behind = session.subscribe(), session.subscribe()
    await take(ahead, 6)
    await take(behind, 3)
    positions = {session.shard: 6}
    feed, late = own_log.feed(positions), own_log.feed({session.shard: 3})
    assert await late.next_rows() != []
    await until(lambda: own_log.hub.live)
    waiting = asyncio.create_task(take(ahead, 1))
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("delete from eventlog.events where seq > 3")
    await connection.close()
    assert own_log.fanout is not None

    await own_log.fanout.sweep()
    own_log.batcher._lanes[0]._seen.clear()  # as when connections were lost meanwhile
    done = await session.append(message("another four"))

    assert done.last_seq == 4
    with pytest.raises(InvalidRequest, match="beyond the session's last seq"):
        await waiting
    with pytest.raises(InvalidRequest, match="beyond the end of shard"):
        await feed.next_rows()
    (four,) = await take(behind, 1)
    assert (four.seq, four.event_id) == (4, done.event_id)
    feed.close()
    late.close()
