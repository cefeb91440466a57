"""The process's one reader of the feeds, and the tails that all its subscriptions share.

Two tasks keep the tails going:

- the reader blocks on the feeds of all watched shards in one XREAD and puts each row where someone
  waits for it; rows of other sessions are skipped without being decoded;
- the checker compares every tail with its head in Postgres, in one query for all, and fills in what
  is missing. It runs every few seconds against silence, at once when the reader saw a hole, and
  many times a second while there is no Redis: then it is the polling.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from eventlog.envelope import SESSION_IN_HEADER, RecordedEvent, Row, expand, shard_of, unpack_row
from eventlog.erasing.watch import ErasureWatch
from eventlog.errors import EventLogError, Unavailable
from eventlog.fanout import FanOut
from eventlog.feeds import Keys, last_position
from eventlog.redis_link import RedisDown, RedisLink
from eventlog.store import ROWS_PER_PAGE_MAX, Store
from eventlog.tail import TAIL_LENGTH, Item, Tail
from eventlog.telemetry import get_logger, metrics

READ_ROWS_MAX: Final = 2_000
"""Rows of one shard that one XREAD returns at most."""
BLOCK_SECONDS: Final = 2.0
"""How long XREAD waits for rows before it is sent again."""
UNBLOCK_SECONDS: Final = 0.005
CHECK_SECONDS: Final = 3.0
"""How often tails are compared with Postgres while Redis works."""
POLL_SECONDS: Final = 0.1
"""How often they are while it doesn't."""
PAUSE_SECONDS_MAX: Final = 2.0

log = get_logger()


