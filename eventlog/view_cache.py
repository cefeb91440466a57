"""The cache of session views in Redis: disposable, and written only forwards.

A cached view is a hash of two fields: `seq`, and `view`, its JSON. Writers may be late, repeat
themselves and race; a script compares seqs and lets only a newer view replace an older one.
Forgetting a view keeps its seq, so that a late writer can't bring back an older one.

Redis may be away, slow or wrong. Each call is bounded by `CACHE_SECONDS_MAX`, a failure is logged,
and for a moment after it the cache counts as empty: nobody waits for it twice.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog.envelope import shard_of
from eventlog.errors import Unavailable
from eventlog.fanout import FanOut, Keys
from eventlog.redis_link import RedisDown, RedisLink
from eventlog.telemetry import get_logger
from eventlog.views import SessionView

CACHE_SECONDS_MAX: Final = 0.5
"""A call that takes longer counts as failed: reading Postgres is quicker."""
AWAY_SECONDS: Final = 1.0
"""After a failure the cache is left alone for so long."""

SCRIPT: Final = """
-- KEYS: cached views of one shard. ARGV: seconds to live, then for each key its seq and its view.
for number, key in ipairs(KEYS) do
  local seq, view = ARGV[2 * number], ARGV[2 * number + 1]
  local known = tonumber(redis.call('HGET', key, 'seq') or '-1')
  if tonumber(seq) > known
    or (tonumber(seq) == known and redis.call('HEXISTS', key, 'view') == 0)
  then
    redis.call('HSET', key, 'seq', seq, 'view', view)
    redis.call('EXPIRE', key, ARGV[1])
  end
end
"""

log = get_logger()
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(SessionView).decode


class ViewCache:
    """Cached session views of one log, over a connection of its own. No method raises for Redis."""

    def __init__(self, fanout: FanOut, redis_url: str, *, shards: int, ttl_seconds: int) -> None:
        self._fanout = fanout
        self._link = RedisLink(redis_url)
        self._shards = shards
        self._ttl_seconds = ttl_seconds
        self._away_until = 0.0

    async def aclose(self) -> None:
        """Close the connection."""
        await self._link.aclose()

    async def get(self, session_id: UUID) -> SessionView | None:
        """The cached view; None when there is none, or when Redis doesn't work."""
        keys = await self._keys()
        if keys is None:
            return None
        answers = await self._call([("HGET", self._name(keys, session_id), "view")])
        if not answers or answers[0] is None:
            return None
        try:
            view = _decode(answers[0])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("cache.failed", session_id=str(session_id), error=str(error))
            await self.invalidate(session_id)
            return None
        return view if view.session_id == session_id else None

    async def put(self, views: Sequence[SessionView]) -> bool:
        """Keep views, unless there are newer ones. False: Redis did not answer."""
        keys = await self._keys()
        if keys is None:
            return False
        by_shard: defaultdict[int, list[SessionView]] = defaultdict(list)
        for view in views:
            by_shard[shard_of(view.session_id, self._shards)].append(view)
        commands: list[tuple[Any, ...]] = []
        for group in by_shard.values():
            names = [self._name(keys, view.session_id) for view in group]
            arguments: list[int | bytes] = [self._ttl_seconds]
            for view in group:
                arguments += (view.seq, _encode(view))
            commands.append(("EVAL", SCRIPT, len(names), *names, *arguments))
        return await self._call(commands) is not None

    async def invalidate(self, session_id: UUID) -> bool:
        """Forget a view; nothing older than it is kept afterwards. False: Redis did not answer."""
        keys = await self._keys()
        if keys is None:
            return False
        return await self._call([("HDEL", self._name(keys, session_id), "view")]) is not None

    async def _keys(self) -> Keys | None:
        """Names in Redis; None while it is left alone, and when Postgres can't tell them."""
        if asyncio.get_running_loop().time() < self._away_until:
            return None
        try:
            return await self._fanout.keys()
        except Unavailable as error:
            self._failed(error)
            return None

    def _name(self, keys: Keys, session_id: UUID) -> str:
        return keys.cache(shard_of(session_id, self._shards), str(session_id), "view")

    async def _call(self, commands: list[tuple[Any, ...]]) -> list[Any] | None:
        try:
            async with asyncio.timeout(CACHE_SECONDS_MAX):
                return await self._link.call_many(commands)
        except (RedisDown, TimeoutError) as error:
            self._failed(error)
            return None

    def _failed(self, error: Exception) -> None:
        self._away_until = asyncio.get_running_loop().time() + AWAY_SECONDS
        log.warning("cache.failed", error=f"{type(error).__name__}: {error}")
