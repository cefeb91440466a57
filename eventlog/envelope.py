"""What stands around an event: identities going in, the recorded event coming out, the stored row.

A caller's event becomes a `Draft` (id, type, bytes), a `Command` of one or more drafts is what a
batch is made of, and what comes back from Postgres or Redis is a `Row`. A row holds one event, or,
when it is a frame, a run of token increments; `expand` turns rows into the `RecordedEvent`s that
people read, one for each seq.
"""

from __future__ import annotations

import enum
import os
import struct
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, Literal, NewType
from uuid import UUID

import msgspec
from asyncpg.pgproto.pgproto import UUID as FastUUID  # noqa: N811 - a uuid.UUID made 8 times as fast

from eventlog.codec import decode_event
from eventlog.errors import InvalidRequest
from eventlog.events import (
    Erased,
    Event,
    SessionCreated,
    TokenAppended,
    TokensAppended,
    tag_of_code,
    type_code,
)

Seq = NewType("Seq", int)
"""Number of an event within its session, from 1; 0 stands for the empty session."""
Position = NewType("Position", int)
"""Number of a row within its shard's feed, from 1, without gaps."""
Shard = NewType("Shard", int)

# Column `flags` of the table. Bits are for ever, like type codes.
FRAME: Final = 1
"""The row is a frame of token increments; structural reads skip it."""
BY_ID: Final = 2
"""The row's event id was chosen by a caller (or is derived): it is unique by index."""
SEALS: Final = 4
"""Nothing but a tombstone may follow this row in its session."""
TOMBSTONE: Final = 8
"""Nothing at all may follow this row in its session."""
ERASED: Final = 16
"""The row's content was erased; its `data` is empty, or the link of a fork to its parent."""


SPAN_MAX: Final = 256
"""Increments that one frame holds at most. sql/queries.sql relies on it."""


class ExpectedSeq(enum.Enum):
    """`ANY`: append whatever the session's last seq is."""

    ANY = "any"


ANY: Final = ExpectedSeq.ANY
Expected = int | Literal[ExpectedSeq.ANY]


class RecordedEvent(msgspec.Struct, frozen=True):
    """An event as the log keeps it. `recorded_at` never goes back within a session (UTC)."""

    session_id: UUID
    seq: int
    event_id: UUID
    recorded_at: datetime
    event: Event


