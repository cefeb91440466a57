"""The caches of sessions in Redis: disposable, and written only forwards.

    session   view, metadata and scratchpad, together as of one seq: written by the projector after
              its commit, and by readers who read the projector's rows
    context   what a model sees next, with a seq of its own: written by readers who folded it

What is in an entry is `cache_entry`, its form and what keeps it going forwards `cache_layout`; here
is who talks to Redis when. Each answer says of which seq it is. Dropping a session's parts keeps
its seq, so that a late writer can't bring back what is older; burying an erased session leaves a
mark that nothing replaces. Redis may lose an entry at any time, and with it its seq.

Redis may be away, slow or wrong. Each call is bounded by `CACHE_SECONDS_MAX`, a failure is logged,
and for a moment after it the cache counts as empty: nobody waits for it twice.

Names in Redis hold the log's epoch. Who reads the log to write it here asks for `keys()` before it
reads: what was read from a log that has lost its end since then is written where nobody looks.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

import msgspec

from eventlog.cache.entry import Entry, context_entry_of, entry_of
from eventlog.cache.layout import (
    CONTEXT,
    HASH,
    JSON,
    Asked,
    Command,
    Found,
    Layout,
)
from eventlog.envelope import shard_of
from eventlog.errors import Unavailable
from eventlog.fanout import FanOut
from eventlog.feeds import Keys
from eventlog.redis_link import RedisDown, RedisLink, RedisRefused
from eventlog.telemetry import get_logger
from eventlog.views import SessionView

CACHE_SECONDS_MAX: Final = 0.5
"""A call that takes longer counts as failed: reading Postgres is quicker."""
AWAY_SECONDS: Final = 1.0
"""After a failure the cache is left alone for so long."""
CALL_BYTES_MAX: Final = 4_000_000
"""Entries sent at once, about: a call must be done within `CACHE_SECONDS_MAX`."""
CALL_ENTRIES_MAX: Final = 1_000
BURIED_SECONDS_MIN: Final = 24 * 3600
"""How long the mark of an erased session stays, when entries live for less: a writer that was
stopped for longer than that could bring it back, until its time to live is over."""
LACKING: Final = ("unknown command", "no permissions")
"""What a server says that has no RedisJSON, or doesn't let us use it."""

Value = TypeVar("Value")

log = get_logger()
_decode_view: Final = msgspec.json.Decoder(SessionView).decode
_decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode
_decode_messages: Final = msgspec.json.Decoder(list[dict[str, Any]]).decode
_decode_any: Final = msgspec.json.Decoder().decode


class Cached(msgspec.Struct, Generic[Value], frozen=True):
    """A value as of a seq."""

    seq: int
    value: Value


