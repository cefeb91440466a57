"""Reading your writes in lists, searches and sums: what the views lack of some sessions.

A caller who says which seqs it knows of (`min_seq`) gets an answer with everything up to there. Of
sessions whose rows are behind that, the rows are left out, and what the log says of them takes
their place. So the answer is exact for them, whatever the filters, and costs nothing when the views
are there already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final
from uuid import UUID

from eventlog.drafts import check_seq
from eventlog.errors import InvalidRequest, SessionNotFound
from eventlog.state import SessionState
from eventlog.views import ViewReader

if TYPE_CHECKING:
    from eventlog.session import Session
    from eventlog.store import Store

DEMANDS_MAX: Final = 100
"""Sessions of which one call may demand a seq: each may have to be folded."""
FOLDS_AT_ONCE_MAX: Final = 4


class CatchingUp:
    """Knows sessions by name, and folds those of which the views know too little."""

    def __init__(
        self, store: Store, views: ViewReader, id_of_key: Callable[[object], UUID]
    ) -> None:
        self._store = store
        self._views = views
        self._id_of_key = id_of_key

    def id_of(self, session: Session | UUID | str) -> UUID:
        """The id of a session by its handle, key or id, whether it exists or not."""
        return self._id_of_key(_name_of(session))

    async def known(self, session: Session | UUID | str) -> UUID:
        """The id of a session of this tenant. Raises `SessionNotFound`."""
        session_id = self.id_of(session)
        if await self._store.tenant_of(session_id) != self._store.tenant_id:
            raise SessionNotFound(_name_of(session))
        return session_id

    async def behind(
        self, min_seq: Mapping[Session | UUID | str, int] | None
    ) -> dict[UUID, SessionState]:
        """As they are now: sessions whose rows lack what is demanded of them.

        Raises `SessionNotFound`, and `InvalidRequest` for seqs that no session is at yet.
        """
        if not min_seq:
            return {}
        if len(min_seq) > DEMANDS_MAX:
            raise InvalidRequest(
                f"min_seq names {len(min_seq)} sessions, at most {DEMANDS_MAX}; "
                "name those that you appended to last"
            )
        least: dict[UUID, int] = {}
        for session, seq in min_seq.items():
            session_id = self.id_of(session)
            least[session_id] = max(check_seq(seq, "min_seq"), least.get(session_id, 0))
        places = await self._store.tables.places(list(least), None)
        lacking = [
            session_id
            for session_id, seq in least.items()
            if session_id not in places or places[session_id].seq < seq
        ]
        limit = asyncio.Semaphore(FOLDS_AT_ONCE_MAX)

        async def fold(session_id: UUID) -> SessionState:
            async with limit:
                await self.known(session_id)
                return await self._views.at_head(session_id, least[session_id])

        states = await asyncio.gather(*(fold(each) for each in lacking))
        return dict(zip(lacking, states, strict=True))


def _name_of(session: Session | UUID | str) -> UUID | str:
    return session if isinstance(session, UUID | str) else session.id
