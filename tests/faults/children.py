"""Python processes that tests start, and that die with the test run, however that ends."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from eventlog import Session
from eventlog.testing import message, until

ROOT: Final = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG: Final = 1
SECONDS_MAX: Final = 40.0
"""How long a child may take to say something."""
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """Runs in the child before it becomes the program (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


async def start_python(
    *arguments: str, output: Path, **environment: str
) -> asyncio.subprocess.Process:
    """Start `python ARGUMENTS` in this checkout; what it says is added to a file."""
    with output.open("ab") as file:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            preexec_fn=_die_with_parent,
        )


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill it, if it still runs."""
    if process.returncode is None:
        process.kill()
    await process.wait()


@asynccontextmanager
async def process(*arguments: str, output: Path, **environment: str) -> AsyncIterator[Process]:
    """A Python process for as long as the block lasts."""
    child = await start_python(*arguments, output=output, **environment)
    try:
        yield Process(child, output)
    finally:
        await end(child)


class Process:
    """A child process, and what it said."""

    def __init__(self, child: asyncio.subprocess.Process, output: Path) -> None:
        self._child = child
        self._output = output

    def signal(self, number: signal.Signals) -> None:
        """Kill it, freeze it, or let it go on."""
        self._child.send_signal(number)

    def said(self) -> list[str]:
        """Whole lines of its output."""
        return self._output.read_text().split("\n")[:-1]

    async def until_said(self, fact: Callable[[list[str]], object]) -> None:
        """Wait until its output shows something."""
        await until(lambda: fact(self.said()), seconds=SECONDS_MAX)


async def append_until(stop: asyncio.Event, sessions: Sequence[Session]) -> None:
    """Append to all of these sessions, all the time."""
    while not stop.is_set():
        await asyncio.gather(*(each.append(message("m")) for each in sessions))