class SessionCache:
    """The caches of one log, over a connection of their own. No method raises for Redis."""

    def __init__(self, fanout: FanOut, redis_url: str, *, shards: int, ttl_seconds: int) -> None:
        self._fanout = fanout
        self._link = RedisLink(redis_url)
        self._shards = shards
        self._ttl_seconds = ttl_seconds
        self._away_until = 0.0
        self._detected: tuple[int, Layout] | None = None

    async def aclose(self) -> None:
        """Close the connection."""
        await self._link.aclose()

    # --- reading ---

    async def view(self, session_id: UUID) -> Cached[SessionView] | None:
        """The cached view; None when there is none, or when Redis doesn't work."""
        found = await self._session(Asked(session_id, ("view", "metadata")))
        if found is None:
            return None
        try:
            card, metadata = found.parts
            view = msgspec.structs.replace(_decode_view(card), metadata=_decode_object(metadata))
        except _NONSENSE as error:
            await self._disbelieve(session_id, error)
            return None
        if (view.session_id, view.seq) != (session_id, found.seq):
            return None
        return Cached(view.seq, view)

    async def metadata(
        self, session_id: UUID, names: Sequence[str] = ()
    ) -> Cached[dict[str, Any]] | None:
        """The cached metadata, or of them only the values with these names, as far as there are."""
        return await self._object(Asked(session_id, ("metadata",), names))

    async def scratchpad(
        self, session_id: UUID, names: Sequence[str] = ()
    ) -> Cached[dict[str, Any]] | None:
        """The cached scratchpad, or of it only the values with these names."""
        return await self._object(Asked(session_id, ("scratchpad",), names))

    async def _object(self, asked: Asked) -> Cached[dict[str, Any]] | None:
        found = await self._session(asked)
        if found is None:
            return None
        try:
            if found.named is not None:
                value = {name: _decode_any(data) for name, data in found.named.items()}
            else:
                value = chosen(_decode_object(found.parts[0]), asked.names)
        except _NONSENSE as error:
            await self._disbelieve(asked.session_id, error)
            return None
        return Cached(found.seq, value)

    async def context(self, session_id: UUID) -> Cached[list[dict[str, Any]]] | None:
        """The cached context."""
        keys = await self.keys()
        asked = Asked(session_id, ("context",))
        found = None if keys is None else await self._read(keys, CONTEXT, asked)
        if found is None:
            return None
        try:
            return Cached(found.seq, _decode_messages(found.parts[0]))
        except _NONSENSE as error:
            await self._disbelieve(session_id, error)
            return None

    async def _session(self, asked: Asked) -> Found | None:
        keys = await self.keys()
        layout = None if keys is None else await self._layout(keys)
        if keys is None or layout is None:
            return None
        return await self._read(keys, layout, asked)

    async def _read(self, keys: Keys, layout: Layout, asked: Asked) -> Found | None:
        key = self._name(keys, asked.session_id, layout)
        answers = await self._call([layout.read(key, asked)])
        if answers is None:
            return None
        try:
            return layout.found(answers[0], asked)
        except _NONSENSE as error:
            await self._disbelieve(asked.session_id, error)
            return None

    async def _disbelieve(self, session_id: UUID, error: Exception) -> None:
        log.warning("cache.failed", session_id=str(session_id), error=str(error))
        await self.invalidate(session_id)

    # --- writing ---

    async def put(self, entries: Sequence[Entry], keys: Keys | None = None) -> bool:
        """Keep entries, unless there are newer ones. False: not all were taken to Redis.

        `keys`: those that were asked for before the log was read.
        """
        keys = keys or await self.keys()
        layout = None if keys is None else await self._layout(keys)
        if keys is None or layout is None:
            return False
        return await self._put(keys, layout, entries)

    async def put_view(
        self, view: SessionView, scratchpad: dict[str, Any] | None = None, *, keys: Keys
    ) -> bool:
        """Keep a view, and with it the scratchpad as of the same seq; see `put`."""
        return await self.put([entry_of(view, scratchpad)], keys)

    async def put_context(
        self, session_id: UUID, seq: int, messages: list[dict[str, Any]], *, keys: Keys
    ) -> bool:
        """Keep a context, unless there is a newer one or it is too large."""
        entry = context_entry_of(session_id, seq, messages)
        return not entry.parts["context"] or await self._put(keys, CONTEXT, [entry])

    async def _put(self, keys: Keys, layout: Layout, entries: Sequence[Entry]) -> bool:
        for some in _calls(entries):
            commands = []
            for group in self._by_shard([entry.session_id for entry in some]):
                of_group = [some[place] for place in group]
                names = [self._name(keys, entry.session_id, layout) for entry in of_group]
                commands.append(layout.keep(names, of_group, seconds=self._ttl_seconds))
            if await self._call(commands) is None:
                return False
        return True

    async def invalidate(self, session_id: UUID) -> bool:
        """Drop all parts of a session; nothing older is kept afterwards. False: Redis is away."""
        keys = await self.keys()
        layouts = None if keys is None else await self._layouts(keys)
        if keys is None or layouts is None:
            return False
        commands = [
            command
            for layout in layouts
            for command in layout.drop(self._name(keys, session_id, layout))
        ]
        return await self._call(commands) is not None

    async def bury(self, session_ids: Sequence[UUID], *, seconds: int | None = None) -> bool:
        """Replace all of these sessions by marks that no writer replaces, however late it is.

        They stay for `seconds`; None: for as long as entries live, a day at least. Reads find
        nothing meanwhile. False: Redis did not take them all, and what it has may be read: do it
        again.
        """
        keys = await self.keys()
        layouts = None if keys is None else await self._layouts(keys)
        if keys is None or layouts is None:
            return False
        if seconds is None:
            seconds = max(self._ttl_seconds, BURIED_SECONDS_MIN)
        for start in range(0, len(session_ids), CALL_ENTRIES_MAX):
            some = session_ids[start : start + CALL_ENTRIES_MAX]
            commands = []
            for group in self._by_shard(some):
                for layout in layouts:
                    names = [self._name(keys, some[place], layout) for place in group]
                    commands.append(layout.bury(names, seconds=seconds))
            if await self._call(commands) is None:
                return False
        return True

    # --- Redis ---

    async def keys(self) -> Keys | None:
        """Names in Redis; None while it is left alone, and when Postgres can't tell them."""
        if asyncio.get_running_loop().time() < self._away_until:
            return None
        try:
            return await self._fanout.keys()
        except Unavailable as error:
            self._failed(error)
            return None

    async def _layout(self, keys: Keys) -> Layout | None:
        """The form of sessions' entries, found out once per connection; None: Redis is away."""
        if self._detected is not None and self._detected[0] == self._link.connection_number:
            return self._detected[1]
        layout: Layout = JSON
        try:
            async with asyncio.timeout(CACHE_SECONDS_MAX):
                await self._link.call("JSON.GET", keys.cache(0, "none", JSON.kind), "$.seq")
        except RedisRefused as error:
            if not any(sign in str(error) for sign in LACKING):
                self._failed(error)
                return None
            layout = HASH
        except (RedisDown, TimeoutError) as error:
            self._failed(error)
            return None
        self._detected = (self._link.connection_number, layout)
        return layout

    async def _layouts(self, keys: Keys) -> list[Layout] | None:
        """All forms that entries may have here; processes may differ in what they found out."""
        layout = await self._layout(keys)
        if layout is None:
            return None
        return [HASH, CONTEXT] if layout is HASH else [HASH, layout, CONTEXT]

    def _name(self, keys: Keys, session_id: UUID, layout: Layout) -> str:
        return keys.cache(shard_of(session_id, self._shards), str(session_id), layout.kind)

    def _by_shard(self, session_ids: Sequence[UUID]) -> list[list[int]]:
        """Places in the list, shard by shard: one script may touch the keys of one shard only."""
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for place, session_id in enumerate(session_ids):
            groups[shard_of(session_id, self._shards)].append(place)
        return list(groups.values())

    async def _call(self, commands: list[Command]) -> list[Any] | None:
        try:
            async with asyncio.timeout(CACHE_SECONDS_MAX):
                return await self._link.call_many(commands)
        except (RedisDown, TimeoutError) as error:
            self._failed(error)
            return None

    def _failed(self, error: Exception) -> None:
        self._away_until = asyncio.get_running_loop().time() + AWAY_SECONDS
        log.warning("cache.failed", error=f"{type(error).__name__}: {error}")


_NONSENSE: Final = (msgspec.MsgspecError, ValueError, TypeError, LookupError)
"""What reading an entry raises that no writer of ours wrote."""


def chosen(value: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The entries with these names, in their order; all of them when no name is given."""
    return {name: value[name] for name in names if name in value} if names else value


def _calls(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """The entries in runs that one call can send."""
    start = size = 0
    for place, entry in enumerate(entries):
        length = sum(map(len, entry.parts.values()))
        if place > start and (size + length > CALL_BYTES_MAX or place - start >= CALL_ENTRIES_MAX):
            yield entries[start:place]
            start, size = place, 0
        size += length
    if start < len(entries):
        yield entries[start:]
