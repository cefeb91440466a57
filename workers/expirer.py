"""The expirer: deletes sessions whose time is over, and erases deleted ones.

    expired     by an event of its own (`Session.expire`), or by EVENTLOG_SESSION_TTL_SECONDS of
                silence where it says nothing of its end: a tombstone, reason "expired"
    deleted     EVENTLOG_ERASE_AFTER_SECONDS ago: erased
    unfinished  erasures that somebody left half done, or whose copies Redis still has: gone on with

What is due is found in the views, by index, a page at a time. A session is judged at a seq, and the
tombstone is appended behind just that: one that went on since stays, and is judged again in the
next round. Any number of expirers may run: a session ends once, and erasing is repeatable.

It is a worker of its own, not part of the reaper: that one only ends what is dead anyway, and
anybody may want it; this one takes data away, and whoever runs a log decides where that happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

from eventlog.erasing import erasure
from eventlog.erasing.record import Erasure
from eventlog.errors import EventLogError, SessionDeleted, Unavailable, WrongExpectedSeq
from eventlog.events import SessionDeleted as Tombstone
from eventlog.log import EventLog
from eventlog.telemetry import get_logger
from projections.checkpoint import postgres_of
from projections.heirs import settle_forks
from workers.runtime import repeat, report_failure

SESSIONS_PER_PAGE: Final = 200
"""Sessions that one query returns."""
ROUND_SECONDS: Final = 10.0
"""How long after a session is due the expirer comes to it, about."""
REASON: Final = "expired"
REQUESTED_BY: Final = "expirer"

_log = get_logger()


async def run_expirer(
    log: EventLog, stop: asyncio.Event, *, every_seconds: float = ROUND_SECONDS
) -> None:
    """Look for what is due until `stop`. Raises `InvalidSetting` for a log in memory."""
    postgres_of(log)
    await repeat("expirer", stop, lambda: expire(log, stop), every_seconds=every_seconds)


async def expire(log: EventLog, stop: asyncio.Event | None = None) -> tuple[int, int]:
    """Do all that is due now; how many sessions were deleted, and how many erased."""
    deleted = erased = 0
    ttl_seconds, erase_after = log.settings.session_ttl_seconds, log.settings.erase_after_seconds
    async for session_id, seq in _due(log, "expired_sessions"):
        deleted += await _delete(log, session_id, seq)
        if stop is not None and stop.is_set():
            return deleted, erased
    if ttl_seconds is not None:
        async for session_id, seq in _due(log, "expired_by_policy", ttl_seconds):
            deleted += await _delete(log, session_id, seq)
            if stop is not None and stop.is_set():
                return deleted, erased
    if erase_after is not None:
        async for session_id, _ in _due(log, "deleted_sessions", erase_after):
            erased += await _erase(log, session_id)
            if stop is not None and stop.is_set():
                return deleted, erased
    await finish_erasures(log)
    return deleted, erased


async def finish_erasures(log: EventLog) -> None:
    """Go on with erasures that leave something to do."""
    has_redis = log.fanout is not None
    for record in await postgres_of(log).unfinished_erasures(in_redis=has_redis):
        try:
            await finish(log, record)
        except Unavailable:
            raise
        except EventLogError as error:
            report_failure("expirer", error, session_id=str(record.session_id))


async def finish(log: EventLog, record: Erasure) -> None:
    """Do what an erasure left to do; what a Redis that we don't know of has stays."""
    if record.erased_us is None:
        await erasure.erase_rows(log, record.session_id)
    if record.forks_us is None:
        await settle_forks(log, record)
    if record.redis_us is None and log.fanout is not None:
        heirs = await erasure.descendants(log, [record.session_id])
        await erasure.drop_copies(log, [record.session_id], heirs)


async def _due(log: EventLog, name: str, *seconds: float) -> AsyncIterator[tuple[UUID, int]]:
    """Sessions that a query finds, page by page, with the seq at which it judged them."""
    store = postgres_of(log)
    place: tuple[int, UUID] = (0, UUID(int=0))
    while True:
        records = await store.fetch(name, store.tenant_id, *place, *seconds, SESSIONS_PER_PAGE)
        for session_id, seq, at_us in records:
            place = (at_us, session_id)
            yield session_id, seq
        if len(records) < SESSIONS_PER_PAGE:
            return


async def _delete(log: EventLog, session_id: UUID, seq: int) -> int:
    """Append the tombstone behind the seq that was judged; 0: somebody went on, or was first."""
    try:
        await log.handle(session_id).append(Tombstone(reason=REASON), expected_seq=seq)
    except (WrongExpectedSeq, SessionDeleted):
        return 0
    except Unavailable:
        raise
    except EventLogError as error:
        report_failure("expirer", error, session_id=str(session_id))
        return 0
    _log.info("session.expired", session_id=str(session_id), seq=seq)
    return 1


async def _erase(log: EventLog, session_id: UUID) -> int:
    try:
        (record,) = await erasure.erase(log, session_id, reason=REASON, requested_by=REQUESTED_BY)
        await settle_forks(log, record)
    except Unavailable:
        raise
    except EventLogError as error:
        report_failure("expirer", error, session_id=str(session_id))
        return 0
    return 1
