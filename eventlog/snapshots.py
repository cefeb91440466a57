"""Snapshots: saved folds, so that reading a state costs the tail and not the history.

A snapshot is a state's header, its last few messages, and the keys of the full chunks of messages
before those. Chunks are stored once and shared by all later snapshots; restoring a snapshot doesn't
read them, they are loaded when someone looks inside (`load`), so the context of a long session
costs what is in the context.

For the same reason a header holds the summary that stands in the context and the newest hand-off,
and of those before them only where they were: the log has the rest (`without_earlier`), for readers
of a whole state, or when a summary stands again because a later one was reverted (`with_earlier`).

A snapshot is never trusted: it counts only for the fold version it was made with, every part has a
checksum, and a reader that finds a part missing or damaged reads the log instead.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog.compaction.transitions import compaction_of
from eventlog.entries import CHUNK_LENGTH, Chunk, Entries
from eventlog.errors import Unavailable
from eventlog.events import AgentHandedOff, CompactionCompleted, Event
from eventlog.state import FOLD_VERSION, Compaction, Handoff, SessionHeader, SessionState
from eventlog.store import Part, Snapshot, Store
from eventlog.telemetry import get_logger, metrics

CHUNKS_CACHED_MAX: Final = 20_000
"""Chunks that this process knows, most of them only by key."""
CHUNKS_CACHED_BYTES_MAX: Final = 128 * 1024 * 1024
"""Memory of those that are loaded. One that a state in use refers to lives on with that state."""
SAVES_AT_ONCE_MAX: Final = 1
"""Others wait. So a chunk is stored before another snapshot refers to it, and a reader who leaves
many snapshots behind takes one connection from those who read."""

log = get_logger()
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SessionHeader)


class SnapshotDamaged(Exception):
    """Part of a snapshot is missing or damaged: read the log instead. Internal."""


class Snapshots:
    """Saves and restores the folds of one store."""

    def __init__(
        self,
        store: Store,
        lineage: Callable[[UUID], Awaitable[list[Part]]] | None = None,
        *,
        cached_bytes_max: int = CHUNKS_CACHED_BYTES_MAX,
    ) -> None:
        self._store = store
        self._lineage = lineage
        self._chunks: OrderedDict[int, Chunk] = OrderedDict()
        self._counted: dict[int, int] = {}
        """Bytes of each cached chunk that are part of `cached_bytes`."""
        self.cached_bytes = 0
        self._cached_bytes_max = cached_bytes_max
        self._saving: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(SAVES_AT_ONCE_MAX)

    async def aclose(self) -> None:
        """Wait for snapshots that are being saved."""
        if self._saving:
            await asyncio.gather(*self._saving)

    # --- restoring ---

    async def restore(self, session_id: UUID, at: int) -> SessionState | None:
        """The newest saved state at or before a seq, its full chunks not loaded yet."""
        snapshot = await self._store.load_snapshot(session_id, at, FOLD_VERSION)
        if snapshot is None:
            return None
        try:
            header = _decoder.decode(snapshot.header)
            if header.seq != snapshot.seq:
                raise ValueError(f"the header is that of seq {header.seq}, not {snapshot.seq}")
            chunks = [
                self._chunk(key, first_seq)
                for key, first_seq in zip(snapshot.chunks, snapshot.first_seqs, strict=True)
            ]
            if snapshot.tail:
                tail = Chunk(None, encoded=snapshot.tail)
                tail.changed()
                chunks.append(tail)
        except (msgspec.MsgspecError, ValueError) as error:
            log.warning("snapshot.ignored", session_id=str(session_id), why=str(error))
            return None
        metrics.snapshots_used += 1
        entries = Entries(chunks, event_bytes=len(snapshot.header) + len(snapshot.tail))
        return SessionState(**_fields(header), entries=entries)

    def _chunk(self, key: int, first_seq: int) -> Chunk:
        """The chunk as this process has it, or a stand-in that knows only its key."""
        known = self._chunks.get(key)
        if known is None:
            known = Chunk(None, first_seq=first_seq, count=CHUNK_LENGTH, stored_as=key)
            self._keep(known)
        self._chunks.move_to_end(key)
        return known

    async def load(self, chunks: list[Chunk]) -> None:
        """Read the messages of chunks that are only known by key. Raises `SnapshotDamaged`."""
        wanted = {chunk.stored_as: chunk for chunk in chunks if not chunk.loaded}
        if not wanted:
            return
        for key, data in (await self._store.load_chunks(list(wanted))).items():
            chunk = wanted.pop(key)
            chunk.load(data)
            self._keep(chunk)
        if wanted:
            for key in wanted:
                self._drop(key)
            log.warning("snapshot.ignored", why="chunks are missing or damaged", count=len(wanted))
            raise SnapshotDamaged

    # --- what is remembered ---

    def _keep(self, chunk: Chunk) -> None:
        key = chunk.stored_as
        self._drop(key)
        self._chunks[key] = chunk
        self._counted[key] = chunk.memory_bytes
        self.cached_bytes += self._counted[key]
        while len(self._chunks) > 1 and (
            len(self._chunks) > CHUNKS_CACHED_MAX or self.cached_bytes > self._cached_bytes_max
        ):
            self._drop(next(iter(self._chunks)))

    def _drop(self, key: int) -> None:
        if self._chunks.pop(key, None) is not None:
            self.cached_bytes -= self._counted.pop(key)

    def forget(self) -> None:
        """Drop what is remembered."""
        self._chunks.clear()
        self._counted.clear()
        self.cached_bytes = 0

    # --- saving ---

    def save_soon(self, session_id: UUID, state: SessionState) -> None:
        """Save a state in the background; `state` must not be changed any more."""
        task = asyncio.create_task(self.save(session_id, state))
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)

    async def save(self, session_id: UUID, state: SessionState) -> None:
        """Save a state. When Postgres can't take it now, only speed is lost."""
        async with self._turn:
            snapshot, fresh = _make(state)
            data = {key: chunk.encode() for key, chunk in fresh.items()}
            try:
                parts = [] if self._lineage is None else await self._lineage(session_id)
                continued = [each.session_id for each in parts if each.session_id != session_id]
                kept = await self._store.save_snapshot(
                    session_id, snapshot, data, lineage=continued
                )
            except Unavailable as error:
                log.info("snapshot.not_saved", session_id=str(session_id), error=str(error))
                return
            if not kept:
                log.info("snapshot.not_saved", session_id=str(session_id), error="it was erased")
                return
            metrics.snapshots_saved += 1
            for key, chunk in fresh.items():
                chunk.stored_as = key
                self._keep(chunk)


