"""Fan-out: 1,000 subscribers of one session, 200 events/s, in one process of their own.

The writer is in this process and keeps a pace; the subscribers' process tells how many events it
has delivered and, twice a second, how much memory it holds. Before that, one subscriber has read
10,000 events, so that bounded buffers are full; memory is flat when the median of the last third of
the readings is hardly above that of the first third.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks import project
from benchmarks.child import Remote, second_process
from benchmarks.follow import following_crowd
from benchmarks.load import pace, wait_until
from benchmarks.measure import Bench, Case, Result, at_least, at_most, shown, spread

CASE = "fanout"
SUBSCRIBERS = 1000
PER_SECOND = 200
WRITERS = 8
"""Calls of `append` that may be under way at once: at 200/s an append has 40 ms."""
FILL_EVENTS = 10_000
FILL_BATCH = 500
GROWTH_MAX_MB = 4.0
"""Growth of the resident memory up to this is called flat (allocator noise)."""
ARRIVAL_TIMEOUT_SECONDS = 60


async def run(bench: Bench) -> list[Result]:
    """A warm-up, then one measured stretch."""
    seconds = bench.pick(20, 5)
    async with bench.place.fresh() as ground, project.new_log(ground) as log:
        session = (await project.new_sessions(log, 1))[0]
        first = (await session.append(project.message())).last_seq
        async with second_process(
            following_crowd,
            ground.postgres_url,
            ground.redis_url,
            session.id,
            after=first,
        ) as crowd:
            called: dict[int, int] = {}

            async def write(_writer: int, _number: int) -> None:
                at = time.monotonic_ns()
                called[(await session.append(project.message())).last_seq] = at

            for _ in range(FILL_EVENTS // FILL_BATCH):
                filled = await session.append([project.message()] * FILL_BATCH)
            await _all_seen(crowd, filled.last_seq)
            await crowd.call("crowd_in", SUBSCRIBERS)
            await _all_seen(crowd, (await session.append(project.message())).last_seq)
            await pace(write, sessions=WRITERS, per_second=PER_SECOND / WRITERS, seconds=1)
            await _all_seen(crowd, max(called))
            await crowd.call("take_seen")
            bench.say(f"{SUBSCRIBERS:,} subscribers follow")

            memory: list[float] = []
            sampling = asyncio.create_task(_sample_memory(crowd, memory))
            before, cpu_before = await crowd.call("deliveries"), await crowd.call("cpu_seconds")
            start = time.monotonic_ns()
            await pace(write, sessions=WRITERS, per_second=PER_SECOND / WRITERS, seconds=seconds)
            sampling.cancel()
            await _all_seen(crowd, max(called))
            elapsed = (time.monotonic_ns() - start) / 1e9
            delivered = await crowd.call("deliveries") - before
            busy = (await crowd.call("cpu_seconds") - cpu_before) / elapsed
            latency = spread(
                (at - called[seq] for seq, at in await crowd.call("take_seen")), scale=1e-6
            )
    bench.say(f"{delivered:,} deliveries in {elapsed:.2f} s; call → subscriber {latency} ms")
    return _judge(delivered / elapsed, memory, latency.p50, latency.p99, busy)


def _judge(rate: float, memory: list[float], p50: float, p99: float, busy: float) -> list[Result]:
    third = max(1, len(memory) // 3)
    growth = (
        statistics.median(memory[-third:]) - statistics.median(memory[:third]) if memory else None
    )
    return [
        at_least(
            CASE,
            "deliveries in one process",
            rate,
            "deliveries/s",
            target=180_000,
            note=f"{SUBSCRIBERS * PER_SECOND:,}/s offered; that process used {busy:.2f} cores",
        ),
        at_most(
            CASE,
            "growth of its memory",
            growth,
            "MB",
            target=GROWTH_MAX_MB,
            note=f"{memory[0]:.0f} MB at first, {memory[-1]:.0f} MB at last"
            if memory
            else "no /proc",
        ),
        shown(CASE, "call → subscriber p50", p50, "ms"),
        shown(CASE, "call → subscriber p99", p99, "ms"),
    ]


async def _sample_memory(crowd: Remote, memory: list[float]) -> None:
    """Resident megabytes of the subscribers' process, every half second."""
    while (held := await crowd.call("memory_bytes")) is not None:
        memory.append(held / 2**20)
        await asyncio.sleep(0.5)


async def _all_seen(crowd: Remote, seq: int) -> None:
    async def seen() -> bool:
        return int(await crowd.call("slowest")) >= seq

    await wait_until(seen, poll_seconds=0.005, timeout_seconds=ARRIVAL_TIMEOUT_SECONDS)


CASES = [
    Case(CASE, "1,000 subscribers of one session, 200 events/s, one process", run),
]