class Appended(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to an append: where it stands. `duplicate` when an earlier call had stored it."""

    session_id: UUID
    first_seq: int
    last_seq: int
    position: int
    event_id: UUID
    recorded_at: datetime
    duplicate: bool = False


class Draft(msgspec.Struct, frozen=True, gc=False):
    """One row on its way in."""

    event_id: UUID
    type: int
    flags: int
    span: int
    data: bytes


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row as stored. `seq` is the seq of its last event; `span` how many it holds."""

    position: int
    seq: int
    recorded_us: int
    session_id: UUID
    event_id: UUID
    span: int
    type: int
    flags: int
    data: bytes

    @property
    def first_seq(self) -> int:
        return self.seq - self.span + 1

    @property
    def recorded_at(self) -> datetime:
        return datetime.fromtimestamp(self.recorded_us / 1_000_000, UTC)


_HEADER: Final = struct.Struct(">qqq16s16shhh")
SESSION_IN_HEADER: Final = slice(24, 40)
"""Where the session id stands in a packed row: the hub looks there before it unpacks."""


def pack_row(row: Row) -> bytes:
    """The row as one Redis Streams field: a fixed header, then the event's bytes as stored."""
    return (
        _HEADER.pack(
            row.position,
            row.seq,
            row.recorded_us,
            row.session_id.bytes,
            row.event_id.bytes,
            row.span,
            row.type,
            row.flags,
        )
        + row.data
    )


def unpack_row(packed: bytes) -> Row:
    """The inverse of `pack_row`; raises `struct.error` for anything shorter than a header."""
    position, seq, recorded_us, session, event, span, kind, flags = _HEADER.unpack_from(packed)
    return Row(
        position,
        seq,
        recorded_us,
        FastUUID(session),
        FastUUID(event),
        span,
        kind,
        flags,
        packed[_HEADER.size :],
    )


def expand(row: Row, *, after: int = 0, until: int | None = None) -> list[RecordedEvent]:
    """The row's events with `after < seq <= until`, one for each seq."""
    if row.flags & ERASED:
        return _expand_erased(row, after=after, until=until)
    event = decode_event(row.data)
    recorded_at = row.recorded_at
    if not isinstance(event, TokensAppended):
        if row.seq <= after or (until is not None and row.seq > until):
            return []
        return [RecordedEvent(row.session_id, row.seq, row.event_id, recorded_at, event)]
    session_id, event_id, first = row.session_id, row.event_id, row.first_seq
    message_id, channel, tool = event.message_id, event.channel, event.tool_call_id
    start = max(0, after - first + 1)
    stop = row.span if until is None else min(row.span, until - first + 1)
    return [
        RecordedEvent(
            session_id,
            first + index,
            event_id,
            recorded_at,
            TokenAppended(
                message_id=message_id,
                text=event.texts[index],
                channel=channel,
                tool_call_id=tool,
            ),
        )
        for index in range(start, stop)
    ]


def _expand_erased(row: Row, *, after: int, until: int | None) -> list[RecordedEvent]:
    """One event for each seq, as before; what they said is gone."""
    event = Erased(tag="token.appended") if row.flags & FRAME else _erased(row)
    stop = row.seq if until is None else min(row.seq, until)
    return [
        RecordedEvent(row.session_id, seq, row.event_id, row.recorded_at, event)
        for seq in range(max(after + 1, row.first_seq), stop + 1)
    ]


def _erased(row: Row) -> Erased:
    link = decode_event(row.data) if row.data else None
    if not isinstance(link, SessionCreated):
        return Erased(tag=tag_of_code(row.type))
    return Erased(
        tag=tag_of_code(row.type),
        parent_session_id=link.parent_session_id,
        parent_seq=link.parent_seq,
    )


def as_frame(row: Row, *, until: int | None = None) -> RecordedEvent:
    """The row as one recorded event, frames unexpanded (`seq` is that of its last event)."""
    if row.flags & ERASED:
        seq = row.seq if until is None else min(row.seq, until)
        return RecordedEvent(row.session_id, seq, row.event_id, row.recorded_at, _erased(row))
    event, seq = decode_event(row.data), row.seq
    if until is not None and until < seq and isinstance(event, TokensAppended):
        count, seq = until - row.first_seq + 1, until
        event = msgspec.structs.replace(event, texts=event.texts[:count], ms=event.ms[:count])
    return RecordedEvent(row.session_id, seq, row.event_id, row.recorded_at, event)


def parent_of(first: Row) -> UUID | None:
    """The session that one with this first row continues; None: it is no fork."""
    created = as_frame(first).event
    return created.parent_session_id if isinstance(created, SessionCreated | Erased) else None


def erased_row(row: Row) -> Row:
    """The row as eventlog.erase() leaves it."""
    parent_id = parent_of(row) if row.type == type_code(SessionCreated()) else None
    link = b""
    if parent_id is not None:
        link = b'{"type":"session.created","parent_session_id":"%b","parent_seq":%d}' % (
            str(parent_id).encode(),
            row.first_seq - 1,
        )
    return msgspec.structs.replace(row, flags=row.flags | ERASED, data=link)


# --- identities ----------------------------------------------------------------------------------

_NAMESPACE: Final = UUID("6f1f0a52-6c0e-5d0b-9a53-5f0d7c1b2a10")
_UNNAMED: Final = b"\x8e\x10"


def new_id() -> UUID:
    """A UUIDv7: sortable by time in milliseconds, 74 random bits."""
    value = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    value[6] = 0x70 | value[6] & 0x0F
    value[8] = 0x80 | value[8] & 0x3F
    return FastUUID(bytes(value))


def new_unnamed_id() -> UUID:
    """Id of an event that its caller gave no id: a UUIDv8, laid out like `new_id`.

    Its row is in no index of ids. Whoever appends under such an id has it from `OutcomeUnknown`,
    and is_unnamed() tells that the row must be looked for in another way.
    """
    value = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    value[6], value[7] = _UNNAMED
    value[8] = 0x80 | value[8] & 0x3F
    return FastUUID(bytes(value))


def is_unnamed(event_id: UUID) -> bool:
    """Whether `new_unnamed_id` made it. (Of other UUIDv8s one in 4,096 looks like that as well.)"""
    return event_id.bytes[6:8] == _UNNAMED


def session_id_of(key: str | UUID, tenant_id: int) -> UUID:
    """The session id that a key stands for: a UUID is itself, anything else uuid5 of the tenant.

    A UUID's text is 32 hexadecimal digits, with or without its hyphens. `UUID()` alone would take
    more (`+…`, `0x…`, `…_…`, braces), and keys that differ would meet in one session.
    """
    if isinstance(key, UUID):
        return key
    try:
        parsed = UUID(key)
    except ValueError:
        return _named(_NAMESPACE, f"{tenant_id}:{key}")
    if key.lower() in (str(parsed), parsed.hex):
        return parsed
    return _named(_NAMESPACE, f"{tenant_id}:{key}")


def owner_id_of(user_id: str, tenant_id: int) -> UUID:
    """Fixed-size name of a user, for the index of sessions by user."""
    return _named(_NAMESPACE, f"user:{tenant_id}:{user_id}")


def closing_id_of(session_id: UUID, message_id: str) -> UUID:
    """The one event id under which a streamed message can end.

    Completion, interruption and a fence by another writer all use it, so the log's own rule that
    an id names one event for ever decides who was first, and later frames are refused by looking
    it up.
    """
    return _named(session_id, f"close:{message_id}")


def opening_id_of(session_id: UUID, message_id: str) -> UUID:
    """Event id under which a streamed message starts: no two writers can start the same one."""
    return uuid.uuid5(session_id, f"open:{message_id}")


def derived_id(event_id: UUID, index: int) -> UUID:
    """Event id of the index-th event in a batch that was appended under `event_id`."""
    return event_id if index == 0 else uuid.uuid5(event_id, str(index))


def _named(namespace: UUID, name: str) -> UUID:
    try:
        return uuid.uuid5(namespace, name)
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{name!a} has a lone surrogate, so no UTF-8 form; keys and ids need one"
        ) from None


def shard_of(session_id: UUID, shards: int) -> int:
    """The session's shard: its last two bytes, modulo the number of shards."""
    return (session_id.int & 0xFFFF) % shards


def iterate_pages(rows: list[Row], *, after: int, until: int | None) -> Iterator[RecordedEvent]:
    """Events of consecutive rows of one session, cut at both ends."""
    for row in rows:
        yield from expand(row, after=after, until=until)
