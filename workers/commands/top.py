"""`eventlog top`: the log live, on one screen.

    look ──> frame ──> screen on a terminal, or as text, or a line of JSON ──> pause ──> look

The terminal is put back as it was however this ends: by q, a signal, or an error.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Annotated, Final

from cyclopts import Parameter
from rich.console import Console
from rich.live import Live

from eventlog import EventLog
from eventlog.errors import InvalidRequest
from projections.watching import Watch
from workers.commands.arguments import AsJson
from workers.commands.opening import open_log, prepare
from workers.commands.top_frame import Frame, History, Identity, as_dict
from workers.commands.top_screen import screen
from workers.runtime import pause, stop_on_signals
from workers.terminal import make_console, print_line, safe_json

INTERVAL_SECONDS_MIN: Final = 0.2
INTERVAL_SECONDS_MAX: Final = 3600.0
ONCE_SECONDS_MAX: Final = 1.0
"""Between the two looks whose difference a single frame shows."""
ONCE_LINES: Final = 40
"""Height of a single frame."""
KEYS: Final = "q ends"
KEY_BYTES_MAX: Final = 64


async def top(
    *,
    interval: Annotated[float, Parameter(help="Seconds between two looks; else 1.")] = 1.0,
    once: Annotated[bool, Parameter(help="Print one frame and end.")] = False,
    as_json: AsJson = False,
) -> int:
    """Watch the log live: rates, lag, projectors, sessions, Redis.

    Counts what all processes do. q or Ctrl-C ends. Where the output is no
    terminal, one frame is printed. Watching costs two index look-ups for each
    shard and interval.

        eventlog top
        eventlog top --interval 5
        eventlog top --once | less
        eventlog top --json | jq .projections.views.seconds_behind
    """
    if not INTERVAL_SECONDS_MIN <= interval <= INTERVAL_SECONDS_MAX:
        least, most = INTERVAL_SECONDS_MIN, INTERVAL_SECONDS_MAX
        raise InvalidRequest(f"--interval is {interval}; it must be {least:g} to {most:g} seconds")
    console = make_console()
    once = once or not (as_json or console.is_terminal)
    async with open_log(prepare(quiet="error")) as log:
        with stop_on_signals() as stop:
            if once:
                interval = min(interval, ONCE_SECONDS_MAX)
            async with aclosing(_frames(log, stop, interval)) as frames:
                if as_json:
                    await _print_json(frames, once=once)
                elif once:
                    await _print_one(console, frames)
                else:
                    await _show_live(console, frames, stop)
    return 0


async def _frames(
    log: EventLog, stop: asyncio.Event, interval: float
) -> AsyncGenerator[Frame, None]:
    """Frames until `stop`; the first knows no rates yet."""
    watch = Watch(log)
    history = History(await _identity(log))
    loop = asyncio.get_running_loop()
    try:
        while not stop.is_set():
            begin = loop.time()
            look = await watch.look()
            per_row = None
            if look.postgres is not None and history.before is not None:
                per_row = await watch.events_per_row(history.before, look.postgres)
            yield history.frame(look, per_row)
            await pause(stop, max(0.0, begin + interval - loop.time()))
    finally:
        await watch.aclose()


async def _identity(log: EventLog) -> Identity:
    assert log.servers is not None
    origin = log.servers.origin
    return Identity(
        log_id=(await log.store.identity()).log_id.hex,
        shards=log.store.shards,
        tenant_id=log.settings.tenant_id,
        postgres_origin=origin[0],
        redis_origin=origin[1],
        feed_rows_max=log.settings.feed_rows_max,
    )


async def _print_one(console: Console, frames: AsyncIterator[Frame]) -> None:
    """Print the second frame: it is the first that knows rates."""
    number = 0
    async for frame in frames:
        number += 1
        if number > 1:
            console.print(screen(frame, console.width, ONCE_LINES))
            break


async def _print_json(frames: AsyncIterator[Frame], *, once: bool) -> None:
    number = 0
    async for frame in frames:
        number += 1
        if number == 1:
            continue  # it knows no rates
        print_line(safe_json(as_dict(frame)))
        sys.stdout.flush()
        if once:
            break


async def _show_live(console: Console, frames: AsyncIterator[Frame], stop: asyncio.Event) -> None:
    with (
        Live(console=console, screen=True, auto_refresh=False) as live,
        _keys(stop),
        _resizes() as on_resize,
    ):
        async for frame in frames:

            def draw(frame: Frame = frame) -> None:
                lines = console.size.height
                live.update(screen(frame, console.width, lines, hint=KEYS), refresh=True)

            draw()
            on_resize[:] = [draw]


@contextmanager
def _keys(stop: asyncio.Event) -> Iterator[None]:
    """q sets `stop`. Without a terminal there are no keys."""
    if not sys.stdin.isatty():
        yield
        return
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed() -> None:
        try:
            keys = os.read(descriptor, KEY_BYTES_MAX)
        except OSError:
            keys = b""
        if not keys or b"q" in keys.lower():
            stop.set()
            loop.remove_reader(descriptor)  # at its end a terminal would be readable for ever

    tty.setcbreak(descriptor, termios.TCSADRAIN)
    loop.add_reader(descriptor, pressed)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def _resizes() -> Iterator[list[Callable[[], None]]]:
    """What is in the list is called when the terminal changes its size."""
    loop = asyncio.get_running_loop()
    calls: list[Callable[[], None]] = []
    loop.add_signal_handler(signal.SIGWINCH, lambda: [call() for call in calls])
    try:
        yield calls
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
