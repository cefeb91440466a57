"""Messages that a search found: where they are, what they say, and why they were found.

Newest first, by the time when the message was opened, the session's id and the seq: an order in
which nothing moves. A message is found where it was said; what a fork inherited is its parent's.
`matching` searches a state, the query `search_messages` the view's rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from eventlog.entries import Message
from eventlog.events import Role
from eventlog.search.query import Query
from eventlog.search.snippets import Snippet
from eventlog.search.text import searchable_text
from eventlog.state import SessionState
from eventlog.views import LISTED, micros

HITS_MAX: Final = 200
"""Hits on one page."""
HITS_USUAL: Final = 20
HitPlace = tuple[int, UUID, int]
"""A place among all messages: when it was opened in µs since 1970, its session, its seq."""
BEFORE_ALL: Final[HitPlace] = (2**53, UUID(int=2**128 - 1), 2**62)
"""The place before the newest message; as late as Postgres and datetimes can go together."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Hit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message that was found. `session_title` and `session_key` are the session's now."""

    session_id: UUID
    seq: int
    """Seq of the event that opened the message."""
    message_id: str
    role: Role
    agent: str | None = None
    recorded_at: datetime
    snippet: Snippet
    """The part of its text that shows best why it was found, with highlights."""
    session_title: str | None = None
    session_key: str | None = None


class SearchPage(msgspec.Struct, frozen=True):
    """Some hits, newest first, and the cursor for those before; None: these were the last."""

    items: list[Hit]
    cursor: str | None


class SearchFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which messages of a tenant are searched."""

    query: Query
    user_id: str | None = None
    session_id: UUID | None = None
    roles: tuple[Role, ...] | None = None
    agent: str | None = None
    since_us: int = 0
    until_us: int = BEFORE_ALL[0]
    before: HitPlace = BEFORE_ALL
    limit: int
    without: frozenset[UUID] = frozenset()
    """Sessions of which the asker knows better."""


class Found(msgspec.Struct, frozen=True):
    """A message that was found, before it is known whether it is on the page."""

    session_id: UUID
    message: Message
    title: str | None
    key: str | None

    @property
    def place(self) -> HitPlace:
        """Where it stands among all messages."""
        return micros(self.message.recorded_at), self.session_id, self.message.seq

    def as_hit(self, query: Query) -> Hit:
        """What the caller gets."""
        message = self.message
        return Hit(
            session_id=self.session_id,
            seq=message.seq,
            message_id=message.message_id,
            role=message.role,
            agent=message.agent,
            recorded_at=message.recorded_at,
            snippet=query.snippet(searchable_text(message)),
            session_title=self.title,
            session_key=self.key,
        )


def matching(
    state: SessionState, wanted: SearchFilter, *, inherited: bool = False
) -> Iterator[Found]:
    """Messages of a state that are wanted, newest first: its own, or those it inherited."""
    if state.status not in LISTED or wanted.user_id not in (None, state.user_id):
        return
    for message in reversed(state.messages):
        if (message.seq <= state.parent_seq) is not inherited:
            continue
        if wanted.roles is not None and message.role not in wanted.roles:
            continue
        if wanted.agent is not None and message.agent != wanted.agent:
            continue
        found = Found(state.session_id, message, state.title, state.key)
        if (
            found.place < wanted.before
            and wanted.since_us <= found.place[0] < wanted.until_us
            and wanted.query.matches(searchable_text(message))
        ):
            yield found


def at_us(us: int) -> datetime:
    """A time from whole µs since 1970."""
    return _EPOCH + timedelta(microseconds=us)
