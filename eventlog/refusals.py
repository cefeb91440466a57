"""Statuses of `append` that say no, as the errors that callers get."""

from __future__ import annotations

from eventlog.envelope import ERASED, Row
from eventlog.errors import (
    EventIdReused,
    EventLogError,
    MessageFenced,
    Refused,
    SessionClosed,
    SessionDeleted,
    SessionErased,
    SessionExists,
    SessionNotFound,
    WrongExpectedSeq,
)
from eventlog.store import Answer, Command, Status


def refusal_of(command: Command, answer: Answer) -> EventLogError:
    """Why a command was refused, with the facts that its caller needs."""
    session_id = command.session_id
    match answer.status:
        case Status.ABSENT:
            return SessionNotFound(session_id)
        case Status.EXISTS:
            return SessionExists(session_id)
        case Status.CLOSED:
            return SessionClosed(session_id)
        case Status.DELETED:
            return SessionDeleted(session_id)
        case Status.FENCED:
            return MessageFenced(session_id, command.message_id)
        case Status.CONFLICT:
            return WrongExpectedSeq(session_id, command.expected or 0, answer.head_seq)
        case _:
            return EventLogError(f"append answered {answer.status}")


def refusal_of_ids(command: Command, rows: list[Row]) -> Refused:
    """Why a command can't be stored under its ids, given the rows that have some of them.

    What an erased row said isn't known any more, so nobody can say whether it was the same.
    """
    if any(row.flags & ERASED for row in rows):
        return SessionErased(command.session_id, None)
    ids = [draft.event_id for draft in command.drafts]
    known = {row.event_id for row in rows}
    # The id at fault is one that is stored, or else one that the command itself has twice.
    taken = [each for place, each in enumerate(ids) if each in known or each in ids[:place]]
    return EventIdReused(command.session_id, taken[0] if taken else ids[0])
