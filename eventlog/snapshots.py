"""Snapshots: saved folds, so that reading a state costs the tail and not the history.

A snapshot is a state's header, its last few messages, and the keys of the full chunks of messages
before those. Chunks are stored once and shared by all later snapshots; restoring a snapshot doesn't
read them, they are loaded when someone looks inside (`load`), so the context of a long session
costs what is in the context.

A snapshot is never trusted: it counts only for the fold version it was made with, every part has a
checksum, and a reader that finds a part missing or damaged reads the log instead.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from typing import Final
from uuid import UUID

import msgspec

from eventlog.entries import CHUNK_LENGTH, Chunk, Entries
from eventlog.errors import Unavailable
from eventlog.state import FOLD_VERSION, SessionHeader, SessionState
from eventlog.store import Snapshot, Store
from eventlog.telemetry import get_logger, metrics

CHUNKS_CACHED_MAX: Final = 4_000
"""Chunks of messages this process keeps, about 10 KB to 1 MB each."""

log = get_logger()
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SessionHeader)


class SnapshotDamaged(Exception):
    """Part of a snapshot is missing or damaged: read the log instead. Internal."""


class Snapshots:
    """Saves and restores the folds of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._chunks: OrderedDict[int, Chunk] = OrderedDict()
        self._saving: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Wait for snapshots that are being saved."""
        if self._saving:
            await asyncio.gather(*self._saving)

    async def restore(self, session_id: UUID, at: int) -> SessionState | None:
        """The newest saved state at or before a seq, its full chunks not loaded yet."""
        snapshot = await self._store.load_snapshot(session_id, at, FOLD_VERSION)
        if snapshot is None:
            return None
        try:
            header = _decoder.decode(snapshot.header)
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
        fields = {name: getattr(header, name) for name in SessionHeader.__struct_fields__}
        return SessionState(**fields, entries=Entries(chunks))

    def _chunk(self, key: int, first_seq: int) -> Chunk:
        """The chunk as this process has it, or a stand-in that knows only its key."""
        known = self._chunks.get(key)
        if known is None:
            known = Chunk(None, first_seq=first_seq, count=CHUNK_LENGTH, stored_as=key)
            self._keep(known)
        return known

    def _keep(self, chunk: Chunk) -> None:
        self._chunks[chunk.stored_as] = chunk
        self._chunks.move_to_end(chunk.stored_as)
        while len(self._chunks) > CHUNKS_CACHED_MAX:
            self._chunks.popitem(last=False)

    async def load(self, chunks: list[Chunk]) -> None:
        """Read the messages of chunks that are only known by key. Raises `SnapshotDamaged`."""
        wanted = {chunk.stored_as: chunk for chunk in chunks if not chunk.loaded}
        if not wanted:
            return
        for key, data in (await self._store.load_chunks(list(wanted))).items():
            wanted.pop(key).load(data)
        if wanted:
            for key in wanted:
                self._chunks.pop(key, None)
            log.warning("snapshot.ignored", why="chunks are missing or damaged", count=len(wanted))
            raise SnapshotDamaged

    def forget(self) -> None:
        """Drop what is remembered."""
        self._chunks.clear()

    def save_soon(self, session_id: UUID, state: SessionState) -> None:
        """Save a state in the background; `state` must not be changed any more."""
        task = asyncio.create_task(self.save(session_id, state))
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)

    async def save(self, session_id: UUID, state: SessionState) -> None:
        """Save a state. When Postgres can't take it now, only speed is lost."""
        full = state.entries.chunks
        tail = b""
        if full and full[-1].count < CHUNK_LENGTH:
            tail, full = full[-1].encode(), full[:-1]
        fresh: dict[int, bytes] = {}
        for chunk in full:
            if not chunk.stored_as:
                data = chunk.encode()
                chunk.stored_as = random.getrandbits(62) + 1
                fresh[chunk.stored_as] = data
        header = SessionHeader(
            **{name: getattr(state, name) for name in SessionHeader.__struct_fields__}
        )
        snapshot = Snapshot(
            seq=state.seq,
            fold_version=FOLD_VERSION,
            header=_encoder.encode(header),
            tail=tail,
            chunks=[chunk.stored_as for chunk in full],
            first_seqs=[chunk.first_seq for chunk in full],
        )
        try:
            await self._store.save_snapshot(session_id, snapshot, fresh)
        except Unavailable as error:
            for chunk in full:
                if chunk.stored_as in fresh:
                    chunk.stored_as = 0
            log.info("snapshot.not_saved", session_id=str(session_id), error=str(error))
            return
        metrics.snapshots_saved += 1
        for chunk in full:
            self._keep(chunk)
