"""Erasure against what is under way: batches, snapshots, publishers and rebuilds that come late.

Each of them holds content from before in memory. The controls take a protection away, and then
the same story brings the content back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from eventlog import EventLog, Session, SessionErasedError
from eventlog import events as ev
from eventlog.envelope import pack_row
from eventlog.erasing import erasure
from eventlog.erasing.watch import ErasureWatch
from eventlog.feeds import Run
from eventlog.queries import VIEW_TABLES, query
from eventlog.replay import SNAPSHOT_ROWS
from eventlog.testing import message, take, until
from eventlog.views import view_of
from projections.checkpoint import Lease, postgres_of
from projections.folding import Change, Folded
from projections.heirs import settle_forks
from projections.parking import parked_sessions
from projections.projection import VIEWS, Progress, Projection
from projections.rebuild import begin_rebuild, choose_views
from projections.tables import Tables
from tests.conftest import OpenLog
from tests.projections.checks import (
    append_raw,
    differences,
    project_all,
    session_in_shard,
    snapshot_of_views,
    step,
    take_shards,
)
from tests.projections.test_rebuild import fold_all
from workers.rebuilder import run_rebuild

SECRET = "xyzzy-plugh"
SHARD = 3


async def told(log: EventLog, **created: Any) -> Session:
    """A session in the shard that said the secret in all views."""
    session = await session_in_shard(log, SHARD, title=SECRET, user_id="ada", **created)
    await session.append(message(SECRET))
    await session.append(ev.AgentHandedOff(to_agent=SECRET, context=SECRET))
    await session.append(ev.ScratchpadWritten(name=SECRET, value=SECRET))
    await session.append(ev.RunStarted(run_id=SECRET))
    async with session.reply(agent=SECRET) as reply:
        await reply.write(SECRET)
    return session


async def begin(
    log: EventLog, projection: Projection | None = None
) -> tuple[Projection, Progress, Lease]:
    """A projector by hand, at the beginning of the shard."""
    lease = next(each for each in await take_shards(log) if each.shard == SHARD)
    projection = projection or Projection(log)
    return projection, await projection.begin(lease), lease


async def shown(log: EventLog) -> str:
    """Everything that is in the views."""
    return repr(await snapshot_of_views(log))


# --- projectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [0, 2, 6])
async def test_batch_when_read_before_the_erasure_brings_nothing_back(
    log: EventLog, applied: int
) -> None:
    """Whether the projector knew the session's state or not; the views equal the fold."""
    session = await told(log)
    projection, progress, _ = await begin(log)
    if applied:
        await step(log, projection, progress, limit=applied)
    old = await log.store.read_feed(SHARD, after=progress.position, limit=3)
    assert SECRET in repr(old)

    await session.erase()
    await projection.apply(progress, old)

    assert SECRET not in await shown(log)
    await step(log, projection, progress)
    assert await differences(log, only={session.id}) == []
    assert SECRET not in await shown(log)


