"""Reading a session's past: its events across forks, and its state at any seq or time.

A fork is a session whose first event names a parent and a seq N; its own first event is N + 1. So a
session's history is a chain of parts, each read from the session that holds it (`lineage`).

The state at a seq is the nearest snapshot before it plus the events after that, without token
increments: a message's end carries its text. Only for messages that are open at that seq the
increments are read. While a long tail is folded, snapshots are left behind for the next reader, so
that nobody folds it again.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from eventlog import state as fold
from eventlog.entries import CHUNK_LENGTH, Chunk, Entries
from eventlog.envelope import FRAME, RecordedEvent, Row, as_frame, expand
from eventlog.errors import InvalidRequest, SessionNotFound, Unavailable
from eventlog.events import SessionCreated, decode_event
from eventlog.state import FOLD_VERSION, SessionHeader, SessionState
from eventlog.store import ROWS_PER_PAGE_MAX, Head, Snapshot, Store
from eventlog.telemetry import get_logger, metrics

SNAPSHOT_ROWS: Final = 512
"""Structural rows folded since the last snapshot after which another is saved."""
STATES_CACHED_MAX: Final = 1_000
"""Sessions whose newest folded state this process keeps. Rows never change: it can't be wrong."""
CHUNKS_CACHED_MAX: Final = 4_000
"""Chunks of messages this process keeps, about 1 KB to 100 KB each."""
LINEAGES_CACHED_MAX: Final = 20_000
PAGE_BYTES_MIN: Final = 1_000_000
"""A page of history is made smaller than `ROWS_PER_PAGE_MAX` when its rows are large."""

