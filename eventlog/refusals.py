"""Statuses of `append` that say no, as the errors that callers get."""

from __future__ import annotations

from eventlog.errors import (
    EventLogError,
    MessageFenced,
    SessionClosed,
    SessionDeleted,
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
