"""The cache of sessions' views: written only forwards, never needed, never in the way."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

import msgspec
import pytest
import redis.asyncio

from eventlog import EventLog, InvalidRequest, SessionNotFound
from eventlog.cache.entry import entry_of
from eventlog.cache.session_cache import AWAY_SECONDS, SessionCache
from eventlog.embedded.temporary import ValkeyServer
from eventlog.envelope import new_id
from eventlog.testing import message, refused, until
from eventlog.views import SessionView, view_of
from projections.cache import CacheWriter
from projections.projection import Projection
from tests.conftest import OpenLog
from tests.projections.checks import project_all, step, take_shards


async def view_at(log: EventLog, session_id: UUID, seq: int) -> SessionView:
    """The view as it was at a seq."""
    return view_of(await log.replayer.structure(session_id, seq))


def cache_of(log: EventLog) -> SessionCache:
    """The log's cache, which it must have."""
    assert log.views.cache is not None
    return log.views.cache


async def put(cache: SessionCache, view: SessionView) -> None:
    """Offer a view to the cache."""
    assert await cache.put([entry_of(view)])


async def cached(cache: SessionCache, session_id: UUID) -> SessionView | None:
    """The view that the cache has."""
    found = await cache.view(session_id)
    return None if found is None else found.value


async def test_cache_when_writers_race_keeps_the_newest(log: EventLog, open_log: OpenLog) -> None:
    """Fifty writers from three processes, in any order: the greatest seq stays."""
    session = await log.create_session()
    await session.append([message(str(each)) for each in range(49)])
    views = [await view_at(log, session.id, seq) for seq in range(1, 51)]
    caches = [cache_of(each) for each in (log, await open_log(), await open_log())]

    await asyncio.gather(
        *(put(caches[place % 3], view) for place, view in enumerate(reversed(views)))
    )

    assert await cached(caches[1], session.id) == views[-1]
    await put(caches[0], views[10])
    assert await cached(caches[2], session.id) == views[-1]


async def test_cache_when_invalidated_takes_nothing_older(log: EventLog) -> None:
    """A view that was forgotten isn't replaced by an older one from a late writer."""
    session = await log.create_session()
    await session.append([message("one"), message("two")])
    cache = cache_of(log)
    await put(cache, await view_at(log, session.id, 2))

    await cache.invalidate(session.id)
    assert await cached(cache, session.id) is None
    await put(cache, await view_at(log, session.id, 1))
    assert await cached(cache, session.id) is None
    again = await view_at(log, session.id, 2)
    await put(cache, again)

    assert await cached(cache, session.id) == again


async def test_view_when_read_comes_from_the_cheapest_place(log: EventLog) -> None:
    """Log, then row, then cache; each is as new as it says, and `min_seq` goes on to the next."""
    session = await log.create_session(user_id="ada")
    assert await session.view() == await view_at(log, session.id, 1)  # folded: there is no row
    assert await cached(cache_of(log), session.id) is None
    await project_all(log)
    await session.append([message(), message()])
    behind = await session.view()
    assert behind == await view_at(log, session.id, 1)  # from the row
    assert await cached(cache_of(log), session.id) == behind

    assert await session.view(min_seq=3) == await view_at(log, session.id, 3)
    await project_all(log)
    assert await session.view() == behind  # from the cache, which nobody told
    assert (await session.view(min_seq=2)).seq == 3
    assert (await session.view()).seq == 3

    with refused(InvalidRequest):
        await session.view(min_seq=99)
    with refused(InvalidRequest):
        await session.view(min_seq=-1)
    with refused(SessionNotFound):
        await log.handle(new_id()).view()


async def test_view_when_the_cache_holds_nonsense_comes_from_postgres(
    own_log: EventLog, client: redis.asyncio.Redis
) -> None:
    """Broken JSON, or another session's view, under the session's key: not believed."""
    session, other = await own_log.create_session(), await own_log.create_session()
    await project_all(own_log)
    expected, foreign = await session.view(), await other.view()
    (key,) = [
        name
        async for name in client.scan_iter(match="*:session:*")
        if str(session.id).encode() in name
    ]

    for nonsense in (b"{", b"\xff", b"null", msgspec.json.encode(foreign)):
        await client.hset(key, "view", nonsense)
        assert await session.view() == expected
    await client.set(key, "a string")
    assert await session.view() == expected


async def test_view_when_redis_was_flushed_is_right(
    own_log: EventLog, client: redis.asyncio.Redis
) -> None:
    """Everything in Redis is gone: the next read fills the cache again."""
    session = await own_log.create_session()
    await session.append(message())
    await project_all(own_log)
    expected = await session.view()

    await client.flushall()

    assert await session.view() == expected
    assert await cached(cache_of(own_log), session.id) == expected


async def test_view_when_redis_is_down_costs_next_to_nothing(
    own_log: EventLog, valkey: ValkeyServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hundreds of reads without Redis: all answered; one in a while tries it, and says so."""
    session = await own_log.create_session()
    expected = await session.view()
    await asyncio.to_thread(valkey.kill)
    begin = time.monotonic()

    found = [await session.view() for _ in range(300)]

    assert all(each == expected for each in found)
    said = capsys.readouterr()
    tries = (said.out + said.err).count("cache.failed")
    assert 1 <= tries <= 1 + (time.monotonic() - begin) / AWAY_SECONDS


async def test_view_when_redis_hangs_waits_no_longer_than_the_limit(
    own_log: EventLog, valkey: ValkeyServer
) -> None:
    """A Redis that accepts and says nothing delays a read by half a second, once."""
    session = await own_log.create_session()
    expected = await session.view()
    await asyncio.to_thread(valkey.pause)
    begin = time.monotonic()

    found = await asyncio.gather(*(session.view() for _ in range(50)))

    assert all(each == expected for each in found)
    assert time.monotonic() - begin < 2


async def test_cache_when_written_has_a_time_to_live(
    own_log: EventLog, client: redis.asyncio.Redis
) -> None:
    """As long as the settings say."""
    session = await own_log.create_session()
    await project_all(own_log)
    await session.view()

    (key,) = [name async for name in client.scan_iter(match="*:session:*")]

    assert 0 < await client.ttl(key) <= own_log.settings.cache_ttl_seconds


async def test_writer_when_redis_was_away_writes_what_it_missed(
    own_log: EventLog, valkey: ValkeyServer
) -> None:
    """The cache is not left behind by an outage, though Redis lost nothing in it."""
    session = await own_log.create_session()
    other = await own_log.create_session()
    writer, projection = CacheWriter(own_log), Projection(own_log)
    progress = {lease.shard: await projection.begin(lease) for lease in await take_shards(own_log)}
    await writer.write(await step(own_log, projection, progress[session.shard]))
    await asyncio.to_thread(valkey.stop)
    await session.append(message())
    await writer.write(await step(own_log, projection, progress[session.shard]))
    await asyncio.to_thread(valkey.start)
    cache = cache_of(own_log)

    async def caught_up() -> bool:
        await other.append(message())
        await writer.write(await step(own_log, projection, progress[other.shard]))
        view = await cached(cache, session.id)
        return view is not None and view.seq == 2

    await until(caught_up)


async def test_writer_when_a_shard_is_taken_over_writes_its_newest(log: EventLog) -> None:
    """The worker before died between its commit and the cache: whoever follows makes it good."""
    session = await log.create_session()
    await project_all(log)
    await session.view()
    done = await session.append(message())
    await project_all(log)  # which writes no cache
    assert (await session.view()).seq == 1

    await CacheWriter(log).refresh(session.shard, done.position)

    assert (await session.view()).seq == done.last_seq
