"""A projection: rows of a shard's feed become rows of views, in step with a checkpoint.

For each batch, in this order:

    fold      the rows of each session onto its state (outside any transaction)
    move      the checkpoint, if it is still where we left it and under our lease; else `Fenced`
    check     whether something of it was erased meanwhile (`erased`)
    write     what changed, view by view
    commit    and only then remember the new states

A batch is there as a whole or not at all, whatever dies in between, and applying it again after a
lost commit is refused by the checkpoint. A session that can't be folded, or whose rows Postgres
refuses, is parked in the same transaction: it is passed over from then on, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol
from uuid import UUID

import asyncpg
import msgspec

from eventlog.envelope import Row
from eventlog.errors import Unavailable
from eventlog.log import EventLog
from eventlog.queries import query
from eventlog.telemetry import durations, get_logger, metrics
from eventlog.views import escape_text
from projections.agents import AgentViews
from projections.checkpoint import PROJECTION, Lease, begin, move, postgres_of
from projections.erased import without_erased
from projections.folding import Change, Folder, Poison, group
from projections.messages import MessageViews
from projections.runs import RunViews
from projections.scratchpad import ScratchpadViews
from projections.sessions import SessionViews
from projections.tables import Tables
from projections.usage import UsageViews

REFUSING_CLASSES: Final = ("21", "22", "23", "54")
"""SQLSTATE classes of values that Postgres can't store: bad data, broken rules, too large."""

log = get_logger()


class View(Protocol):
    """A table, or several, kept by a projection."""

    name: str
    """What people call it: `eventlog rebuild NAME`."""
    version: int
    """Raise it when the code makes other rows of old events: the view is then due for a rebuild."""

    async def write(self, tables: Tables, changes: list[Change]) -> None:
        """Write what the changes mean here, inside the caller's transaction; one per session."""
        ...

    async def remove(self, tables: Tables, shard: int, session_id: UUID) -> None:
        """Remove what is there of a session, before it is written anew."""
        ...


VIEWS: Final[tuple[View, ...]] = (
    *(SessionViews(), MessageViews(), AgentViews(), RunViews(), UsageViews(), ScratchpadViews()),
)


async def write_views(tables: Tables, views: Sequence[View], changes: list[Change]) -> None:
    """Write what changes mean in each of the views, inside the caller's transaction."""
    anew = [each for each in changes if each.anew]
    for view in views:
        for each in anew:
            await view.remove(tables, each.shard, each.session_id)
        await view.write(tables, changes)


class Progress(msgspec.Struct):
    """How far the holder of a lease has come in a shard."""

    lease: Lease
    position: int
    parked: set[UUID]


class Refused(Exception):
    """Something in this batch can't be written, now or later. Internal."""


class Projection:
    """Applies batches to views. One object may serve any number of shards."""

    def __init__(
        self,
        log: EventLog,
        *,
        name: str = PROJECTION,
        views: Sequence[View] = VIEWS,
        folder: Folder | None = None,
        suffix: str = "",
    ) -> None:
        self.name = name
        self.store = postgres_of(log)
        self.folder = folder or Folder(self.store, log.replayer)
        self._views = views
        self._suffix = suffix

    async def begin(self, lease: Lease) -> Progress:
        """Take over a shard: fence whoever had it, and find out where to go on. Raises `Fenced`."""
        self.folder.forget(lease.shard)
        position = await begin(self.store, lease)
        parked = await self.store.fetch("parked_in_shard", self.name, lease.shard)
        return Progress(lease, position, {record[0] for record in parked})

    async def apply(self, progress: Progress, rows: list[Row]) -> list[Change]:
        """Project the next rows of the shard; returns what was written.

        Raises `Fenced`, `NotInLog`, and `Unavailable` when nobody knows whether the batch is there:
        after any error go on with `begin`, not with the same `Progress`.
        """
        if not rows or rows[0].position != progress.position + 1:
            raise ValueError(f"rows must follow position {progress.position}")
        begin_seconds = time.perf_counter()
        shard = progress.lease.shard
        by_session = group(rows, without=progress.parked)
        folded = await self.folder.fold(shard, by_session)
        last = rows[-1]
        try:
            async with self._transaction(progress, last) as connection:
                folded = await without_erased(connection, self.folder, by_session, folded)
                changes, poisons = folded.changes, folded.poisons
                await self._write(connection, changes)
                await self._park(connection, shard, poisons)
        except Refused:
            async with self._transaction(progress, last) as connection:
                folded = await without_erased(connection, self.folder, by_session, folded)
                changes, refused = await self._write_singly(connection, folded.changes)
                poisons = folded.poisons + refused
                await self._park(connection, shard, poisons)
        self._committed(progress, last.position, changes, poisons)
        metrics.projected_rows += len(rows)
        durations.projection_batch.observe(time.perf_counter() - begin_seconds)
        return changes

    @asynccontextmanager
    async def _transaction(
        self, progress: Progress, last: Row
    ) -> AsyncIterator[asyncpg.Connection[Any]]:
        async with self.store.connection() as connection, connection.transaction():
            await self._move(connection, progress, last)
            yield connection

    async def _move(
        self, connection: asyncpg.Connection[Any], progress: Progress, last: Row
    ) -> None:
        await move(connection, progress.lease, position=progress.position, last=last)

    async def _write(self, connection: asyncpg.Connection[Any], changes: list[Change]) -> None:
        try:
            await write_views(Tables(connection, self._suffix), self._views, changes)
        except Exception as error:
            if not _is_refusal(error):
                raise
            raise Refused(f"{type(error).__name__}: {error}") from error

    async def _write_singly(
        self, connection: asyncpg.Connection[Any], changes: list[Change]
    ) -> tuple[list[Change], list[Poison]]:
        """Write session by session, to find those that can't be written."""
        written: list[Change] = []
        refused: list[Poison] = []
        for change in changes:
            try:
                async with connection.transaction():
                    await self._write(connection, [change])
                written.append(change)
            except Refused as error:
                refused.append(
                    Poison(
                        session_id=change.session_id,
                        position=change.position,
                        seq=change.after.seq,
                        error=str(error),
                    )
                )
        return written, refused

    async def _park(
        self, connection: asyncpg.Connection[Any], shard: int, poisons: list[Poison]
    ) -> None:
        for each in poisons:
            await connection.execute(
                query("park_session"),
                self.name,
                shard,
                each.session_id,
                each.position,
                each.seq,
                escape_text(each.error),
            )

    def _committed(
        self, progress: Progress, position: int, changes: list[Change], poisons: list[Poison]
    ) -> None:
        progress.position = position
        parked = {each.session_id for each in poisons}
        progress.parked |= parked
        self.folder.remember(each for each in changes if each.session_id not in parked)
        for each in poisons:
            log.error(
                "projector.session_parked",
                projection=self.name,
                session_id=str(each.session_id),
                position=each.position,
                seq=each.seq,
                error=each.error.partition(":")[0],
            )


def _is_refusal(error: Exception) -> bool:
    """Whether it is a session's data that is at fault, and not the connection, server or schema."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in REFUSING_CLASSES
    if isinstance(error, asyncpg.InterfaceError):
        return isinstance(error, ValueError)  # the driver can't send the value
    return not isinstance(error, OSError | Unavailable | asyncpg.InternalClientError)
