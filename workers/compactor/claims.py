"""Claims: who works on which due session, in a stream of Redis with a consumer group.

    offer ──> entry ──> next: claimed ──> renewed, every third of `CLAIM_SECONDS` ──> done
                          │ its worker fell silent                        └──> handed back, when
                          └──> take over: another's, its deliveries counted          it stops

A session that was offered isn't offered again while its entry is there: the hash beside the stream
says which that is. Both are copies of nothing: they may be flushed at any time, and the sweep
offers again what is due. Claims keep workers from doing the same thing twice at the same time; that
nothing wrong comes of it when they do is for the log's own rules to see to.

Streams are a tenant's, and named by the log's epoch. They vanish when nobody offers anything for
`KEPT_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog.fanout import FanOut
from eventlog.redis_link import CALL_SECONDS_MAX, RedisLink, RedisRefused

GROUP: Final = "compactors"
CLAIM_SECONDS: Final = 30.0
"""A claim that nobody renewed for so long is taken over."""
DELIVERIES_MAX: Final = 5
"""A session whose workers died so often is not worked on any more."""
BLOCK_SECONDS: Final = 2.0
"""How long one request waits for entries; a group that was flushed meanwhile is noticed then."""
KEPT_SECONDS: Final = 7 * 24 * 3600
SILENT_CONSUMER_SECONDS: Final = 3600.0
"""A consumer without claims that asked for nothing for so long is forgotten."""
OFFERS_PER_CALL: Final = 200
"""Sessions offered in one go; Redis does nothing else meanwhile."""

OFFER: Final = """
-- KEYS: stream, hash of sessions and their entries. ARGV: seconds to keep both, sessions.
local offered = 0
for place = 2, #ARGV do
  local entry = redis.call('HGET', KEYS[2], ARGV[place])
  if not entry or #redis.call('XRANGE', KEYS[1], entry, entry) == 0 then
    redis.call('HSET', KEYS[2], ARGV[place],
      redis.call('XADD', KEYS[1], '*', 'session', ARGV[place]))
    offered = offered + 1
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return offered
"""
RENEW: Final = """
-- KEYS: stream. ARGV: group, consumer, entries. Answers for each: 1 it is ours still, 0 another's,
-- -1 it is gone.
local answers = {}
for place = 3, #ARGV do
  local entry = ARGV[place]
  local answer = -1
  local found = redis.pcall('XPENDING', KEYS[1], ARGV[1], entry, entry, 1)
  if not found.err and found[1] then
    answer = 0
    if found[1][2] == ARGV[2] then
      redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry, 'JUSTID')
      answer = 1
    end
  end
  answers[#answers + 1] = answer
end
return answers
"""
DONE: Final = """
-- KEYS: stream, hash. ARGV: group, consumer, session, whether it is to be offered again, entries.
-- An entry that was taken over is its new owner's.
local done = 0
for place = 5, #ARGV do
  local entry = ARGV[place]
  local found = redis.pcall('XPENDING', KEYS[1], ARGV[1], entry, entry, 1)
  if not found.err and found[1] and found[1][2] == ARGV[2] then
    redis.call('XACK', KEYS[1], ARGV[1], entry)
    redis.call('XDEL', KEYS[1], entry)
    if redis.call('HGET', KEYS[2], ARGV[3]) == entry then redis.call('HDEL', KEYS[2], ARGV[3]) end
    done = done + 1
  end
end
if done > 0 and ARGV[4] == '1' and redis.call('HEXISTS', KEYS[2], ARGV[3]) == 0 then
  redis.call('HSET', KEYS[2], ARGV[3], redis.call('XADD', KEYS[1], '*', 'session', ARGV[3]))
end
return done
"""


class Claim(msgspec.Struct, frozen=True):
    """One session that is this worker's to work on."""

    session_id: UUID
    entry: bytes
    deliveries: int = 1
    """How many workers were given it, this one included."""


class Claims:
    """The stream of one tenant, as one worker sees it. Every call may raise `RedisDown`.

    `Unavailable` only before the log's identity was ever seen. `aclose()` it when done.
    """

    def __init__(
        self,
        fanout: FanOut,
        redis_url: str,
        *,
        tenant_id: int,
        consumer: str,
        claim_seconds: float = CLAIM_SECONDS,
    ) -> None:
        self.consumer = consumer
        self.claim_seconds = claim_seconds
        self._fanout = fanout
        self._tenant_id = tenant_id
        self._link = RedisLink(redis_url)
        self._waiting_link = RedisLink(redis_url)
        """Blocked most of the time."""

    async def aclose(self) -> None:
        """Close the connections."""
        await self._link.aclose()
        await self._waiting_link.aclose()

    async def keys(self, tenant_id: int | None = None) -> tuple[str, str]:
        """Names of the stream, and of the hash of what is in it."""
        tenant = self._tenant_id if tenant_id is None else tenant_id
        # In braces: a Redis Cluster keeps both in one place.
        stream = f"{(await self._fanout.keys()).prefix}:{{compaction:{tenant}}}"
        return stream, f"{stream}:offered"

    async def offer(self, session_ids: Sequence[UUID], *, tenant_id: int | None = None) -> int:
        """Offer sessions to all workers of a tenant, ours by default; how many are new."""
        keys = await self.keys(tenant_id)
        offered = 0
        for first in range(0, len(session_ids), OFFERS_PER_CALL):
            some = session_ids[first : first + OFFERS_PER_CALL]
            offered += await self._link.call("EVAL", OFFER, 2, *keys, KEPT_SECONDS, *some)
        return offered

    async def next(self, count_max: int, *, seconds: float = BLOCK_SECONDS) -> list[Claim]:
        """Claim sessions that were offered; none, if none is there within `seconds`."""
        stream, _ = await self.keys()
        block_ms = max(1, round(seconds * 1000))
        reader = ("XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", count_max)
        command = (*reader, "BLOCK", block_ms, "STREAMS", stream, ">")
        try:
            answer = await self._waiting_link.call(*command, seconds=seconds + CALL_SECONDS_MAX)
        except RedisRefused as error:
            if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):
                raise
            await self._make_group(stream)
            return []
        return await self._read(stream, answer[0][1]) if answer else []

    async def renew(self, claims: Sequence[Claim]) -> tuple[list[Claim], list[Claim]]:
        """Show that they are worked on; those that are another's now, and those that are gone."""
        if not claims:
            return [], []
        stream, _ = await self.keys()
        entries = [each.entry for each in claims]
        answers = await self._link.call("EVAL", RENEW, 1, stream, GROUP, self.consumer, *entries)
        found = list(zip(claims, answers, strict=True))
        return [each for each, own in found if own == 0], [each for each, own in found if own < 0]

    async def take_over(self, count_max: int) -> list[Claim]:
        """Claim what other workers have, and were silent about for too long."""
        stream, _ = await self.keys()
        idle_ms = round(self.claim_seconds * 1000)
        command = ("XAUTOCLAIM", stream, GROUP, self.consumer, idle_ms, "0-0", "COUNT", count_max)
        try:
            answer = await self._link.call(*command)
        except RedisRefused as error:
            if "NOGROUP" not in str(error):
                raise
            await self._make_group(stream)
            return []
        claims: list[Claim] = []
        for each in await self._read(stream, answer[1]):
            pending = await self._link.call("XPENDING", stream, GROUP, each.entry, each.entry, 1)
            count = pending[0][3] if pending else 1
            claims.append(msgspec.structs.replace(each, deliveries=count))
        return claims

    async def done(self, session_id: UUID, entries: Sequence[bytes], *, again: bool) -> int:
        """Give up what of these is ours still; `again`: for others to be worked on at once."""
        if not entries:
            return 0
        keys = await self.keys()
        fixed = (GROUP, self.consumer, session_id, int(again))
        done: int = await self._link.call("EVAL", DONE, 2, *keys, *fixed, *entries)
        return done

    async def leave(self) -> None:
        """Hand back what was claimed without our knowing, and vanish."""
        stream, _ = await self.keys()
        command = ("XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", 1000, "STREAMS", stream)
        try:
            answer = await self._link.call(*command, "0")  # what is ours already
            for each in await self._read(stream, answer[0][1]) if answer else []:
                await self.done(each.session_id, [each.entry], again=True)
            await self._link.call("XGROUP", "DELCONSUMER", stream, GROUP, self.consumer)
        except RedisRefused as error:
            if "NOGROUP" not in str(error):
                raise

    async def forget_consumers(self) -> None:
        """Forget those who have no claims, and asked for none for long: they died."""
        stream, _ = await self.keys()
        try:
            consumers = await self._link.call("XINFO", "CONSUMERS", stream, GROUP)
        except RedisRefused:
            return  # flushed: there is nobody to forget
        for fields in consumers:
            facts = dict(zip(fields[::2], fields[1::2], strict=True))
            silent = facts[b"idle"] > SILENT_CONSUMER_SECONDS * 1000
            if silent and not facts[b"pending"] and facts[b"name"] != self.consumer.encode():
                await self._link.call("XGROUP", "DELCONSUMER", stream, GROUP, facts[b"name"])

    async def _make_group(self, stream: str) -> None:
        """From the first entry on: what was offered before there was a group counts."""
        try:
            await self._link.call("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
        except RedisRefused as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _read(self, stream: str, entries: list[Any]) -> list[Claim]:
        """Claims from entries. What is no entry of ours is removed: it would come back for ever."""
        found: list[Claim] = []
        for each in entries:
            session_id = _session_of(each)
            if session_id is not None:
                found.append(Claim(session_id, each[0]))
            elif each is not None:
                await self._link.call("XACK", stream, GROUP, each[0])
                await self._link.call("XDEL", stream, each[0])
        return found


def _session_of(entry: Any) -> UUID | None:
    """The session in an entry; None: it holds none, or was deleted while it was claimed."""
    fields = entry[1] if entry is not None else None
    if not fields:
        return None
    try:
        return UUID(dict(zip(fields[::2], fields[1::2], strict=True))[b"session"].decode())
    except (KeyError, ValueError):
        return None
