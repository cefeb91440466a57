"""The expirer: what is due is deleted, what goes on stays, what was deleted is erased in time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from eventlog import Erased, EventLog, InvalidSetting, Session, SessionDeletedError
from eventlog import events as ev
from eventlog.embedded.temporary import ValkeyServer
from eventlog.errors import SessionErased
from eventlog.settings import Settings
from eventlog.testing import message, read_all, refused, until
from projections.checkpoint import postgres_of
from tests.conftest import OpenLog
from tests.projections.checks import differences, project_all
from workers.expirer import expire, finish_erasures, run_expirer

PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)
SECRET = "xyzzy-plugh"


async def talking(log: EventLog, key: str) -> Session:
    """A session with something in it."""
    session = await log.create_session(key, title=SECRET)
    await session.append(message(SECRET))
    return session


async def alive(log: EventLog, *keys: str) -> list[str]:
    """Those of the sessions that were not deleted."""
    found = []
    for key in keys:
        try:
            await log.session(key)
        except SessionDeletedError:
            continue
        found.append(key)
    return found


@pytest.fixture
async def owner(postgres_url: str) -> Any:
    """A connection that may do anything."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


async def make_older(owner: asyncpg.Connection[Any], key: str, seconds: float) -> None:
    """Let a session's view say that it is older than it is."""
    changed = await owner.execute(
        "update eventlog.session_views set updated_at = updated_at - $2::float8 * interval '1 s',"
        " expires_at = expires_at - $2::float8 * interval '1 s' where key = $1",
        key,
        seconds,
    )
    assert changed == "UPDATE 1"


# --- sessions that say when they end -------------------------------------------------------------


async def test_expirer_when_a_time_is_over_deletes_the_session(log: EventLog) -> None:
    """With the reason in the log; others, and those that never expire, stay."""
    over, later, never, silent = [
        await talking(log, key) for key in ("over", "later", "never", "silent")
    ]
    await over.expire(at=PAST)
    await later.expire(at=FUTURE)
    await never.expire(at=PAST)
    await never.expire()
    assert silent is not None
    await project_all(log)

    assert await expire(log) == (1, 0)

    assert await alive(log, "over", "later", "never", "silent") == ["later", "never", "silent"]
    assert (await read_all(over))[-1].event == ev.SessionDeleted(reason="expired")
    await project_all(log)
    assert await expire(log) == (0, 0)


async def test_expirer_when_a_session_is_silent_for_long_enough_deletes_it(
    log: EventLog, owner: asyncpg.Connection[Any]
) -> None:
    """Each event of the session begins its time anew."""
    session = await talking(log, "k")
    await session.expire(after_seconds=60)
    await project_all(log)
    assert await expire(log) == (0, 0)
    await make_older(owner, "k", 59)
    assert await expire(log) == (0, 0)
    await make_older(owner, "k", 2)

    assert await expire(log) == (1, 0)


async def test_expirer_when_a_session_goes_on_meanwhile_leaves_it_alone(
    log: EventLog, owner: asyncpg.Connection[Any]
) -> None:
    """What it found in the views is late: the session was judged at a seq that is not its last."""
    session = await talking(log, "k")
    await session.expire(after_seconds=60)
    await project_all(log)
    await make_older(owner, "k", 100)
    await session.append(message("I am here"))

    assert await expire(log) == (0, 0)

    assert await alive(log, "k") == ["k"]
    await project_all(log)
    assert await expire(log) == (0, 0)
    assert await differences(log) == []


