"""Workers stop when they are told to, and go on whatever fails."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from eventlog import Unavailable
from eventlog.testing import until
from workers.runtime import Backoff, pause, repeat, stop_on_signals, unless_stopped

SLEEPER = """
import asyncio
from workers.runtime import stop_on_signals

async def main():
    with stop_on_signals() as stop:
        print("ready", flush=True)
        await stop.wait()
        print("stopping", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_repeat_when_steps_fail_goes_on() -> None:
    """Expected and unexpected errors alike, until it is told to stop."""
    stop, calls = asyncio.Event(), 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        match calls:
            case 1:
                raise Unavailable("away")
            case 2:
                raise ZeroDivisionError
            case 4:
                stop.set()

    async with asyncio.timeout(10):
        await repeat("test", stop, work, every_seconds=0.001)

    assert calls == 4


async def test_signal_when_it_comes_sets_the_event() -> None:
    """Ctrl-C and SIGTERM, once each."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with stop_on_signals() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            await until(stop.is_set)


async def test_signal_when_it_comes_twice_ends_the_process() -> None:
    """A worker that doesn't come to an end can be told again."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SLEEPER, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"

    process.send_signal(signal.SIGTERM)
    assert await process.stdout.readline() == b"stopping\n"
    process.send_signal(signal.SIGTERM)

    assert await asyncio.wait_for(process.wait(), 10) == 128 + signal.SIGTERM


async def test_pause_when_told_to_stop_ends_at_once() -> None:
    """Nobody waits for a pause to end."""
    stop = asyncio.Event()
    assert not await pause(stop, 0.001)
    stop.set()
    begin = time.monotonic()

    assert await pause(stop, 600)
    assert time.monotonic() - begin < 5


async def test_work_when_told_to_stop_is_cancelled() -> None:
    """And its result is used when it is there first."""
    stop = asyncio.Event()

    async def quick() -> int:
        return 7

    assert await unless_stopped(stop, quick()) == 7
    waiting = asyncio.create_task(unless_stopped(stop, asyncio.sleep(600, 8)))
    await asyncio.sleep(0)
    stop.set()
    assert await asyncio.wait_for(waiting, 5) is None


def test_backoff_when_failures_follow_doubles_up_to_its_bound() -> None:
    """With jitter, and from the start again after a success."""
    backoff = Backoff(1, 8)
    pauses = [backoff.next_seconds() for _ in range(6)]

    for seconds, most in zip(pauses, (1, 2, 4, 8, 8, 8), strict=True):
        assert most / 2 <= seconds <= most
    backoff.reset()
    assert backoff.next_seconds() <= 1
