"""Reading the views: one session's view, and lists of sessions.

A `SessionView` is the part of a session's state that fits on a card: everything but its messages.
It comes from the cheapest place that has it:

    cache in Redis ──> row that the projector keeps ──> fold of the log itself

The first two are written behind the log and say how far they come (`seq`); whoever needs more asks
with `min_seq` and is sent on to the next place. Lists come from the rows only: without a projector
they stay as they are. Nothing here writes a row.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, get_args
from uuid import UUID

import msgspec

from eventlog.errors import InvalidRequest, SessionNotFound
from eventlog.state import Handoff, SessionState
from eventlog.telemetry import metrics

if TYPE_CHECKING:
    from eventlog.replay import Replayer
    from eventlog.store import Store
    from eventlog.view_cache import ViewCache

PAGE_LENGTH_MAX: Final = 1_000
"""Sessions on one page of a list."""

Status = Literal["open", "closed", "deleted"]
Place = tuple[int, UUID]
"""A place in a list: `updated_at` in µs since 1970, and the session's id."""
BEFORE_ALL: Final[Place] = (2**62, UUID(int=2**128 - 1))
"""The place before the newest session."""


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """What a session's events up to `seq` add up to, without its messages."""

    session_id: UUID
    seq: int
    status: Status
    user_id: str | None
    key: str | None
    title: str | None
    metadata: dict[str, Any]
    message_count: int
    """Visible messages, a reply that still streams included."""
    token_count: int
    context_token_count: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    compaction_count: int
    run_count: int
    current_agent: str | None
    agents: list[str]
    """Agents that spoke or were active, in order of their first appearance."""
    handoff: Handoff | None
    parent_session_id: UUID | None
    parent_seq: int
    created_at: datetime
    updated_at: datetime


class SessionPage(msgspec.Struct, frozen=True):
    """Some sessions of a list, and the cursor for the page after; None: this is the last."""

    items: list[SessionView]
    cursor: str | None


class SessionFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which sessions of a tenant a list shows. Deleted ones are in none."""

    user_id: str | None = None
    status: str | None = None
    agent: str | None = None
    """An agent that spoke or was active."""
    before: Place = BEFORE_ALL
    limit: int = PAGE_LENGTH_MAX

    def shows(self, view: SessionView) -> bool:
        """Whether the view is in the list, behind `before`."""
        return (
            view.status != "deleted"
            and (self.user_id is None or view.user_id == self.user_id)
            and (self.status is None or view.status == self.status)
            and (self.agent is None or self.agent in view.agents)
            and place_of(view) < self.before
        )


_DERIVED: Final = ("current_agent", "compaction_count")
_COPIED: Final = [name for name in SessionView.__struct_fields__ if name not in _DERIVED]


def view_of(state: SessionState) -> SessionView:
    """The view of a state. Raises `ValueError` for a session without its first event."""
    if state.created_at is None or state.updated_at is None:
        raise ValueError(f"session {state.session_id} has no session.created up to {state.seq}")
    return SessionView(
        current_agent=state.current_agent,
        compaction_count=state.compaction_count,
        **{name: getattr(state, name) for name in _COPIED},
    )


def place_of(view: SessionView) -> Place:
    """Where a session stands in lists."""
    return micros(view.updated_at), view.session_id


class ViewReader:
    """Finds views for one log."""

    def __init__(self, store: Store, replayer: Replayer, cache: ViewCache | None) -> None:
        self.cache = cache
        self._store = store
        self._replayer = replayer

    async def aclose(self) -> None:
        """Close the connection to the cache."""
        if self.cache is not None:
            await self.cache.aclose()

    async def view(self, session_id: UUID, min_seq: int | None) -> SessionView:
        """See `Session.view`."""
        least = min_seq or 0
        if self.cache is not None:
            cached = await self.cache.get(session_id)
            if cached is not None and cached.seq >= least:
                metrics.cache_hits += 1
                return cached
            metrics.cache_misses += 1
        found = await self._store.session_view(session_id)
        if found is None or found.seq < least:
            # Not for the cache: without a projector nobody would bring it up to date there.
            return await self._folded(session_id, least)
        if self.cache is not None:
            await self.cache.put([found])
        return found

    async def _folded(self, session_id: UUID, least: int) -> SessionView:
        head = await self._replayer.head(session_id)
        if head is None:
            raise SessionNotFound(session_id)
        if head.seq < least:
            raise InvalidRequest(f"the session is at seq {head.seq}, before min_seq {least}")
        return view_of(await self._replayer.structure(session_id, head.seq))

    async def sessions(
        self,
        *,
        user_id: str | None,
        status: str | None,
        agent: str | None,
        limit: int,
        cursor: str | None,
    ) -> SessionPage:
        """See `EventLog.sessions`."""
        if isinstance(limit, bool) or not 1 <= limit <= PAGE_LENGTH_MAX:
            raise InvalidRequest(f"limit is {limit}; it must be 1 to {PAGE_LENGTH_MAX}")
        if status is not None and status not in ("open", "closed"):
            raise InvalidRequest(f"status is {status!r:.40}; it must be 'open', 'closed' or None")
        wanted = SessionFilter(
            user_id=user_id,
            status=status,
            agent=agent,
            before=BEFORE_ALL if cursor is None else _decode_cursor(cursor),
            limit=limit + 1,
        )
        found = await self._store.session_views(wanted)
        items = found[:limit]
        return SessionPage(items, _encode_cursor(items[-1]) if len(found) > limit else None)


def _encode_cursor(last: SessionView) -> str:
    packed = msgspec.msgpack.encode(place_of(last))
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _decode_cursor(text: str) -> Place:
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        at, session_id = msgspec.msgpack.decode(packed, type=Place)
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise InvalidRequest("this is not a cursor; pass one that a page gave, or none") from None
    if not 0 <= at <= BEFORE_ALL[0]:
        raise InvalidRequest("this is not a cursor; pass one that a page gave, or none")
    return at, session_id


# --- columns -------------------------------------------------------------------------------------

_ESCAPE: Final = "\u241b"
_NUL: Final = "\u2400"
_ESCAPED: Final = re.compile(f"{_ESCAPE}(.)")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = datetime.resolution
_TEXTS: Final = ("user_id", "key", "title", "current_agent")
_decode_metadata: Final = msgspec.json.Decoder(dict[str, Any]).decode
_decode_handoff: Final = msgspec.json.Decoder(Handoff).decode

assert get_args(Status)[2] == "deleted"  # sql/queries.sql leaves these rows out of lists


def escape_text(text: str) -> str:
    """Text in a form that Postgres' `text` takes: without NUL, and otherwise as it is.

    U+0000 becomes U+241B U+2400 and, so that this can be undone, U+241B becomes U+241B U+241B.
    """
    if "\0" not in text and _ESCAPE not in text:
        return text
    return text.replace(_ESCAPE, _ESCAPE + _ESCAPE).replace("\0", _ESCAPE + _NUL)


def unescape_text(text: str) -> str:
    """The inverse of `escape_text`."""
    if _ESCAPE not in text:
        return text
    return _ESCAPED.sub(lambda match: "\0" if match[1] == _NUL else match[1], text)


def micros(at: datetime) -> int:
    """A time as whole µs since 1970, exactly."""
    return (at - _EPOCH) // _MICROSECOND


def view_from_record(record: Sequence[Any]) -> SessionView:
    """A view from a row as the queries of session views select it."""
    fields = dict(zip(SessionView.__struct_fields__, record, strict=True))
    for name in _TEXTS:
        if fields[name] is not None:
            fields[name] = unescape_text(fields[name])
    fields["agents"] = [unescape_text(each) for each in fields["agents"]]
    fields["metadata"] = _decode_metadata(fields["metadata"])
    if fields["handoff"] is not None:
        fields["handoff"] = _decode_handoff(fields["handoff"])
    for name in ("created_at", "updated_at"):
        fields[name] = datetime.fromtimestamp(fields[name] / 1_000_000, UTC)
    return SessionView(**fields)
