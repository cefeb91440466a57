"""Erasing sessions: what is removed from where, in which order, and by whom.

    tombstone   if there is none yet: nothing can be appended any more, open replies end
    Postgres    content of rows, views, snapshots: eventlog.erase(), see its migration
    memory      of this process: folded states, tails of subscriptions
    Redis       caches get a mark that no late writer replaces, feeds begin anew at their newest row

Each step is repeatable, and the record says how far it came; where Redis is away, or somebody dies
in between, the expirer of `workers` goes on. Other processes find out by themselves: whoever reads
a session looks at its last row first, which says so, and their hubs look for records.

The feeds hold rows as they were stored. They can't be changed in place; but a feed that holds but
its newest row is as good as any, and whoever lags behind it reads Postgres. It must not be empty in
between: into an empty feed a publisher that was stopped for a while could put what it read before.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from eventlog import revisions
from eventlog.envelope import Row, pack_row, shard_of
from eventlog.erasing.record import Erasure, ErasureStatus
from eventlog.errors import CorruptEvent, SessionDeleted, SessionNotFound
from eventlog.events import SessionDeleted as Tombstone
from eventlog.feeds import Keys
from eventlog.postgres import PostgresStore
from eventlog.queries import query
from eventlog.redis_link import RedisDown
from eventlog.store import Store
from eventlog.telemetry import get_logger

if TYPE_CHECKING:
    from eventlog.log import EventLog

FEED_ROWS_KEPT: Final = 100
FEED_BYTES_KEPT: Final = 1_000_000
"""With how many of its newest rows a feed begins anew, about."""
REPLACE: Final = """
-- KEYS: a feed. ARGV: position of the first row, and the rows.
redis.call('DEL', KEYS[1])
local before = tonumber(ARGV[1]) - 2
for index = 2, #ARGV do
  redis.call('XADD', KEYS[1], string.format('%.0f-0', before + index), 'r', ARGV[index])
end
"""

HEIRS_BURIED_SECONDS: Final = 60
"""Forks are not cached for so long after what they inherited was erased: late writers lose."""

_log = get_logger()


async def erase(
    log: EventLog,
    session_id: UUID,
    *,
    reason: str | None = None,
    forks: bool = False,
    requested_by: str | None = None,
) -> list[Erasure]:
    """Erase a session, and with `forks` every session that continues it; their records, its first.

    Raises `SessionNotFound`, `Unavailable`. After any error call it again.
    """
    erased = {session_id: await _erase_one(log, session_id, reason, requested_by)}
    family = await descendants(log, [session_id])
    while forks and (rest := family - erased.keys()):
        for each in sorted(rest):
            erased[each] = await _erase_one(log, each, reason, requested_by)
        family = await descendants(log, [session_id])  # of forks that were just being made
    await drop_copies(log, list(erased), family - erased.keys())
    found = await log.store.erasures_of(list(erased))
    return [found[each] for each in erased]


async def _erase_one(
    log: EventLog, session_id: UUID, reason: str | None, requested_by: str | None
) -> Erasure:
    await bury(log, session_id, reason)
    await erase_rows(log, session_id, reason=reason, requested_by=requested_by)
    record = (await log.store.erasures_of([session_id]))[session_id]
    _log.info("session.erased", session_id=str(session_id), rows=record.rows, bytes=record.bytes)
    return record


async def bury(log: EventLog, session_id: UUID, reason: str | None) -> None:
    """Append a tombstone, and before it the ends of open replies, unless there is one."""
    head = await log.replayer.head(session_id)
    if head is None or await log.store.tenant_of(session_id) != log.store.tenant_id:
        raise SessionNotFound(session_id)
    if not head.deleted:
        try:
            await revisions.end(log.handle(session_id), Tombstone(reason=reason), "deleted")
        except SessionDeleted:
            return  # by somebody else meanwhile
        except CorruptEvent:  # nobody can say what is open in it, but it can go
            await log.handle(session_id).delete(reason=reason)


async def erase_rows(
    log: EventLog, session_id: UUID, *, reason: str | None = None, requested_by: str | None = None
) -> None:
    """Remove a deleted session's content from the store."""
    while True:
        status = await log.store.erase(session_id, reason=reason, requested_by=requested_by)
        match status:
            case ErasureStatus.DONE:
                return
            case ErasureStatus.ABSENT:
                raise SessionNotFound(session_id)
            case ErasureStatus.ALIVE:
                raise AssertionError("a session that ends with a tombstone goes on ending with it")
            case ErasureStatus.UNDER_WAY:
                continue


async def descendants(log: EventLog, session_ids: Sequence[UUID]) -> set[UUID]:
    """All sessions that continue these, or continue one that does."""
    found: set[UUID] = set()
    parents = set(session_ids)
    while parents:
        children = await log.store.forks_of(sorted(parents)) - found - set(session_ids)
        found |= children
        parents = children
    return found


async def erased_at(store: Store, session_id: UUID) -> datetime | None:
    """When a session's erasure ended; None: it hasn't."""
    record = (await store.erasures_of([session_id])).get(session_id)
    return None if record is None else record.erased_at


# --- copies --------------------------------------------------------------------------------------


async def drop_copies(log: EventLog, erased: Sequence[UUID], heirs: set[UUID]) -> bool:
    """Drop copies of erased sessions, and what their forks (`heirs`) had inherited.

    False: Redis did not take part; what it has is dropped by whoever tries again.
    """
    log.replayer.forget()
    log.hub.drop_items()
    store = log.store
    if log.fanout is None or log.views.cache is None or not isinstance(store, PostgresStore):
        return False
    if not await log.views.cache.bury(list(erased)):
        return False
    # Longer than anybody takes from reading the log to writing what it read.
    if not await log.views.cache.bury(sorted(heirs), seconds=HEIRS_BURIED_SECONDS):
        return False
    try:
        for shard in sorted({shard_of(each, store.shards) for each in erased}):
            await _replace_feed(log, store, shard)
    except RedisDown as error:
        _log.warning("erasure.feed_not_replaced", error=str(error))
        return False
    for each in erased:
        await store.note_erasure(each, "redis")
    return True


async def _replace_feed(log: EventLog, store: PostgresStore, shard: int) -> None:
    """Let the feed of a shard begin anew with its newest rows, as they are in Postgres now.

    One process at a time: what another one read before our erasure must not come after it.
    """
    assert log.fanout is not None
    feed = Keys.of(await store.identity()).feed(shard)
    async with store.connection() as connection, connection.transaction():
        await connection.execute(query("lock_copies"), shard)
        records = await connection.fetch(query("newest_rows"), shard, FEED_ROWS_KEPT)
        packed: list[bytes] = []
        size = 0
        for record in records:
            row = pack_row(Row(*record))
            size += len(row)
            if packed and size > FEED_BYTES_KEPT:
                break
            packed.append(row)
        first = records[0][0] - len(packed) + 1
        await log.fanout.call("EVAL", REPLACE, 1, feed, first, *reversed(packed))
