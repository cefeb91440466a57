"""The view of messages: one row of eventlog.message_views for each message of a session's fold.

Rows are found by their place in the fold (`ordinal`), which never changes while a message is there.
What a batch changed is seen by comparing the two states: they share the chunks of messages that
nothing was written to, and within the others the messages that stayed as they were.

Clearing a session hides everything before it at once. That is not written message by message, but
as a range; so is a rewind to before the clearing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from eventlog.entries import CHUNK_LENGTH, Entries, Message
from eventlog.state import SessionState
from eventlog.views import escape_text, micros
from projections.columns import write_rows
from projections.folding import Change

BYTES_PER_STATEMENT_MAX: Final = 8 * 1024 * 1024
"""Bodies that one statement writes, about: a fork of a long session brings all its messages."""
ROWS_PER_STATEMENT_MAX: Final = 5_000
_encode: Final = msgspec.json.Encoder().encode


class MessageViews:
    """Writes what batches change of messages."""

    async def write(self, connection: asyncpg.Connection[Any], changes: list[Change]) -> None:
        """Bring the messages of these sessions up to date, inside the caller's transaction."""
        # Increments change no message; of a session that isn't there yet all messages are new.
        changes = [each for each in changes if each.events or each.before is None]
        cuts = [each for each in map(_cut, changes) if each is not None]
        await write_rows(connection, "cut_message_views", cuts)
        hidings = [each for each in map(_hiding, changes) if each is not None]
        await write_rows(connection, "hide_message_views", hidings)
        for rows in _portions(each for change in changes for each in _rows(change)):
            await write_rows(connection, "write_message_views", rows)

    async def remove(
        self, connection: asyncpg.Connection[Any], shard: int, session_id: UUID
    ) -> None:
        """Remove what the view has of a session."""
        await write_rows(connection, "cut_message_views", [(shard, session_id, 0)])


def first_shown(state: SessionState) -> int:
    """Place of the first message that was not cleared away."""
    return state.entries.index_after(state.clears[-1]) if state.clears else 0


def changed_places(before: Entries, after: Entries) -> Iterator[int]:
    """Places of `after`, made from a copy of `before`, with another message or a new one."""
    for number, chunk in enumerate(after.chunks):
        old = before.chunks[number] if number < len(before.chunks) else None
        if old is chunk:
            continue
        old_items = old.items if old is not None else []
        start = number * CHUNK_LENGTH
        for place, message in enumerate(chunk.items):
            if place >= len(old_items) or old_items[place] is not message:
                yield start + place


def _cut(change: Change) -> tuple[int, UUID, int] | None:
    """What to drop: messages beyond the end, if there may have been some."""
    length = len(change.after.entries)
    if change.before is None or length >= len(change.before.entries):
        return None
    return change.shard, change.session_id, length


def _hiding(change: Change) -> tuple[int, UUID, int, int, int] | None:
    """The range of messages that a clearing hid, or that a rewind to before it shows again."""
    if change.before is None:
        return None
    earlier, now = first_shown(change.before), first_shown(change.after)
    if earlier == now:
        return None
    return change.shard, change.session_id, min(earlier, now), max(earlier, now), now


def _rows(change: Change) -> Iterator[tuple[Any, ...]]:
    before = Entries() if change.before is None else change.before.entries
    after = change.after.entries
    shown = first_shown(change.after)
    for place in changed_places(before, after):
        message = after[place]
        yield (change.shard, change.session_id, *_columns(message, place, hidden=place < shown))


def _columns(message: Message, place: int, *, hidden: bool) -> tuple[Any, ...]:
    """The rest of a row, in the order of the query's parameters."""
    return (
        place,
        message.seq,
        message.closed_seq,
        message.retracted_seq,
        micros(message.recorded_at),
        message.token_count,
        hidden or bool(message.retracted_seq),
        message.status,
        message.role,
        escape_text(message.message_id),
        None if message.agent is None else escape_text(message.agent),
        None if message.name is None else escape_text(message.name),
        _encode(message),
    )


def _portions(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    portion: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        portion.append(row)
        size += len(row[-1])
        if size > BYTES_PER_STATEMENT_MAX or len(portion) == ROWS_PER_STATEMENT_MAX:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
