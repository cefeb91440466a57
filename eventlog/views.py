"""Reading the views: one session's view, and lists of sessions.

A `SessionView` is the part of a session's state that fits on a card: everything but its messages.
It comes from the cheapest place that has it:

    cache in Redis ──> row that the projector keeps ──> fold of the log itself

The first two are written behind the log and say how far they come (`seq`); whoever needs more asks
with `min_seq` and is sent on to the next place. Lists of sessions are `listing`'s business. Nothing
here writes a row.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args
from uuid import UUID

import msgspec

from eventlog.drafts import check_seq
from eventlog.errors import InvalidRequest, SessionNotFound
from eventlog.search.terms import SEPARATOR
from eventlog.state import Handoff, SessionState
from eventlog.telemetry import count_cache_read

if TYPE_CHECKING:
    from eventlog.cache.session_cache import Cached, SessionCache
    from eventlog.feeds import Keys
    from eventlog.replay import Replayer
    from eventlog.search.query import Query
    from eventlog.store import Store

Status = Literal["open", "closed", "deleted", "erased"]
Value = TypeVar("Value")
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
    ttl_seconds: int | None = None
    """The session expires so long after its last event, by an event of its own."""
    expires_at: datetime | None = None
    """When it expires by its own events; None: never, or when the log's policy says."""


class SessionPage(msgspec.Struct, frozen=True):
    """Some sessions of a list, and the cursor for the page after; None: this is the last."""

    items: list[SessionView]
    cursor: str | None
    forks: dict[UUID, list[SessionView]] = {}
    """Of a nested list: the forks of each session, newest activity first, and forks of those."""
    more_forks: list[UUID] = []
    """Sessions of which not all forks are in `forks`: there are too many, or too deep."""


class SessionFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which sessions of a tenant a list shows. Deleted ones are in none."""

    user_id: str | None = None
    status: str | None = None
    agent: str | None = None
    """An agent that spoke or was active."""
    text: Query | None = None
    """Words of the title or the key."""
    updated_after_us: int = 0
    before: Place = BEFORE_ALL
    limit: int
    without: frozenset[UUID] = frozenset()
    """Sessions of which the asker knows better."""
    top: bool = False
    """Only sessions whose parent isn't in the list of everything that the user has."""
    listed: frozenset[UUID] = frozenset()
    """Those of `without` that are in that list; the others of them aren't."""

    def shows(self, view: SessionView) -> bool:
        """Whether the view is in the list, behind `before`, wherever its parent is."""
        return (
            self.lists(view)
            and (self.status is None or view.status == self.status)
            and (self.agent is None or self.agent in view.agents)
            and micros(view.updated_at) > self.updated_after_us
            and place_of(view) < self.before
            and (self.text is None or self.text.matches(title_text(view)))
        )

    def lists(self, view: SessionView) -> bool:
        """Whether the view is in the list of everything that the user, or the tenant, has."""
        return view.status in LISTED and (self.user_id is None or view.user_id == self.user_id)


LISTED: Final = ("open", "closed")
"""Sessions with another status are in no list, by the text of the queries as well."""
_SPENT: Final = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
_DERIVED: Final = ("current_agent", "compaction_count", "ttl_seconds", "expires_at", *_SPENT)
_COPIED: Final = [name for name in SessionView.__struct_fields__ if name not in _DERIVED]


def view_of(state: SessionState) -> SessionView:
    """The view of a state. Raises `ValueError` for a session without its first event."""
    if state.created_at is None or state.updated_at is None:
        raise ValueError(f"session {state.session_id} has no session.created up to {state.seq}")
    spent = state.spent
    return SessionView(
        current_agent=state.current_agent,
        compaction_count=state.compaction_count,
        ttl_seconds=None if state.expiry is None else state.expiry.ttl_seconds,
        expires_at=state.expires_at,
        **{name: getattr(spent, name) for name in _SPENT},
        **{name: getattr(state, name) for name in _COPIED},
    )


def title_text(view: SessionView) -> str:
    """What a session is found by in lists: its title and its key."""
    return f"{view.title or ''} {SEPARATOR} {view.key or ''}"


def place_of(view: SessionView) -> Place:
    """Where a session stands in lists."""
    return micros(view.updated_at), view.session_id


class ViewReader:
    """Finds views for one log."""

    def __init__(self, store: Store, replayer: Replayer, cache: SessionCache | None) -> None:
        self.cache = cache
        self._store = store
        self._replayer = replayer

    async def aclose(self) -> None:
        """Close the connection to the cache."""
        if self.cache is not None:
            await self.cache.aclose()

    async def view(self, session_id: UUID, min_seq: int | None) -> SessionView:
        """See `Session.view`."""
        least = 0 if min_seq is None else check_seq(min_seq, "min_seq")
        keys, cached = await self.cached("view", lambda cache: cache.view(session_id), least)
        return await self.stored(session_id, least, keys) if cached is None else cached.value

    async def cached(
        self,
        part: Literal["view", "scratchpad"],
        read: Callable[[SessionCache], Awaitable[Cached[Value] | None]],
        least: int,
    ) -> tuple[Keys | None, Cached[Value] | None]:
        """The cache's names, asked for before anything is read, and what it has at a seq or later.

        Both None: there is no cache, or it is left alone.
        """
        if self.cache is None:
            return None, None
        keys = await self.cache.keys()
        found = await read(self.cache)
        is_hit = count_cache_read(part, found is not None and found.seq >= least)
        return keys, found if is_hit else None

    async def stored(self, session_id: UUID, least: int, keys: Keys | None) -> SessionView:
        """The view out of Postgres, at least at a seq; the cache gets the projector's row.

        `keys`: the cache's names, asked for before; None: leave the cache alone.
        """
        found = await self._store.session_view(session_id)
        if found is None or found.seq < least:
            # Not for the cache: without a projector nobody would bring it up to date there.
            return view_of(await self.at_head(session_id, least))
        if self.cache is not None and keys is not None:
            await self.cache.put_view(found, keys=keys)
        return found

    async def at_head(self, session_id: UUID, least: int) -> SessionState:
        """The session folded as it is now. `InvalidRequest` when it isn't at a seq yet."""
        head = await self._replayer.head(session_id)
        if head is None:
            raise SessionNotFound(session_id)
        if head.seq < least:
            raise InvalidRequest(f"the session is at seq {head.seq}, before min_seq {least}")
        return await self._replayer.structure(session_id, head.seq)


# --- columns -------------------------------------------------------------------------------------

_ESCAPE: Final = "\u241b"
_NUL: Final = "\u2400"
_ESCAPED: Final = re.compile(f"{_ESCAPE}(.)")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = datetime.resolution
_TEXTS: Final = ("user_id", "key", "title", "current_agent")
_decode_metadata: Final = msgspec.json.Decoder(dict[str, Any]).decode
_decode_handoff: Final = msgspec.json.Decoder(Handoff).decode

assert get_args(Status)[:2] == LISTED


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
    for name in ("created_at", "updated_at", "expires_at"):
        if fields[name] is not None:
            fields[name] = datetime.fromtimestamp(fields[name] / 1_000_000, UTC)
    return SessionView(**fields)
