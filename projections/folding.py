"""From rows of a feed to changes of sessions: the state before a batch, and the state after it.

States are folds of structure: token increments move a session's seq and time, and nothing else. The
newest states are remembered between batches; for a session that isn't among them the state is
replayed from the log, up to just before its first row of the batch. So a projector can start
anywhere, and forgetting a state costs time only.

A session whose rows can't be folded ends up as a `Poison`, with everything before the row at fault
applied; the other sessions of the batch are not touched by that.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final
from uuid import UUID

import msgspec

from eventlog import folding as fold
from eventlog.envelope import FRAME, RecordedEvent, Row, shard_of
from eventlog.errors import Unavailable
from eventlog.postgres import PostgresStore
from eventlog.replay import Replayer, bytes_of
from eventlog.state import SessionState

SESSIONS_REMEMBERED_MAX: Final = 5_000
"""Sessions whose newest state a projector keeps; others are replayed when they come up again."""
STATES_REMEMBERED_BYTES_MAX: Final = 256 * 1024 * 1024
"""Memory of all of these states together, about."""
LOADS_AT_ONCE_MAX: Final = 4
"""States replayed side by side; each holds a connection now and then."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch does to one session."""

    session_id: UUID
    shard: int
    tenant_id: int
    before: SessionState | None
    """The state that the views show; None: they have nothing of this session."""
    after: SessionState
    position: int
    """Of the last row that `after` takes account of."""
    events: list[RecordedEvent]
    """What happened in between in the session itself, token increments left out."""
    anew: bool = False
    """All rows of the session are to be removed from the views first."""
    erased: frozenset[UUID] = frozenset()
    """Of a fork: the sessions in its history that were erased before it was folded."""


class Poison(msgspec.Struct, frozen=True, kw_only=True):
    """A row that a session can't be projected beyond, and why."""

    session_id: UUID
    position: int
    seq: int
    error: str


class Folded(msgspec.Struct, frozen=True):
    """What became of a batch's rows."""

    changes: list[Change]
    poisons: list[Poison]


class _Known(msgspec.Struct, frozen=True):
    tenant_id: int
    state: SessionState
    new: bool = False
    """The views have no row of it yet."""
    byte_count: int = 0
    erased: frozenset[UUID] = frozenset()
    """See `Change.erased`."""


