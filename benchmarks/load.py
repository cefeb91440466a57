"""Writers: callers that await each append, and callers that keep a pace; and what a round found.

`pace` works to a timetable that does not depend on how fast the answers come: session s writes its
k-th token at `start + (k + s / sessions) / per_second`. A slow answer delays what follows it in the
same task, and that delay shows in the latency when it is counted from the timetable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks.cpu import CpuMeter, CpuUsed, cpu_between
from benchmarks.measure import Spread, spread


@dataclass(frozen=True, slots=True)
class AppendRound:
    """What one round of awaited appends found; latency in ms."""

    count: int
    seconds: float
    publish_seconds: float
    latency: Spread
    cpu: CpuUsed

    @property
    def per_second(self) -> float:
        return self.count / self.seconds

    @property
    def cpu_per_thousand(self) -> float | None:
        total = self.cpu.total
        return None if total is None else total / self.count * 1000

    @property
    def shares(self) -> str:
        """Milliseconds of CPU per 1,000 messages, by process."""
        parts = (
            ("client", self.cpu.client),
            ("postgres", self.cpu.postgres),
            ("redis", self.cpu.redis),
        )
        return ", ".join(
            f"{name} {'?' if used is None else format(used / self.count * 1e6, '.0f')} ms"
            for name, used in parts
        )

    def __str__(self) -> str:
        return f"{self.per_second:,.0f}/s, {self.latency} ms; CPU per 1,000: {self.shares}"


async def append_round(
    append: Callable[[int], Awaitable[object]],
    published: Callable[[], Awaitable[object]],
    meter: CpuMeter,
    *,
    sessions: int,
    seconds: float,
) -> AppendRound:
    """Each session appends, awaits, appends …; the round ends when all of it is published."""
    times: list[int] = []
    before = await meter.read()
    start = time.monotonic_ns()
    end = start + int(seconds * 1e9)

    async def caller(index: int) -> None:
        while (called := time.monotonic_ns()) < end:
            await append(index)
            times.append(time.monotonic_ns() - called)

    async with asyncio.TaskGroup() as tasks:
        for index in range(sessions):
            tasks.create_task(caller(index))
    acknowledged = time.monotonic_ns()
    await published()
    done = time.monotonic_ns()
    after = await meter.read()
    return AppendRound(
        count=len(times),
        seconds=(done - start) / 1e9,
        publish_seconds=(done - acknowledged) / 1e9,
        latency=spread(times, scale=1e-6),
        cpu=cpu_between(before, after),
    )


@dataclass(frozen=True, slots=True)
class PacedRound:
    """What one round of paced tokens found: from the call to the subscriber, in ms."""

    count: int
    latency: Spread

    @classmethod
    def of(cls, sent: Sequence[Sequence[int]], seen: Sequence[Sequence[int]]) -> PacedRound:
        """Match the k-th token seen of each session with its k-th call (monotonic ns)."""
        times = [
            at - called
            for calls, arrivals in zip(sent, seen, strict=True)
            for called, at in zip(calls, arrivals, strict=True)
        ]
        return cls(len(times), spread(times, scale=1e-6))

    def __str__(self) -> str:
        return f"{self.count:,} tokens, call → subscriber {self.latency} ms"


async def pace(
    write: Callable[[int, int], Awaitable[object]],
    *,
    sessions: int,
    per_second: float,
    seconds: float,
    drivers: int | None = None,
    tick_seconds: float = 0.0,
    start_ns: int | None = None,
) -> int:
    """Call `write(session, number)` by the timetable; return the worst delay of a call in ns.

    `drivers` tasks share the sessions (one each by default); `tick_seconds` is the shortest sleep,
    so that a thousand sessions don't cost a thousand timers.
    """
    first_ns = start_ns or time.monotonic_ns()
    per_session = round(per_second * seconds)
    tasks_count = drivers or sessions
    worst = 0

    async def drive(driver: int) -> None:
        nonlocal worst
        mine = range(driver, sessions, tasks_count)
        for number in range(per_session):
            for session in mine:
                due = due_ns(first_ns, session, number, sessions=sessions, per_second=per_second)
                early = due - time.monotonic_ns()
                if early > 0:
                    await asyncio.sleep(max(early / 1e9, tick_seconds))
                else:
                    worst = max(worst, -early)
                await write(session, number)

    async with asyncio.TaskGroup() as tasks:
        for driver in range(tasks_count):
            tasks.create_task(drive(driver))
    return worst


def due_ns(start_ns: int, session: int, number: int, *, sessions: int, per_second: float) -> int:
    """When the timetable has `session` write its `number`-th token (from 0), monotonic ns."""
    return start_ns + int((number + session / sessions) / per_second * 1e9)


async def wait_until(
    is_true: Callable[[], Awaitable[bool]], *, poll_seconds: float, timeout_seconds: float
) -> None:
    """Ask a server or another process again and again; raises TimeoutError."""
    async with asyncio.timeout(timeout_seconds):
        while not await is_true():  # noqa: ASYNC110 - the fact is not in this process
            await asyncio.sleep(poll_seconds)
