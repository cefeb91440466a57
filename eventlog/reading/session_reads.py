"""The part of a session's handle that asks the views: messages, agents, runs, usage."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING
from uuid import UUID

from eventlog.reading.message_pages import MessageView, message_filter
from eventlog.reading.spending import UsageRow
from eventlog.reading.view_store import AgentsView
from eventlog.runs import Run, RunStatus

if TYPE_CHECKING:
    from eventlog.log import EventLog


class SessionReads:
    """What `Session` can be asked beside its view; all of it a moment behind, or by `min_seq` not.

    The answer is exact for the seq that the views are at; where they have nothing of the session
    yet, it comes from the log as it is now. `min_seq` demands a seq that you know of (your last
    append's `last_seq`: you read what you wrote), and raises `InvalidRequest` when the session
    isn't there yet.
    """

    id: UUID
    _log: EventLog

    async def messages(
        self,
        *,
        limit: int | None = None,
        role: str | Collection[str] | None = None,
        agent: str | None = None,
        before: int | None = None,
        after: int | None = None,
        min_seq: int | None = None,
    ) -> list[MessageView]:
        """A page of the visible messages, in order of seq.

        The newest `limit` (100; at most 1,000), of those with a seq less than `before` if that is
        given; with `after` the oldest of those with a seq greater than that. Of one role or some,
        of one agent. Inherited messages of a fork are included, and so are messages that still
        stream, without text and with the status `open`. Page backwards with `before` = seq of the
        first, forwards with `after` = seq of the last.
        """
        wanted = message_filter(limit=limit, role=role, agent=agent, before=before, after=after)
        return await self._log.asking.messages(self.id, wanted, min_seq)

    async def agents(self, min_seq: int | None = None) -> AgentsView:
        """Who answers now, who took part, and the hand-offs with their contexts."""
        return await self._log.asking.agents(self.id, min_seq)

    async def runs(
        self, *, limit: int = 100, status: RunStatus | None = None, min_seq: int | None = None
    ) -> list[Run]:
        """The newest runs that began in this session, newest first, of any status or one."""
        return await self._log.asking.runs(self.id, limit=limit, status=status, min_seq=min_seq)

    async def usage(self, min_seq: int | None = None) -> list[UsageRow]:
        """What the session spent, by day, agent and model. A fork's begins with nothing."""
        return await self._log.asking.usage(self.id, min_seq)
