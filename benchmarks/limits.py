"""What this machine and these servers can do at all, before anything of ours is in the way.

Five limits, each measured alone: a bare `INSERT … SELECT FROM unnest` of the rows that the log
stores, a bare COPY of the same rows, one commit at a time (each flushed to disk), XADD in
pipelines, and the time from an XADD to the return of a blocked XREAD. One number beside them, the
bare fdatasync of a file, tells whether the disk is one: below about 0.02 ms, commits are not
reaching anything that survives a power cut, and figures of this run mean little.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import redis.asyncio
from asyncpg.pgproto.pgproto import UUID

from benchmarks.measure import Bench, Case, Result, median, shown, spread
from benchmarks.servers import redis_client

CREATE_TABLE = """
    create table bare_events (
        position bigint, seq bigint, recorded_at timestamptz, session_id uuid, event_id uuid,
        tenant_id int, shard smallint, span smallint, type smallint, flags smallint, data bytea,
        primary key (shard, session_id, seq))
"""
INSERT_ROWS = """
    insert into bare_events
    select position, seq, now(), session_id, event_id, 0, shard, 1, 10, 0, data
    from unnest($1::bigint[], $2::bigint[], $3::uuid[], $4::uuid[], $5::smallint[], $6::bytea[])
         as r (position, seq, session_id, event_id, shard, data)
