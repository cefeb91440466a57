"""The part of the Postgres store that erases, and that keeps what is erased from coming back.

eventlog.erase() does the work; see sql/migrations/0006_erasure.sql. A snapshot holds what many
events said, also those of the sessions that a fork continues: whoever saves one holds a lock that
erasures need to begin, and looks for their records under it. So either the record is seen, and
nothing is saved, or the snapshot is there to be removed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from uuid import UUID

import asyncpg

from eventlog.envelope import Row, parent_of, shard_of
from eventlog.erasing.record import Erasure, ErasureStatus
from eventlog.queries import query
from eventlog.store import Snapshot, chunk_checksum
from eventlog.views import escape_text, unescape_text

ROWS_PER_CALL: Final = 5_000
"""Rows that one call of eventlog.erase() changes at most: about a tenth of a second."""
RECORDS_MAX: Final = 1_000
"""Records that one query returns."""
FORK_ROWS_PER_CALL: Final = 50_000
"""Rows of a feed that one query searches for forks that the views don't know yet."""


class ErasureTables:
    """What `PostgresStore` inherits."""

    shards: int
    tenant_id: int

    @abstractmethod
    async def fetch(self, name: str, *arguments: object) -> list[Sequence[Any]]:
        """See `PostgresStore.fetch`."""

    @abstractmethod
    def connection(self) -> AbstractAsyncContextManager[asyncpg.Connection[Any]]:
        """See `PostgresStore.connection`."""

    async def erase(
        self, session_id: UUID, *, reason: str | None, requested_by: str | None
    ) -> ErasureStatus:
        """See `Store.erase`."""
        told = (None if each is None else escape_text(each) for each in (reason, requested_by))
        shard = shard_of(session_id, self.shards)
        asked = (shard, session_id, self.tenant_id, ROWS_PER_CALL, *told)
        return ErasureStatus((await self.fetch("erase", *asked))[0][0])

    async def erasures_of(self, session_ids: Sequence[UUID]) -> dict[UUID, Erasure]:
        """See `Store.erasures_of`."""
        shards = [shard_of(each, self.shards) for each in session_ids]
        records = await self.fetch("erasures_of", shards, list(session_ids))
        return {record[0]: _erasure(record) for record in records}

    async def erasures(self, *, after: tuple[int, UUID], limit: int) -> list[Erasure]:
        """See `Store.erasures`."""
        records = await self.fetch("erasures", self.tenant_id, *after, limit)
        return [_erasure(record) for record in records]

    async def unfinished_erasures(self, *, in_redis: bool) -> list[Erasure]:
        """Those of this tenant that leave something to do, oldest first; in Redis only if asked."""
        asked = (self.tenant_id, RECORDS_MAX, in_redis)
        records = await self.fetch("unfinished_erasures", *asked)
        return [_erasure(record) for record in records]

    async def erased_since(self, at_us: int) -> list[tuple[UUID, int]]:
        """See `Store.erased_since`."""
        records = await self.fetch("erased_since", at_us, RECORDS_MAX)
        return [(session_id, erased_us) for session_id, erased_us in records]

    async def note_erasure(self, session_id: UUID, what: str) -> None:
        """Take note that what an erasure left to do was done: `redis` or `forks`."""
        await self.fetch("note_erasure", shard_of(session_id, self.shards), session_id, what)

    # --- forks ---

    async def forks_of(self, session_ids: Sequence[UUID]) -> set[UUID]:
        """See `Store.forks_of`. The views know most of them; the rest is parked, or unprojected."""
        ids = list(session_ids)
        found = {record[1] for record in await self.fetch("forks_in_views", ids)}
        parked = [record[0] for record in await self.fetch("parked_sessions", "views")]
        found |= await self._checked_forks(parked, set(ids))
        done = [record[1] for record in await self.fetch("checkpoints", "views", self.shards)]
        heads = [record[1] for record in await self.fetch("feed_heads", self.shards)]
        names = [str(each) for each in ids]
        for shard, (after, head) in enumerate(zip(done, heads, strict=True)):
            for first in range(after, head, FORK_ROWS_PER_CALL):
                part = (shard, first, first + FORK_ROWS_PER_CALL)
                records = await self.fetch("forks_in_feed", *part, names)
                found |= await self._checked_forks([record[0] for record in records], set(ids))
        return found

    async def _checked_forks(self, candidates: list[UUID], parents: set[UUID]) -> set[UUID]:
        if not candidates:
            return set()
        shards = [shard_of(each, self.shards) for each in candidates]
        rows = [Row(*each) for each in await self.fetch("first_rows", shards, candidates)]
        return {row.session_id for row in rows if parent_of(row) in parents}

    # --- snapshots ---

    async def save_snapshot(
        self,
        session_id: UUID,
        snapshot: Snapshot,
        chunks: dict[int, bytes],
        *,
        lineage: Sequence[UUID] = (),
    ) -> bool:
        """See `Store.save_snapshot`."""
        rows = [(session_id, key, chunk_checksum(key, e), e) for key, e in chunks.items()]
        family = sorted({session_id, *lineage})
        shards = [shard_of(each, self.shards) for each in family]
        async with self.connection() as connection, connection.transaction():
            await connection.execute(query("lock_lineage"), family)
            if await connection.fetch(query("erasures_of"), shards, family):
                return False
            if rows:
                await connection.executemany(query("save_chunk"), rows)
            await connection.execute(
                query("save_snapshot"),
                session_id,
                snapshot.seq,
                snapshot.fold_version,
                snapshot.chunks,
                snapshot.first_seqs,
                snapshot.header,
                snapshot.tail,
                snapshot.checksum(session_id),
                list(lineage),
            )
        return True


def _erasure(record: Sequence[Any]) -> Erasure:
    *facts, reason, requested_by = record
    told = None if reason is None else unescape_text(reason)
    values = (*facts, told, unescape_text(requested_by))
    return Erasure(**dict(zip(Erasure.__struct_fields__, values, strict=True)))
