"""The view of messages: one row of eventlog.message_views for each message that a session holds.

Messages of a session's fold that a fork inherited are its parent's, and not here. Rows are found by
the seq of the event that opened the message. What a batch changed is seen by comparing the two
states: they share the chunks of messages that nothing was written to, and within the others the
messages that stayed as they were.

Clearing a session hides everything before it at once. That is not written message by message, but
as a range; so is a rewind to before the clearing. A message that still streams is there without its
text, and hidden ones keep their words in the index: whoever searches leaves them out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog.entries import CHUNK_LENGTH, Entries, Message
from eventlog.envelope import owner_id_of
from eventlog.search.scopes import key_of, owner_scope, session_scope, tenant_scope
from eventlog.search.terms import tsvector_text
from eventlog.search.text import searchable_text
from eventlog.state import SessionState
from eventlog.views import escape_text, micros
from projections.folding import Change
from projections.tables import Tables

BYTES_PER_STATEMENT_MAX: Final = 8 * 1024 * 1024
"""Bodies that one statement writes, about."""
ROWS_PER_STATEMENT_MAX: Final = 5_000
_encode: Final = msgspec.json.Encoder().encode


class MessageViews:
    """Writes what batches change of messages."""

    name = "messages"
    version = 1

    async def write(self, tables: Tables, changes: list[Change]) -> None:
        """Bring the messages of these sessions up to date, inside the caller's transaction."""
        # Increments change no message; of a session that isn't there yet all messages are new.
        changes = [each for each in changes if each.events or each.before is None]
        await tables.write("cut_message_views", [cut for each in changes if (cut := _cut(each))])
        hidings = [hiding for each in changes if (hiding := _hiding(each))]
        await tables.write("hide_message_views", hidings)
        for portion in _portions(row for change in changes for row in _rows(change)):
            await _write(tables, portion)
        gone = [(each.shard, each.session_id) for each in changes if _is_gone(each.after)]
        await tables.write("unsearch_messages", gone)

    async def remove(self, tables: Tables, shard: int, session_id: UUID) -> None:
        """Remove what the view has of a session."""
        await tables.execute("remove_message_views", shard, session_id)


class _Row(msgspec.Struct, frozen=True):
    """A message as it is to be written."""

    place: tuple[int, UUID]
    columns: tuple[Any, ...]
    message: Message
    had_calls: bool


async def _write(tables: Tables, rows: list[_Row]) -> None:
    await tables.write("write_message_views", [(*row.place, *row.columns) for row in rows])
    stale = [(*row.place, row.message.seq) for row in rows if row.had_calls]
    await tables.write("drop_tool_call_views", stale)
    calls = [
        (
            *row.place,
            row.message.seq,
            number,
            key_of(call.id),
            escape_text(call.id),
            escape_text(call.name),
        )
        for row in rows
        for number, call in enumerate(row.message.tool_calls)
    ]
    await tables.write("write_tool_call_views", calls)


def cleared_seq_of(state: SessionState) -> int:
    """Messages up to this seq were cleared away."""
    return state.clears[-1] if state.clears else 0


def changed_places(before: Entries, after: Entries) -> Iterator[tuple[int, Message | None]]:
    """Places of `after`, made from a copy of `before`, that hold something new, and what was there.

    None: nothing, or a message that isn't in the fold any more.
    """
    for number, chunk in enumerate(after.chunks):
        old = before.chunks[number] if number < len(before.chunks) else None
        if old is chunk:
            continue
        old_items = old.items if old is not None else []
        start = number * CHUNK_LENGTH
        for place, message in enumerate(chunk.items):
            known = old_items[place] if place < len(old_items) else None
            if known is not message:
                same = known is not None and known.seq == message.seq
                yield start + place, known if same else None


def _cut(change: Change) -> tuple[int, UUID, int] | None:
    """Behind which seq messages are to be dropped, if a rewind took some out of the fold."""
    if change.before is None or not len(change.before.entries):
        return None
    before, after = change.before.entries, change.after.entries
    if after.at_seq(before[-1].seq) is not None:
        return None
    # A rewind drops an end; what was said since is newer. So the two begin alike, up to a place.
    common = range(min(len(before), len(after)))
    count = bisect_left(common, True, key=lambda place: before[place].seq != after[place].seq)
    return change.shard, change.session_id, before[count - 1].seq if count else 0


def _hiding(change: Change) -> tuple[int, UUID, int, int, int] | None:
    """The range of messages that a clearing hid, or that a rewind to before it shows again."""
    if change.before is None:
        return None
    earlier, now = cleared_seq_of(change.before), cleared_seq_of(change.after)
    if earlier == now:
        return None
    return change.shard, change.session_id, min(earlier, now), max(earlier, now), now


def _is_gone(state: SessionState) -> bool:
    return state.status in ("deleted", "erased")


def _rows(change: Change) -> Iterator[_Row]:
    state = change.after
    before = Entries() if change.before is None else change.before.entries
    cleared, inherited = cleared_seq_of(state), state.parent_seq
    scopes = [session_scope(change.session_id), tenant_scope(change.tenant_id)]
    if state.user_id is not None:
        scopes.append(owner_scope(owner_id_of(state.user_id, change.tenant_id)))
    for place, known in changed_places(before, state.entries):
        message = state.entries[place]
        if message.seq <= inherited:
            continue
        text = "" if _is_gone(state) else searchable_text(message)
        search = tsvector_text(text, scopes) if text else None
        yield _Row(
            (change.shard, change.session_id),
            _columns(message, place, hidden=message.seq <= cleared, search=search),
            message,
            known is not None and bool(known.tool_calls),
        )


def _columns(message: Message, place: int, *, hidden: bool, search: str | None) -> tuple[Any, ...]:
    """The rest of a row, in the order of the query's parameters."""
    answers = message.tool_call_id if message.role == "tool" else None
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
        None if answers is None else key_of(answers),
        search,
        _encode(message),
    )


def _portions(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    portion: list[_Row] = []
    size = 0
    for row in rows:
        portion.append(row)
        size += len(row.columns[-1])
        if size > BYTES_PER_STATEMENT_MAX or len(portion) == ROWS_PER_STATEMENT_MAX:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