class Folder:
    """Folds rows of one store, and remembers the newest states."""

    def __init__(
        self,
        store: PostgresStore,
        replayer: Replayer,
        *,
        sessions_max: int = SESSIONS_REMEMBERED_MAX,
        bytes_max: int = STATES_REMEMBERED_BYTES_MAX,
    ) -> None:
        self.store = store
        self.replayer = replayer
        self._sessions_max = sessions_max
        self._bytes_max = bytes_max
        self._known: OrderedDict[UUID, _Known] = OrderedDict()
        self.remembered_bytes = 0
        self._loading = asyncio.Semaphore(LOADS_AT_ONCE_MAX)

    async def fold(self, shard: int, by_session: dict[UUID, list[Row]]) -> Folded:
        """Fold the rows of each session. Remembers nothing yet. Raises `Unavailable`."""
        known, poisons = await self._load(shard, by_session)
        changes: list[Change] = []
        for session_id, start in known.items():
            rows = by_session[session_id]
            after, events, done, error = self._advance(start.state, rows)
            if error is not None:
                poisons.append(_poison(rows[done], error))
            if done:
                changes.append(
                    Change(
                        session_id=session_id,
                        shard=shard,
                        tenant_id=start.tenant_id,
                        # Of an erased session everything is removed, and little written anew.
                        before=None if start.new or after.status == "erased" else start.state,
                        after=after,
                        position=rows[done - 1].position,
                        events=events,
                        anew=after.status == "erased",
                        erased=start.erased,
                    )
                )
        return Folded(changes, poisons)

    async def _load(
        self, shard: int, by_session: dict[UUID, list[Row]]
    ) -> tuple[dict[UUID, _Known], list[Poison]]:
        """The state of each session before its first row."""
        found: dict[UUID, _Known] = {}
        poisons: list[Poison] = []
        for session_id in by_session:
            known = self._known.get(session_id)
            if known is not None and known.state.seq == by_session[session_id][0].first_seq - 1:
                found[session_id] = known
        missing = [each for each in by_session if each not in found]
        if missing:
            records = await self.store.fetch("tenants_of", [shard] * len(missing), missing)
            tenants: dict[UUID, int] = {record[0]: record[1] for record in records}
            loads = (self._replay(tenants[each], by_session[each][0]) for each in missing)
            loaded = await asyncio.gather(*loads, return_exceptions=True)
            for session_id, each in zip(missing, loaded, strict=True):
                match each:
                    case _Known():
                        found[session_id] = each
                    case Exception() if not isinstance(each, Unavailable):
                        poisons.append(_poison(by_session[session_id][0], each))
                    case _:
                        raise each
        return found, poisons

    async def _replay(self, tenant_id: int, first: Row) -> _Known:
        """The state that a session's row follows; for a fork's first row, its parent's."""
        seq = first.first_seq - 1
        if not seq:
            return _Known(tenant_id, fold.initial(first.session_id), new=True)
        async with self._loading:
            parts = await self.replayer.lineage(first.session_id)
            erased = frozenset[UUID]()
            if len(parts) > 1:
                erased = await self.replayer.erased_in(first.session_id)
            state = await self.replayer.structure(first.session_id, seq)
        return _Known(tenant_id, state, new=parts[-1].after == seq, erased=erased)

    # --- what is remembered ---

    def remember(self, changes: Iterable[Change]) -> None:
        """Keep the states of changes that were committed."""
        for change in changes:
            self._drop(change.session_id)
            known = _Known(
                change.tenant_id,
                change.after,
                byte_count=bytes_of(change.after),
                erased=change.erased,
            )
            self._known[change.session_id] = known
            self.remembered_bytes += known.byte_count
        while len(self._known) > 1 and (
            len(self._known) > self._sessions_max or self.remembered_bytes > self._bytes_max
        ):
            self._drop(next(iter(self._known)))

    def forget(self, shard: int) -> None:
        """Drop the states of a shard: others may have gone on with it."""
        shards = self.store.shards
        for session_id in [each for each in self._known if shard_of(each, shards) == shard]:
            self._drop(session_id)

    def _drop(self, session_id: UUID) -> None:
        known = self._known.pop(session_id, None)
        if known is not None:
            self.remembered_bytes -= known.byte_count

    # --- folding ---

    def _advance(
        self, before: SessionState, rows: list[Row]
    ) -> tuple[SessionState, list[RecordedEvent], int, Exception | None]:
        """The state after the rows, the events in it, how many rows that were, what stopped it."""
        if all(row.flags & FRAME for row in rows) and _follow(before.seq, rows):
            last = rows[-1]
            after = msgspec.structs.replace(before, seq=last.seq, updated_at=last.recorded_at)
            return after, [], len(rows), None
        after = fold.copy(before)
        events: list[RecordedEvent] = []
        for done, row in enumerate(rows):
            try:
                self._apply(after, row, events)
            except Exception as error:
                # The state may be half changed: once more, up to the row before.
                state, events, _, _ = (
                    self._advance(before, rows[:done]) if done else (before, [], 0, None)
                )
                return state, events, done, error
        return after, events, len(rows), None

    def _apply(self, state: SessionState, row: Row, events: list[RecordedEvent]) -> None:
        if row.first_seq != state.seq + 1:
            raise ValueError(f"event {row.first_seq} can't follow {state.seq}")
        if row.flags & FRAME:
            state.seq = row.seq
            state.updated_at = row.recorded_at
            return
        events.append(self.replayer.take(state, row))


async def whole_change(
    replayer: Replayer, shard: int, session_id: UUID, *, tenant_id: int, seq: int, position: int
) -> Change:
    """All that a session's rows up to a seq, at a position of its shard's feed, add up to."""
    return Change(
        session_id=session_id,
        shard=shard,
        tenant_id=tenant_id,
        before=None,
        after=await replayer.structure(session_id, seq),
        position=position,
        events=await replayer.own_events(session_id, seq),
    )


def group(rows: list[Row], *, without: set[UUID]) -> dict[UUID, list[Row]]:
    """Rows by session, in order."""
    by_session: dict[UUID, list[Row]] = {}
    for row in rows:
        if row.session_id not in without:
            by_session.setdefault(row.session_id, []).append(row)
    return by_session


def _follow(seq: int, rows: list[Row]) -> bool:
    for row in rows:
        if row.first_seq != seq + 1:
            return False
        seq = row.seq
    return True


def _poison(row: Row, error: Exception) -> Poison:
    return Poison(
        session_id=row.session_id,
        position=row.position,
        seq=row.seq,
        error=f"{type(error).__name__}: {error}",
    )