async def test_expirer_when_it_expects_no_seq_deletes_who_goes_on(
    log: EventLog, owner: asyncpg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the expected seq is what protects the session."""
    append = Session.append

    async def anywhere(self: Session, events: Any, *, expected_seq: object = None) -> Any:
        return await append(self, events)

    session = await talking(log, "k")
    await session.expire(after_seconds=60)
    await project_all(log)
    await make_older(owner, "k", 100)
    await session.append(message("I am here"))
    monkeypatch.setattr(Session, "append", anywhere)

    await expire(log)

    assert await alive(log, "k") == []


async def test_expirers_when_several_run_delete_each_session_once(
    log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page, all of them at the same time."""
    monkeypatch.setattr("workers.expirer.SESSIONS_PER_PAGE", 3)
    sessions = [await talking(log, f"k{number}") for number in range(10)]
    for each in sessions:
        await each.expire(at=PAST)
    await project_all(log)
    logs = [log, await open_log(), await open_log()]

    done = await asyncio.gather(*(expire(each) for each in logs))

    assert sum(deleted for deleted, _ in done) == 10
    for each in sessions:
        ends = [one for one in await read_all(each) if isinstance(one.event, ev.SessionDeleted)]
        assert len(ends) == 1


# --- the log's policy ----------------------------------------------------------------------------


async def test_expirer_when_there_is_a_policy_deletes_silent_sessions(
    open_log: OpenLog, owner: asyncpg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that say nothing of their end themselves."""
    monkeypatch.setattr("workers.expirer.SESSIONS_PER_PAGE", 2)
    log = await open_log(session_ttl_seconds=3_600)
    for number in range(5):
        await talking(log, f"old{number}")
    own, never = await talking(log, "own"), await talking(log, "never")
    await own.expire(after_seconds=10**6)
    await never.expire()
    await talking(log, "new")
    await project_all(log)
    for key in (*(f"old{number}" for number in range(5)), "own", "never"):
        await make_older(owner, key, 4_000)

    assert await expire(log) == (5, 0)

    assert await alive(log, "old0", "old4", "own", "never", "new") == ["own", "never", "new"]


async def test_expirer_when_told_erases_what_was_deleted_long_ago(
    open_log: OpenLog, owner: asyncpg.Connection[Any]
) -> None:
    """So long after its tombstone; whoever asks for it learns since when."""
    log = await open_log(erase_after_seconds=3_600)
    old, new = await talking(log, "old"), await talking(log, "new")
    await old.delete()
    await new.delete()
    await project_all(log)
    await make_older(owner, "old", 4_000)

    assert await expire(log) == (0, 1)

    with refused(SessionErased):
        await log.session("old")
    assert (await log.store.erasures_of([old.id]))[old.id].requested_by == "expirer"
    assert any(isinstance(each.event, Erased) for each in await read_all(old))
    assert not any(isinstance(each.event, Erased) for each in await read_all(new))
    assert await expire(log) == (0, 0)


async def test_run_expirer_when_stopped_ends_and_needs_postgres(log: EventLog) -> None:
    """As a worker; a log in memory has no views to look for sessions in."""
    session = await talking(log, "k")
    await session.expire(at=PAST)
    await project_all(log)
    stop = asyncio.Event()
    running = asyncio.create_task(run_expirer(log, stop, every_seconds=0.05))

    async def deleted() -> bool:
        return await alive(log, "k") == []

    await until(deleted)
    stop.set()
    await running
    async with EventLog.in_memory() as memory:
        with pytest.raises(InvalidSetting):
            await run_expirer(memory, asyncio.Event())


# --- what others left unfinished -----------------------------------------------------------------


async def test_expirer_when_an_erasure_was_left_half_done_goes_on_with_it(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that are left, the views of forks, and the copies."""
    monkeypatch.setattr("eventlog.erasing.postgres.ROWS_PER_CALL", 1)
    session = await talking(log, "k")
    await session.append(ev.AgentActivated(agent=SECRET))
    fork = await session.fork(title="mine")
    await project_all(log)
    await session.delete()
    await log.store.erase(session.id, reason=None, requested_by="somebody")

    await finish_erasures(log)

    record = (await log.store.erasures_of([session.id]))[session.id]
    assert None not in (record.erased_us, record.redis_us, record.forks_us)
    await project_all(log)
    assert await differences(log) == []
    assert (await fork.view()).agents == []
    assert await postgres_of(log).unfinished_erasures(in_redis=True) == []


async def test_erasure_when_redis_is_away_is_finished_later(
    own_log: EventLog, valkey: ValkeyServer
) -> None:
    """Postgres is clean at once; the record says what is left, and the next round does it."""
    session = await talking(own_log, "k")
    await session.context()
    assert own_log.fanout is not None
    await own_log.fanout.drained()
    feed = (await own_log.fanout.keys()).feed(session.shard)
    assert SECRET in repr(await own_log.fanout.call("XRANGE", feed, "-", "+"))
    valkey.pause()

    record = await session.erase()

    assert (record.redis_us, record.erased_us is None) == (None, False)
    assert SECRET not in repr(await read_all(session))
    valkey.resume()

    async def finished() -> bool:
        await finish_erasures(own_log)
        return not await postgres_of(own_log).unfinished_erasures(in_redis=True)

    await until(finished)
    assert SECRET not in repr(await own_log.fanout.call("XRANGE", feed, "-", "+"))


async def test_erasures_when_there_is_no_redis_are_not_looked_at_for_ever(
    open_log: OpenLog,
) -> None:
    """Nothing is left to do that this process could."""
    log = await open_log(redis="none")
    session = await talking(log, "k")
    await session.erase()

    await finish_erasures(log)

    assert await postgres_of(log).unfinished_erasures(in_redis=False) == []


# --- settings ------------------------------------------------------------------------------------


def test_policies_when_not_set_are_none() -> None:
    """Nothing goes away by itself unless somebody says so."""
    assert Settings().session_ttl_seconds is None
    assert Settings().erase_after_seconds is None
