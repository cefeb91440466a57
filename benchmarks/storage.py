"""Storage: bytes of table and indexes for one token increment, in frames of 4 and of 32.

Replies write at a model's pace (33 ms between increments) and `flush_seconds` decides how many
share a frame: 4 with 117 ms, 32 (the frame's limit) with 5 s. The replies are still open when the
table is measured, after a VACUUM, so that the increments are counted and not the completed
messages, which are shown beside them: those hold the text once more.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from benchmarks import project
from benchmarks.load import pace
from benchmarks.measure import Bench, Case, Result, at_most, shown
from benchmarks.project import WORDS
from benchmarks.servers import Ground

CASE = "storage"
SESSIONS = 250
PER_SECOND = 30
TICK_SECONDS = 0.002
DRIVERS = 10
FRAMES: tuple[tuple[int, float, float], ...] = ((4, 3.5 / PER_SECOND, 80), (32, 5.0, 20))
"""Increments in a frame, the `flush_seconds` that leads to them, the target in bytes."""
SIZE_OFF_SHARE_MAX = 0.1
"""A mean frame that is further from what was asked for is no measurement of it."""


async def run(bench: Bench) -> list[Result]:
    """A fresh database for each size of frame."""
    results: list[Result] = []
    for size, flush_seconds, target in FRAMES:
        async with bench.place.fresh() as ground:
            results += await _measure(
                bench, ground, size=size, flush_seconds=flush_seconds, target=target
            )
    return results


async def _measure(
    bench: Bench, ground: Ground, *, size: int, flush_seconds: float, target: float
) -> list[Result]:
    """Bytes that whole frames of `size` add to a table that has the start of each reply already."""
    per_session = bench.count(400, 128) // size * size
    total = SESSIONS * per_session
    async with project.new_log(ground) as log, AsyncExitStack() as stack:
        sessions = await project.new_sessions(log, SESSIONS)
        replies: list[Any] = [
            await stack.enter_async_context(
                session.reply(agent="a", model="m", flush_seconds=flush_seconds)
            )
            for session in sessions
        ]
        await _write(replies, 1)  # the first increment of a reply leaves alone
        await project.settled(ground, increments=SESSIONS)
        before = await _parts(ground)
        bench.say(f"frames of {size}: {total:,} increments at {PER_SECOND}/s, {SESSIONS} sessions")
        await _write(replies, per_session)
        await project.settled(ground, increments=SESSIONS + total)
        frames = await ground.connection.fetchrow(
            "select count(*) as rows, sum(span)::bigint as increments, "
            "avg(length(data)) as data, sum(octet_length(data))::bigint as bytes "
            "from eventlog.events where type = $1 and span > 1",
            project.FRAME_TYPE,
        )
        assert frames is not None
        with_frames = await _parts(ground)
        await stack.aclose()
        with_messages = await _parts(ground)
    mean = frames["increments"] / frames["rows"]
    heap, indexes = (after - start for after, start in zip(with_frames, before, strict=True))
    figure = (heap + indexes) / total
    closed = (sum(with_messages) - sum(before)) / total
    bench.say(
        f"{frames['rows']:,} frames of {mean:.2f} increments, {frames['data']:.0f} bytes each; "
        f"heap {heap:,}, indexes {indexes:,}: {figure:.1f} bytes an increment"
    )
    if abs(mean - size) > SIZE_OFF_SHARE_MAX * size:
        raise AssertionError(f"frames hold {mean:.2f} increments instead of {size}")
    if heap <= 0 or indexes <= 0:
        raise AssertionError(f"the table did not grow: heap {heap}, indexes {indexes}")
    return [
        at_most(
            CASE,
            f"per increment, frames of {size}",
            figure,
            "bytes",
            target=target,
            note=f"heap {heap / total:.1f}, indexes {indexes / total:.1f}; "
            f"of it {frames['bytes'] / frames['increments']:.1f} are the frames' own JSON",
        ),
        shown(
            CASE,
            f"the same with the completed messages ({size})",
            closed,
            "bytes",
            note=f"replies of {per_session + 1} increments",
        ),
    ]


async def _write(replies: list[Any], per_session: int) -> None:
    """So many increments to each reply, at a model's pace."""

    async def write(index: int, number: int) -> None:
        await replies[index].write(WORDS[number % 10])

    await pace(
        write,
        sessions=len(replies),
        per_second=PER_SECOND,
        seconds=per_session / PER_SECOND,
        drivers=DRIVERS,
        tick_seconds=TICK_SECONDS,
    )


async def _parts(ground: Ground) -> tuple[int, int]:
    """(heap with toast, indexes) of the events in bytes, after a VACUUM; partitions are summed."""
    await ground.connection.execute("vacuum analyze eventlog.events")
    row = await ground.connection.fetchrow(
        "select sum(pg_table_size(oid))::bigint as heap, "
        "sum(pg_indexes_size(oid))::bigint as indexes from pg_class "
        "where oid = 'eventlog.events'::regclass "
        "or oid in (select relid from pg_partition_tree('eventlog.events') where isleaf)"
    )
    assert row is not None
    return row["heap"], row["indexes"]


CASES = [
    Case(CASE, "bytes of table and indexes per increment, in frames of 4 and of 32", run),
]
