"""A rebuild's first phase: each session of a shard is folded whole and written once.

    read     structural rows, session by session; increments change nothing but seq and time
    fold     each session from its first event; a fork from its parent's state
    look up  of each session the last row at or before the shard's position
    write    the rows of some sessions, and in the same transaction the cursor

A projector would write a session's row again with every batch that touches it; here all of its
events are one change. The rows that come out are the same: every view is a function of the state
and the session's own events.

A session that can't be folded is parked for the rebuild, with what is before the row at fault
shown, as the projector does it. One that the projectors have parked shows what it shows there.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from eventlog import folding as fold
from eventlog.envelope import RecordedEvent, Row, as_frame
from eventlog.errors import Unavailable
from eventlog.log import EventLog
from eventlog.postgres import FOR_EVER
from eventlog.queries import query
from eventlog.replay import Replayer
from eventlog.state import SessionState
from projections.checkpoint import PROJECTION, Fenced, Lease, postgres_of
from projections.erased import holds_content
from projections.folding import Change, Folder, Poison, whole_change
from projections.projection import Projection, Refused, View
from projections.rebuild import Rebuild
from projections.tables import SUFFIX

ROWS_PER_PAGE_MAX: Final = 2_000
"""Structural rows read at once; fewer when they are large."""
PAGE_BYTES: Final = 8 * 1024 * 1024
"""What a page holds about, when the next one's rows are as large as the last one's."""
MESSAGES_PER_BATCH: Final = 1_000
"""A transaction is committed when its sessions have so many messages together, or more."""
SESSIONS_PER_BATCH_MAX: Final = 500
BATCH_BYTES: Final = 8 * 1024 * 1024
"""The same for the bytes of their events."""
SESSIONS_COUNTED_AT_ONCE: Final = 5_000
"""Sessions whose events one statement counts."""
FIRST_PLACE: Final = (UUID(int=0), 0)
"""Before every row."""


class GreenProjection(Projection):
    """Writes to the tables that are being built."""

    def __init__(self, log: EventLog, rebuild: Rebuild) -> None:
        store = postgres_of(log)
        # Not the log's own replayer: nobody will ask for the states and snapshots of all sessions.
        self.replayer = Replayer(store, save_snapshots=False)
        folder = Folder(store, self.replayer)
        super().__init__(log, name=rebuild.name, views=rebuild.chosen, folder=folder, suffix=SUFFIX)

    @property
    def views(self) -> list[View]:
        """Those that are rebuilt."""
        return list(self._views)

    async def write_whole(
        self, connection: asyncpg.Connection[Any], shard: int, changes: list[Change]
    ) -> None:
        """Write sessions inside the caller's transaction; what can't be written is parked."""
        try:
            async with connection.transaction():
                await self._write(connection, changes)
        except Refused:
            _, refused = await self._write_singly(connection, changes)
            await self._park(connection, shard, refused)

    async def park(
        self, connection: asyncpg.Connection[Any], shard: int, poisons: list[Poison]
    ) -> None:
        """Set sessions aside for the rebuild."""
        await self._park(connection, shard, poisons)


class _Session:
    """A session whose rows are read, and what they add up to so far."""

    def __init__(self, first: Row, state: SessionState, until: int) -> None:
        self.session_id = first.session_id
        self.before = first.first_seq - 1
        self.until = until
        """Position of the last row that counts."""
        self.byte_count = 0
        self.poison: Poison | None = None
        self.state = state
        self.events: list[RecordedEvent] = []

    def take(self, row: Row) -> None:
        """Fold the next row; nothing after one that can't be folded."""
        if row.position > self.until:
            return
        try:
            recorded = as_frame(row)
            fold.apply(self.state, recorded)
        except Exception as error:
            self.fail(row, error)
            return
        self.events.append(recorded)
        self.byte_count += len(row.data)

    def fail(self, row: Row, error: Exception) -> None:
        """The session can't be folded beyond the row before this one."""
        said = f"{type(error).__name__}: {error}"
        self.poison = Poison(
            session_id=row.session_id, position=row.position, seq=row.seq, error=said
        )
        self.until = row.position - 1


class _Place(msgspec.Struct):
    """Where folding is in a shard, as it is written there."""

    position: int
    session_id: UUID | None
    events_due: int | None
    events: int
    sessions: int
    done: bool


