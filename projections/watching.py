"""What there is to see of a running log, for metrics and for people: one look at both servers.

    Watch.look() ──> Postgres: lag, leases, parked and active sessions   each bounded in time, and
                └──> Redis: INFO, and length and end of every feed       neither waits for the other

A server that doesn't answer is a fact, too (`postgres_error`, `redis_error`), not an error. Looking
changes nothing. It costs two index look-ups for each shard and projection, and Redis two commands
for each shard, on a connection of its own: whoever publishes is not kept waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from eventlog.errors import Unavailable
from eventlog.feeds import Keys
from eventlog.log import EventLog
from eventlog.postgres import PostgresStore
from eventlog.redis_link import RedisDown, RedisLink
from eventlog.views import unescape_text
from projections.checkpoint import PROJECTION, postgres_of
from projections.lag import ShardLag, lag, projection_names

LOOK_SECONDS_MAX: Final = 2.0
"""A server that took longer to answer counts as down, for this look."""
COUNTED_MAX: Final = 10_000
"""Sessions and replies are counted up to here."""
SOON_SECONDS: Final = 60.0
RECENT_SECONDS: Final = 300.0
"""A session counts as active for so long after its last event (or `SOON_SECONDS`)."""
NEWEST_SESSIONS: Final = 200
"""Sessions whose growth is seen from one look to the next."""
FEEDS_PER_CALL: Final = 64
"""Feeds that Redis looks at in one go; it does nothing else meanwhile."""
SAMPLED_SHARDS: Final = 4
SAMPLED_ROWS: Final = 50
"""Newest rows, of so many shards, from which the number of events in a row is estimated."""

_FEEDS_SCRIPT: Final = """
local answers = {}
for number, key in ipairs(KEYS) do
  local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)
  answers[number] = {redis.call('XLEN', key), newest[1] and newest[1][1] or '0-0'}
end
return answers
"""
Facts = TypeVar("Facts")


class ActiveSession(msgspec.Struct, frozen=True):
    """A session as the views show it; text that users gave is as they gave it."""

    session_id: UUID
    key: str | None
    user_id: str | None
    title: str | None
    agent: str | None
    seq: int
    updated_at: datetime


class PostgresFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What Postgres says of the log."""

    epoch: str
    uptime_seconds: float
    lags: dict[str, list[ShardLag]]
    """By projection; that of the views comes first."""
    parked: dict[str, int]
    """Sessions set aside, by projection; those without any are left out."""
    active_soon: int
    active_recently: int
    open_replies: int
    compactions_due: int = 0
    """Each is counted up to `COUNTED_MAX`."""
    newest: list[ActiveSession]

    @property
    def heads(self) -> list[int]:
        """Last position of each shard."""
        return [each.head_position for each in self.lags[PROJECTION]]


class RedisFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What Redis says of itself, and of the log's feeds."""

    version: str
    uptime_seconds: float
    used_bytes: int
    max_bytes: int
    """0: no limit."""
    clients: int
    feed_lengths: list[int]
    feed_ends: list[int]
    """Last position in each feed; 0: it is empty."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at one moment."""

    at_seconds: float
    """`time.monotonic()` at the beginning."""
    postgres: PostgresFacts | None
    postgres_error: str
    redis: RedisFacts | None
    redis_error: str
    has_redis: bool
    """False: there is none, on purpose."""