async def test_batch_when_nobody_looks_for_records_brings_content_back(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the look at the records the views have it again."""

    async def unchecked(_: object, __: object, ___: object, folded: Folded) -> Folded:
        return folded

    monkeypatch.setattr("projections.projection.without_erased", unchecked)
    session = await told(log)
    projection, progress, _ = await begin(log)
    old = await log.store.read_feed(SHARD, after=0, limit=3)

    await session.erase()
    await projection.apply(progress, old)

    assert SECRET in await shown(log)


class Slow:
    """A view that keeps nothing, and whose batches wait inside their transactions."""

    name = "slow"
    version = 1

    def __init__(self) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def write(self, tables: Tables, changes: list[Change]) -> None:
        self.reached.set()
        await self.go_on.wait()

    async def remove(self, tables: Tables, shard: int, session_id: object) -> None:
        """Nothing is there."""


async def in_flight(log: EventLog, session: Session, owner: asyncpg.Connection[Any]) -> bool:
    """Erase while a batch is being written; whether the erasure waited for the batch."""
    slow = Slow()
    projection, progress, _ = await begin(log, Projection(log, views=[*VIEWS, slow]))
    await session.delete()
    batch = asyncio.create_task(step(log, projection, progress))
    await slow.reached.wait()
    erasing = asyncio.create_task(session.erase())

    async def waits() -> bool:
        return erasing.done() or await is_waiting(owner, "eventlog.erase(")

    await until(waits)
    waited = not erasing.done()
    slow.go_on.set()
    await batch
    await erasing
    return waited


async def is_waiting(owner: asyncpg.Connection[Any], what: str) -> bool:
    """Whether a statement like that waits for a lock in this database."""
    count = await owner.fetchval(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        " and position($1 in query) > 0 and datname = current_database()",
        what,
    )
    return bool(count)


@pytest.fixture
async def owner(postgres_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection that may do anything, and see what others wait for."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


async def test_erasure_when_a_batch_is_being_written_waits_for_it(
    log: EventLog, owner: asyncpg.Connection[Any]
) -> None:
    """Then it removes what the batch wrote."""
    session = await told(log)

    assert await in_flight(log, session, owner)

    assert SECRET not in await shown(log)
    assert await differences(log, only={session.id}) == []


async def test_erasure_when_it_locks_no_checkpoint_misses_what_a_batch_writes(
    log: EventLog, owner: asyncpg.Connection[Any]
) -> None:
    """The control: the batch commits behind its back."""
    text = await owner.fetchval("select pg_get_functiondef('eventlog.erase_views'::regproc)")
    locking = "perform from checkpoints c where c.shard = p_shard order by c.projection for update;"
    assert locking in text
    await owner.execute(text.replace(locking, ""))
    session = await told(log)

    assert not await in_flight(log, session, owner)

    assert SECRET in await shown(log)


async def test_parked_session_when_erased_is_taken_back_in(log: EventLog) -> None:
    """What it was parked for is gone with the rest, and its views are those of an erased one."""
    session = await told(log)
    await append_raw(log, session, b"{no json " + SECRET.encode())
    await project_all(log)
    assert len(await parked_sessions(log)) == 1

    await session.erase()
    await project_all(log)

    assert await parked_sessions(log) == []
    assert await differences(log) == []
    assert SECRET not in await shown(log)


async def test_forks_when_the_views_lack_them_are_found(log: EventLog) -> None:
    """Those that no projector came to, those that it set aside, and forks of either."""
    session = await told(log)
    await append_raw(log, session, b"{no json")
    parked = await log.create(
        ev.SessionCreated(parent_session_id=session.id, parent_seq=await session.head())
    )
    await project_all(log)
    assert {each.session_id for each in await parked_sessions(log)} == {session.id, parked.id}
    late = await log.create(ev.SessionCreated(parent_session_id=session.id, parent_seq=3))
    nested = await late.fork()
    quoting = await log.create_session(metadata={"parent_session_id": str(session.id)})
    await quoting.append(message("mine"))

    assert await erasure.descendants(log, [session.id]) == {parked.id, late.id, nested.id}


async def test_fork_when_its_parent_is_erased_has_the_views_of_its_fold(log: EventLog) -> None:
    """What it inherited is gone from them at once, and the rest is made anew."""
    session = await told(log)
    fork = await session.fork(title="mine", metadata={})
    await fork.append([message("own"), ev.ScratchpadWritten(name="own", value=1)])
    late = await fork.fork(title="also mine")
    await project_all(log)
    await late.append(message("later"))

    record = await session.erase()

    assert SECRET not in await shown(log)
    assert await settle_forks(log, record) == 2
    assert await differences(log) == []
    await project_all(log)
    assert await differences(log) == []
    assert (await log.store.erasures_of([session.id]))[session.id].forks_us is not None


async def test_fork_when_a_projector_knew_its_state_is_folded_anew(log: EventLog) -> None:
    """The state in the projector's memory has what the fork inherited."""
    session = await told(log)
    fork = await log.create(
        ev.SessionCreated(title="mine", parent_session_id=session.id, parent_seq=5),
        session_id=UUID(int=session.id.int ^ 1 << 90),
    )
    projection, progress, _ = await begin(log)
    await step(log, projection, progress)
    await fork.append(message("own"))
    old = await log.store.read_feed(SHARD, after=progress.position, limit=100)

    await session.erase()
    await projection.apply(progress, old)

    assert SECRET not in await shown(log)
    await step(log, projection, progress)
    assert await differences(log, only={fork.id, session.id}) == []


@pytest.mark.parametrize("moment", ["before", "folded"])
async def test_rebuild_when_a_session_is_erased_meanwhile_has_nothing_of_it(
    log: EventLog, moment: str
) -> None:
    """Before its rows are folded, and when they are in the new tables already."""
    session, other = await told(log), await session_in_shard(log, SHARD, title="other")
    fork = await session.fork(title="mine")
    await project_all(log)
    begun = await begin_rebuild(postgres_of(log), choose_views(["all"]))
    if moment == "folded":
        await fold_all(log, begun)
        async with postgres_of(log).connection() as connection:
            next_rows = await connection.fetch("select t::text from eventlog.message_views_next t")
        assert SECRET in repr(next_rows)

    record = await session.erase()
    if moment == "folded":
        async with postgres_of(log).connection() as connection:
            for table in VIEW_TABLES:
                rows = await connection.fetch(
                    f"select t::text from eventlog.{table}_next t where session_id = $1", session.id
                )
                assert SECRET not in repr(rows)
    assert await run_rebuild(log, begun, asyncio.Event(), workers=1)

    assert SECRET not in await shown(log)
    await settle_forks(log, record)
    await project_all(log)
    assert await differences(log, only={session.id, other.id, fork.id}) == []


# --- snapshots -----------------------------------------------------------------------------------


async def long_session(log: EventLog) -> Session:
    """A session with enough in it for a snapshot."""
    session = await told(log)
    for _ in range(SNAPSHOT_ROWS // 256 + 1):
        await session.append([message(f"{SECRET} {number}") for number in range(256)])
    return session


async def stored_snapshots(log: EventLog) -> list[Any]:
    """Whose snapshots and chunks there are."""
    async with postgres_of(log).connection() as connection:
        return await connection.fetch(
            "select session_id from eventlog.snapshots"
            " union all select session_id from eventlog.snapshot_chunks"
        )


async def test_snapshots_when_erased_are_gone_and_late_ones_are_not_kept(
    log: EventLog, open_log: OpenLog
) -> None:
    """Of the session and of its fork, which holds the same messages; whoever saves them."""
    session, other = await long_session(log), await open_log()
    fork = await session.fork(title="mine")
    await fork.append(message("own"))
    for each in (session, fork):
        await log.handle(each.id).replay()
        state = await other.handle(each.id).replay()
        await other.replayer.snapshots.save(each.id, state)
    assert {each[0] for each in await stored_snapshots(log)} == {session.id, fork.id}
    states = {each: await other.handle(each).replay() for each in (session.id, fork.id)}

    await session.erase()

    assert await stored_snapshots(log) == []
    for session_id, state in states.items():
        await other.replayer.snapshots.save(session_id, state)
    assert await stored_snapshots(log) == []
    assert [one.content for one in (await fork.replay()).messages] == ["own"]


async def test_snapshot_when_there_is_no_record_is_kept(
    log: EventLog, open_log: OpenLog, owner: asyncpg.Connection[Any]
) -> None:
    """The control: the record is what refuses it."""
    session, other = await long_session(log), await open_log()
    state = await other.handle(session.id).replay()
    await session.erase()
    await owner.execute("delete from eventlog.erasures")

    await other.replayer.snapshots.save(session.id, state)

    assert await stored_snapshots(log) != []


@pytest.mark.parametrize("locked", [True, False])
async def test_snapshot_when_it_is_being_saved_is_waited_for(
    log: EventLog, postgres_url: str, owner: asyncpg.Connection[Any], locked: bool
) -> None:
    """An erasure begins when nobody is writing who has not seen its record.

    The control writes without the lock, and its chunk stays.
    """
    session = await long_session(log)
    await session.delete()
    saver = await asyncpg.connect(postgres_url)
    try:
        transaction = saver.transaction()
        await transaction.start()
        if locked:
            await saver.execute(query("lock_lineage"), [session.id])
        chunk = (session.id, 1, 1, SECRET.encode())
        await saver.execute("insert into eventlog.snapshot_chunks values ($1, $2, $3, $4)", *chunk)
        erasing = asyncio.create_task(session.erase())

        async def waits() -> bool:
            return erasing.done() or await is_waiting(owner, "eventlog.erase(")

        await until(waits)
        assert erasing.done() is not locked
        await transaction.commit()
        await erasing
        assert bool(await stored_snapshots(log)) is not locked
    finally:
        await saver.close()


# --- Redis ---------------------------------------------------------------------------------------


async def in_feed(log: EventLog, shard: int = SHARD) -> bool:
    """Whether the feed holds the secret."""
    assert log.fanout is not None
    feed = (await log.fanout.keys()).feed(shard)
    return SECRET in repr(await log.fanout.call("XRANGE", feed, "-", "+"))


async def test_feed_when_erased_begins_anew_and_followers_lose_nothing(
    log: EventLog, open_log: OpenLog
) -> None:
    """Others in the shard go on; whoever follows them sees each event once, in order."""
    session = await told(log)
    neighbour = await session_in_shard(log, SHARD)
    other = await open_log()
    following = other.handle(neighbour.id).subscribe()
    await take(following, 1)
    assert log.fanout is not None
    await log.fanout.drained()
    assert await in_feed(log)

    await session.erase()

    assert not await in_feed(log)
    for number in range(20):
        await neighbour.append(message(f"{number}"))
    events = await take(following, 20)
    assert [each.seq for each in events] == [*range(2, 22)]
    await log.fanout.drained()
    head = (await log.store.feed_heads())[SHARD]
    assert (await log.fanout.ends())[SHARD] == head
    assert not await in_feed(log)


@pytest.mark.parametrize("watched", [True, False])
async def test_slow_follower_in_another_process_when_erased_gets_erased_events(
    log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    """What its process had at hand for it is dropped soon. The control's process doesn't look."""
    monkeypatch.setattr("eventlog.hub.CHECK_SECONDS", 0.1)
    other = await open_log()
    looks = 0
    any_new = ErasureWatch.any_new

    async def counted(self: ErasureWatch) -> bool:
        nonlocal looks
        looks += 1
        return await any_new(self) and watched

    session = await told(log)
    slow, quick = other.handle(session.id).subscribe(), other.handle(session.id).subscribe()
    await take(slow, await session.head())
    await take(quick, await session.head())
    await session.append([message(SECRET) for _ in range(10)])
    await take(quick, 10)

    monkeypatch.setattr(ErasureWatch, "any_new", counted)
    await session.erase()
    looks = 0

    async def looked() -> bool:
        return looks > 2

    await until(looked)
    rest = [each async for each in slow]
    assert rest[-1].seq == await session.head()
    assert (SECRET in repr(rest)) is not watched


async def late_publishers(log: EventLog, session: Session) -> None:
    """Everything that a stopped process may still send, from before the erasure."""
    assert log.fanout is not None
    for may_start in (False, True):
        for after in (0, 2):
            rows = await log.store.read_feed(SHARD, after=after, limit=100)
            old = [
                row
                if row.session_id != session.id
                else msgspec.structs.replace(row, data=SECRET.encode())
                for row in rows
            ]
            packed = [pack_row(row) for row in old]
            await log.fanout.publish([Run(SHARD, rows[0].position, packed)], may_start=may_start)


async def test_feed_when_late_publishers_come_stays_without_content(log: EventLog) -> None:
    """What they have is there already, in another form."""
    session = await told(log)

    await session.erase()
    await late_publishers(log, session)

    assert not await in_feed(log)


async def test_feed_when_it_is_only_deleted_is_filled_by_late_publishers(log: EventLog) -> None:
    """The control: into an empty feed they put what they read before."""
    session = await told(log)
    await session.erase()
    assert log.fanout is not None
    await log.fanout.call("DEL", (await log.fanout.keys()).feed(SHARD))

    await late_publishers(log, session)

    assert await in_feed(log)


async def test_caches_when_late_writers_come_stay_without_content(log: EventLog) -> None:
    """Views and contexts of before are not taken any more; those of forks are dropped."""
    cache = log.views.cache
    assert cache is not None
    session = await told(log)
    fork = await session.fork(title="mine")
    await project_all(log)
    keys = await cache.keys()
    assert keys is not None
    for each in (session, fork):
        await each.context()
        await each.view()
        await each.scratchpad()
    state = await session.replay()

    await session.erase()
    await cache.put_view(view_of(state), state.scratchpad, keys=keys)
    await cache.put_context(session.id, state.seq + 9, state.context(), keys=keys)

    for each in (session, fork):
        view, context = await cache.view(each.id), await cache.context(each.id)
        assert SECRET not in repr((view, context, await cache.scratchpad(each.id)))
        assert SECRET not in repr((await each.view(), await each.context()))
    assert await cache.view(session.id) is None


# --- in portions, and interrupted ----------------------------------------------------------------


async def test_erasure_when_it_dies_half_way_is_gone_on_with(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says that it isn't over, readers still see the rest, and another one finishes."""
    monkeypatch.setattr("eventlog.erasing.postgres.ROWS_PER_CALL", 2)
    session = await told(log)
    await session.delete()
    for _ in range(2):
        await log.store.erase(session.id, reason=None, requested_by="first")
    record = (await log.store.erasures_of([session.id]))[session.id]
    assert (record.rows, record.erased_us) == (4, None)
    assert (await log.store.heads([session.id]))[session.id].erased is False

    done = await session.erase()

    assert (done.requested_by, done.events) == ("first", await session.head())
    rows = await log.store.read_feed(SHARD, after=0, limit=100)
    assert done.rows == len(rows)
    assert {row.data for row in rows} == {b""}


async def test_erasures_when_many_run_at_once_agree(log: EventLog, open_log: OpenLog) -> None:
    """Four processes erase the same session and its forks: once each."""
    session = await told(log)
    for _ in range(3):
        session = await session.fork(title=SECRET)
    root = (await log.replayer.lineage(session.id))[0].session_id
    logs = [log, *[await open_log() for _ in range(3)]]

    done = await asyncio.gather(*(erasure.erase(each, root, forks=True) for each in logs))

    assert {len(each) for each in done} == {4}
    assert {each.bytes for each in done[0]} == {each.bytes for each in done[3]}
    await project_all(log)
    assert SECRET not in await shown(log)
    assert await differences(log) == []


async def test_fork_when_made_while_its_parent_is_erased_is_erased_too(
    log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has copied what was erased: whoever makes it finds out, and takes it back."""
    session = await told(log)
    other = await open_log()
    create = other.create

    async def late(*given: Any, **named: Any) -> Session:
        await session.erase(forks=True)
        return await create(*given, **named)

    monkeypatch.setattr(other, "create", late)

    with pytest.raises(SessionErasedError):
        await other.handle(session.id).fork()

    async with postgres_of(log).connection() as connection:
        rows = await connection.fetch("select data from eventlog.events")
    assert SECRET not in repr(rows)