class ShardFolding:
    """Folds one shard, from where it was left."""

    def __init__(self, projection: GreenProjection, lease: Lease) -> None:
        self._projection = projection
        self._store = projection.store
        self._replayer = projection.replayer
        self._lease = lease
        self._shard = lease.shard
        self._batch: list[_Session] = []
        self._messages = self._bytes = 0
        self._shown: dict[UUID, int] = {}
        """Sessions that the projectors have parked, and the position of what is shown of them."""
        self._place = _Place(0, None, None, 0, 0, False)

    async def run(self, stop: asyncio.Event) -> None:
        """Fold until all is done, or until `stop`, after the batch at hand; the first time, count.

        Raises `Fenced`, and `Unavailable`; after either, go on with a new object.
        """
        records = await self._store.fetch("begin_rebuild_shard", self._shard, self._lease.epoch)
        if not records:
            raise Fenced(self._lease)
        self._place = _Place(*records[0])
        if self._place.done:
            return
        if self._place.events_due is None:
            await self._count()
            return
        await self._look_up_parked()
        await self._fold(stop)

    async def _count(self) -> None:
        total, place = 0, FIRST_PLACE
        while True:
            target = (*place, self._place.position, SESSIONS_COUNTED_AT_ONCE)
            counted, events, last_id = (
                await self._store.fetch("session_spans", self._shard, *target)
            )[0]
            total += events
            if counted < SESSIONS_COUNTED_AT_ONCE:
                break
            place = (last_id, FOR_EVER)
        self._place.events_due = total
        await self._store.fetch("count_rebuild_shard", self._shard, self._lease.epoch, total)

    async def _look_up_parked(self) -> None:
        records = await self._store.fetch("parked_as_shown", PROJECTION)
        self._shown = {
            session_id: shown
            for shard, session_id, position, shown in records
            if shard == self._shard and position <= self._place.position
        }

    async def _fold(self, stop: asyncio.Event) -> None:
        done = self._place.session_id
        place = FIRST_PLACE if done is None else (done, FOR_EVER)
        limit = ROWS_PER_PAGE_MAX
        session: _Session | None = None
        while not stop.is_set():
            rows = await self._rows(place, limit)
            for row in rows:
                if session is None or session.session_id != row.session_id:
                    if session is not None:
                        await self._add(session)
                    session = await self._begin(row)
                if session.poison is None:
                    session.take(row)
            if len(rows) < limit:
                if session is not None:
                    self._batch.append(session)
                await self._write(done=True)
                return
            place = (rows[-1].session_id, rows[-1].seq)
            average = sum(len(row.data) for row in rows) // len(rows) + 1
            limit = max(16, min(ROWS_PER_PAGE_MAX, PAGE_BYTES // average))

    async def _rows(self, place: tuple[UUID, int], limit: int) -> list[Row]:
        records = await self._store.fetch(
            "read_sessions", self._shard, *place, self._place.position, limit
        )
        return [Row(*record) for record in records]

    async def _begin(self, first: Row) -> _Session:
        """A session at its first row: empty, or for a fork what it inherits."""
        session_id = first.session_id
        until = self._shown.get(session_id, self._place.position)
        session = _Session(first, fold.initial(session_id), until)
        if session.before and first.position <= until:
            try:
                inherited = await self._replayer.structure(session_id, session.before)
            except Unavailable:
                raise
            except Exception as error:
                session.fail(first, error)
            else:
                session.state = fold.copy(inherited)
        return session

    async def _add(self, session: _Session) -> None:
        """A session is complete; a batch is written as soon as it is large enough."""
        self._batch.append(session)
        self._messages += len(session.state.entries)
        self._bytes += session.byte_count
        if (
            len(self._batch) == SESSIONS_PER_BATCH_MAX
            or self._messages >= MESSAGES_PER_BATCH
            or self._bytes >= BATCH_BYTES
        ):
            await self._write(done=False)

    # --- writing ---

    async def _write(self, *, done: bool) -> None:
        batch, self._batch = self._batch, []
        self._messages = self._bytes = 0
        changes, events = await self._changes(batch)
        place = self._place
        if done and place.events_due is not None:
            events = place.events_due - place.events  # of parked sessions not all are folded
        last_id = batch[-1].session_id if batch else None
        parked = [each.session_id for each in batch if each.session_id in self._shown]
        async with self._store.connection() as connection, connection.transaction():
            moved = await connection.fetchval(
                query("move_rebuild_shard"),
                *(self._shard, self._lease.epoch, place.session_id, last_id),
                *(events, len(batch), done),
            )
            if moved is None:
                raise Fenced(self._lease)
            erased = await connection.fetch(
                query("erased_of_rebuild"), self._shard, [each.session_id for each in changes]
            )
            gone = {record[0] for record in erased}
            if any(each.session_id in gone and holds_content(each) for each in changes):
                raise Unavailable("a session was erased while it was folded; once more")
            await self._projection.write_whole(connection, self._shard, changes)
            poisons = [each.poison for each in batch if each.poison is not None]
            await self._projection.park(connection, self._shard, poisons)
            names = (PROJECTION, self._projection.name)
            if parked:
                await connection.execute(query("park_as_shown"), *names, self._shard, parked)
        place.session_id = last_id or place.session_id
        place.events += events
        place.sessions += len(batch)

    async def _changes(self, batch: list[_Session]) -> tuple[list[Change], int]:
        """What is to be written of these sessions, and how many events that stands for."""
        ids, untils = [each.session_id for each in batch], [each.until for each in batch]
        records = await self._store.fetch("last_rows", self._shard, ids, untils) if batch else []
        found = {record[0]: record[1:] for record in records}
        changes: list[Change] = []
        events = 0
        for each in batch:
            if each.session_id not in found:
                continue  # nothing of it is to be shown
            seq, position, recorded_us, tenant_id = found[each.session_id]
            events += seq - each.before
            if each.poison is not None:  # its state may be half changed
                changes.append(await self._up_to(each, tenant_id, seq, position))
                continue
            each.state.seq = seq
            each.state.updated_at = datetime.fromtimestamp(recorded_us / 1_000_000, UTC)
            changes.append(
                Change(
                    session_id=each.session_id,
                    shard=self._shard,
                    tenant_id=tenant_id,
                    before=None,
                    after=each.state,
                    position=position,
                    events=each.events,
                )
            )
        return changes, events

    async def _up_to(self, each: _Session, tenant_id: int, seq: int, position: int) -> Change:
        return await whole_change(
            self._replayer,
            self._shard,
            each.session_id,
            tenant_id=tenant_id,
            seq=seq,
            position=position,
        )
