"""What an event log needs from the place its rows are kept in: one interface, two implementations.

`postgres.PostgresStore` is the truth; `memory.MemoryStore` keeps the same promises in one process,
for tests and examples. Everything above (batcher, replies, replay, subscriptions, projections) is
written against this interface and behaves the same on both.
"""

from __future__ import annotations

import asyncio
import enum
import struct
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol
from uuid import UUID

import msgspec

from eventlog.envelope import BY_ID, ERASED, SEALS, TOMBSTONE, Draft, Row
from eventlog.erasing.record import Erasure, ErasureStatus
from eventlog.reading.view_store import ViewStore
from eventlog.views import SessionView


class Status(enum.IntEnum):
    """Verdict of `append` on one command; the numbers are those of the SQL function."""

    OK = 0
    ABSENT = 1
    EXISTS = 2
    CONFLICT = 3
    KNOWN = 4
    FENCED = 5
    CLOSED = 6
    DELETED = 7


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What became of one command. The last three fields are set when it is `OK`."""

    status: int
    head_seq: int
    before_seq: int
    first_position: int
    recorded_us: int


class Head(msgspec.Struct, frozen=True, gc=False):
    """Last row of a session."""

    seq: int
    recorded_us: int
    flags: int

    @property
    def deleted(self) -> bool:
        return bool(self.flags & TOMBSTONE)

    @property
    def closed(self) -> bool:
        return bool(self.flags & SEALS)

    @property
    def erased(self) -> bool:
        """All rows of the session are: the tombstone is the last to say so."""
        return bool(self.flags & ERASED)


class Part(msgspec.Struct, frozen=True):
    """Events `after < seq <= until` of a session's history are rows of `session_id`."""

    session_id: UUID
    after: int
    until: int | None


class Seen:
    """What an appender knows of a shard from its own last append there."""

    __slots__ = ("position", "recorded_us", "seqs")

    def __init__(self) -> None:
        self.position = 0
        self.recorded_us = 0
        self.seqs: dict[UUID, int] = {}
        """Last seqs of sessions, true as long as `position` is the shard's last."""


NOTHING_SEEN: Final = Seen()


class Command:
    """Rows to be appended to one session, all or none, and the conditions for it."""

    __slots__ = (
        "base",
        "byte_count",
        "deadline",
        "drafts",
        "exclusive",
        "expected",
        "future",
        "ids",
        "known",
        "message_id",
        "outcome",
        "owner_id",
        "retry_after",
        "seen",
        "seen_seq",
        "sent",
        "session_id",
        "shard",
        "span",
        "tombstone",
        "unless",
    )

    def __init__(
        self,
        session_id: UUID,
        shard: int,
        drafts: list[Draft],
        *,
        expected: int | None = None,
        base: int | None = None,
        owner_id: UUID | None = None,
        unless: UUID | None = None,
        message_id: str = "",
    ) -> None:
        self.session_id = session_id
        self.shard = shard
        self.drafts = drafts
        self.expected = expected
        """Last seq the session must have; None: any."""
        self.base = base
        """For a session to be created: the seq before its first event; None otherwise."""
        self.owner_id = owner_id
        self.unless = unless
        """Event id whose presence refuses the command: the end of the message it belongs to."""
        self.message_id = message_id
        self.ids = [draft.event_id for draft in drafts if draft.flags & BY_ID]
        """Event ids that are unique in their session."""
        self.known = self.ids[0] if self.ids else None
        """The one of them that is looked for before anything else: a retry is known by it."""
        flags = byte_count = span = 0
        for draft in drafts:
            flags |= draft.flags
            byte_count += len(draft.data)
            span += draft.span
        self.span = span
        self.byte_count = byte_count
        self.tombstone = bool(flags & TOMBSTONE)
        self.exclusive = base is not None or bool(flags & (SEALS | TOMBSTONE))
        """Later commands of the session must wait until this one is committed."""
        self.sent = False
        """It was part of a call whose answer was lost: it may be stored already."""
        self.seen = NOTHING_SEEN
        """What is known of the shard."""
        self.seen_seq = 0
        """The session's last seq when the shard was like that; 0: not known."""
        self.retry_after = 0
        """If it was sent and stored, its rows are behind this seq."""
        self.outcome: Answer | Row | BaseException | None = None
        """What became of it, whether or not anyone waits for it; None: not known yet."""
        self.deadline = 0.0
        self.future: asyncio.Future[Answer | Row]


class Identity(msgspec.Struct, frozen=True):
    """Which log this is. `epoch` changes when the log may have lost its end."""

    log_id: UUID
    epoch: str
    shards: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A saved fold: the state's header, and the chunks of messages it refers to."""

    seq: int
    fold_version: int
    header: bytes
    tail: bytes
    """The last, partly filled chunk."""
    chunks: list[int]
    """Keys of the full chunks, in order."""
    first_seqs: list[int]
    """Seq of the first message in each of them."""

    def checksum(self, session_id: UUID) -> int:
        """Of everything in it, and whose it is: that of another session doesn't fit."""
        numbers = [self.seq, self.fold_version, *self.chunks, *self.first_seqs]
        packed = struct.pack(f">{len(numbers)}q", *numbers)
        return _checksum(session_id.bytes, packed, self.header, self.tail)


