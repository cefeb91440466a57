"""The views of forks after what they continue was erased.

A fork stays when its parent is erased, and its views have what it inherited: agents, hand-offs,
counts. eventlog.erase() takes what tells something out at once; here the rows are made anew, so
that they equal the fold of the log again. Whoever erases does it, or else the expirer.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg

from eventlog.envelope import Row, shard_of
from eventlog.erasing import erasure
from eventlog.erasing.record import Erasure
from eventlog.log import EventLog
from eventlog.queries import query
from projections.checkpoint import PROJECTION, postgres_of
from projections.erased import anew
from projections.projection import VIEWS, write_views
from projections.tables import Tables


async def settle_forks(log: EventLog, record: Erasure) -> int:
    """Make the views of an erased session's forks anew; how many that were. Raises `Unavailable`.

    Batches that are being written may hold what was erased, and forks that the views don't know
    yet: they are waited for first.
    """
    store = postgres_of(log)
    for shard in range(store.shards):
        await store.fetch("wait_for_batches", PROJECTION, shard)
    family = await erasure.descendants(log, [record.session_id])
    erased = await store.erasures_of(sorted(family))
    heirs = sorted(each for each in family if each not in erased)
    for heir in heirs:
        shard = shard_of(heir, store.shards)
        async with store.connection() as connection, connection.transaction():
            position = await connection.fetchval(query("wait_for_batches"), PROJECTION, shard)
            row = await _shown(connection, shard, heir, position or 0)
            if row is None:
                continue  # nothing of it is shown, or it is parked
            void = frozenset(await log.replayer.erased_in(heir))
            change = await anew(connection, store, row, set(void))
            tables = Tables(connection)
            for view in VIEWS:
                await view.remove(tables, shard, heir)
            await write_views(tables, VIEWS, [change])
        if log.views.cache is not None:
            await log.views.cache.invalidate(heir)
    await store.note_erasure(record.session_id, "forks")
    return len(heirs)


async def _shown(
    connection: asyncpg.Connection[Any], shard: int, session_id: UUID, position: int
) -> Row | None:
    """The last row of a session that the views show; None: they show none, or it is parked."""
    record = await connection.fetchrow(
        query("last_shown_row"), PROJECTION, shard, session_id, position
    )
    return None if record is None else Row(*record)
