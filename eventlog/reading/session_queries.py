"""Questions to one session: messages, agents, runs, usage.

    rows that the projector keeps ──> fold of the log itself

The answer comes from the view, a moment behind the log, and is exact for the seq that the view is
at. With a `min_seq` behind that, or when the view has nothing of the session yet, it comes from the
log as it is now. A fork's rows hold what happened in the fork; what it inherited is its parent's,
and may look otherwise there by now, so a page that reaches it is folded, at the seq of the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args
from uuid import UUID

from eventlog.drafts import check_seq
from eventlog.errors import InvalidRequest
from eventlog.reading.message_pages import (
    MessageFilter,
    MessagePage,
    MessageView,
    check_limit,
    page_of,
)
from eventlog.reading.spending import UsageRow, rows_of, totals
from eventlog.reading.view_store import AgentsView
from eventlog.runs import Run, RunStatus, fold_runs
from eventlog.state import SessionState
from eventlog.views import ViewReader

if TYPE_CHECKING:
    from eventlog.replay import Replayer
    from eventlog.store import Store

RUNS_MAX: Final = 1_000
"""Runs that one call returns."""


class SessionQueries:
    """Answers for the sessions of one log."""

    def __init__(self, store: Store, replayer: Replayer, views: ViewReader) -> None:
        self._tables = store.tables
        self._replayer = replayer
        self._views = views

    async def messages(
        self, session_id: UUID, wanted: MessageFilter, min_seq: int | None
    ) -> list[MessageView]:
        """See `Session.messages`."""
        least = _least(min_seq)
        page = await self._tables.session_messages(session_id, wanted)
        if page is None or page.seq < least:
            return page_of(await self._views.at_head(session_id, least), wanted)
        if page.parent_seq and _reaches_parent(page, wanted):
            return page_of(await self._replayer.structure(session_id, page.seq), wanted)
        return page.items

    async def agents(self, session_id: UUID, min_seq: int | None) -> AgentsView:
        """See `Session.agents`."""
        least = _least(min_seq)
        kept = await self._tables.session_agents(session_id)
        if kept is not None and kept[0] >= least:
            return kept[1]
        return agents_of(await self._views.at_head(session_id, least))

    async def runs(
        self, session_id: UUID, *, limit: int, status: str | None, min_seq: int | None
    ) -> list[Run]:
        """See `Session.runs`."""
        least = _least(min_seq)
        check_limit(limit, RUNS_MAX)
        if status is not None and status not in get_args(RunStatus):
            known = ", ".join(get_args(RunStatus))
            raise InvalidRequest(f"status is {status!r:.40}; it must be one of: {known}")
        kept = await self._tables.session_runs(session_id, status, limit)
        if kept is not None and kept[0] >= least:
            return kept[1]
        state = await self._views.at_head(session_id, least)
        runs = await self._folded_runs(session_id, state.seq)
        return [run for run in runs if status in (None, run.status)][:limit]

    async def _folded_runs(self, session_id: UUID, seq: int) -> list[Run]:
        """The session's own runs, newest first."""
        runs = fold_runs(await self._replayer.own_events(session_id, seq)).values()
        return sorted(runs, key=lambda run: run.started_seq, reverse=True)

    async def usage(self, session_id: UUID, min_seq: int | None) -> list[UsageRow]:
        """See `Session.usage`."""
        least = _least(min_seq)
        kept = await self._tables.session_usage(session_id)
        if kept is not None and kept[0] >= least:
            rows = kept[1]
        else:
            rows = list(rows_of(await self._views.at_head(session_id, least)))
        return totals(rows, ("day", "user", "agent", "model", "session"))


def agents_of(state: SessionState) -> AgentsView:
    """Who took part, by a state."""
    newest = [] if state.handoff is None else [state.handoff]
    return AgentsView(
        current=state.current_agent,
        used=list(state.agents),
        handoffs=[*state.earlier_handoffs, *newest],
    )


def _least(min_seq: int | None) -> int:
    return 0 if min_seq is None else check_seq(min_seq, "min_seq")


def _reaches_parent(page: MessagePage, wanted: MessageFilter) -> bool:
    """Whether some of the page, or what its links lead to, may be the parent's."""
    if wanted.oldest:
        reaches = wanted.after < page.parent_seq
    else:
        reaches = len(page.items) < wanted.limit
    return reaches or any(
        each.role == "tool" and each.tool_call_id is not None and each.call_seq is None
        for each in page.items
    )
