"""Questions to a whole log: what was said, and what was spent.

Both come from the views, a moment behind the log; `min_seq` has what is demanded folded and put in
its place (`catching_up`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from eventlog.errors import InvalidRequest
from eventlog.reading.catching_up import CatchingUp
from eventlog.reading.cursors import decode_cursor, encode_cursor
from eventlog.reading.found_messages import (
    BEFORE_ALL,
    HITS_MAX,
    Found,
    HitPlace,
    SearchFilter,
    SearchPage,
    matching,
)
from eventlog.reading.listing import check_time
from eventlog.reading.message_pages import check_limit, check_roles
from eventlog.reading.spending import UsageFilter, UsageRow, check_by, check_day, rows_of, totals
from eventlog.reading.view_store import ViewStore
from eventlog.search.query import parse_query
from eventlog.state import SessionState
from eventlog.views import ViewReader

if TYPE_CHECKING:
    from eventlog.replay import Replayer
    from eventlog.session import Session

THREAD_MESSAGES_MIN: Final = 50
"""A state with more messages is searched in a thread: that takes some 0.1 ms a message."""
_PLACES: Final = msgspec.msgpack.Decoder(tuple[int, UUID, int])


class LogQueries:
    """Answers for one log."""

    def __init__(
        self, tables: ViewStore, replayer: Replayer, views: ViewReader, catching_up: CatchingUp
    ) -> None:
        self._tables = tables
        self._replayer = replayer
        self._views = views
        self._catching_up = catching_up

    # --- usage ---

    async def usage(
        self,
        by: str | Collection[str],
        *,
        user_id: str | None,
        session: Session | UUID | str | None,
        since: date | None,
        until: date | None,
        min_seq: Mapping[Session | UUID | str, int] | None,
    ) -> list[UsageRow]:
        """See `EventLog.usage`."""
        wanted = UsageFilter(
            by=check_by(by),
            user_id=user_id,
            session_id=None if session is None else await self._catching_up.known(session),
            since=check_day(since, "since"),
            until=check_day(until, "until"),
        )
        states = await self._catching_up.behind(min_seq)
        wanted = msgspec.structs.replace(wanted, without=frozenset(states))
        kept = await self._tables.usage(wanted)
        folded = [row for s in states.values() for row in rows_of(s) if wanted.shows(row)]
        return totals([*kept, *folded], wanted.by)

    # --- search ---

    async def search(
        self,
        text: str,
        *,
        user_id: str | None,
        session: Session | UUID | str | None,
        role: str | Collection[str] | None,
        agent: str | None,
        since: datetime | None,
        until: datetime | None,
        limit: int,
        cursor: str | None,
        min_seq: Mapping[Session | UUID | str, int] | None,
    ) -> SearchPage:
        """See `EventLog.search`."""
        wanted = SearchFilter(
            query=parse_query(text),
            user_id=user_id,
            session_id=None if session is None else await self._catching_up.known(session),
            roles=check_roles(role),
            agent=agent,
            since_us=0 if since is None else check_time(since, "since"),
            until_us=BEFORE_ALL[0] if until is None else check_time(until, "until"),
            before=BEFORE_ALL if cursor is None else _place(cursor),
            limit=check_limit(limit, HITS_MAX) + 1,
        )
        states = await self._catching_up.behind(min_seq)
        wanted = msgspec.structs.replace(wanted, without=frozenset(states))
        found = await self._tables.search(wanted)
        for state in states.values():
            if wanted.session_id in (None, state.session_id):
                found += await _search(state, wanted)
        if wanted.session_id is not None and len(found) < wanted.limit:
            found += await self._inherited(wanted, states.get(wanted.session_id))
        found.sort(key=lambda each: each.place, reverse=True)
        items = found[:limit]
        return SearchPage(
            [each.as_hit(wanted.query) for each in items],
            encode_cursor(items[-1].place) if len(found) > limit else None,
        )

    async def _inherited(self, wanted: SearchFilter, state: SessionState | None) -> list[Found]:
        """What a fork inherited and still shows: the rows of its parents needn't have that."""
        assert wanted.session_id is not None
        if state is None:
            view = await self._views.stored(wanted.session_id, 0, None)
            if not view.parent_seq:
                return []
            state = await self._replayer.structure(wanted.session_id, view.seq)
        return await _search(state, wanted, inherited=True) if state.parent_seq else []


async def _search(
    state: SessionState, wanted: SearchFilter, *, inherited: bool = False
) -> list[Found]:
    def search() -> list[Found]:
        found: list[Found] = []
        for each in matching(state, wanted, inherited=inherited):
            found.append(each)
            if len(found) == wanted.limit:
                break
        return found

    if len(state.entries) < THREAD_MESSAGES_MIN:
        return search()
    return await asyncio.to_thread(search)


def _place(cursor: str) -> HitPlace:
    place = decode_cursor(cursor, _PLACES)
    if not (0 <= place[0] <= BEFORE_ALL[0] and 0 <= place[2] <= BEFORE_ALL[2]):
        raise InvalidRequest("this is not a cursor; pass one that a page gave, or none")
    return place
