"""Every error this library raises on purpose, as one tree under `EventLogError`.

Each call ends in one of three ways, and the classes say which:

- **stored**: it returned;
- **refused** (`Refused`, `Unavailable`): nothing of it is in the log;
- **unknown** (`OutcomeUnknown`): it may be stored; ask again with the same event id to settle it.

The fields carry the facts; the message says what to do.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID


class EventLogError(Exception):
    """Root of all errors raised on purpose."""


# --- refused: nothing was stored -----------------------------------------------------------------


class Refused(EventLogError):
    """The log said no: nothing of this command is stored."""


class InvalidEvent(Refused):
    """An event that can't be stored exactly (NaN, lone surrogate, too deep, too large, …)."""


class InvalidRequest(Refused, ValueError):
    """An argument makes no sense (a seq below 0, an empty batch, an unknown cursor, …)."""


class SessionNotFound(Refused):
    """No such session, for this tenant. Make it with `create_session`."""

    def __init__(self, session: UUID | str) -> None:
        super().__init__(
            f"session {str(session)!r} does not exist; create it with create_session(key=...)"
        )
        self.session = session


class SessionClosed(Refused):
    """The session was closed: it can be read and forked, not appended to."""

    def __init__(self, session_id: UUID) -> None:
        super().__init__(f"session {session_id} is closed; fork it to go on")
        self.session_id = session_id


class SessionDeleted(Refused):
    """The session was deleted: it takes no more events and its key is not used again."""

    def __init__(self, session_id: UUID) -> None:
        super().__init__(f"session {session_id} was deleted; use another key")
        self.session_id = session_id


class SessionErased(SessionDeleted):
    """The session was erased: its events are there, without content. `erased_at` says since when.

    None: it is not over yet.
    """

    def __init__(self, session_id: UUID, erased_at: datetime | None) -> None:
        super().__init__(session_id)
        since = "" if erased_at is None else f" on {erased_at:%Y-%m-%d at %H:%M:%S} UTC"
        self.args = (f"session {session_id} was erased{since}; use another key",)
        self.erased_at = erased_at


class SessionExists(Refused):
    """A session was to be created under an id that another session already has."""

    def __init__(self, session_id: UUID) -> None:
        super().__init__(f"session {session_id} exists already; open it with session(...)")
        self.session_id = session_id


class WrongExpectedSeq(Refused):
    """Someone else appended first: the session's last seq is not what the writer believed."""

    def __init__(self, session_id: UUID, expected: int, actual: int) -> None:
        super().__init__(
            f"session {session_id} is at seq {actual}, not at {expected}; "
            "read what is new, decide again and append with the new seq"
        )
        self.session_id = session_id
        self.expected = expected
        self.actual = actual


class EventIdReused(Refused):
    """The event id already names another event of this session; the first one stays."""

    def __init__(self, session_id: UUID, event_id: UUID) -> None:
        super().__init__(
            f"event id {event_id} already names other content in session {session_id}; "
            "retry with exactly the same events, or use a new id"
        )
        self.session_id = session_id
        self.event_id = event_id


class MessageFenced(Refused):
    """This reply was finished or taken over by someone else: its writer must stop."""

    def __init__(self, session_id: UUID, message_id: str) -> None:
        super().__init__(
            f"message {message_id!r} of session {session_id} was closed by another writer; "
            "stop generating: nothing more of it will be stored"
        )
        self.session_id = session_id
        self.message_id = message_id


# --- not now, or not known -----------------------------------------------------------------------


class Unavailable(EventLogError):
    """Postgres can't be reached or can't write now; nothing of this call is stored. Try later."""


class OutcomeUnknown(EventLogError):
    """The connection was lost and the answer with it: append again with the same event id."""

    def __init__(self, session_id: UUID, event_id: UUID) -> None:
        super().__init__(
            f"it is not known whether event {event_id} of session {session_id} was stored; "
            f"append the same events again with event_id={str(event_id)!r} to find out"
        )
        self.session_id = session_id
        self.event_id = event_id


class CompactionPending(EventLogError):
    """A compaction was asked for, and nobody answered yet."""

    def __init__(self, session_id: UUID, seconds: float) -> None:
        super().__init__(
            f"no compact-worker answered for session {session_id} within {seconds:g} s; it will be "
            "done as soon as one runs (eventlog compact-worker, or eventlog up)"
        )
        self.session_id = session_id


class CorruptEvent(EventLogError):
    """Stored bytes that are no event of any version: the row was damaged outside this library."""


# --- set-up --------------------------------------------------------------------------------------


class SetupError(EventLogError):
    """The environment is not as it must be; the message says what to change."""


class InvalidSetting(SetupError):
    """An environment variable or argument has a value that can't be used."""


class SchemaMismatch(SetupError):
    """The database's schema is missing, older or newer than this version needs."""


class UnsafeServer(SetupError):
    """The Postgres server may lose acknowledged commits (fsync or a sibling is off)."""


class ServerStartFailed(SetupError):
    """An embedded server did not start; the message has the end of its log."""
