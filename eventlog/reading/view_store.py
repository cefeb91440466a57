"""What the read side needs from the place where views are: one interface, two implementations.

`postgres_views.PostgresViews` reads the tables that projectors keep, `memory_views.MemoryViews`
folds the log whenever it is asked. Both see one tenant only. What concerns a single session comes
with the seq that the view is at, read at the same moment; None: the view has nothing of it.
"""

from __future__ import annotations

from typing import Any, Protocol
from uuid import UUID

import msgspec

from eventlog.reading.found_messages import Found, SearchFilter
from eventlog.reading.message_pages import MessageFilter, MessagePage
from eventlog.reading.spending import UsageFilter, UsageRow
from eventlog.runs import Run
from eventlog.state import Handoff
from eventlog.views import SessionFilter, SessionView


class AgentsView(msgspec.Struct, frozen=True, kw_only=True):
    """Who took part in a session, and how it was handed on."""

    current: str | None
    """The agent who answers now."""
    used: list[str]
    """Agents that spoke or were active, in order of their first appearance."""
    handoffs: list[Handoff]
    """Hand-offs that stand, oldest first, inherited ones included."""


class ViewPlace(msgspec.Struct, frozen=True):
    """How far a session is in the view, and whether it is listed for the user asked about."""

    seq: int
    listed: bool


class ViewStore(Protocol):
    """Rows of views. Every method may raise `Unavailable`."""

    async def places(self, session_ids: list[UUID], user_id: str | None) -> dict[UUID, ViewPlace]:
        """How far sessions are, of those that the view has."""
        ...

    async def sessions(self, wanted: SessionFilter) -> list[SessionView]:
        """Sessions behind a place in their list, newest activity first."""
        ...

    async def forks(self, parents: list[UUID], wanted: SessionFilter) -> list[SessionView]:
        """Listed forks of these sessions, newest first, at most `wanted.limit` of each.

        Of the filter only `user_id` and `without` count besides.
        """
        ...

    async def usage(self, wanted: UsageFilter) -> list[UsageRow]:
        """Sums, in any order."""
        ...

    async def search(self, wanted: SearchFilter) -> list[Found]:
        """Messages, newest first."""
        ...

    async def session_messages(self, session_id: UUID, wanted: MessageFilter) -> MessagePage | None:
        """A page of the session's own visible messages in order."""
        ...

    async def session_agents(self, session_id: UUID) -> tuple[int, AgentsView] | None:
        """Who took part in a session."""
        ...

    async def session_runs(
        self, session_id: UUID, status: str | None, limit: int
    ) -> tuple[int, list[Run]] | None:
        """The newest runs of a session."""
        ...

    async def session_usage(self, session_id: UUID) -> tuple[int, list[UsageRow]] | None:
        """What a session spent, in any order."""
        ...

    async def session_scratchpad(
        self, session_id: UUID
    ) -> tuple[SessionView, dict[str, Any]] | None:
        """A session's view, and its scratchpad as of the same seq."""
        ...
