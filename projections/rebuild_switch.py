"""A rebuild's last step: the new tables get exactly to where the served ones are, and replace them.

All of it is one transaction, in this order:

    fence     whoever works on the rebuild, and the projectors; batches being written are waited for
    project   the few rows that the new tables still lack, up to the projectors' checkpoints
    settle    sessions that are parked on one side only, or were erased meanwhile
    switch    names of tables and indexes, the versions; what is known of the rebuild goes
    commit    the projectors begin again, where their checkpoints are

Readers notice nothing until the tables change names, and then wait for that alone. If somebody
reads for so long that the tables can't be had, all is rolled back and tried again later.

Projectors that have never run, or are behind, have nothing newer to offer than a rebuild of all
views: then their checkpoint is moved to where the rebuild is. A rebuild of some views has to end
where the projectors are, and begins there; where they have not begun it has nothing to do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import asyncpg

from eventlog.envelope import Row
from eventlog.errors import Unavailable
from eventlog.log import EventLog
from eventlog.queries import query
from projections.checkpoint import PROJECTION, Lease, postgres_of
from projections.folding import whole_change
from projections.projection import Progress, write_views
from projections.rebuild import Rebuild, RebuildRefused
from projections.rebuild_folding import GreenProjection
from projections.tables import SUFFIX, Tables

ROWS_PER_BATCH: Final = 1_000
ROWS_PER_BATCH_LOCKED: Final = 200
"""The same inside the switch: between two of its statements little time may pass."""


class _Finishing(GreenProjection):
    """Projects inside the transaction of the switch."""

    def __init__(
        self, log: EventLog, rebuild: Rebuild, connection: asyncpg.Connection[Any]
    ) -> None:
        super().__init__(log, rebuild)
        self.connection = connection

    @asynccontextmanager
    async def _transaction(
        self, progress: Progress, last: Row
    ) -> AsyncIterator[asyncpg.Connection[Any]]:
        async with self.connection.transaction():
            await self._move(self.connection, progress, last)
            yield self.connection


async def switch(log: EventLog, rebuild: Rebuild, *, lock_ms: int) -> bool:
    """Take the rebuilt tables into service; False: somebody else has, or gave the rebuild up.

    `lock_ms`: how long the tables may be waited for, and everybody who wants to read them with us.
    Raises `Unavailable` when that was not enough, and `RebuildRefused` when something was made that
    depends on a table to be dropped; nothing has changed then.
    """
    store = postgres_of(log)
    async with store.connection() as connection, connection.transaction():
        if await connection.fetchrow(query("lock_rebuild"), rebuild.number) is None:
            return False
        projection = _Finishing(log, rebuild, connection)
        # In the order of their names, as whoever else locks checkpoints of several projections.
        green = await _fence(connection, rebuild.name, store.shards)
        blue = await _fence(connection, PROJECTION, store.shards)
        for shard, (position, epoch) in green.items():
            until = blue[shard][0]
            if position < until:
                lease = Lease(rebuild.name, shard, epoch)
                await _project(projection, lease, position, until)
            elif position > until:
                await connection.execute(query("advance_checkpoint"), PROJECTION, shard, position)
        positions = {shard: max(blue[shard][0], green[shard][0]) for shard in green}
        await _settle_parked(projection, positions)
        await _settle_erased(projection, rebuild, positions)
        try:
            await connection.execute(query("switch_rebuild"), rebuild.number, lock_ms)
        except asyncpg.DependentObjectsStillExistError as error:
            raise RebuildRefused(
                f"{error}: {error.detail}. Drop that, then go on: eventlog rebuild {rebuild.what}"
            ) from error
    return True


async def _fence(
    connection: asyncpg.Connection[Any], name: str, shards: int
) -> dict[int, tuple[int, int]]:
    """Position and epoch of a projection in each shard; nobody moves them before we commit."""
    leases = await connection.fetch(query("take_away_leases"), name, shards)
    records = await connection.fetch(
        query("begin_checkpoints"),
        name,
        [shard for shard, _ in leases],
        [epoch for _, epoch in leases],
    )
    return {shard: (position, epoch) for shard, position, epoch in records}


async def _project(projection: GreenProjection, lease: Lease, position: int, until: int) -> None:
    parked = await projection.store.fetch("parked_in_shard", lease.name, lease.shard)
    progress = Progress(lease, position, {record[0] for record in parked})
    await catch_up(projection, progress, until=until, limit=ROWS_PER_BATCH_LOCKED)


async def catch_up(
    projection: GreenProjection, progress: Progress, *, until: int, limit: int = ROWS_PER_BATCH
) -> None:
    """Project the next rows of a shard's feed, up to a position. Raises what `apply` raises."""
    while progress.position < until:
        rows = await projection.store.read_feed(
            progress.lease.shard, after=progress.position, limit=limit
        )
        wanted = [row for row in rows if row.position <= until]
        if not wanted:
            return
        await projection.apply(progress, wanted)


async def _settle_parked(projection: _Finishing, positions: dict[int, int]) -> None:
    """Sessions that are parked here or there: afterwards both sides have the same ones parked.

    One that the projectors parked, or whose parking moved, since it was folded here shows what it
    shows there. One that only this rebuild parked may have been taken back in by hand: it is folded
    once more, and stays parked, for the projectors too, if that fails.
    """
    connection = projection.connection
    blue = await connection.fetch(query("parked_as_shown"), PROJECTION)
    green = await connection.fetch(query("parked_as_shown"), projection.name)
    known = {session_id: position for _, session_id, position, _ in green}
    for shard, session_id, position, shown in blue:
        if known.get(session_id) != position:
            await _refold(projection, shard, session_id, shown)
    there = {session_id for _, session_id, _, _ in blue}
    for shard, session_id, _, _ in green:
        if session_id not in there and not await _refold(
            projection, shard, session_id, positions[shard]
        ):
            names = (projection.name, PROJECTION)
            await connection.execute(query("park_as_shown"), *names, shard, [session_id])


async def _settle_erased(
    projection: _Finishing, rebuild: Rebuild, positions: dict[int, int]
) -> None:
    """What was inherited from sessions that were erased since may be in the rows of their forks."""
    connection = projection.connection
    parked = await connection.fetch(query("parked_as_shown"), projection.name)
    passed_over = {session_id for _, session_id, _, _ in parked}
    found = await connection.fetch(query("erased_since_rebuild"), rebuild.number)
    for shard, session_id in found:
        if session_id not in passed_over:
            await _refold(projection, shard, session_id, positions[shard])


async def _refold(projection: _Finishing, shard: int, session_id: UUID, position: int) -> bool:
    """Make a session's rows anew, of what is at or before a position; whether that worked."""
    connection = projection.connection
    tables = Tables(connection, SUFFIX)
    try:
        async with connection.transaction():
            for view in projection.views:
                await view.remove(tables, shard, session_id)
            last = await connection.fetchrow(query("last_rows"), shard, [session_id], [position])
            if last is not None:
                _, seq, at, _, tenant_id = last
                change = await whole_change(
                    projection.replayer,
                    *(shard, session_id),
                    tenant_id=tenant_id,
                    seq=seq,
                    position=at,
                )
                await write_views(tables, projection.views, [change])
    except Unavailable:
        raise
    except Exception:
        if connection.is_closed():
            raise
        return False
    return True
