"""Sustained: 500 replies at 50 increments/s each, on two cores, with a subscriber for every one.

Writers are in this process, subscribers in a second one. Latency counts from the timetable, not
from the call: when the writers fall behind, that is latency too. The backlog (due by the timetable
and not yet seen) is sampled; a log that keeps up has the same backlog at the end as at the start.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from contextlib import AsyncExitStack
from typing import Any

from benchmarks import project
from benchmarks.child import Remote, second_process
from benchmarks.cpu import CpuMeter, cpu_between
from benchmarks.follow import following_tokens
from benchmarks.load import due_ns, pace, wait_until
from benchmarks.measure import Bench, Case, Result, at_most, shown, slope, spread
from benchmarks.project import WORDS

CASE = "sustained"
SESSIONS = 500
PER_SECOND = 50
DRIVERS = 4
TICK_SECONDS = 0.005
"""The writers wake up this often and write what is due: up to 5 ms of the latency is theirs."""
SAMPLE_SECONDS = 0.5
STRETCH_SECONDS = 3
GROWTH_MAX_SHARE = 0.01
"""The backlog is flat when it grows by no more than this share of the increments written."""
ARRIVAL_TIMEOUT_SECONDS = 30


async def run(bench: Bench) -> list[Result]:
    """One long round; the figures are of all its increments, the first second included."""
    seconds = bench.pick(30, 6)
    async with bench.place.fresh() as ground, project.new_log(ground) as log:
        sessions = await project.new_sessions(log, SESSIONS)
        meter = CpuMeter(ground.connection, ground.redis, ground.database)
        await meter.start()
        async with second_process(
            following_tokens,
            ground.postgres_url,
            ground.redis_url,
            [session.id for session in sessions],
            noting=True,
        ) as follower:
            await follower.call("ready")
            bench.say(f"{SESSIONS} subscriptions are ready")
            async with AsyncExitStack() as stack:
                replies = await asyncio.gather(
                    *(
                        stack.enter_async_context(session.reply(agent="a", model="m"))
                        for session in sessions
                    )
                )
                bench.say(f"{SESSIONS} replies are open")
                before = await meter.read(other_processes=await follower.call("cpu_seconds"))
                start = time.monotonic_ns()
                backlogs = await _write(bench, replies, follower, start_ns=start, seconds=seconds)
                elapsed = (time.monotonic_ns() - start) / 1e9
                after = await meter.read(other_processes=await follower.call("cpu_seconds"))
            late = _late(await follower.call("take_seen"), start_ns=start)
    for line in _by_second(late):
        bench.say(line)
    latency = spread((lag for _, lag in late), scale=1e-6)
    used = cpu_between(before, after)
    rate = SESSIONS * PER_SECOND
    growth = slope(backlogs) / SAMPLE_SECONDS / rate
    bench.say(f"call → subscriber {latency} ms; backlog grew by {growth:+.2%} of what was written")
    cores = None if used.total is None else used.total / elapsed
    return [
        at_most(CASE, "p99 to a subscriber", latency.p99, "ms", target=250),
        shown(CASE, "p50 to a subscriber", latency.p50, "ms"),
        at_most(
            CASE,
            "backlog growth",
            growth * 100,
            "% of written",
            target=GROWTH_MAX_SHARE * 100,
            note=f"{min(backlogs):,}–{max(backlogs):,} increments at {rate:,}/s, {elapsed:.0f} s",
        ),
        shown(CASE, "CPU used", cores, "cores", note="writers, subscribers, Postgres and Redis"),
    ]


async def _write(
    bench: Bench, replies: list[Any], follower: Remote, *, start_ns: int, seconds: float
) -> list[int]:
    """Write by the timetable, sample the backlog meanwhile, wait until everything was seen."""
    backlogs: list[int] = []
    total = SESSIONS * round(PER_SECOND * seconds)

    async def sample() -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            due = int((time.monotonic_ns() - start_ns) / 1e9 * PER_SECOND * SESSIONS)
            if due > total:
                return
            backlogs.append(due - int(await follower.call("total")))

    async def all_seen() -> bool:
        return int(await follower.call("total")) >= total

    async def write(index: int, number: int) -> None:
        await replies[index].write(WORDS[number % 10])

    sampling = asyncio.create_task(sample())
    try:
        await pace(
            write,
            sessions=SESSIONS,
            per_second=PER_SECOND,
            seconds=seconds,
            drivers=DRIVERS,
            tick_seconds=TICK_SECONDS,
            start_ns=start_ns,
        )
        await sampling
        await wait_until(all_seen, poll_seconds=0.05, timeout_seconds=ARRIVAL_TIMEOUT_SECONDS)
    finally:
        sampling.cancel()
    return backlogs


def _late(seen: list[array[int]], *, start_ns: int) -> list[tuple[int, int]]:
    """For each increment: when it was due, and how long after that it was seen (both in ns)."""
    return [
        (due, at - due)
        for session, arrivals in enumerate(seen)
        for number, at in enumerate(arrivals)
        for due in (due_ns(start_ns, session, number, sessions=SESSIONS, per_second=PER_SECOND),)
    ]


def _by_second(late: list[tuple[int, int]]) -> list[str]:
    """Percentiles of each stretch of the run, to tell a slow start from a slow run."""
    first = min(due for due, _ in late)
    stretches: dict[int, list[int]] = {}
    for due, lag in late:
        stretches.setdefault(int((due - first) / 1e9) // STRETCH_SECONDS, []).append(lag)
    return [
        f"second {number * STRETCH_SECONDS + 1} and on: {spread(lags, scale=1e-6)} ms"
        for number, lags in sorted(stretches.items())
    ]


CASES = [
    Case(CASE, "500 replies × 50 increments/s, each with a subscriber, on two cores", run),
]
