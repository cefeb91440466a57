"""What every worker needs around its work: when to stop, how to wait, and how to fail and go on.

A worker is a coroutine that is given an `asyncio.Event` and ends soon after it is set, with what it
was doing finished. `stop_on_signals` makes that event from Ctrl-C and SIGTERM; a second signal ends
the process at once, which is safe: workers keep nothing that isn't in Postgres.

A step that fails is logged as `worker.failed` and tried again after a pause, which grows from
`PAUSE_SECONDS_MIN` to `PAUSE_SECONDS_MAX` and is jittered, so that many workers don't come back at
the same moment.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from eventlog.errors import EventLogError
from eventlog.telemetry import get_logger

PAUSE_SECONDS_MIN: Final = 0.1
PAUSE_SECONDS_MAX: Final = 5.0

log = get_logger()
Result = TypeVar("Result")


@contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """An event that SIGINT or SIGTERM sets. The second signal ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def received(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, received, number)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Wait so long, or until `stop`; returns whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


async def unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of `work`, or None if `stop` is set before it is there; then it is cancelled."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, stopped):
            each.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


class Backoff:
    """Pauses that double from failure to failure, with jitter, up to a bound."""

    def __init__(self, least: float = PAUSE_SECONDS_MIN, most: float = PAUSE_SECONDS_MAX) -> None:
        self._least = least
        self._most = most
        self._next = least

    def reset(self) -> None:
        """Something worked: the next pause is a short one again."""
        self._next = self._least

    def next_seconds(self) -> float:
        """How long to pause now."""
        seconds = self._next
        self._next = min(self._most, seconds * 2)
        return seconds * (0.5 + random.random() / 2)


async def repeat(
    worker: str,
    stop: asyncio.Event,
    step: Callable[[], Awaitable[object]],
    *,
    every_seconds: float,
) -> None:
    """Run `step` again and again until `stop`, whatever it raises."""
    log.info("worker.started", worker=worker)
    backoff = Backoff()
    try:
        while not stop.is_set():
            try:
                await step()
            except Exception as error:
                report_failure(worker, error)
                seconds = backoff.next_seconds()
            else:
                backoff.reset()
                seconds = every_seconds * (0.9 + random.random() / 5)
            await pause(stop, seconds)
    finally:
        log.info("worker.stopped", worker=worker)


def report_failure(worker: str, error: Exception, **facts: object) -> None:
    """Log `worker.failed`; with a traceback for what we did not see coming."""
    unforeseen = not isinstance(error, EventLogError | OSError)
    log.warning(
        "worker.failed",
        worker=worker,
        error=f"{type(error).__name__}: {error}",
        exc_info=error if unforeseen else None,
        **facts,
    )