def chunk_checksum(key: int, messages: bytes) -> int:
    """Of a chunk's messages, and its key: what is stored under another key doesn't fit."""
    return _checksum(struct.pack(">q", key), messages)


def _checksum(*parts: bytes) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value - 2**31  # into the range of Postgres' int


class ConnectionLost(Exception):
    """The connection broke while a call was under way: its outcome is unknown. Internal."""


class IdTaken(Exception):
    """An event id other than the first is in the log already, or twice in the call. Internal.

    Nothing of the call was stored.
    """


class Busy(Exception):
    """Postgres could not run the call now (lock timeout, no room, shutting down). Internal.

    Nothing of it was stored.
    """


Commit = Callable[[Command], Awaitable[Answer]]


class Store(Protocol):
    """Rows in, rows out. Every method may raise `Unavailable`."""

    shards: int
    tenant_id: int
    tables: ViewStore
    """The views, for those who ask more of them than one session's card."""

    async def commit(self, lane: int, commands: list[Command]) -> list[Answer]:
        """Append in one transaction; an answer for each command, in order.

        Raises `ConnectionLost` (outcome unknown), `Busy` (nothing stored), or any other exception,
        `IdTaken` among them, for a call that was refused as a whole (nothing stored).
        """
        ...

    def exclusively(self, shard: int) -> AbstractAsyncContextManager[Commit]:
        """Keep everybody else from appending to a shard, to read and then append; in short.

        The function appends one command; what it appended is committed when the block ends.
        Raises `ConnectionLost` when it isn't known whether that worked.
        """
        ...

    async def read_session(
        self, session_id: UUID, *, after: int, until: int | None, limit: int, frames: bool = True
    ) -> list[Row]:
        """Rows with `seq > after` by seq, at most `limit`, up to the row that holds `until`.

        `frames=False` leaves frames out.
        """
        ...

    async def read_seqs(self, session_id: UUID, seqs: list[int]) -> list[Row]:
        """Rows that end with one of these seqs, in any order."""
        ...

    async def read_ids(
        self, session_id: UUID, event_ids: list[UUID], *, after: int | None
    ) -> list[Row]:
        """Rows with one of the ids: those unique by id and, with `after`, any behind that seq."""
        ...

    async def heads(self, session_ids: list[UUID]) -> dict[UUID, Head]:
        """Last row of each session that exists."""
        ...

    async def tenant_of(self, session_id: UUID) -> int | None:
        """The tenant that a session belongs to; None: there is no such session."""
        ...

    async def seq_at(self, session_id: UUID, at_us: int) -> int:
        """Seq of the last event recorded at or before a time (µs since 1970); 0: none."""
        ...

    async def read_feed(self, shard: int, *, after: int, limit: int) -> list[Row]:
        """Rows of a shard with `position > after`, in order."""
        ...

    async def feed_heads(self) -> list[int]:
        """Last position of every shard; 0: empty."""
        ...

    async def sessions_of(self, owner_id: UUID) -> list[UUID]:
        """Sessions created for this user."""
        ...

    async def owned(self, owner_id: UUID, session_ids: list[UUID]) -> set[UUID]:
        """Those of `session_ids` that were created for this user."""
        ...

    async def session_view(self, session_id: UUID) -> SessionView | None:
        """What the projector last wrote of a session; None: nothing yet."""
        ...

    async def identity(self) -> Identity:
        """Which log this is, now."""
        ...

    async def raise_epoch(self, seen: str) -> None:
        """Leave every copy in Redis behind, unless the epoch is no longer `seen`."""
        ...

    async def load_snapshot(self, session_id: UUID, at: int, fold_version: int) -> Snapshot | None:
        """Newest usable snapshot with `seq <= at`."""
        ...

    async def load_chunks(self, keys: list[int]) -> dict[int, bytes]:
        """Stored chunks of messages; damaged or missing ones are left out."""
        ...

    async def save_snapshot(
        self,
        session_id: UUID,
        snapshot: Snapshot,
        chunks: dict[int, bytes],
        *,
        lineage: Sequence[UUID] = (),
    ) -> bool:
        """Keep a snapshot and the chunks that aren't stored yet.

        `lineage`: the sessions that this one continues. False: it was not kept, because one of them
        or the session itself was erased, or is being erased.
        """
        ...

    async def erase(
        self, session_id: UUID, *, reason: str | None, requested_by: str | None
    ) -> ErasureStatus:
        """Erase some more of a session that ends with a tombstone; call it until it is `DONE`."""
        ...

    async def erasures_of(self, session_ids: Sequence[UUID]) -> dict[UUID, Erasure]:
        """Records of those of the sessions whose erasure has begun."""
        ...

    async def erasures(self, *, after: tuple[int, UUID], limit: int) -> list[Erasure]:
        """Records of this tenant, oldest first, after a `begun_us` and session."""
        ...

    async def erased_since(self, at_us: int) -> list[tuple[UUID, int]]:
        """Sessions whose erasure ended after a time, and when, oldest first; of any tenant."""
        ...

    async def forks_of(self, session_ids: Sequence[UUID]) -> set[UUID]:
        """Sessions that directly continue one of these."""
        ...

    async def aclose(self) -> None:
        """Give back connections. Calls under way end in `Unavailable` or `ConnectionLost`."""
        ...


ROWS_PER_PAGE_MAX: Final = 1_000
"""Rows that one read asks for at most."""
