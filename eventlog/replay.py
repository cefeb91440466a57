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
from collections.abc import AsyncIterator, Collection
from datetime import datetime
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from eventlog import folding as fold
from eventlog.entries import ChunkMissing
from eventlog.envelope import FRAME, RecordedEvent, Row, as_frame, expand, parent_of
from eventlog.errors import InvalidRequest, SessionNotFound
from eventlog.events import Event
from eventlog.snapshots import SnapshotDamaged, Snapshots, with_earlier
from eventlog.state import SessionState, SummaryMissing
from eventlog.store import ROWS_PER_PAGE_MAX, Head, Part, Store

SNAPSHOT_ROWS: Final = 512
"""Structural rows folded since the last snapshot after which another is saved, by whoever folds
them: readers, also such that read along a few rows at a time, and projectors."""
STATES_CACHED_BYTES_MAX: Final = 256 * 1024 * 1024
"""Memory, about, of the newest states of sessions that this process keeps. Rows never change: a
state of the past stays right."""
STATE_OVERHEAD_BYTES: Final = 3_000
"""Memory of a state that holds nothing, about."""
LINEAGES_CACHED_MAX: Final = 20_000
PAGE_BYTES_MIN: Final = 1_000_000
"""A page of history is made smaller than `ROWS_PER_PAGE_MAX` when its rows are large."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class Page(msgspec.Struct, frozen=True):
    """Some consecutive events. `more`: the next page may hold others right now."""

    events: list[RecordedEvent]
    last_seq: int
    more: bool


class Replayer:
    """Reads and folds the sessions of one store, and remembers what can't change."""

    def __init__(
        self,
        store: Store,
        *,
        save_snapshots: bool = True,
        cached_bytes_max: int = STATES_CACHED_BYTES_MAX,
    ) -> None:
        self._store = store
        self._save_snapshots = save_snapshots
        self._lineages: OrderedDict[UUID, list[Part]] = OrderedDict()
        self._states: OrderedDict[UUID, SessionState] = OrderedDict()
        self._counted: dict[UUID, int] = {}
        """Bytes of each cached state that are part of `cached_bytes`."""
        self._void: dict[UUID, frozenset[UUID]] = {}
        """Of each cached state the sessions in it that were erased before it was read."""
        self.cached_bytes = 0
        self._cached_bytes_max = cached_bytes_max
        self.snapshots = Snapshots(store, self.lineage)

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
            part_id = parent_of(rows[0])
            if part_id is not None:
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

    async def own_events(self, session_id: UUID, until: int) -> list[RecordedEvent]:
        """What happened in the session itself up to a seq, token increments left out."""
        after = (await self.lineage(session_id))[-1].after
        pages = self.rows(session_id, after=after, until=until, frames=False)
        return [as_frame(row) async for page, _ in pages for row in page]

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
        head, erased = await self._observe(session_id)
        seq = await self._seq_of(session_id, at, head)
        state = await self._state(session_id, seq, erased, whole=True)
        if at is None:
            self._keep(session_id, state, erased)
        return await self._complete(session_id, state, seq)

    async def context_state(
        self, session_id: UUID, at: int | datetime | None, *, head: Head | None = None
    ) -> SessionState:
        """The same, good for `context()` only: of older messages just those in it were read.

        `head`: the session's last row, when the caller has just looked it up.
        """
        head, erased = await self._observe(session_id, head)
        seq = await self._seq_of(session_id, at, head)
        state = await self._state(session_id, seq, erased, whole=False)
        if at is None:
            self._keep(session_id, state, erased)
        return state

    def keeps(self, session_id: UUID) -> bool:
        """Whether this process has folded the session before, and needs only what came since."""
        return session_id in self._states

    async def structure(self, session_id: UUID, at: int) -> SessionState:
        """The state at a seq as the views show it: what open messages received so far left out."""
        _, erased = await self._observe(session_id)
        return await self._state(session_id, at, erased, whole=True)

    async def erased_in(self, session_id: UUID) -> frozenset[UUID]:
        """Sessions of this one's history that are erased: the session itself, or what it forked."""
        return (await self._observe(session_id))[1]

    async def _observe(
        self, session_id: UUID, head: Head | None = None
    ) -> tuple[Head, frozenset[UUID]]:
        """The session's last row, and `erased_in`. Raises `SessionNotFound`."""
        heads = {} if head is None else {session_id: head}
        asked = [part.session_id for part in await self.lineage(session_id)]
        unknown = [each for each in asked if each not in heads]
        if unknown:
            heads.update(await self._store.heads(unknown))
        if session_id not in heads:
            raise SessionNotFound(session_id)
        return heads[session_id], frozenset(each for each, last in heads.items() if last.erased)

    async def _state(
        self, session_id: UUID, seq: int, erased: frozenset[UUID], *, whole: bool
    ) -> SessionState:
        try:
            base = await self._base(session_id, seq, erased)
            return await self._state_from(session_id, base, seq, whole=whole)
        except SnapshotDamaged:
            self._forget_states()
            return await self._fold_structure(session_id, fold.initial(session_id), seq)

    async def _state_from(
        self, session_id: UUID, base: SessionState, seq: int, *, whole: bool
    ) -> SessionState:
        if whole:
            await self.snapshots.load(base.entries.chunks)
            base = await self.recall(session_id, base, base.left_out)
        loaded = False
        while True:  # each time round more of `base` is there
            try:
                state = await self._fold_structure(session_id, base, seq)
                if not whole:
                    await self.snapshots.load(state.missing_for_context())
                return state
            except ChunkMissing as missing:
                # An event behind the snapshot concerns old messages: a compaction those that it
                # keeps, which are loaded; a rewind may concern all, and asks again.
                chunks = base.entries.chunks
                wanted = [each for each in chunks if loaded or each.stored_as in missing.keys]
                await self.snapshots.load(wanted)
                loaded = True
            except SummaryMissing as missing:  # it undoes the newest compaction
                base = await self.recall(session_id, base, {missing.seq})

    async def recall(
        self, session_id: UUID, state: SessionState, seqs: Collection[int]
    ) -> SessionState:
        """The state with what its snapshot left in the log at these seqs."""
        if not seqs:
            return state
        events: dict[int, Event] = {}
        for part in await self.lineage(session_id):
            until = part.until or state.seq
            here = [seq for seq in seqs if part.after < seq <= until]
            if here:
                rows = await self._store.read_seqs(part.session_id, here)
                events.update((row.seq, as_frame(row).event) for row in rows)
        return with_earlier(state, events, seqs)

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

    async def _base(self, session_id: UUID, seq: int, erased: frozenset[UUID]) -> SessionState:
        """The newest state at or before `seq` that need not be folded."""
        # What was folded before an erasure is void; the store has no snapshot of that time either.
        kept = self._states.get(session_id) if self._void.get(session_id) == erased else None
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
        async for page, _ in self.rows(session_id, after=state.seq, until=seq, frames=False):
            for row in page:
                self.take(state, row)
        if state.seq < seq:
            # What follows the last structural row are increments; their time is the state's time.
            async for page, _ in self.rows(session_id, after=seq - 1, until=seq):
                state.updated_at = page[0].recorded_at
            state.seq = seq
        state.session_id = session_id
        return state

    def take(self, state: SessionState, row: Row) -> RecordedEvent:
        """Fold the next row that is no frame into one's own state; now and then save a snapshot."""
        recorded = as_frame(row)
        fold.apply(state, recorded)
        entries = state.entries
        entries.event_bytes += len(row.data)
        entries.unsaved_rows += 1
        if entries.unsaved_rows >= SNAPSHOT_ROWS and self._save_snapshots:
            entries.unsaved_rows = 0
            # Rows after a fork point belong to the fork, those before to their own session.
            self.snapshots.save_soon(row.session_id, fold.copy(state))
        return recorded

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

    def _keep(self, session_id: UUID, state: SessionState, erased: frozenset[UUID]) -> None:
        states = self._states
        self.cached_bytes -= self._counted.pop(session_id, 0)
        self._void[session_id] = erased
        states[session_id] = state
        states.move_to_end(session_id)
        self._counted[session_id] = bytes_of(state)
        self.cached_bytes += self._counted[session_id]
        while len(states) > 1 and self.cached_bytes > self._cached_bytes_max:
            dropped, _ = states.popitem(last=False)
            self.cached_bytes -= self._counted.pop(dropped)
            del self._void[dropped]

    def forget(self) -> None:
        """Drop what is remembered: the log was found to be another, or to have lost its end."""
        self._lineages.clear()
        self._forget_states()
        self.snapshots.forget()

    def _forget_states(self) -> None:
        self._states.clear()
        self._counted.clear()
        self._void.clear()
        self.cached_bytes = 0


def bytes_of(state: SessionState) -> int:
    """What a state that was folded from rows takes in memory, about."""
    return STATE_OVERHEAD_BYTES + state.entries.memory_bytes


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