class Watch:
    """Looks at one log. `aclose()` it when done."""

    def __init__(self, log: EventLog, *, seconds_max: float = LOOK_SECONDS_MAX) -> None:
        """Raises `InvalidSetting` for a log in memory."""
        self._store = postgres_of(log)
        self._log = log
        self._seconds_max = seconds_max
        url = log.servers.redis_url if log.servers is not None else None
        self._link = RedisLink(url) if url is not None else None
        self._keys: Keys | None = None
        self._asking: dict[str, asyncio.Task[Any]] = {}
        """What was asked last, for each kind of question."""

    async def aclose(self) -> None:
        """Close the connection to Redis; what is being asked is given up."""
        for task in self._asking.values():
            task.cancel()
        if self._link is not None:
            await self._link.aclose()

    async def look(self) -> Look:
        """Look at both servers; takes at most about `seconds_max`, and never raises for them."""
        at_seconds = time.monotonic()
        (postgres, postgres_error), (redis, redis_error) = await asyncio.gather(
            self._bounded("postgres", lambda: look_at_postgres(self._store)),
            self._bounded("redis", self._look_at_redis),
        )
        return Look(
            at_seconds=at_seconds,
            postgres=postgres,
            postgres_error=postgres_error,
            redis=redis,
            redis_error=redis_error,
            has_redis=self._link is not None,
        )

    async def events_per_row(self, before: PostgresFacts, now: PostgresFacts) -> float | None:
        """About how many events each row holds that came in between; None: none came, or no answer.

        An estimate from the newest rows of the shards that grew most: frames hold many increments.
        """
        grown = [(new - old, shard) for shard, (old, new) in _pairs(before.heads, now.heads)]
        busiest = [shard for rows, shard in sorted(grown, reverse=True)[:SAMPLED_SHARDS] if rows]
        if not busiest:
            return None
        after = [before.heads[shard] for shard in busiest]
        records, _ = await self._bounded(
            "spans", lambda: self._store.fetch("newest_spans", busiest, after, SAMPLED_ROWS)
        )
        return records[0][1] / records[0][0] if records and records[0][0] else None

    async def _bounded(
        self, question: str, ask: Callable[[], Coroutine[Any, Any, Facts]]
    ) -> tuple[Facts | None, str]:
        """What was asked for, or in a few words why it isn't there.

        Giving up a query takes a word with the server, too, which may be long in coming. So it is
        left to end by itself, and until then nothing more is asked.
        """
        task = self._asking.get(question)
        if task is None or task.done():
            task = self._asking[question] = asyncio.create_task(ask(), name=f"watch-{question}")
            task.add_done_callback(_noticed)
        await asyncio.wait((task,), timeout=self._seconds_max)
        if not task.done():
            task.cancel()
            return None, f"no answer within {self._seconds_max:g} s"
        try:
            return task.result(), ""
        except (Unavailable, RedisDown) as error:
            return None, str(error)
        except asyncpg.PostgresError as error:  # a schema that lacks something, or a missing right
            return None, f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            return None, "what was asked before was given up"

    async def _look_at_redis(self) -> RedisFacts | None:
        if self._link is None:
            return None
        info = parse_info(await self._link.call("INFO"))
        keys = await self._feed_keys()
        answers: list[Any] = []
        for first in range(0, len(keys), FEEDS_PER_CALL):
            some = keys[first : first + FEEDS_PER_CALL]
            answers += await self._link.call("EVAL", _FEEDS_SCRIPT, len(some), *some)
        return RedisFacts(
            version=info.get("valkey_version") or info.get("redis_version", "?"),
            uptime_seconds=_number(info, "uptime_in_seconds"),
            used_bytes=_number(info, "used_memory"),
            max_bytes=_number(info, "maxmemory"),
            clients=_number(info, "connected_clients"),
            feed_lengths=[length for length, _ in answers],
            feed_ends=[int(end.partition(b"-")[0]) for _, end in answers],
        )

    async def _feed_keys(self) -> list[str]:
        """Names of the feeds; as they were known last, while Postgres doesn't answer."""
        try:
            if self._log.fanout is not None:
                self._keys = await self._log.fanout.keys()
        except Unavailable:
            if self._keys is None:
                raise
        assert self._keys is not None
        return [self._keys.feed(shard) for shard in range(self._store.shards)]


async def look_at_postgres(store: PostgresStore) -> PostgresFacts:
    """Everything that Postgres knows. Raises `Unavailable`."""
    identity = await store.identity()
    names = await projection_names(store)
    lags = {name: await lag(store, name) for name in names}
    parked: dict[str, int] = dict(await store.fetch("parked_counts"))  # type: ignore[arg-type]
    counts = (SOON_SECONDS, RECENT_SECONDS, COUNTED_MAX)
    soon, recently, replies, uptime = (await store.fetch("activity", store.tenant_id, *counts))[0]
    due = (await store.fetch("count_due_contexts", store.tenant_id, COUNTED_MAX))[0][0]
    newest = await store.fetch("newest_sessions", store.tenant_id, NEWEST_SESSIONS)
    return PostgresFacts(
        epoch=identity.epoch,
        uptime_seconds=uptime,
        lags=lags,
        parked=parked,
        active_soon=soon,
        active_recently=recently,
        open_replies=replies,
        compactions_due=due,
        newest=[_active(*record) for record in newest],
    )


def parse_info(answer: object) -> dict[str, str]:
    """Redis' answer to INFO as a table."""
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name: value.strip() for name, value in pairs}


def _noticed(task: asyncio.Task[Any]) -> None:
    """What was given up may fail later; asyncio would complain that nobody looked."""
    if not task.cancelled():
        task.exception()


def _active(session_id: UUID, *record: Any) -> ActiveSession:
    *texts, seq, updated_us = record
    key, user_id, title, agent = (text and unescape_text(text) for text in texts)
    updated_at = datetime.fromtimestamp(updated_us / 1_000_000, UTC)
    return ActiveSession(session_id, key, user_id, title, agent, seq, updated_at)


def _number(info: Mapping[str, str], name: str) -> int:
    value = info.get(name, "0")
    return int(value) if value.isdigit() else 0


def _pairs(before: list[int], now: list[int]) -> Iterator[tuple[int, tuple[int, int]]]:
    return enumerate(zip(before, now, strict=True))