log = get_logger()
Key = TypeVar("Key")
Value = TypeVar("Value")
_header_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(SessionHeader)


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
        self._chunks: OrderedDict[int, Chunk] = OrderedDict()
        self._saving: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Wait for snapshots that are being saved."""
        if self._saving:
            await asyncio.gather(*self._saving)

    # --- events ---

    async def head(self, session_id: UUID) -> Head | None:
        """The session's last row; None: there is no such session."""
        return (await self._store.heads([session_id])).get(session_id)

    async def lineage(self, session_id: UUID) -> list[Part]:
        """Where the session's history is, oldest part first. Raises `SessionNotFound`."""
        known = self._lineages.get(session_id)
        if known is not None:
            return known
        rows = await self._store.read_session(session_id, after=0, until=None, limit=1)
        if not rows:
            raise SessionNotFound(session_id)
        parts: list[Part] = []
        created = decode_event(rows[0].data)
        if isinstance(created, SessionCreated) and created.parent_session_id is not None:
            parts += _until(await self.lineage(created.parent_session_id), created.parent_seq)
        parts.append(Part(session_id, rows[0].first_seq - 1, None))
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
        """Events with `after < seq <= until`; with `frames` one for each stored row."""
        async for page, stop in self.rows(session_id, after=after, until=until):
            for row in page:
                if frames:
                    yield as_frame(row)
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
            events = [
                each for row in rows for each in expand(row, after=after, until=part.until)
            ]
            last = events[-1].seq if events else after
            return Page(events, last, part.until is not None or len(rows) == ROWS_PER_PAGE_MAX)
        raise AssertionError("a lineage ends with the session itself")

    # --- states ---

    async def replay(self, session_id: UUID, at: int | datetime | None) -> SessionState:
        """The session's state. Raises `SessionNotFound`, `InvalidRequest` for a seq beyond its end."""
        head = await self.head(session_id)
        if head is None:
            raise SessionNotFound(session_id)
        seq = await self._seq_of(session_id, at, head)
        base = await self._base(session_id, seq)
        state = await self._fold_structure(session_id, base, seq)
        if at is None or seq == head.seq:
            self._keep(session_id, state)
        return await self._complete(session_id, state, seq)

    async def structure(self, session_id: UUID, at: int) -> SessionState:
        """The state at a seq as the views show it: what open messages received so far left out."""
        return await self._fold_structure(session_id, await self._base(session_id, at), at)

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
            snapshot = await self._store.load_snapshot(part.session_id, upto, FOLD_VERSION)
            if snapshot is not None and (state := await self._restore(part.session_id, snapshot)):
                metrics.snapshots_used += 1
                if kept is not None and state.seq < kept.seq <= seq:
                    return kept
                return state
        return kept if kept is not None and kept.seq <= seq else fold.initial(session_id)

    async def _fold_structure(
        self, session_id: UUID, base: SessionState, seq: int
    ) -> SessionState:
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
                    self._save(row.session_id, fold.copy(state))
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
                        fold.collect(whole, recorded.event)
        return whole

    # --- snapshots and caches ---

    def _keep(self, session_id: UUID, state: SessionState) -> None:
        _remember(self._states, session_id, state, STATES_CACHED_MAX)

    def forget(self) -> None:
        """Drop what is remembered: the log was found to be another, or to have lost its end."""
        self._lineages.clear()
        self._states.clear()
        self._chunks.clear()

    def _save(self, session_id: UUID, state: SessionState) -> None:
        task = asyncio.create_task(self._save_snapshot(session_id, state))
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)

    async def _save_snapshot(self, session_id: UUID, state: SessionState) -> None:
        full = state.entries.chunks
        tail = b""
        if full and full[-1].count < CHUNK_LENGTH:
            tail, full = full[-1].encode(), full[:-1]
        fresh: dict[int, bytes] = {}
        for chunk in full:
            if not chunk.stored_as:
                chunk.stored_as = random.getrandbits(62) + 1
                fresh[chunk.stored_as] = _pack_chunk(chunk)
                _remember(self._chunks, chunk.stored_as, chunk, CHUNKS_CACHED_MAX)
        header = SessionHeader(
            **{name: getattr(state, name) for name in SessionHeader.__struct_fields__}
        )
        snapshot = Snapshot(
            seq=state.seq,
            fold_version=FOLD_VERSION,
            header=_header_encoder.encode(header),
            tail=tail,
            chunks=[chunk.stored_as for chunk in full],
        )
        try:
            await self._store.save_snapshot(session_id, snapshot, fresh)
            metrics.snapshots_saved += 1
        except Unavailable as error:
            for chunk in full:
                if chunk.stored_as in fresh:
                    chunk.stored_as = 0
            log.info("snapshot.not_saved", session_id=str(session_id), error=str(error))

    async def _restore(self, session_id: UUID, snapshot: Snapshot) -> SessionState | None:
        missing = [key for key in snapshot.chunks if key not in self._chunks]
        loaded = await self._store.load_chunks(missing) if missing else {}
        for key, data in loaded.items():
            _remember(self._chunks, key, _unpack_chunk(key, data), CHUNKS_CACHED_MAX)
        chunks = [self._chunks.get(key) for key in snapshot.chunks]
        try:
            header = _header_decoder.decode(snapshot.header)
            if snapshot.tail:
                tail = Chunk(None, encoded=snapshot.tail)
                tail.changed()
                chunks.append(tail)
        except msgspec.MsgspecError as error:
            log.warning("snapshot.ignored", session_id=str(session_id), why=str(error))
            return None
        whole = [chunk for chunk in chunks if chunk is not None]
        if len(whole) < len(chunks):
            log.warning("snapshot.ignored", session_id=str(session_id), why="a chunk is missing")
            return None
        fields = {name: getattr(header, name) for name in SessionHeader.__struct_fields__}
        return SessionState(**fields, entries=Entries(whole))


def _pack_chunk(chunk: Chunk) -> bytes:
    return chunk.first_seq.to_bytes(8, "big") + chunk.encode()


def _unpack_chunk(key: int, data: bytes) -> Chunk:
    return Chunk(
        None,
        encoded=data[8:],
        first_seq=int.from_bytes(data[:8], "big"),
        count=CHUNK_LENGTH,
        stored_as=key,
    )


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