class Hub:
    """Reads feeds for every subscription of one process. Started by the first one."""

    def __init__(self, store: Store, fanout: FanOut | None, redis_url: str | None) -> None:
        self._store = store
        self._fanout = fanout
        self._link = RedisLink(redis_url) if redis_url and fanout else None
        self._sessions: dict[bytes, Tail[RecordedEvent]] = {}
        self._session_shards: dict[int, int] = {}
        self._feeds: dict[int, Tail[Row]] = {}
        self._cursors: dict[int, int] = {}
        """Last position read from the feed of each watched shard."""
        self._client_id = 0
        self._blocked = False
        self._live = False
        self._lost = False
        self._closed = False
        self._check = asyncio.Event()
        self._watch = asyncio.Event()
        self._erasures = ErasureWatch(store)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def live(self) -> bool:
        """Whether rows come from Redis now (else Postgres is polled)."""
        return self._live

    # --- who is interested ---

    def attach(self, session_id: UUID) -> Tail[RecordedEvent]:
        """Begin to collect events of a session; `detach` when done."""
        self.check_open()
        key = session_id.bytes
        tail = self._sessions.get(key)
        if tail is None:
            tail = self._sessions[key] = Tail()
            self._add_shard(shard_of(session_id, self._store.shards))
        tail.users += 1
        return tail

    def detach(self, session_id: UUID, tail: Tail[RecordedEvent]) -> None:
        """One subscription less."""
        tail.users -= 1
        if not tail.users and self._sessions.get(session_id.bytes) is tail:
            del self._sessions[session_id.bytes]
            self._remove_shard(shard_of(session_id, self._store.shards))

    def attach_feed(self, shard: int) -> Tail[Row]:
        """Begin to collect all rows of a shard; `detach_feed` when done."""
        self.check_open()
        tail = self._feeds.get(shard)
        if tail is None:
            tail = self._feeds[shard] = Tail()
            self._add_shard(shard)
        tail.users += 1
        return tail

    def detach_feed(self, shard: int, tail: Tail[Row]) -> None:
        """One subscription less."""
        tail.users -= 1
        if not tail.users and self._feeds.get(shard) is tail:
            del self._feeds[shard]
            self._remove_shard(shard)

    def _add_shard(self, shard: int) -> None:
        self._session_shards[shard] = self._session_shards.get(shard, 0) + 1
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._check_for_ever(), name="eventlog-check"))
            if self._link is not None:
                self._tasks.append(asyncio.create_task(self._read_for_ever(), name="eventlog-hub"))
        if shard not in self._cursors:
            self._watch.set()
            if self._blocked and self._fanout is not None:
                # The reader waits for other shards: let it come back and take this one in.
                task = asyncio.create_task(self._interrupt(), name="eventlog-unblock")
                self._tasks.append(task)
                task.add_done_callback(self._tasks.remove)

    def _remove_shard(self, shard: int) -> None:
        self._session_shards[shard] -= 1
        if not self._session_shards[shard]:
            del self._session_shards[shard]
            self._cursors.pop(shard, None)

    async def _interrupt(self) -> None:
        assert self._fanout is not None
        while self._blocked and any(each not in self._cursors for each in self._session_shards):
            try:
                await self._fanout.call("CLIENT", "UNBLOCK", self._client_id)
            except RedisDown:
                return  # then the reader's connection fails too, and it starts over with all shards
            await asyncio.sleep(UNBLOCK_SECONDS)  # it may have been about to block just then

    def forget(self) -> None:
        """The log was found to have lost its end: every subscription looks again where it is."""
        for tail in self._sessions.values():
            tail.forget()
        for feed in self._feeds.values():
            feed.forget()
        self._check.set()

    def drop_items(self) -> None:
        """Something was erased: whoever has yet to read what is here reads Postgres instead."""
        for tail in self._sessions.values():
            tail.restart(tail.last)
        for feed in self._feeds.values():
            feed.restart(feed.last)

    def check_open(self) -> None:
        """Raise `Unavailable` when the log was closed: nothing will come any more."""
        if self._closed:
            raise Unavailable("this EventLog is closed; open another")

    async def aclose(self) -> None:
        """Stop reading. Subscriptions that still wait are woken and find the hub closed."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._link is not None:
            await self._link.aclose()
        for tail in self._sessions.values():
            tail.wake()
        for feed in self._feeds.values():
            feed.wake()

    # --- the reader ---

    async def _read_for_ever(self) -> None:
        pause = 0.05
        while True:
            try:
                await self._read()
            except (EventLogError, LookupError, ValueError, struct.error) as error:
                # Redis or Postgres is away, or a feed holds what nobody of us published.
                self._lost = True
                if self._live:
                    log.warning("hub.redis_lost", error=str(error))
                self._live = False
                self._cursors.clear()
                self._check.set()
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(pause * 2, PAUSE_SECONDS_MAX)
            else:
                pause = 0.05

    async def _read(self) -> None:
        """Connect, then read until something breaks or the log's epoch changes."""
        assert self._link is not None
        assert self._fanout is not None
        link, keys = self._link, await self._fanout.keys()
        self._client_id = await link.call("CLIENT", "ID")
        self._cursors.clear()
        while keys == await self._fanout.keys():
            await self._start_shards(link, keys)
            if not self._live:
                if self._lost:
                    log.info("hub.redis_back", shards=len(self._cursors))
                self._live, self._lost = True, False
                self._check.set()
            if not self._cursors:
                self._watch.clear()
                await self._watch.wait()
                continue
            shards = list(self._cursors)
            self._blocked = True
            answer = await link.call(
                "XREAD",
                "COUNT",
                READ_ROWS_MAX,
                "BLOCK",
                int(BLOCK_SECONDS * 1000),
                "STREAMS",
                *(keys.feed(shard) for shard in shards),
                *(f"{self._cursors[shard]}-0" for shard in shards),
                seconds=BLOCK_SECONDS + 5,
            )
            self._blocked = False
            names = {keys.feed(shard).encode(): shard for shard in shards}
            for name, entries in answer or ():
                self._take(names[name], entries)
            await asyncio.sleep(0)  # a flood of rows must not starve those who consume them

    async def _start_shards(self, link: RedisLink, keys: Keys) -> None:
        """Begin at the present end of feeds that are newly watched; what is before is history."""
        new = [shard for shard in self._session_shards if shard not in self._cursors]
        if not new:
            return
        ends = await link.call_many(
            [("XREVRANGE", keys.feed(shard), "+", "-", "COUNT", 1) for shard in new]
        )
        for shard, end in zip(new, ends, strict=True):
            if shard in self._session_shards:
                self._cursors[shard] = last_position(end)
        self._check.set()

    def _take(self, shard: int, entries: list[tuple[bytes, list[bytes]]]) -> None:
        cursor = self._cursors.get(shard)
        if cursor is None:
            return
        sessions, feed = self._sessions, self._feeds.get(shard)
        rows: list[Row] = []
        whole = True
        first = last_position(entries)
        if first != cursor + 1 and cursor:
            self._check.set()  # a hole: something was trimmed or lost before we read it
        for _, fields in entries:
            packed = fields[1]
            tail = sessions.get(packed[SESSION_IN_HEADER])
            if feed is not None or tail is not None:
                row = unpack_row(packed)
                rows.append(row)
                if tail is not None:
                    whole = tail.push(row.first_seq, expand(row)) and whole
        if not whole:
            self._check.set()
        self._cursors[shard] = first + len(entries) - 1
        metrics.hub_rows += len(entries)
        if feed is not None and not feed.push(first, rows):
            self._check.set()

    # --- the checker ---

    async def _check_for_ever(self) -> None:
        pause = POLL_SECONDS
        while True:
            wait = CHECK_SECONDS if self._live else POLL_SECONDS
            try:
                async with asyncio.timeout(wait * (0.75 + random.random() / 2)):
                    await self._check.wait()
            except TimeoutError:
                pass  # nobody called: look anyway
            self._check.clear()
            try:
                await self._check_once()
                pause = POLL_SECONDS
            except Unavailable as error:
                log.debug("hub.postgres_lost", error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_SECONDS_MAX)

    async def _check_once(self) -> None:
        if await self._erasures.any_new():
            self.drop_items()
        by_id = {UUID(bytes=key): tail for key, tail in self._sessions.items()}
        if by_id:
            for session_id, head in (await self._store.heads(list(by_id))).items():
                await self._fill(
                    by_id[session_id], head.seq, self._session_pages(session_id), _events_of
                )
        if self._feeds:
            heads = await self._store.feed_heads()
            for shard, feed in list(self._feeds.items()):
                await self._fill(feed, heads[shard], self._feed_pages(shard), _rows_of)

    async def _fill(
        self,
        tail: Tail[Item],
        head: int,
        pages: Callable[[int], Any],
        items_of: Callable[[list[Row], int], list[Item]],
    ) -> None:
        """Bring a tail up to `head`, which Postgres has."""
        tail.head = max(tail.head, head)
        if not tail.first or tail.last >= head:
            return
        metrics.fell_behind += 1
        if head - tail.last > TAIL_LENGTH:
            tail.restart(head)  # too much to share: subscriptions read it themselves
            return
        while tail.last < head:
            last = tail.last
            page = await pages(last)
            if not page:
                return
            if tail.last == last:  # else the reader was quicker
                tail.push(last + 1, items_of(page, last))

    def _session_pages(self, session_id: UUID) -> Callable[[int], Any]:
        return lambda after: self._store.read_session(
            session_id, after=after, until=None, limit=ROWS_PER_PAGE_MAX
        )

    def _feed_pages(self, shard: int) -> Callable[[int], Any]:
        return lambda after: self._store.read_feed(shard, after=after, limit=ROWS_PER_PAGE_MAX)


def _events_of(rows: list[Row], after: int) -> list[RecordedEvent]:
    return [each for row in rows for each in expand(row, after=after)]


def _rows_of(rows: list[Row], after: int) -> list[Row]:
    return rows
