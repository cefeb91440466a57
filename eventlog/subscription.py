"""Subscriptions: history from Postgres, then the live tail, as one sequence without gap or repeat.

    attach     to the hub's tail of the session, so that nothing committed from now on is missed
    catch up   pages from Postgres after the cursor, until a short page
    live       items of the tail, found by their number; drop what is not after the cursor
    behind     the tail no longer has the next number: catch up again

A subscription is an async iterator that keeps one number, its cursor. What it yields is shared by
all subscriptions of the process and decoded once. A consumer that stops asking costs nothing and
slows nobody; it finds what it missed in Postgres.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Self
from uuid import UUID

import msgspec

from eventlog.envelope import RecordedEvent, Row, expand, shard_of
from eventlog.errors import InvalidRequest, SessionNotFound, Unavailable
from eventlog.events import tag_of
from eventlog.hub import Hub
from eventlog.reading.cursors import decode_cursor, encode_cursor
from eventlog.replay import Replayer
from eventlog.store import ROWS_PER_PAGE_MAX, Store
from eventlog.tail import Tail

RETRY_SECONDS: Final = 0.25
"""Pause before history is read again while Postgres is away. Subscriptions don't end by that."""
ENDS: Final = ("session.closed", "session.deleted")
FEED_CURSOR_LENGTH_MAX: Final = 100_000
"""Characters of a cursor over all shards: 4,096 positions of 9 bytes each, and more than that."""
OWNERS_CACHED_MAX: Final = 50_000
"""Sessions of which a user's subscription remembers whether they are the user's."""


class SessionSubscription(AsyncIterator[RecordedEvent]):
    """Events of one session after a seq, for ever; ends after `session.closed` or `.deleted`.

    Use it in `async for`; `aclose()` (or leaving `async with`) gives back its place in the hub.
    """

    def __init__(self, replayer: Replayer, hub: Hub, session_id: UUID, *, after: int) -> None:
        self.cursor = after
        """Seq of the last event that was yielded: pass it as `after` to go on from there."""
        self.state = "new"
        """new, catching_up, live, fell_behind or ended."""
        self._replayer = replayer
        self._hub = hub
        self._session_id = session_id
        self._tail: Tail[RecordedEvent] | None = None
        self._lives = 0
        """Of the tail, when the cursor was last checked against the log; 0: never."""
        self._page: list[RecordedEvent] = []
        self._index = 0

    async def __anext__(self) -> RecordedEvent:
        while True:
            tail = self._tail
            if self._index < len(self._page) and (tail is None or tail.lives == self._lives):
                event = self._page[self._index]
                self._index += 1
                break
            if tail is not None and self.state == "live" and tail.lives == self._lives:
                place = self.cursor + 1 - tail.first
                if 0 <= place < len(tail.items):
                    event = tail.items[place]
                    break
                if place >= 0:
                    await self._wait(tail)
                    continue
                self.state = "fell_behind"
            if self.state == "ended":
                raise StopAsyncIteration
            await self._catch_up()
        self.cursor = event.seq
        if event.session_id == self._session_id and tag_of(event.event) in ENDS:
            self._end()  # not by an end in the past of a fork
        return event

    async def _wait(self, tail: Tail[RecordedEvent]) -> None:
        self._hub.check_open()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tail.waiters.append(waiter)
        try:
            await waiter
        finally:
            if not waiter.done() or waiter.cancelled():
                tail.waiters.remove(waiter)
        self._hub.check_open()

    async def _catch_up(self) -> None:
        """Read the next page of history; when it is the last, go live."""
        if self._tail is None:
            self.state = "catching_up"
            self._tail = self._hub.attach(self._session_id)
        if self._tail.lives != self._lives:
            lives = self._tail.lives
            await self._check_cursor()
            self._lives, self._page = lives, []  # what was read in another life may never have been
            if 0 < self._tail.first <= self.cursor + 1:
                self.state = "live"  # others follow this session already: what we lack is at hand
                return
        try:
            page = await self._replayer.read_page(self._session_id, after=self.cursor)
        except Unavailable:
            self._hub.check_open()
            await asyncio.sleep(RETRY_SECONDS)
            return
        self._page, self._index = page.events, 0
        if page.last_seq > self.cursor and page.more:
            return
        reached = max(page.last_seq, self.cursor)
        self._tail.begin(reached)
        if self._tail.first <= reached + 1 and self._tail.lives == self._lives:
            self.state = "live"

    async def _check_cursor(self) -> None:
        """Refuse a cursor beyond the session's end; end at once behind a closed session's end."""
        while True:
            try:
                head = await self._replayer.head(self._session_id)
                break
            except Unavailable:
                self._hub.check_open()
                await asyncio.sleep(RETRY_SECONDS)
        if head is None:
            self._end()
            raise SessionNotFound(self._session_id)
        if self.cursor > head.seq:
            self._end()
            raise InvalidRequest(
                f"cursor {self.cursor} is beyond the session's last seq {head.seq}: "
                "it belongs to another session or log; subscribe with after=0"
            )
        if head.closed and self.cursor == head.seq:
            self._end()
            raise StopAsyncIteration

    def _end(self) -> None:
        self.state = "ended"
        if self._tail is not None:
            tail, self._tail = self._tail, None
            self._hub.detach(self._session_id, tail)

    async def aclose(self) -> None:
        """Stop; nothing more is yielded. Whoever waits for the next event finds the end."""
        self._page = []
        tail = self._tail
        self._end()
        if tail is not None:
            tail.wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._end()