"""
SHARDS = 16
SESSIONS = 64
DATA = b'{"type":"message.added","role":"user","content":"' + b"x" * 200 + b'"}'
"""A message of 200 bytes as the log stores it: 251 bytes of JSON."""
BATCH_ROWS = 64
LARGE_BATCH_ROWS = 1000
COPY_ROWS = 10_000
REPEATS = 5
"""Each limit is the median of this many measurements; one is a second long (0.3 s when quick)."""
FEED = "bare:feed"
FEED_ENTRIES_MAX = 10_000


Columns = tuple[list[int], list[int], list[Any], list[Any], list[int], list[bytes]]
T = TypeVar("T")


class RowSource:
    """Endless rows for `SESSIONS` sessions, numbered as the log would number them."""

    def __init__(self) -> None:
        self.ids = [UUID(os.urandom(16)) for _ in range(SESSIONS)]
        self.shards = [each.bytes[-1] % SHARDS for each in self.ids]
        self.position = 0
        self.seq = 0

    def columns(self, rows: int) -> Columns:
        """So many rows, column by column, as unnest takes them."""
        turns = [divmod(index, SESSIONS) for index in range(rows)]
        random = os.urandom(16 * rows)
        columns = (
            list(range(self.position, self.position + rows)),
            [self.seq + turn for turn, _ in turns],
            [self.ids[session] for _, session in turns],
            [UUID(random[at : at + 16]) for at in range(0, 16 * rows, 16)],
            [self.shards[session] for _, session in turns],
            [DATA] * rows,
        )
        self.position += rows
        self.seq += turns[-1][0] + 1
        return columns


async def run(bench: Bench) -> list[Result]:
    """All limits, one after the other, in a fresh database."""
    seconds = bench.pick(1.0, 0.3)
    async with bench.place.fresh() as ground:
        connection, client = ground.connection, ground.redis
        await connection.execute(CREATE_TABLE)
        rows = RowSource()
        results = [shown("limits", "fdatasync of 8 KB", await _repeat(_fdatasync, seconds), "ms")]
        bench.say(_line(results[-1]))
        for size in (BATCH_ROWS, LARGE_BATCH_ROWS):
            figure = await _repeat(_unnest, connection, rows, size, seconds)
            results.append(
                shown("limits", f"bare unnest INSERT, {size:,} a batch", figure, "rows/s")
            )
            bench.say(_line(results[-1]))
        for size in (LARGE_BATCH_ROWS, COPY_ROWS):
            figure = await _repeat(_copy, connection, rows, size, seconds)
            results.append(shown("limits", f"bare COPY, {size:,} a batch", figure, "rows/s"))
            bench.say(_line(results[-1]))
        figure = await _repeat(_single_commits, connection, rows, seconds)
        results.append(shown("limits", "single flushed commit", figure, "ms p50"))
        bench.say(_line(results[-1]))
        figure = await _repeat(_pipelined_xadd, client, seconds)
        results.append(
            shown("limits", f"pipelined XADD, {BATCH_ROWS} a pipeline", figure, "entries/s")
        )
        bench.say(_line(results[-1]))
        figure = await _repeat(_wake_up, client, ground.redis_url, seconds)
        results.append(shown("limits", "XADD → XREAD wake-up", figure, "ms p50"))
        bench.say(_line(results[-1]))
    return results


def _line(result: Result) -> str:
    return f"{result.name}: {result.figure:,.3f} {result.unit}"


async def _repeat(measurement: Any, *arguments: Any) -> float:
    """The median of REPEATS measurements, after one that is thrown away."""
    await measurement(*arguments)
    figure = median([await measurement(*arguments) for _ in range(REPEATS)])
    assert figure is not None
    return figure


async def _fdatasync(seconds: float) -> float:
    """p50 of overwriting 8 KB of a file and flushing it, as a small commit flushes the WAL."""
    times: list[float] = []
    with tempfile.NamedTemporaryFile(dir=Path(__file__).parent) as file:
        page = os.urandom(8192)
        os.pwrite(file.fileno(), page * 64, 0)
        os.fsync(file.fileno())
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            os.pwrite(file.fileno(), page, (len(times) % 64) * 8192)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return spread(times, scale=1e3).p50


async def _unnest(
    connection: asyncpg.Connection[Any], rows: RowSource, size: int, seconds: float
) -> float:
    """Rows per second of INSERT statements of `size` rows, each its own commit."""
    statement = await connection.prepare(INSERT_ROWS)

    async def insert(columns: Columns) -> None:
        await statement.fetch(*columns)

    return await _rate(insert, lambda: rows.columns(size), size, seconds)


async def _copy(
    connection: asyncpg.Connection[Any], rows: RowSource, size: int, seconds: float
) -> float:
    """Rows per second of binary COPY commands of `size` rows, each its own commit."""
    now = datetime.now(UTC)

    def records() -> list[tuple[Any, ...]]:
        return [
            (position, seq, now, session, event, 0, shard, 1, 10, 0, data)
            for position, seq, session, event, shard, data in zip(*rows.columns(size), strict=True)
        ]

    async def copy(made: list[tuple[Any, ...]]) -> None:
        await connection.copy_records_to_table("bare_events", records=made)

    return await _rate(copy, records, size, seconds)


async def _single_commits(
    connection: asyncpg.Connection[Any], rows: RowSource, seconds: float
) -> float:
    """p50 in ms of inserting one row in a transaction of its own."""
    statement = await connection.prepare(INSERT_ROWS)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        columns = rows.columns(1)
        start = time.perf_counter()
        await statement.fetch(*columns)
        times.append(time.perf_counter() - start)
    return spread(times, scale=1e3).p50


async def _pipelined_xadd(client: redis.asyncio.Redis, seconds: float) -> float:
    """Entries per second of pipelines of BATCH_ROWS XADDs; what the client spends is in it."""
    session = os.urandom(16)

    async def send(seqs: range) -> None:
        pipeline = client.pipeline(transaction=False)
        for seq in seqs:
            pipeline.execute_command(
                "XADD", FEED, "MAXLEN", "~", FEED_ENTRIES_MAX, "*",
                "s", session, "q", seq, "d", DATA,
            )  # fmt: skip
        await pipeline.execute()

    return await _rate(send, lambda: range(BATCH_ROWS), BATCH_ROWS, seconds)


async def _rate(
    send: Callable[[T], Awaitable[None]], make: Callable[[], T], size: int, seconds: float
) -> float:
    """Things per second inside `send`; making them is not counted."""
    done, spent, start = 0, 0.0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        made = make()
        sent = time.perf_counter()
        await send(made)
        spent += time.perf_counter() - sent
        done += size
    return done / spent


async def _wake_up(client: redis.asyncio.Redis, url: str, seconds: float) -> float:
    """p50 in ms from sending an XADD to the return of an XREAD that waits on another connection."""
    times: list[float] = []
    reader = redis_client(url)
    try:
        await reader.ping()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            waiting = asyncio.ensure_future(reader.xread({FEED: "$"}, block=1000))
            await asyncio.sleep(0.002)
            start = time.perf_counter()
            sending = asyncio.ensure_future(client.xadd(FEED, {"d": DATA}))
            await waiting
            times.append(time.perf_counter() - start)
            await sending
    finally:
        await reader.aclose()
    return spread(times, scale=1e3).p50


CASES = [
    Case(
        "limits",
        "what the servers can do at all: unnest INSERT, COPY, commit, XADD, XREAD wake-up",
        run,
    )
]
