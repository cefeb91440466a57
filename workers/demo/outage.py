"""What the demo does to Redis while a reply streams: flush it, stop it, start it again.

Only an embedded Valkey is flushed whole and stopped. On a Redis that was given by URL only the keys
of this log are deleted, and it is left running.
"""

from __future__ import annotations

from typing import Final

from eventlog import EventLog
from eventlog.embedded import start_redis, stop_redis
from eventlog.errors import EventLogError
from eventlog.fanout import FanOut
from eventlog.redis_link import RedisDown
from workers.commands.live import LiveView
from workers.demo.player import Moment
from workers.demo.watcher import Watcher

FLUSH_AT: Final = 0.35
STOP_AT: Final = 0.5
START_AT: Final = 0.7
SCAN_COUNT: Final = 1_000
"""Keys that one SCAN looks at."""


class Outage:
    """The three moments, as far as they are possible with this Redis."""

    def __init__(self, log: EventLog, view: LiveView, watcher: Watcher) -> None:
        self._log = log
        self._view = view
        self._watcher = watcher
        self._stopped = False
        self.is_embedded = log.servers is not None and log.servers.redis_embedded

    def moments(self) -> list[Moment]:
        """What to do, and when."""
        if self._log.fanout is None:
            return []
        moments = [Moment(FLUSH_AT, self.flush)]
        if self.is_embedded:
            moments += [Moment(STOP_AT, self.stop), Moment(START_AT, self.start)]
        return moments

    def explanation(self) -> str:
        """What will happen, for people."""
        if self._log.fanout is None:
            return "There is no Redis, so none can be flushed or stopped."
        if self.is_embedded:
            return "On the way Redis is flushed, stopped, and started again, each in mid-reply."
        return (
            "On the way this log's keys are deleted from Redis. It was given by URL, so it is not "
            "stopped."
        )

    async def flush(self) -> None:
        """Delete everything in an embedded Redis, or this log's keys in any other."""
        fanout = self._log.fanout
        assert fanout is not None
        try:
            if self.is_embedded:
                count = await fanout.call("DBSIZE")
                await fanout.call("FLUSHALL")
                self._view.note(f"Redis is flushed: {count} keys gone")
            else:
                count = await self._delete_keys(fanout)
                self._view.note(f"this log's keys are deleted from Redis: {count} gone")
        except RedisDown as error:
            self._view.note(f"Redis is away by itself, and can't be flushed: {error}")

    async def _delete_keys(self, fanout: FanOut) -> int:
        prefix = (await fanout.keys()).prefix
        cursor, count = b"0", 0
        while True:
            answer = await fanout.call("SCAN", cursor, "MATCH", f"{prefix}:*", "COUNT", SCAN_COUNT)
            assert isinstance(answer, list)
            cursor, names = answer
            if names:
                await fanout.call("UNLINK", *names)
                count += len(names)
            if cursor == b"0":
                return count

    async def stop(self) -> None:
        """Stop an embedded Redis."""
        self._watcher.redis_is_up = False
        self._stopped = True
        await stop_redis(self._log.settings)
        self._view.note("Redis is stopped: from here on the subscriber reads Postgres")

    async def start(self) -> None:
        """Start it again."""
        await start_redis(self._log.settings)
        self._stopped = False
        self._watcher.redis_is_up = True
        self._view.note("Redis runs again, and is filled from Postgres")

    async def undo(self) -> None:
        """Start Redis if the demo ended in between; others may be using it."""
        if self._stopped:
            self._stopped = False
            try:
                await start_redis(self._log.settings)
            except EventLogError as error:
                self._view.note(f"Redis could not be started again: {error}")
