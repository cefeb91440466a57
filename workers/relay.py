"""The relay: keeps the feeds in Redis a copy of the log, also where nobody else noticed a loss.

Whoever appends publishes its rows itself. What that misses (a crash between commit and publish, a
Redis that was away, flushed, or lost its end in a failover) is found here: every sweep compares the
end of each feed with Postgres and copies what is missing. Any number of relays may run.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from eventlog.errors import InvalidSetting
from eventlog.log import EventLog
from eventlog.telemetry import get_logger
from workers.runtime import repeat

SWEEP_SECONDS: Final = 1.0
"""Pause between two sweeps."""

_log = get_logger()


async def run_relay(
    log: EventLog, stop: asyncio.Event, *, every_seconds: float = SWEEP_SECONDS
) -> None:
    """Sweep until `stop`; outages of Redis and Postgres are waited for.

    Raises `InvalidSetting` for a log without Redis.
    """
    if log.fanout is None:
        raise InvalidSetting("a relay copies the log into Redis, and this log has none")
    await repeat("relay", stop, lambda: sweep(log), every_seconds=every_seconds)


async def sweep(log: EventLog) -> int:
    """Look at every feed once; returns how many rows had to be copied."""
    assert log.fanout is not None
    begin = time.monotonic()
    copied = await log.fanout.sweep()
    if copied:
        milliseconds = round((time.monotonic() - begin) * 1000, 1)
        _log.info("relay.swept", rows=copied, milliseconds=milliseconds)
    return copied
