"""The reaper: closes replies whose writers have died.

A reply is open until its writer appends its end. A writer that was killed never will, so whoever
looks at the session would wait for ever. The reaper finds messages that are open in the views and
began long ago. Where nothing was stored for `reply_idle_seconds`, it appends the end, keeping what
had arrived. A writer that was only slow learns of it at its next write (`MessageFenced`). Any
number of reapers may run: a message ends once.
"""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

from eventlog.errors import EventLogError, Unavailable
from eventlog.log import EventLog
from eventlog.telemetry import get_logger
from eventlog.views import unescape_text
from projections.checkpoint import postgres_of
from workers.runtime import repeat, report_failure

MESSAGES_PER_PAGE: Final = 200
"""Open messages that one query returns."""
ROUNDS_PER_IDLE_TIME: Final = 4
"""A dead reply is closed after its idle time and, at most, this part of it more."""
REASON: Final = "abandoned"

_log = get_logger()


async def run_reaper(log: EventLog, stop: asyncio.Event) -> None:
    """Look for abandoned replies until `stop`. Raises `InvalidSetting` for a log in memory."""
    postgres_of(log)
    every_seconds = log.settings.reply_idle_seconds / ROUNDS_PER_IDLE_TIME
    await repeat("reaper", stop, lambda: reap(log, stop), every_seconds=every_seconds)


async def reap(log: EventLog, stop: asyncio.Event | None = None) -> int:
    """Close every reply that is abandoned now; returns how many that were."""
    store = postgres_of(log)
    idle_seconds = log.settings.reply_idle_seconds
    place: tuple[int, UUID, int] = (0, UUID(int=0), 0)
    closed = 0
    while stop is None or not stop.is_set():
        records = await store.fetch(
            "open_messages", idle_seconds, *place, MESSAGES_PER_PAGE, store.tenant_id
        )
        for session_id, message_id, recorded_us, ordinal in records:
            place = (recorded_us, session_id, ordinal)
            closed += await _close(log, session_id, unescape_text(message_id))
        if len(records) < MESSAGES_PER_PAGE:
            break
    return closed


async def _close(log: EventLog, session_id: UUID, message_id: str) -> int:
    """Close one reply if it is abandoned. What can't be done with it doesn't stop the round."""
    idle_seconds = log.settings.reply_idle_seconds
    try:
        closed = await log.handle(session_id).interrupt(
            message_id, reason=REASON, idle_seconds=idle_seconds
        )
    except Unavailable:
        raise
    except EventLogError as error:
        report_failure("reaper", error, session_id=str(session_id))
        return 0
    if closed:
        _log.info("reply.reaped", session_id=str(session_id), idle_seconds=idle_seconds)
    return len(closed)
