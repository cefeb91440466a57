"""Reading a session's past: its events across forks, and its state at any seq or time.

A fork is a session whose first event names a parent and a seq N; its own first event is N + 1. So a
session's history is a chain of parts, each read from the session that holds it (`lineage`).

The state at a seq is the nearest snapshot before it plus the events after that, without token
increments: a message's end carries its text. Only for messages that are open at that seq the
increments are read. While a long tail is folded, snapshots are left behind for the next reader, so
that nobody folds it again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from eventlog import folding as fold
from eventlog.codec import decode_event
from eventlog.entries import ChunkMissing
from eventlog.envelope import FRAME, RecordedEvent, Row, as_frame, expand
from eventlog.errors import InvalidRequest, SessionNotFound
from eventlog.events import SessionCreated
from eventlog.snapshots import SnapshotDamaged, Snapshots
from eventlog.state import SessionState
from eventlog.store import ROWS_PER_PAGE_MAX, Head, Store
from eventlog.telemetry import get_logger

SNAPSHOT_ROWS: Final = 512
"""Structural rows folded since the last snapshot after which another is saved."""
MESSAGES_CACHED_MAX: Final = 300_000
"""Messages in the newest states of sessions that this process keeps. Rows never change: a state of
the past stays right."""
LINEAGES_CACHED_MAX: Final = 20_000
PAGE_BYTES_MIN: Final = 1_000_000
"""A page of history is made smaller than `ROWS_PER_PAGE_MAX` when its rows are large."""

log = get_logger()
Key = TypeVar("Key")
Value = TypeVar("Value")


class Part(msgspec.Struct, frozen=True):
    """Events `after < seq <= until` of a session's history are rows of `session_id`."""

    session_id: UUID
    after: int
    until: int | None


class Page(msgspec.Struct, frozen=True):
    """Some consecutive events. `more`: the next page may hold others right now."""

    events: list[RecordedEvent]
    last_seq: int
    more: bool


