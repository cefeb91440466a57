"""What goes into the cache after a batch was committed: views and scratchpads of what it changed.

The cache itself, and the rule that it is written only forwards, are in `eventlog.cache`. Here is
what keeps it from being behind for long:

- sessions whose write failed are remembered and written again when Redis is back;
- whoever takes a shard over writes the newest of its sessions once more, as the worker before may
  have died between its commit and its write.

And what keeps it from being wrong: names in Redis hold the log's epoch, and a batch is written only
under the names that were known before it was applied. If they changed meanwhile, the batch may have
been committed to a Postgres that has lost it since; its sessions are then read again.

Nothing here fails a batch or delays it by more than the cache's own time limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from eventlog.cache.entry import Entry, entry_of
from eventlog.envelope import shard_of
from eventlog.errors import Unavailable
from eventlog.feeds import Keys
from eventlog.log import EventLog
from eventlog.views import view_from_record, view_of
from projections.checkpoint import postgres_of
from projections.folding import Change

REFRESHED_ROWS: Final = 1_000
"""Rows before the checkpoint whose sessions are written again: at least one batch."""
COPIED_MAX: Final = 1_000
"""Missed sessions that are written again at once."""
MISSED_MAX: Final = 20_000
"""Sessions remembered whose write failed; of more, the oldest live on until their time is over."""


class CacheWriter:
    """Writes sessions into the log's cache; does nothing for a log without Redis."""

    def __init__(self, log: EventLog) -> None:
        self._store = postgres_of(log)
        self._cache = log.views.cache
        self._missed: dict[UUID, None] = {}
        self._keys: dict[int, Keys] = {}
        """By shard: names known since before the next batch is applied."""

    async def write(self, changes: list[Change]) -> None:
        """Write what a committed batch of a shard changed, and what could not be written before."""
        if self._cache is None or not changes:
            return
        shard = changes[0].shard
        keys = await self._cache.keys()
        known = keys is not None and self._keys.setdefault(shard, keys) == keys
        if keys is not None:
            self._keys[shard] = keys
        entries = [entry_of(view_of(each.after), each.after.scratchpad) for each in changes]
        if not known or not await self._cache.put(entries, keys):
            self._miss(each.session_id for each in changes)
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
        keys = await self._cache.keys()
        if keys is not None:
            self._keys[shard] = keys
        after = max(0, position - REFRESHED_ROWS)
        records = await self._store.fetch("recently_projected", shard, after, position)
        await self._copy([record[0] for record in records])

    async def _copy(self, session_ids: list[UUID]) -> None:
        """Write rows of sessions; their scratchpads are folded by whoever reads them first."""
        assert self._cache is not None
        if not session_ids:
            return
        keys = await self._cache.keys()
        shards = [shard_of(each, self._store.shards) for each in session_ids]
        try:
            records = await self._store.fetch("session_views_by_id", shards, session_ids)
        except Unavailable:
            self._miss(session_ids)
            raise
        entries: list[Entry] = [entry_of(view_from_record(record)) for record in records]
        if entries and (keys is None or not await self._cache.put(entries, keys)):
            self._miss(entry.session_id for entry in entries)

    def _miss(self, session_ids: Iterable[UUID]) -> None:
        self._missed.update(dict.fromkeys(session_ids))
        while len(self._missed) > MISSED_MAX:
            self._missed.pop(next(iter(self._missed)))