def _make(state: SessionState) -> tuple[Snapshot, dict[int, Chunk]]:
    """The state as it is stored, and those of its full chunks that are to be stored with it."""
    full = state.entries.chunks
    tail = b""
    if full and full[-1].count < CHUNK_LENGTH:
        tail, full = full[-1].encode(), full[:-1]
    keys = [chunk.stored_as or random.getrandbits(62) + 1 for chunk in full]
    fresh = {key: each for key, each in zip(keys, full, strict=True) if not each.stored_as}
    snapshot = Snapshot(
        seq=state.seq,
        fold_version=FOLD_VERSION,
        header=_encoder.encode(without_earlier(state)),
        tail=tail,
        chunks=keys,
        first_seqs=[chunk.first_seq for chunk in full],
    )
    return snapshot, fresh


def _fields(header: SessionHeader) -> dict[str, Any]:
    return {name: getattr(header, name) for name in SessionHeader.__struct_fields__}


# --- what headers leave in the log ---------------------------------------------------------------


def without_earlier(state: SessionState) -> SessionHeader:
    """The state's header without what earlier compactions and hand-offs said."""
    standing = state.compaction
    left_out = {each.seq for each in state.compactions if each is not standing}
    for each in state.earlier_handoffs:
        if each.context is not None or each.seq in state.left_out:
            left_out.add(each.seq)
    if state.handoff is not None and state.handoff.seq in state.left_out:
        left_out.add(state.handoff.seq)
    header = SessionHeader(**_fields(state))
    header.compactions = [
        each if each is standing else _bare_compaction(each) for each in state.compactions
    ]
    header.earlier_handoffs = [
        msgspec.structs.replace(each, context=None) for each in state.earlier_handoffs
    ]
    header.left_out = frozenset(left_out)
    return header


def with_earlier(
    state: SessionState, events: dict[int, Event], seqs: Collection[int]
) -> SessionState:
    """The state with what it left out at `seqs`, from the events there.

    Raises `SnapshotDamaged` where they are not what the state says they are.
    """

    def compaction(bare: Compaction) -> Compaction:
        if bare.seq not in seqs:
            return bare
        event = events.get(bare.seq)
        if not isinstance(event, CompactionCompleted) or event.to_seq != bare.to_seq:
            raise SnapshotDamaged
        return msgspec.structs.replace(
            compaction_of(bare.seq, event),
            recorded_at=bare.recorded_at,
            reverted_seq=bare.reverted_seq,
        )

    def handoff(bare: Handoff) -> Handoff:
        if bare.seq not in seqs:
            return bare
        event = events.get(bare.seq)
        if not isinstance(event, AgentHandedOff) or event.to_agent != bare.to_agent:
            raise SnapshotDamaged
        return msgspec.structs.replace(bare, context=event.context)

    return msgspec.structs.replace(
        state,
        compactions=[compaction(each) for each in state.compactions],
        earlier_handoffs=[handoff(each) for each in state.earlier_handoffs],
        handoff=None if state.handoff is None else handoff(state.handoff),
        left_out=state.left_out.difference(seqs),
    )


def _bare_compaction(each: Compaction) -> Compaction:
    return Compaction(
        seq=each.seq,
        from_seq=each.from_seq,
        to_seq=each.to_seq,
        recorded_at=each.recorded_at,
        reverted_seq=each.reverted_seq,
    )