class Replayer:
    """Reads and folds the sessions of one store, and remembers what can't change."""

    def __init__(self, store: Store, *, save_snapshots: bool = True) -> None:
        self._store = store
        self._save_snapshots = save_snapshots
        self._lineages: OrderedDict[UUID, list[Part]] = OrderedDict()
        self._states: OrderedDict[UUID, SessionState] = OrderedDict()
        self._messages_kept = 0
        self.snapshots = Snapshots(store)

    async def aclose(self) -> None:
        """Wait for snapshots that are being saved."""
        await self.snapshots.aclose()

    # --- events ---

    async def head(self, session_id: UUID) -> Head | None:
        """The session's last row; None: there is no such session."""
        return (await self._store.heads([session_id])).get(session_id)

    async def lineage(self, session_id: UUID) -> list[Part]:
        """Where the session's history is, oldest part first. Raises `SessionNotFound`."""
        younger: list[Part] = []
        older: list[Part] = []
        part_id: UUID | None = session_id
        until: int | None = None  # where the parts above leave the one that is looked at
        while part_id is not None:
            known = self._lineages.get(part_id)
            if known is not None:
                older = known if until is None else _until(known, until)
                break
            rows = await self._store.read_session(part_id, after=0, until=None, limit=1)
            if not rows:
                raise SessionNotFound(part_id)
            begin = rows[0].first_seq - 1
            if until is None or begin < until:
                younger.append(Part(part_id, begin, until))
            created = decode_event(rows[0].data)
            part_id = None
            if isinstance(created, SessionCreated) and created.parent_session_id is not None:
                part_id = created.parent_session_id
                until = begin if until is None else min(until, begin)
        parts = [*older, *reversed(younger)]
        _remember(self._lineages, session_id, parts, LINEAGES_CACHED_MAX)
        return parts

    async def rows(
        self, session_id: UUID, *, after: int, until: int | None, frames: bool = True
    ) -> AsyncIterator[tuple[list[Row], int | None]]:
        """Pages of rows with `after < seq`, and the seq where the last of them must be cut."""
        for part in await self.lineage(session_id):
            stop = part.until if until is None else min(until, part.until or until)
            cursor = max(after, part.after)
            limit = ROWS_PER_PAGE_MAX
            while stop is None or cursor < stop:
                page = await self._store.read_session(
                    part.session_id, after=cursor, until=stop, limit=limit, frames=frames
                )
                if page:
                    yield page, stop
                if len(page) < limit:
                    break
                cursor = page[-1].seq
                limit = _next_limit(page)

    async def read(
        self, session_id: UUID, *, after: int, until: int | None, frames: bool = False
    ) -> AsyncIterator[RecordedEvent]:
        """Events with `after < seq <= until`; with `frames` one for each stored row.

        Frames are not cut at either end, but where a fork left its parent.
        """
        forks = [part.until for part in await self.lineage(session_id) if part.until is not None]
        async for page, stop in self.rows(session_id, after=after, until=until):
            for row in page:
                if frames:
                    ends = [seq for seq in forks if row.first_seq <= seq < row.seq]
                    yield as_frame(row, until=min(ends, default=row.seq))
                    continue
                for event in expand(row, after=after, until=stop):
                    yield event

    async def read_page(self, session_id: UUID, *, after: int) -> Page:
        """The next page of events after a seq."""
        for part in await self.lineage(session_id):
            if part.until is not None and after >= part.until:
                continue
            rows = await self._store.read_session(
                part.session_id,
                after=max(after, part.after),
                until=part.until,
                limit=ROWS_PER_PAGE_MAX,
            )
            events = [each for row in rows for each in expand(row, after=after, until=part.until)]
            last = events[-1].seq if events else after
            return Page(events, last, part.until is not None or len(rows) == ROWS_PER_PAGE_MAX)
        raise AssertionError("a lineage ends with the session itself")

    # --- states ---

    async def replay(self, session_id: UUID, at: int | datetime | None) -> SessionState:
        """The session's state. `SessionNotFound`; `InvalidRequest` for a seq beyond its end."""
        seq = await self._seq(session_id, at)
        state = await self._state(session_id, seq, whole=True)
        if at is None:
            self._keep(session_id, state)
        return await self._complete(session_id, state, seq)

    async def context_state(self, session_id: UUID, at: int | datetime | None) -> SessionState:
        """The same, good for `context()` only: of older messages just those in it were read."""
        seq = await self._seq(session_id, at)
        state = await self._state(session_id, seq, whole=False)
        if at is None:
            self._keep(session_id, state)
        return state

    async def structure(self, session_id: UUID, at: int) -> SessionState:
        """The state at a seq as the views show it: what open messages received so far left out."""
        return await self._state(session_id, at, whole=True)

    async def _state(self, session_id: UUID, seq: int, *, whole: bool) -> SessionState:
        try:
            base = await self._base(session_id, seq)
            return await self._state_from(session_id, base, seq, whole=whole)
        except SnapshotDamaged:
            self._states.clear()
            self._messages_kept = 0
            return await self._fold_structure(session_id, fold.initial(session_id), seq)

    async def _state_from(
        self, session_id: UUID, base: SessionState, seq: int, *, whole: bool
    ) -> SessionState:
        if whole:
            await self.snapshots.load(base.entries.chunks)
        try:
            state = await self._fold_structure(session_id, base, seq)
        except ChunkMissing:  # an event behind the snapshot concerns an old message
            await self.snapshots.load(base.entries.chunks)
            state = await self._fold_structure(session_id, base, seq)
        if not whole:
            await self.snapshots.load(state.missing_for_context())
        return state

    async def _seq(self, session_id: UUID, at: int | datetime | None) -> int:
        head = await self.head(session_id)
        if head is None:
            raise SessionNotFound(session_id)
        return await self._seq_of(session_id, at, head)

    async def _seq_of(self, session_id: UUID, at: int | datetime | None, head: Head) -> int:
        match at:
            case None:
                return head.seq
            case bool():
                raise InvalidRequest("at must be a seq, an aware datetime or None")
            case int():
                if not 0 <= at <= head.seq:
                    raise InvalidRequest(f"seq {at} is not in 0 to {head.seq}, the session's last")
                return at
            case datetime():
                if at.tzinfo is None:
                    raise InvalidRequest(
                        "at is a datetime without a time zone; use datetime.now(UTC) or the like"
                    )
                return await self.seq_at(session_id, at)

    async def seq_at(self, session_id: UUID, at: datetime) -> int:
        """Seq of the last event recorded at or before a time; 0: the session was not there yet."""
        at_us = round(at.timestamp() * 1_000_000)
        for part in reversed(await self.lineage(session_id)):
            seq = await self._store.seq_at(part.session_id, at_us)
            if seq > part.after:
                return seq if part.until is None else min(seq, part.until)
        return 0

    async def _base(self, session_id: UUID, seq: int) -> SessionState:
        """The newest state at or before `seq` that need not be folded."""
        kept = self._states.get(session_id)
        if kept is not None and kept.seq <= seq and kept.seq + SNAPSHOT_ROWS >= seq:
            return kept
        for part in reversed(await self.lineage(session_id)):
            if part.after >= seq:
                continue
            upto = seq if part.until is None else min(seq, part.until)
            state = await self.snapshots.restore(part.session_id, upto)
            if state is not None:
                return kept if kept is not None and state.seq < kept.seq <= seq else state
        return kept if kept is not None and kept.seq <= seq else fold.initial(session_id)

    async def _fold_structure(self, session_id: UUID, base: SessionState, seq: int) -> SessionState:
        if base.seq == seq and base.session_id == session_id:
            return base
        state = fold.copy(base)
        since_snapshot = 0
        async for page, _ in self.rows(session_id, after=state.seq, until=seq, frames=False):
            for row in page:
                fold.apply(state, as_frame(row))
                since_snapshot += 1
                if since_snapshot == SNAPSHOT_ROWS and self._save_snapshots:
                    since_snapshot = 0
                    # Rows after a fork point belong to the fork, those before to their own session.
                    self.snapshots.save_soon(row.session_id, fold.copy(state))
        if state.seq < seq:
            # What follows the last structural row are increments; their time is the state's time.
            async for page, _ in self.rows(session_id, after=seq - 1, until=seq):
                state.updated_at = page[0].recorded_at
            state.seq = seq
        state.session_id = session_id
        return state

    async def _complete(self, session_id: UUID, state: SessionState, seq: int) -> SessionState:
        """Add what messages that are open at `seq` had received by then."""
        if not state.opened:
            return state
        whole = fold.copy(state)
        start = min(whole.entries[each.index].seq for each in whole.opened.values())
        async for page, stop in self.rows(session_id, after=start, until=seq):
            for row in page:
                if row.flags & FRAME:
                    for recorded in expand(row, until=stop):
                        fold.collect(whole, recorded.event, seq=recorded.seq)
        return whole

    def _keep(self, session_id: UUID, state: SessionState) -> None:
        states = self._states
        if session_id in states:
            self._messages_kept -= len(states[session_id].entries)
        states[session_id] = state
        states.move_to_end(session_id)
        self._messages_kept += len(state.entries)
        while len(states) > 1 and len(states) + self._messages_kept > MESSAGES_CACHED_MAX:
            _, dropped = states.popitem(last=False)
            self._messages_kept -= len(dropped.entries)

    def forget(self) -> None:
        """Drop what is remembered: the log was found to be another, or to have lost its end."""
        self._lineages.clear()
        self._states.clear()
        self._messages_kept = 0
        self.snapshots.forget()


def _until(parts: list[Part], seq: int) -> list[Part]:
    """The parts that hold events up to `seq`."""
    return [
        Part(part.session_id, part.after, seq if part.until is None else min(seq, part.until))
        for part in parts
        if part.after < seq
    ]


def _next_limit(page: list[Row]) -> int:
    average = sum(len(row.data) for row in page) // len(page) + 1
    return max(16, min(ROWS_PER_PAGE_MAX, 8 * PAGE_BYTES_MIN // average))


def _remember(cache: OrderedDict[Key, Value], key: Key, value: Value, most: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > most:
        cache.popitem(last=False)
