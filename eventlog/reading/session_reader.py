"""Reading parts of one session: its metadata, its scratchpad, and the context of a model.

Metadata and scratchpad come from the cheapest place that has them, like the view they belong to:

    cache in Redis ──> what the projector keeps ──> fold of the log itself

They may be a moment behind, and `min_seq` sends on who needs more. A context is different: it must
hold everything that was acknowledged before, so the session's last seq is looked up in Postgres,
and a cached context counts only at exactly that seq; with `min_seq` the caller has said what is
enough, and Postgres is not asked. A process that keeps the session's state needs no cache: it looks
up the last seq and folds what came since. Others fill the cache with what they folded.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventlog.cache.entry import by_name
from eventlog.cache.session_cache import Cached, SessionCache, chosen
from eventlog.drafts import check_seq
from eventlog.errors import InvalidRequest, SessionNotFound
from eventlog.telemetry import count_cache_read
from eventlog.views import SessionView, ViewReader

if TYPE_CHECKING:
    from eventlog.feeds import Keys
    from eventlog.replay import Replayer
    from eventlog.store import Head, Store


class SessionReader:
    """Reads parts of the sessions of one log."""

    def __init__(self, store: Store, replayer: Replayer, views: ViewReader) -> None:
        self._store = store
        self._replayer = replayer
        self._views = views
        self._cache = views.cache

    # --- what goes with the view ---

    async def metadata(
        self, session_id: UUID, min_seq: int | None, names: Sequence[str]
    ) -> dict[str, Any]:
        """See `Session.metadata`."""
        _check_names(names)
        least = 0 if min_seq is None else check_seq(min_seq, "min_seq")
        keys, cached = await self._views.cached(
            "view", lambda cache: cache.metadata(session_id, names), least
        )
        if cached is not None:
            return cached.value
        view = await self._views.stored(session_id, least, keys)
        return copy.deepcopy(chosen(view.metadata, names))

    async def scratchpad(
        self, session_id: UUID, min_seq: int | None, names: Sequence[str]
    ) -> dict[str, Any]:
        """See `Session.scratchpad`."""
        _check_names(names)
        least = 0 if min_seq is None else check_seq(min_seq, "min_seq")
        keys, cached = await self._views.cached(
            "scratchpad", lambda cache: cache.scratchpad(session_id, names), least
        )
        if cached is not None:
            return cached.value
        kept = await self._kept_by_projector(session_id, least)
        if kept is None:
            found = await self._views.at_head(session_id, least)
            return copy.deepcopy(chosen(by_name(found.scratchpad), names))
        view, scratchpad = kept
        if self._cache is not None and keys is not None:
            await self._cache.put_view(view, scratchpad, keys=keys)
        return copy.deepcopy(chosen(by_name(scratchpad), names))

    async def _kept_by_projector(
        self, session_id: UUID, least: int
    ) -> tuple[SessionView, dict[str, Any]] | None:
        """The projector's rows as of the same seq; None: they are not that far yet."""
        kept = await self._store.tables.session_scratchpad(session_id)
        return None if kept is None or kept[0].seq < least else kept

    async def invalidate(self, session_id: UUID) -> bool:
        """See `Session.invalidate`."""
        return self._cache is None or await self._cache.invalidate(session_id)

    # --- what a model sees next ---

    async def context(
        self, session_id: UUID, *, at: int | datetime | None, min_seq: int | None
    ) -> list[dict[str, Any]]:
        """See `Session.context`."""
        if min_seq is not None:
            check_seq(min_seq, "min_seq")
        # Asking for the names comes first: it notices when the log has lost its end.
        keys = await self._cache.keys() if self._cache is not None and at is None else None
        if self._cache is None or keys is None:
            return await self._folded(session_id, at, min_seq)
        if self._replayer.keeps(session_id):
            return await self._folded(session_id, at, min_seq)
        return await self._read_through(self._cache, session_id, min_seq, keys=keys)

    async def _folded(
        self, session_id: UUID, at: int | datetime | None, min_seq: int | None
    ) -> list[dict[str, Any]]:
        state = await self._replayer.context_state(session_id, at)
        _check_reached(state.seq, min_seq)
        return state.context()

    async def _read_through(
        self, cache: SessionCache, session_id: UUID, min_seq: int | None, *, keys: Keys
    ) -> list[dict[str, Any]]:
        head: Head | None = None
        cached: Cached[list[dict[str, Any]]] | None
        if min_seq is None:
            head, cached = await asyncio.gather(
                self._replayer.head(session_id), cache.context(session_id)
            )
            if head is None:
                raise SessionNotFound(session_id)
            # Of a deleted session Postgres alone knows what may still be said.
            hit = cached is not None and cached.seq == head.seq and not head.deleted
        else:
            cached = await cache.context(session_id)
            hit = cached is not None and cached.seq >= min_seq
        if count_cache_read("context", hit):
            assert cached is not None
            return cached.value
        state = await self._replayer.context_state(session_id, None, head=head)
        _check_reached(state.seq, min_seq)
        messages = state.context()
        await cache.put_context(session_id, state.seq, messages, keys=keys)
        return messages


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str):
        raise InvalidRequest(f"names is the text {names!r:.40}; give a list of names")


def _check_reached(seq: int, min_seq: int | None) -> None:
    if min_seq is not None and seq < min_seq:
        raise InvalidRequest(f"the session is at seq {seq}, before min_seq {min_seq}")
