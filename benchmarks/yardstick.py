"""The yardstick: the plainest durable inserter with live subscribers, to compare the project with.

One committer loop. It takes everything that waits, sends one `INSERT … SELECT FROM unnest`,
answers the callers, and hands the batch to a publisher that sends it as one pipeline of XADDs while
the next batch commits. No checks, no idempotency, no views, one index, one stream. It is meant to
be fast: uvloop, hiredis, prepared statement, random ids drawn for a whole batch at once.

`Yardstick` is the thing itself. The functions below drive it the way `append` and `tokens` drive
the project: 64 sessions that await each message, and 32 sessions that write tokens at a pace.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
import redis.asyncio
from asyncpg.pgproto.pgproto import UUID

from benchmarks.cpu import CpuMeter
from benchmarks.limits import CREATE_TABLE, DATA, FEED, FEED_ENTRIES_MAX, INSERT_ROWS, SHARDS
from benchmarks.load import AppendRound, PacedRound, append_round, pace, wait_until
from benchmarks.measure import Bench, Case, Result, median, shown
from benchmarks.servers import Ground, redis_client

MESSAGE_SESSIONS = 64
TOKEN_SESSIONS = 32
TOKENS_PER_SECOND = 30
READ_BLOCK_MS = 1000
READ_ENTRIES_MAX = 1000


class BareSession:
    """A session's id, in the forms that Postgres and Redis want, and its last seq."""

    __slots__ = ("id", "raw", "seq", "shard")

    def __init__(self) -> None:
        self.raw = os.urandom(16)
        self.id = UUID(self.raw)
        self.shard = self.raw[-1] % SHARDS
        self.seq = 0


Waiting = tuple[int, BareSession, bytes, "asyncio.Future[None]"]


