"""The cached context: exact at the session's head, or as new as was demanded; and other epochs."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from eventlog import EventLog, InvalidRequest, SessionNotFound
from eventlog import events as ev
from eventlog.cache.entry import PART_BYTES_MAX
from eventlog.cache.session_cache import SessionCache
from eventlog.embedded.temporary import ValkeyServer
from eventlog.envelope import new_id
from eventlog.telemetry import metrics
from eventlog.testing import message, refused
from eventlog.views import view_of
from projections.cache import CacheWriter
from projections.projection import Projection
from tests.conftest import OpenLog
from tests.projections.checks import project_all, step, take_shards


def cache_of(log: EventLog) -> SessionCache:
    """The log's cache, which it must have."""
    assert log.views.cache is not None
    return log.views.cache


async def no_answer(*_: Any, **__: Any) -> Any:
    """Postgres, for those who should not ask it."""
    raise AssertionError("Postgres was asked")


async def test_context_when_another_process_read_it_comes_from_the_cache(
    log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One folds and leaves it there; the next asks Postgres for the head only."""
    session = await log.create_session()
    await session.append([message("one"), message("two")])
    first, second = await open_log(), await open_log()
    expected = await first.handle(session.id).context()
    hits = metrics.context_cache_hits
    monkeypatch.setattr(second.store, "read_session", no_answer)

    assert await second.handle(session.id).context() == expected

    assert metrics.context_cache_hits == hits + 1


async def test_context_when_events_followed_holds_them(log: EventLog, open_log: OpenLog) -> None:
    """A cached context of an earlier seq is not what someone gets who demands nothing."""
    session = await log.create_session()
    for number in range(4):
        await session.append(message(str(number)))
        fresh = (await open_log()).handle(session.id)
        assert [each["content"] for each in await fresh.context()][-1] == str(number)
        cached = await cache_of(log).context(session.id)
        assert cached is not None and cached.seq == number + 2


async def test_context_when_a_seq_is_demanded_needs_no_postgres(
    log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cached context as new as that is enough; who demands more gets it from Postgres."""
    session = await log.create_session()
    done = await session.append(message("one"))
    expected = await (await open_log()).handle(session.id).context()
    other = await open_log()
    await cache_of(other).keys()
    with monkeypatch.context() as patch:
        for name in ("heads", "read_session", "load_snapshot"):
            patch.setattr(other.store, name, no_answer)
        assert await other.handle(session.id).context(min_seq=done.last_seq) == expected

    await session.append(message("two"))
    assert len(await other.handle(session.id).context(min_seq=done.last_seq + 1)) == 2
    cached = await cache_of(other).context(session.id)
    assert cached is not None and cached.seq == done.last_seq + 1


async def test_context_when_demanded_beyond_the_end_is_refused(
    log: EventLog, open_log: OpenLog
) -> None:
    """As without a cache: also when there is one, and for sessions that aren't there."""
    session = await log.create_session()
    for reader in (log, await open_log(), await open_log(redis="none")):
        for _ in range(2):
            with refused(InvalidRequest):
                await reader.handle(session.id).context(min_seq=2)
            with refused(InvalidRequest):
                await reader.handle(session.id).context(min_seq=-1)
            for demanded in (None, 1):
                with refused(SessionNotFound):
                    await reader.handle(new_id()).context(min_seq=demanded)


async def test_context_when_the_session_is_deleted_answers_as_without_a_cache(
    log: EventLog, open_log: OpenLog
) -> None:
    """Whatever a handle of a deleted session says, cached contexts don't change it."""
    session = await log.create_session()
    await session.append(message())
    await (await open_log()).handle(session.id).context()
    await session.delete()

    async def outcome(reader: EventLog) -> Any:
        try:
            return await reader.handle(session.id).context()
        except Exception as error:
            return type(error), str(error)

    expected = await outcome(await open_log(redis="none"))
    assert [await outcome(await open_log()) for _ in range(3)] == [expected] * 3


async def test_context_when_large_is_not_cached(log: EventLog, open_log: OpenLog) -> None:
    """Redis is spared; the one that was cached before is too old to be used."""
    session = await log.create_session()
    reader = await open_log()
    await reader.handle(session.id).context()
    await session.append(message("x" * PART_BYTES_MAX))

    for _ in range(2):
        assert len(await (await open_log()).handle(session.id).context()) == 1

    cached = await cache_of(log).context(session.id)
    assert cached is not None and cached.seq == 1


async def test_context_when_cached_belongs_to_whoever_asked(
    log: EventLog, open_log: OpenLog
) -> None:
    """Changing an answer changes nobody else's; the same for metadata and scratchpads."""
    session = await log.create_session(metadata={"a": {"n": 1}})
    await session.append([message("x"), ev.ScratchpadWritten(name="a", value={"n": 1})])
    for reader in (log, await open_log(), await open_log(redis="none")):
        mine = reader.handle(session.id)
        for _ in range(2):
            (each,) = await mine.context()
            assert each["content"] == "x"
            each["content"] = "changed"
            for part in (await mine.metadata(), await mine.scratchpad()):
                assert part == {"a": {"n": 1}}
                part["a"]["n"] = 2


async def raise_epoch(log: EventLog) -> None:
    """The log may have lost its end: everything that Redis has is left behind."""
    await log.store.raise_epoch((await log.store.identity()).epoch)
    assert log.fanout is not None
    log.fanout._identity_until = 0.0  # five seconds later


async def test_fold_when_the_epoch_was_raised_meanwhile_is_written_where_nobody_looks(
    log: EventLog,
) -> None:
    """What was read of a log before it lost its end never gets into the caches of what is left."""
    session = await log.create_session()
    cache, state = cache_of(log), await session.replay()
    keys = await cache.keys()
    assert keys is not None

    await raise_epoch(log)
    assert await cache.put_view(view_of(state), keys=keys)
    assert await cache.put_context(session.id, state.seq, state.context(), keys=keys)

    assert await cache.view(session.id) is None
    assert await cache.context(session.id) is None
    new = await cache.keys()
    assert new is not None and new != keys
    assert await cache.put_view(view_of(state), keys=new)
    assert await cache.view(session.id) is not None


async def test_writer_when_the_epoch_was_raised_meanwhile_reads_its_batch_again(
    log: EventLog,
) -> None:
    """A batch may have been committed to what was lost: the cache gets what Postgres has now."""
    session = await log.create_session(metadata={"n": 1})
    other = await log.create_session()
    writer, projection = CacheWriter(log), Projection(log)
    progress = {lease.shard: await projection.begin(lease) for lease in await take_shards(log)}
    for shard, each in progress.items():
        await writer.refresh(shard, each.position)
    cache = cache_of(log)

    changes = await step(log, projection, progress[session.shard])
    await raise_epoch(log)
    await writer.write([each for each in changes if each.session_id == session.id])

    assert await cache.view(session.id) is None
    await other.append(message())
    await writer.write(await step(log, projection, progress[other.shard]))
    await writer.catch_up()
    found = await cache.view(session.id)
    assert found is not None and found.value == await log.store.session_view(session.id)


async def test_context_when_the_cache_holds_nonsense_comes_from_postgres(
    open_log: OpenLog, valkey: ValkeyServer
) -> None:
    """Broken JSON, another form, another session's, a key of another type: not believed."""
    log = await open_log(redis=valkey.url)
    session, other = await log.create_session(), await log.create_session()
    await session.append(message("mine"))
    await project_all(log)
    keys = await cache_of(log).keys()
    assert keys is not None
    name = keys.cache(session.shard, str(session.id), "context")

    async def context() -> list[dict[str, Any]]:
        log.replayer.forget()
        return await session.context()

    expected = await context()
    link = cache_of(log)._link
    await other.context()
    fields: list[tuple[str, Any]] = [
        ("context", b"["),
        ("context", b"\xff"),
        ("context", b"[1]"),
        ("context", b""),
        ("session", str(other.id)),
        ("session", UUID(int=0).bytes),
        ("seq", "many"),
        ("version", "9" * 30),
    ]
    for field, nonsense in fields:
        await link.call("HSET", name, field, nonsense)
        assert await context() == expected, (field, nonsense)
    await link.call("SET", name, "a string")
    assert await context() == expected
