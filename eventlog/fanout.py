"""Fan-out: the feeds in Redis Streams, a contiguous copy of the newest rows of every shard.

    commit ──> offer ──> publish script ──> feed …:{7}:feed, entry id <position>-0
                              │ BEHIND, EMPTY, Redis was away
                              └──> repair(shard): rows from Postgres behind the feed's end

Whoever appended offers its rows right after the commit and goes on; one task of the process
publishes what has gathered, all shards in one call. Redis being down or slow never delays or fails
an append: rows that can't be published are dropped here and copied from Postgres later, by a repair
in this process or by the relay. Nothing is ever appended to a feed but through the publish script,
which never leaves a hole and never stores a row twice.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from importlib.resources import files
from typing import Final

from redis.exceptions import NoScriptError

from eventlog.envelope import pack_row
from eventlog.errors import Unavailable
from eventlog.feeds import Keys, Run, last_position, packed_rows
from eventlog.redis_link import RedisDown, RedisLink
from eventlog.store import (
    ROWS_PER_PAGE_MAX,
    Answer,
    Command,
    Identity,
    Status,
    Store,
)
from eventlog.telemetry import get_logger, metrics

OFFERED_BYTES_MAX: Final = 64 * 1024 * 1024
"""Rows waiting to be published; beyond this they are dropped here and left to `repair`."""
PUBLISH_BYTES_MAX: Final = 8 * 1024 * 1024
"""Payload of one script call, about: Redis does nothing else meanwhile."""
PAUSE_SECONDS_MAX: Final = 2.0
"""Longest pause between tries while Redis is away (jittered)."""
TURNS_FOR_OTHERS: Final = 3
"""Turns of the loop before publishing: callers that were just answered append again, and their lane
sends that off, so that Postgres works while we do."""
BEHIND_SECONDS: Final = 0.004
"""How long to wait for whoever has the rows before ours, before reading them from Postgres."""
SWEEP_PATIENCE_SECONDS: Final = 0.05
"""How long a sweep waits for rows that may be on their way before it copies them."""
REPAIR_TRIES_MAX: Final = 5
"""A feed that vanishes again and again is left to the next sweep."""
IDENTITY_SECONDS: Final = 5.0
"""How long a process may not notice that the epoch was raised."""

log = get_logger()
SCRIPT: Final = files("eventlog").joinpath("publish.lua").read_text("utf-8")


class FanOut:
    """Publishes and repairs the feeds of one log, over one connection of its own."""

    def __init__(
        self,
        store: Store,
        redis_url: str,
        *,
        feed_rows_max: int,
        on_new_epoch: Callable[[], None],
    ) -> None:
        self._store = store
        self._on_new_epoch = on_new_epoch
        self._link = RedisLink(redis_url)
        self._feed_rows_max = feed_rows_max
        self._offered: deque[tuple[list[Command], list[Answer]]] = deque()
        self._runs: dict[int, list[Run]] = {}
        self._waiting_bytes = 0
        self._dirty: set[int] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._script = ""
        self._identity: Identity | None = None
        self._seen_identity: Identity | None = None
        self._identity_until = 0.0
        self.healthy = True
        """Whether the last call to Redis worked."""

    def start(self) -> None:
        """Begin to publish what is offered."""
        self._task = asyncio.create_task(self._publish_for_ever(), name="eventlog-fanout")

    async def aclose(self) -> None:
        """Stop; what was not published is in Postgres, and the next repair finds it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._link.aclose()

    async def keys(self) -> Keys:
        """Names in Redis at the log's epoch, as it was at most `IDENTITY_SECONDS` ago."""
        now = asyncio.get_running_loop().time()
        if self._identity is None or now > self._identity_until:
            try:
                await self._identify()
            except Unavailable:
                if self._identity is None:
                    raise
            self._identity_until = now + IDENTITY_SECONDS
        assert self._identity is not None
        return Keys.of(self._identity)

    async def _identify(self) -> Identity:
        """Ask which log this is. At another epoch, nothing that was remembered counts."""
        identity = await self._store.identity()
        if self._seen_identity not in (None, identity):
            self._on_new_epoch()
        self._identity = self._seen_identity = identity
        return identity

    # --- publishing what was just committed ---

    def offer(self, commands: list[Command], answers: list[Answer]) -> None:
        """Take what was just committed. Never waits, never fails; packing it is left for later."""
        self._offered.append((commands, answers))
        self._idle.clear()
        self._wake.set()

    def _gather(self) -> None:
        """Pack what was offered, row by row, into runs of consecutive positions."""
        while self._offered:
            commands, answers = self._offered.popleft()
            for command, answer in zip(commands, answers, strict=True):
                if answer.status == Status.OK:
                    self._add(command.shard, answer.first_position, packed_rows(command, answer))
        if self._waiting_bytes > OFFERED_BYTES_MAX:
            self._drop_all()

    def _add(self, shard: int, first: int, rows: list[bytes]) -> None:
        size = sum(map(len, rows))
        self._waiting_bytes += size
        runs = self._runs.setdefault(shard, [])
        if runs and runs[-1].first + len(runs[-1].rows) == first:
            runs[-1].rows += rows
            runs[-1].byte_count += size
        else:
            runs.append(Run(shard, first, rows))

    async def drained(self) -> None:
        """Wait until everything offered was published or given up."""
        await self._idle.wait()

    def _drop_all(self) -> None:
        for shard, runs in self._runs.items():
            self._dirty.add(shard)
            metrics.dropped_rows += sum(len(run.rows) for run in runs)
        self._runs.clear()
        self._waiting_bytes = 0

    async def _publish_for_ever(self) -> None:
        pause = 0.05
        while True:
            if not self._runs and not self._dirty and not self._offered:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            for _ in range(TURNS_FOR_OTHERS):
                await asyncio.sleep(0)
            self._gather()
            try:
                await self._publish_once()
                pause = 0.05
                self.healthy = True
            except (RedisDown, Unavailable) as error:
                self.healthy = False
                self._gather()
                self._drop_all()
                self._identity = None  # whatever was lost, look again which log this is
                metrics.publish_failures += 1
                log.warning("feed.publish_failed", error=str(error))
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(pause * 2, PAUSE_SECONDS_MAX)

    async def _publish_once(self) -> None:
        for shard in sorted(self._dirty):
            await self.repair(shard)
            self._dirty.discard(shard)
        taken: list[Run] = []
        size = 0
        for shard in list(self._runs):
            if size > PUBLISH_BYTES_MAX:
                break
            taken += self._runs.pop(shard)
            size = sum(run.byte_count for run in taken)
        if not taken:
            return
        self._waiting_bytes -= size
        try:
            answers = await self.publish(taken)
        except BaseException:
            self._dirty.update(run.shard for run in taken)
            raise
        again = [run for run, answer in zip(taken, answers, strict=True) if answer < 0]
        if not again:
            return
        # Somebody else committed the rows before ours and is about to publish them.
        await asyncio.sleep(BEHIND_SECONDS)
        for run, answer in zip(again, await self.publish(again), strict=True):
            if answer < 0:
                await self.repair(run.shard)

    async def publish(self, runs: list[Run], *, may_start: bool = False) -> list[int]:
        """Run the script for these runs: last positions, or what is negative (see publish.lua)."""
        keys = await self.keys()
        arguments: list[str | bytes | int] = [self._feed_rows_max]
        for run in runs:
            arguments += [run.first, len(run.rows), 1 if may_start else 0]
            arguments += run.rows
        feeds = [keys.feed(run.shard) for run in runs]
        command = ("EVALSHA", await self._script_sha(), len(feeds), *feeds, *arguments)
        try:
            answers: list[int] = await self._link.call(*command)
        except RedisDown as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
            self._script = ""  # the server was restarted
            command = ("EVALSHA", await self._script_sha(), *command[2:])
            answers = await self._link.call(*command)
        metrics.published_rows += sum(len(run.rows) for run in runs)
        return answers

    async def _script_sha(self) -> str:
        if not self._script:
            self._script = (await self._link.call("SCRIPT", "LOAD", SCRIPT)).decode()
        return self._script

    # --- repairing what was not published ---

    async def repair(self, shard: int) -> int:
        """Copy what the feed lacks from Postgres; returns how many rows that were.

        Rows read from Postgres are contiguous, so any number of repairs may race. Raises
        `RedisDown` and `Unavailable`.
        """
        copied = 0
        for _ in range(REPAIR_TRIES_MAX):
            whole, rows = await self._repair_once(shard)
            copied += rows
            if whole:
                break
        if copied:
            metrics.repaired_rows += copied
            log.info("feed.repaired", shard=shard, rows=copied)
        return copied

    async def _repair_once(self, shard: int) -> tuple[bool, int]:
        """Whether the feed has all now, and how many rows were copied.

        It hasn't when it vanished, or lost its end, between two of our calls.
        """
        feed = (await self.keys()).feed(shard)
        after = last_position(await self._link.call("XREVRANGE", feed, "+", "-", "COUNT", 1))
        may_start = after == 0
        if may_start:
            heads = await self._store.feed_heads()
            after = max(0, heads[shard] - self._feed_rows_max)
        copied = 0
        while True:
            page = await self._store.read_feed(shard, after=after, limit=ROWS_PER_PAGE_MAX)
            if not page:
                break
            run = Run(shard, page[0].position, [pack_row(row) for row in page])
            (answer,) = await self.publish([run], may_start=may_start)
            if answer < 0:
                return False, copied
            copied += len(page)
            after = page[-1].position
            may_start = False
            if len(page) < ROWS_PER_PAGE_MAX:
                break
        return True, copied

    async def sweep(self) -> int:
        """Look at every feed once and repair those that are not at the end of the log.

        Also notices that the log itself has lost its end (a restored backup, a failover): then a
        feed is ahead of Postgres, and the epoch is raised. Returns the number of rows repaired.
        """
        identity = await self._identify()
        keys = Keys.of(identity)
        shards = range(identity.shards)
        ends = await self._link.call_many(
            [("XREVRANGE", keys.feed(shard), "+", "-", "COUNT", 1) for shard in shards]
        )
        heads = await self._store.feed_heads()  # after the feeds: rows may only have been added
        behind: dict[int, int] = {}
        for shard, head, end in zip(shards, heads, ends, strict=True):
            last = last_position(end)
            if last > head:
                log.error("feed.epoch_raised", shard=shard, feed=last, log=head)
                await self._store.raise_epoch(identity.epoch)
                self._identity = None
                await self._identify()
                return 0  # the next sweep fills the feeds of the new epoch
            if last < head:
                behind[shard] = head
        copied = 0
        for shard in await self._still_behind(keys, behind):
            copied += await self.repair(shard)
        self.healthy = True
        return copied

    async def _still_behind(self, keys: Keys, heads: dict[int, int]) -> list[int]:
        """Shards whose feeds don't reach these heads even after their publishers had a moment."""
        if not heads:
            return []
        await asyncio.sleep(SWEEP_PATIENCE_SECONDS)
        ends = await self._link.call_many(
            [("XREVRANGE", keys.feed(shard), "+", "-", "COUNT", 1) for shard in heads]
        )
        return [
            shard
            for (shard, head), end in zip(heads.items(), ends, strict=True)
            if last_position(end) < head
        ]

    async def ends(self) -> list[int]:
        """Last position in every feed; 0 where there is none. Raises `RedisDown`."""
        keys = await self.keys()
        answers = await self._link.call_many(
            [("XREVRANGE", keys.feed(s), "+", "-", "COUNT", 1) for s in range(self._store.shards)]
        )
        return [last_position(answer) for answer in answers]

    async def call(self, *command: object) -> object:
        """Send a command over this connection, for the hub and the caches. Raises `RedisDown`."""
        return await self._link.call(*command)
