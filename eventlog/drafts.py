"""Drafts: events on their way in, with the ids and flags they will be stored under.

What can be said against an append without asking Postgres is said here, before it is queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from eventlog import events as ev
from eventlog.codec import encode_event
from eventlog.envelope import (
    BY_ID,
    SEALS,
    TOMBSTONE,
    Draft,
    closing_id_of,
    derived_id,
    new_unnamed_id,
    opening_id_of,
)
from eventlog.errors import InvalidEvent, InvalidRequest

BATCH_EVENTS_MAX: Final = 1_000
"""Events of one atomic batch."""


def make_batch(
    events: Sequence[ev.StoredEvent], event_id: UUID | None, session_id: UUID, *, bytes_max: int
) -> list[Draft]:
    """Events of one atomic append. Whoever knows the first one's id knows those of the others.

    However the caller names it, a message ends under one id: see `closing_id_of`.
    """
    batch: list[Draft] = []
    for index, event in enumerate(events):
        chosen = derived_id(batch[0].event_id, index) if index else event_id
        if isinstance(event, ev.MessageCompleted | ev.MessageInterrupted):
            chosen = None
        named = event_id is not None
        batch.append(make_draft(event, chosen, session_id, bytes_max=bytes_max, named=named))
    return batch


def make_draft(
    event: ev.StoredEvent,
    event_id: UUID | None,
    session_id: UUID,
    *,
    bytes_max: int,
    named: bool = True,
) -> Draft:
    """An event with its id and bytes, ready to be appended. Raises `InvalidEvent`.

    `named`: the id, if there is one, was chosen by the caller, and is to be unique in the session.
    """
    data = encode_event(event, bytes_max=bytes_max)
    flags = BY_ID if named and event_id is not None else 0
    match event:
        case ev.MessageAdded():
            pass
        case ev.SessionCreated() | ev.TokensAppended():
            raise InvalidEvent(
                f"{type(event).__name__} is appended only by create_session(), fork(), reply()"
            )
        case ev.MessageStarted():
            event_id, flags = opening_id_of(session_id, event.message_id), BY_ID
        case ev.MessageCompleted() | ev.MessageInterrupted() if event_id is None:
            event_id, flags = closing_id_of(session_id, event.message_id), BY_ID
        case ev.SessionClosed():
            flags |= SEALS
        case ev.SessionDeleted():
            flags |= SEALS | TOMBSTONE
        case _:
            pass
    return Draft(event_id or new_unnamed_id(), ev.type_code(event), flags, 1, data)


def check_batch(drafts: list[Draft], *, bytes_max: int) -> None:
    """Raise `InvalidRequest` for events behind the session's end, and for too many bytes."""
    ended = 0
    for draft in drafts:
        if ended and (ended & TOMBSTONE or not draft.flags & TOMBSTONE):
            raise InvalidRequest(
                "session.closed and session.deleted must be the last event of their batch; "
                "nothing may follow them"
            )
        ended |= draft.flags & (SEALS | TOMBSTONE)
    byte_count = sum(len(draft.data) for draft in drafts)
    if byte_count > bytes_max:
        raise InvalidRequest(
            f"a batch of {byte_count:,} bytes; the limit is {bytes_max:,}: split it, or store "
            "large things elsewhere and append references"
        )


def check_seq(seq: object, name: str) -> int:
    """The seq itself; `InvalidRequest` unless it is a whole number from 0 to 2^62."""
    if isinstance(seq, bool) or not isinstance(seq, int) or not 0 <= seq < 2**62:
        raise InvalidRequest(f"{name} must be a seq: a whole number of 0 or more, not {seq!r}")
    return seq


def parse_event_id(text: str) -> UUID:
    """An event id from text; raises `InvalidRequest`."""
    try:
        return UUID(text)
    except (ValueError, AttributeError, TypeError):
        raise InvalidRequest(
            f"event_id {text!r:.80} is not a UUID; make one with uuid.uuid4(), or derive it from "
            "your own key with uuid.uuid5(namespace, key)"
        ) from None
