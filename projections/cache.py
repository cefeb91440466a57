"""What goes into the cache after a batch was committed: the views of the sessions it changed.

The cache itself, and the rule that it is written only forwards, are `eventlog.view_cache`. Here is
what keeps it from being behind for long:

- sessions whose write failed are remembered and written again when Redis is back;
- whoever takes a shard over writes the newest of its sessions once more, as the worker before may
  have died between its commit and its write.

Nothing here fails a batch or delays it by more than the cache's own time limit.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from eventlog.envelope import shard_of
from eventlog.errors import Unavailable
from eventlog.log import EventLog
from eventlog.views import SessionView, view_from_record, view_of
from projections.checkpoint import postgres_of
from projections.folding import Change

REFRESHED_ROWS: Final = 1_000
"""Rows before the checkpoint whose sessions are written again: at least one batch."""
COPIED_MAX: Final = 1_000
"""Missed sessions that are written again at once."""
MISSED_MAX: Final = 20_000
"""Sessions remembered whose write failed; of more, the oldest live on until their time is over."""


class CacheWriter:
    """Writes session views into the log's cache; does nothing for a log without Redis."""

    def __init__(self, log: EventLog) -> None:
        self._store = postgres_of(log)
        self._cache = log.views.cache
        self._missed: dict[UUID, None] = {}

    async def write(self, changes: list[Change]) -> None:
        """Write what a committed batch changed, and what could not be written before."""
        if self._cache is None:
            return
        views = [view_of(change.after) for change in changes]
        if not await self._cache.put(views):
            self._miss(views)
        elif self._missed:
            await self.catch_up()

    async def catch_up(self) -> None:
        """Write the sessions whose write failed, as they are now."""
        missed = list(self._missed)[:COPIED_MAX]
        for each in missed:
            del self._missed[each]
        await self._copy(missed)

    async def refresh(self, shard: int, position: int) -> None:
        """Write the sessions that were projected last, up to a position of a shard."""
        if self._cache is None:
            return
        after = max(0, position - REFRESHED_ROWS)
        records = await self._store.fetch("recently_projected", shard, after, position)
        await self._copy([record[0] for record in records])

    async def _copy(self, session_ids: list[UUID]) -> None:
        assert self._cache is not None
        shards = [shard_of(each, self._store.shards) for each in session_ids]
        try:
            records = await self._store.fetch("session_views_by_id", shards, session_ids)
        except Unavailable:
            self._missed.update(dict.fromkeys(session_ids))
            raise
        views = [view_from_record(record) for record in records]
        if views and not await self._cache.put(views):
            self._miss(views)

    def _miss(self, views: list[SessionView]) -> None:
        self._missed.update((view.session_id, None) for view in views)
        while len(self._missed) > MISSED_MAX:
            self._missed.pop(next(iter(self._missed)))