class FeedCursor(msgspec.Struct, frozen=True):
    """Where a subscription of feeds stands: the epoch's log id, and a position for each shard."""

    log_id: UUID
    positions: list[int]

    def encode(self) -> str:
        """The cursor as an opaque string, to be kept by a client."""
        return encode_cursor(self)

    @staticmethod
    def decode(text: str) -> FeedCursor:
        """The inverse of `encode`; raises `InvalidRequest`."""
        return decode_cursor(text, _cursor_decoder, length_max=FEED_CURSOR_LENGTH_MAX)


_cursor_decoder: Final = msgspec.msgpack.Decoder(FeedCursor)


class FeedSubscription:
    """Rows of some shards by position: for workers, live lists, and users' subscriptions."""

    def __init__(self, store: Store, hub: Hub, positions: dict[int, int]) -> None:
        self.positions = positions
        """Last position delivered of each shard."""
        self._store = store
        self._hub = hub
        self._tails = {shard: hub.attach_feed(shard) for shard in positions}
        self._lives = {shard: tail.lives for shard, tail in self._tails.items()}
        self._caught_up: set[int] = set()
        self._turn = deque(positions)

    async def next_rows(self, *, seconds: float | None = None) -> list[Row]:
        """Rows of one shard, at least one, in order; an empty list after `seconds` of silence.

        Raises `Unavailable` when history has to be read and Postgres is away, and when the log was
        closed. Empty at once after `close`.
        """
        while self._tails:
            for _ in self.positions:
                shard = self._turn[0]
                self._turn.rotate(-1)  # a busy shard must not starve the others
                if rows := await self._ready(shard):
                    self.positions[shard] = rows[-1].position
                    return rows
            if not await self._wait(seconds):
                return []
        return []

    async def _ready(self, shard: int) -> list[Row]:
        tail, position = self._tails[shard], self.positions[shard]
        if self._lives[shard] != tail.lives:
            self._lives[shard] = tail.lives
            self._caught_up.discard(shard)
            await self._check_position(shard)
        if shard in self._caught_up:
            place = position + 1 - tail.first
            if place >= 0:
                return tail.items[place : place + ROWS_PER_PAGE_MAX]
            self._caught_up.discard(shard)
        rows = await self._store.read_feed(shard, after=position, limit=ROWS_PER_PAGE_MAX)
        if len(rows) < ROWS_PER_PAGE_MAX:
            reached = rows[-1].position if rows else position
            tail.begin(reached)
            if tail.first <= reached + 1:
                self._caught_up.add(shard)
        return rows

    async def _check_position(self, shard: int) -> None:
        """After the log lost its end: refuse to wait for a place that others fill anew."""
        position, heads = self.positions[shard], await self._store.feed_heads()
        if position > heads[shard]:
            raise InvalidRequest(
                f"position {position} is beyond the end of shard {shard}, {heads[shard]}: "
                "the log lost its end; begin again from what you have stored"
            )

    async def _wait(self, seconds: float | None) -> bool:
        """Wait until one of the tails has something new; False when it took too long."""
        if any(tail.last > self.positions[shard] for shard, tail in self._tails.items()):
            return True
        if len(self._caught_up) < len(self.positions):
            return True
        self._hub.check_open()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for tail in self._tails.values():
            tail.waiters.append(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            return False
        finally:
            for tail in self._tails.values():
                if waiter in tail.waiters:
                    tail.waiters.remove(waiter)
        self._hub.check_open()
        return True

    def close(self) -> None:
        """Give back the places in the hub. Whoever waits for rows gets none."""
        tails, self._tails = self._tails, {}
        for shard, tail in tails.items():
            self._hub.detach_feed(shard, tail)
            tail.wake()


class UserSubscription(AsyncIterator[RecordedEvent]):
    """Events of all sessions of one user, those created later included, for ever.

    Order holds within each session. It filters the feeds of all shards: its cost is that of the
    log's traffic, not of the number of the user's sessions. With `from_start` it yields what the
    sessions hold first.
    """

    def __init__(
        self, store: Store, hub: Hub, owner_id: UUID, *, after: str | None, from_start: bool
    ) -> None:
        self._store = store
        self._hub = hub
        self._owner_id = owner_id
        self._after = after
        self._from_start = from_start
        self._feed: FeedSubscription | None = None
        self._log_id: UUID | None = None
        self._mine: dict[UUID, bool] = {}
        self._ended = False
        self._past: list[UUID] = []
        """Sessions whose history is still to be read, up to where the live part began."""
        self._past_seq = 0
        self._begin: list[int] = []
        self._events: deque[tuple[RecordedEvent, int, int]] = deque()
        self._delivered: list[int] = []
        self._rows: list[Row] = []

    @property
    def cursor(self) -> str:
        """Where the live part stands: pass it as `after` to go on from there.

        A row of several increments counts as delivered with its last one; a subscription resumed in
        the middle of a row yields the row's increments again.
        """
        if self._log_id is None:
            raise InvalidRequest("the subscription has no cursor before its first event")
        return FeedCursor(self._log_id, self._delivered).encode()

    async def __anext__(self) -> RecordedEvent:
        if self._feed is None and not self._ended:
            await self._start()
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            try:
                await (self._read_past() if self._past else self._read())
            except Unavailable:
                self._hub.check_open()
                await asyncio.sleep(RETRY_SECONDS)
        event, shard, position = self._events.popleft()
        if position:
            self._delivered[shard] = position
        return event

    async def _start(self) -> None:
        identity = await self._store.identity()
        positions = await self._store.feed_heads()
        if self._after is not None:
            cursor = FeedCursor.decode(self._after)
            ahead = [at for at, head in zip(cursor.positions, positions, strict=False) if at > head]
            if cursor.log_id != identity.log_id or len(cursor.positions) != len(positions) or ahead:
                raise InvalidRequest("this cursor is of another log; subscribe without one")
            positions = list(cursor.positions)
        elif self._from_start:  # read after the heads: it has every session with rows before them
            self._past = sorted(await self._store.sessions_of(self._owner_id), reverse=True)
        self._log_id = identity.log_id
        self._begin, self._delivered = positions, list(positions)
        self._feed = FeedSubscription(self._store, self._hub, dict(enumerate(positions)))

    async def _read_past(self) -> None:
        """Some of what a session holds up to the position where the live part begins."""
        session_id = self._past[-1]
        shard = shard_of(session_id, self._store.shards)
        rows = await self._store.read_session(
            session_id, after=self._past_seq, until=None, limit=ROWS_PER_PAGE_MAX
        )
        past = [row for row in rows if row.position <= self._begin[shard]]
        self._events.extend((event, shard, 0) for row in past for event in expand(row))
        if len(past) == ROWS_PER_PAGE_MAX:
            self._past_seq = past[-1].seq
        else:
            self._past_seq = 0
            self._past.pop()

    async def _read(self) -> None:
        assert self._feed is not None
        if not self._rows:
            self._rows = await self._feed.next_rows()
        await self._learn({row.session_id for row in self._rows})
        rows, self._rows = self._rows, []
        if not rows:
            return
        shard = shard_of(rows[0].session_id, self._store.shards)
        for row in rows:
            if self._mine[row.session_id]:
                events = expand(row)
                self._events.extend((event, shard, 0) for event in events[:-1])
                self._events.append((events[-1], shard, row.position))
            elif not self._events:
                self._delivered[shard] = row.position

    async def _learn(self, session_ids: set[UUID]) -> None:
        if len(self._mine) > OWNERS_CACHED_MAX:
            self._mine.clear()
        unknown = session_ids - self._mine.keys()
        if not unknown:
            return
        owned = await self._store.owned(self._owner_id, list(unknown))
        self._mine.update((each, each in owned) for each in unknown)

    async def aclose(self) -> None:
        """Stop; nothing more is yielded. Whoever waits for the next event finds the end."""
        self._ended = True
        self._events.clear()
        if self._feed is not None:
            self._feed.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