class Yardstick:
    """Group commit and nothing else: `append` returns a future that is done after the commit."""

    def __init__(
        self, connection: asyncpg.Connection[Any], client: redis.asyncio.Redis, feed: str = FEED
    ) -> None:
        self.feed = feed
        self._connection = connection
        self._redis = client
        self._loop = asyncio.get_running_loop()
        self._queue: list[Waiting] = []
        self._wake = asyncio.Event()
        self._committed: list[tuple[Waiting, ...]] = []
        self._publish = asyncio.Event()
        self._published = asyncio.Event()
        self._published.set()
        self._position = 0

    def append(self, session: BareSession, data: bytes) -> asyncio.Future[None]:
        session.seq += 1
        future = self._loop.create_future()
        self._queue.append((session.seq, session, data, future))
        self._wake.set()
        return future

    async def published(self) -> None:
        """Return when every acknowledged row is in Redis."""
        await self._published.wait()

    async def run(self) -> None:
        """Commit and publish until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._commit_batches())
            tasks.create_task(self._publish_batches())

    async def _commit_batches(self) -> None:
        statement = await self._connection.prepare(INSERT_ROWS)
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch, self._queue = self._queue, []
                seqs, sessions, datas, futures = zip(*batch, strict=True)
                random = os.urandom(16 * len(batch))
                first, self._position = self._position, self._position + len(batch)
                await statement.fetch(
                    range(first, self._position),
                    seqs,
                    [session.id for session in sessions],
                    [UUID(random[at : at + 16]) for at in range(0, len(random), 16)],
                    [session.shard for session in sessions],
                    datas,
                )
                for future in futures:
                    future.set_result(None)
                self._committed.append(tuple(batch))
                self._published.clear()
                self._publish.set()

    async def _publish_batches(self) -> None:
        while True:
            await self._publish.wait()
            self._publish.clear()
            while self._committed:
                batches, self._committed = self._committed, []
                for batch in batches:
                    pipeline = self._redis.pipeline(transaction=False)
                    for seq, session, data, _ in batch:
                        pipeline.execute_command(
                            "XADD", self.feed, "MAXLEN", "~", FEED_ENTRIES_MAX, "*",
                            "s", session.raw, "q", seq, "d", data,
                        )  # fmt: skip
                    await pipeline.execute()
            self._published.set()


@asynccontextmanager
async def running(ground: Ground) -> AsyncIterator[Yardstick]:
    """A yardstick at work on a fresh database, with connections of its own."""
    await ground.connection.execute(CREATE_TABLE)
    connection = await asyncpg.connect(ground.postgres_url)
    client = redis_client(ground.redis_url)
    task = None
    try:
        yardstick = Yardstick(connection, client)
        task = asyncio.create_task(yardstick.run())
        yield yardstick
    finally:
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await client.aclose()
        await connection.close()


# --- driving it ----------------------------------------------------------------------------------


async def message_round(yardstick: Yardstick, meter: CpuMeter, *, seconds: float) -> AppendRound:
    """MESSAGE_SESSIONS sessions, each awaiting every message of 200 bytes, for `seconds`."""
    sessions = [BareSession() for _ in range(MESSAGE_SESSIONS)]

    async def append(index: int) -> None:
        await yardstick.append(sessions[index], DATA)

    return await append_round(
        append, yardstick.published, meter, sessions=MESSAGE_SESSIONS, seconds=seconds
    )


async def token_round(yardstick: Yardstick, ground: Ground, *, seconds: float) -> PacedRound:
    """TOKEN_SESSIONS sessions write a row per token at a pace; one XREAD sees them come by."""
    sessions = [BareSession() for _ in range(TOKEN_SESSIONS)]
    sent: list[list[int]] = [[] for _ in sessions]
    seen: list[list[int]] = [[] for _ in sessions]
    by_id = {session.raw: index for index, session in enumerate(sessions)}
    reader = redis_client(ground.redis_url)
    newest: Any = await reader.xrevrange(yardstick.feed, count=1)
    reading = asyncio.create_task(_read(reader, yardstick.feed, newest, by_id, seen))

    async def write(index: int, number: int) -> None:
        sent[index].append(time.monotonic_ns())
        yardstick.append(sessions[index], b"tok%d " % (number % 10))

    try:
        await pace(write, sessions=TOKEN_SESSIONS, per_second=TOKENS_PER_SECOND, seconds=seconds)
        await yardstick.published()

        async def all_seen() -> bool:
            return sum(map(len, seen)) >= sum(map(len, sent))

        await wait_until(all_seen, poll_seconds=0.01, timeout_seconds=10)
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await reader.aclose()
    return PacedRound.of(sent, seen)


async def _read(
    reader: redis.asyncio.Redis,
    feed: str,
    newest: list[Any],
    by_id: dict[bytes, int],
    seen: list[list[int]],
) -> None:
    last = newest[0][0] if newest else b"0"
    while True:
        answer: Any = await reader.xread({feed: last}, count=READ_ENTRIES_MAX, block=READ_BLOCK_MS)
        for _, entries in answer:
            for entry_id, fields in entries:
                index = by_id.get(fields[b"s"])
                if index is not None:
                    seen[index].append(time.monotonic_ns())
                last = entry_id


@dataclass(frozen=True, slots=True)
class _Figures:
    messages: list[AppendRound]
    tokens: list[PacedRound]


async def run(bench: Bench) -> list[Result]:
    """The yardstick alone: what the project's cases will be compared with."""
    rounds = bench.count(5, 2)
    async with bench.place.fresh() as ground, running(ground) as yardstick:
        meter = CpuMeter(ground.connection, ground.redis, ground.database)
        await meter.start()
        figures = _Figures([], [])
        await message_round(yardstick, meter, seconds=1)
        for number in range(rounds):
            figures.messages.append(await message_round(yardstick, meter, seconds=bench.pick(4, 1)))
            bench.say(f"messages {number + 1}/{rounds}: {figures.messages[-1]}")
        for number in range(rounds):
            figures.tokens.append(await token_round(yardstick, ground, seconds=bench.pick(6, 2)))
            bench.say(f"paced tokens {number + 1}/{rounds}: {figures.tokens[-1]}")
    return [
        shown(
            "yardstick", "messages", median(r.per_second for r in figures.messages), "messages/s"
        ),
        shown("yardstick", "message p50", median(r.latency.p50 for r in figures.messages), "ms"),
        shown("yardstick", "message p99", median(r.latency.p99 for r in figures.messages), "ms"),
        shown(
            "yardstick",
            "CPU per 1,000 messages",
            median(r.cpu_per_thousand for r in figures.messages),
            "s",
            note=_shares(figures.messages),
        ),
        shown("yardstick", "paced token p50", median(r.latency.p50 for r in figures.tokens), "ms"),
        shown("yardstick", "paced token p99", median(r.latency.p99 for r in figures.tokens), "ms"),
    ]


def _shares(rounds: list[AppendRound]) -> str:
    """Who used the CPU, for the median round."""
    middle = sorted(rounds, key=lambda each: each.cpu_per_thousand or 0)[len(rounds) // 2]
    return middle.shares


CASES = [
    Case(
        "yardstick",
        "the plainest group-commit inserter alone: messages, CPU, paced tokens",
        run,
    )
]
