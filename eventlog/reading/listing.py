"""Lists of sessions: newest activity first, page by page, with forks under their parents.

A list comes from the views, a moment behind the log; `min_seq` has what is demanded folded and put
in its place. Flat lists show forks among all others. Nested ones have at their top the sessions
whose parent isn't listed itself: those that are no forks, and forks whose parent was deleted, or is
another user's and the list is of one user. Filters choose what is at the top; below it hang all
forks that are listed for the user, whatever the filters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from eventlog.errors import InvalidRequest
from eventlog.reading.catching_up import CatchingUp
from eventlog.reading.cursors import decode_cursor, encode_cursor
from eventlog.reading.message_pages import check_limit
from eventlog.reading.view_store import ViewStore
from eventlog.search.query import parse_query
from eventlog.views import (
    BEFORE_ALL,
    Place,
    SessionFilter,
    SessionPage,
    SessionView,
    micros,
    place_of,
    view_of,
)

if TYPE_CHECKING:
    from eventlog.session import Session

PAGE_LENGTH_MAX: Final = 1_000
"""Sessions on one page of a list."""
FORKS_PER_SESSION_MAX: Final = 20
"""Forks of one session on a page; the newest."""
FORKS_PER_PAGE_MAX: Final = 1_000
"""Forks on a page altogether."""
FORK_LEVELS_MAX: Final = 8
"""Forks of forks of forks."""
_PLACES: Final = msgspec.msgpack.Decoder(tuple[int, UUID])


class Listing:
    """Makes pages of one log's sessions."""

    def __init__(self, tables: ViewStore, catching_up: CatchingUp) -> None:
        self._tables = tables
        self._catching_up = catching_up

    async def page(
        self,
        asked: SessionFilter,
        *,
        cursor: str | None,
        nested: bool,
        min_seq: Mapping[Session | UUID | str, int] | None,
    ) -> SessionPage:
        """One page of what was asked for; see `EventLog.sessions`."""
        states = await self._catching_up.behind(min_seq)
        fresh = [view_of(state) for state in states.values() if state.created_at is not None]
        wanted = msgspec.structs.replace(
            asked,
            before=BEFORE_ALL if cursor is None else _place(cursor),
            limit=asked.limit + 1,
            without=frozenset(states),
            top=nested,
            listed=frozenset(each.session_id for each in fresh if asked.lists(each)),
        )
        found = await self._tables.sessions(wanted)
        found += [each for each in await self._top(fresh, wanted) if wanted.shows(each)]
        found.sort(key=place_of, reverse=True)
        items = found[: asked.limit]
        next_cursor = encode_cursor(place_of(items[-1])) if len(found) > asked.limit else None
        if not nested:
            return SessionPage(items, next_cursor)
        forks, more = await self._forks(items, [v for v in fresh if wanted.lists(v)], wanted)
        return SessionPage(items, next_cursor, forks, more)

    async def _top(self, fresh: list[SessionView], wanted: SessionFilter) -> list[SessionView]:
        """Of the folded ones those that may stand at the top: the tables know their parents."""
        parents = [v.parent_session_id for v in fresh if v.parent_session_id is not None]
        if not wanted.top or not parents:
            return fresh
        unknown = [each for each in parents if each not in wanted.without]
        places = await self._tables.places(unknown, wanted.user_id) if unknown else {}
        listed = wanted.listed | {each for each, place in places.items() if place.listed}
        return [each for each in fresh if each.parent_session_id not in listed]

    async def _forks(
        self, items: list[SessionView], fresh: list[SessionView], wanted: SessionFilter
    ) -> tuple[dict[UUID, list[SessionView]], list[UUID]]:
        """The families of the sessions, level by level; and those of which it isn't all."""
        forks: dict[UUID, list[SessionView]] = {}
        more: list[UUID] = []
        asked = msgspec.structs.replace(wanted, limit=FORKS_PER_SESSION_MAX + 1)
        room = FORKS_PER_PAGE_MAX
        level = [each.session_id for each in items]
        for depth in range(FORK_LEVELS_MAX + 1):
            if not level:
                break
            families: defaultdict[UUID, list[SessionView]] = defaultdict(list)
            for each in [*await self._tables.forks(level, asked), *fresh]:
                if each.parent_session_id is not None:
                    families[each.parent_session_id].append(each)
            below: list[UUID] = []
            for parent in level:
                family = sorted(families.get(parent, ()), key=place_of, reverse=True)
                most = 0 if depth == FORK_LEVELS_MAX else min(room, FORKS_PER_SESSION_MAX)
                if len(family) > most:
                    more.append(parent)
                if family[:most]:
                    forks[parent] = family[:most]
                    below += [each.session_id for each in family[:most]]
                    room -= len(family[:most])
            level = below
        return forks, more


def session_filter(
    *,
    user_id: str | None,
    status: str | None,
    agent: str | None,
    text: str | None,
    updated_after: datetime | None,
    limit: int,
) -> SessionFilter:
    """What was asked for, checked. Raises `InvalidRequest`."""
    if status is not None and status not in ("open", "closed"):
        raise InvalidRequest(f"status is {status!r:.40}; it must be 'open', 'closed' or None")
    return SessionFilter(
        user_id=user_id,
        status=status,
        agent=agent,
        text=None if text is None else parse_query(text),
        updated_after_us=0 if updated_after is None else check_time(updated_after, "updated_after"),
        limit=check_limit(limit, PAGE_LENGTH_MAX),
    )


def is_nested(forks: str) -> bool:
    """Whether forks are asked for under their parents. Raises `InvalidRequest`."""
    if forks not in ("flat", "nested"):
        raise InvalidRequest(f"forks is {forks!r:.40}; it must be 'flat' or 'nested'")
    return forks == "nested"


def check_time(at: datetime, name: str) -> int:
    """An aware time in µs since 1970. Raises `InvalidRequest`."""
    if getattr(at, "tzinfo", None) is None:
        raise InvalidRequest(
            f"{name} is {at!r:.60}; it must be a datetime with a time zone, like datetime.now(UTC)"
        )
    return max(0, micros(at))


def _place(cursor: str) -> Place:
    place = decode_cursor(cursor, _PLACES)
    if not 0 <= place[0] <= BEFORE_ALL[0]:
        raise InvalidRequest("this is not a cursor; pass one that a page gave, or none")
    return place
