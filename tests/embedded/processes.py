"""What the tests of the embedded servers need to know about processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import psutil
import redis.asyncio

from eventlog.embedded.leftovers import processes_in

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
WAIT_SECONDS_MAX = 20.0
POLL_SECONDS = 0.01
NOBODY = 65534

Answer = TypeVar("Answer")


class Client:
    """A process that uses the servers of a data folder."""

    def __init__(
        self, data: Path, command: Sequence[str] = (sys.executable,), **popen: Any
    ) -> None:
        self.process = subprocess.Popen(
            [*command, str(HERE / "client_process.py"), str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": import_path()},
        )

    def servers(self) -> dict[str, Any]:
        """Block until it has its servers; what it knows about them, or an `error`."""
        assert self.process.stdout is not None
        servers: dict[str, Any] = json.loads(self.process.stdout.readline() or '{"error": "ended"}')
        return servers

    def leave(self) -> None:
        """Let it go its way to the end, and wait for that."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(WAIT_SECONDS_MAX) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def import_path() -> str:
    """PYTHONPATH for another interpreter: this checkout, and what is installed here."""
    return os.pathsep.join([str(ROOT), *(path for path in sys.path if "site-packages" in path)])


def python_as(user: int) -> list[str]:
    """A command that runs a script as this user, for root; see `as_user.py`."""
    return [sys.executable, str(HERE / "as_user.py"), str(user)]


def servers_running(data: Path) -> list[int]:
    """Every process that works for the servers of this data folder."""
    return processes_in(data / "postgres") + processes_in(data / "valkey")


def supervisor_pid(data: Path) -> int:
    pid: int = json.loads((data / "supervisor.lock").read_text())["pid"]
    return pid


def is_gone(pid: int) -> bool:
    """Whether no process of that number lives (on Linux, a zombie doesn't)."""
    if sys.platform != "linux":
        return not psutil.pid_exists(pid)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def until(fact: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not fact():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(POLL_SECONDS)


async def until_it_works(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of a server that may be restarting."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        try:
            return await call()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, redis.RedisError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(POLL_SECONDS)
