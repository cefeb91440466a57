"""Views of a log in memory: folded from its rows whenever someone asks, so never behind.

What concerns one session is left to whoever asks: without rows of views it comes from the log.
Slow with many sessions, and the oracle that the tables are tested against.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventlog.reading.found_messages import Found, SearchFilter, matching
from eventlog.reading.message_pages import MessageFilter, MessagePage
from eventlog.reading.spending import UsageFilter, UsageRow, rows_of, totals
from eventlog.reading.view_store import AgentsView, ViewPlace
from eventlog.replay import Replayer
from eventlog.runs import Run
from eventlog.state import SessionState
from eventlog.views import SessionFilter, SessionView, place_of, view_of

if TYPE_CHECKING:
    from eventlog.store import Store


class MemoryViews:
    """`ViewStore` for a store whose sessions can be listed by `session_ids`."""

    def __init__(self, store: Store, session_ids: Callable[[], Collection[UUID]]) -> None:
        self._store = store
        self._session_ids = session_ids

    async def places(self, session_ids: list[UUID], user_id: str | None) -> dict[UUID, ViewPlace]:
        asked = SessionFilter(user_id=user_id, limit=1)
        return {
            each.session_id: ViewPlace(each.seq, asked.lists(view_of(each)))
            async for each in self._folded(session_ids)
        }

    async def sessions(self, wanted: SessionFilter) -> list[SessionView]:
        views = {each.session_id: view_of(each) async for each in self._folded()}
        listed = {each.session_id for each in views.values() if wanted.lists(each)}
        shown = [
            each
            for each in views.values()
            if wanted.shows(each) and not (wanted.top and each.parent_session_id in listed)
        ]
        return sorted(shown, key=place_of, reverse=True)[: wanted.limit]

    async def forks(self, parents: list[UUID], wanted: SessionFilter) -> list[SessionView]:
        views = [view_of(each) async for each in self._folded()]
        found: list[SessionView] = []
        for parent in parents:
            forks = [v for v in views if v.parent_session_id == parent and wanted.lists(v)]
            found += sorted(forks, key=place_of, reverse=True)[: wanted.limit]
        return found

    async def usage(self, wanted: UsageFilter) -> list[UsageRow]:
        states = [each async for each in self._folded()]
        return totals((row for s in states for row in rows_of(s) if wanted.shows(row)), wanted.by)

    async def search(self, wanted: SearchFilter) -> list[Found]:
        found: list[Found] = []
        async for state in self._folded():
            if wanted.session_id in (None, state.session_id):
                found += matching(state, wanted)
        return sorted(found, key=lambda each: each.place, reverse=True)[: wanted.limit]

    async def session_messages(self, session_id: UUID, wanted: MessageFilter) -> MessagePage | None:
        return None

    async def session_agents(self, session_id: UUID) -> tuple[int, AgentsView] | None:
        return None

    async def session_runs(
        self, session_id: UUID, status: str | None, limit: int
    ) -> tuple[int, list[Run]] | None:
        return None

    async def session_usage(self, session_id: UUID) -> tuple[int, list[UsageRow]] | None:
        return None

    async def session_scratchpad(
        self, session_id: UUID
    ) -> tuple[SessionView, dict[str, Any]] | None:
        return None

    async def _folded(
        self, session_ids: Collection[UUID] | None = None
    ) -> AsyncIterator[SessionState]:
        replayer = Replayer(self._store, save_snapshots=False)
        asked = list(self._session_ids() if session_ids is None else session_ids)
        for session_id, head in (await self._store.heads(asked)).items():
            yield await replayer.structure(session_id, head.seq)
