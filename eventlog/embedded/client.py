"""Use the embedded servers of a data folder: start their supervisor, or join the one that runs.

    try the lock ── free ──> bind the socket, start a supervisor with both ─┐
         │ held by a supervisor                                             │
         └────────────────> connect to the address in the lock file <───────┘
                                 │ refused: it is starting or ending          (try again)
                            ask for the servers ── "ending" or closed ──────> (try again)
                                 │ attached
                            hold the connection; lost: attach again, until we leave

The first two steps are in `starting.py`. Other processes do the same at the same time: whoever
loses a race looks again a little later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from eventlog.embedded.connection import Connection, connect
from eventlog.embedded.logs import log_end, log_size
from eventlog.embedded.messages import (
    Attach,
    Attached,
    Ending,
    Failed,
    Reply,
    Request,
    RunningServer,
    ServerName,
)
from eventlog.embedded.paths import DataPaths, data_paths
from eventlog.embedded.starting import recorded_address, start_unless_running
from eventlog.errors import ServerStartFailed

ATTACH_SECONDS_MAX = 180.0
"""Longest wait for servers: making a data folder, or crash recovery, on a slow disk."""
POLL_SECONDS = 0.02
"""Pause while another supervisor is just starting or ending."""
STARTS_MAX = 3
"""So many supervisors that ended without an answer make a failure."""


@asynccontextmanager
async def attached(
    data: Path, servers: Sequence[ServerName]
) -> AsyncIterator[Mapping[ServerName, RunningServer]]:
    """Have these servers run as long as the block does; raises `ServerStartFailed`.

    When the supervisor is killed inside the block, another one is started; addresses stay.
    """
    paths = await asyncio.to_thread(data_paths, data)
    wish = Attach(servers=tuple(servers))
    hold = _Hold(paths, wish)
    found = await hold.attach()
    watching = asyncio.create_task(hold.watch())
    try:
        yield found
    finally:
        try:
            watching.cancel()
            await asyncio.wait([watching])  # unlike `await watching`: a cancellation here is ours
        finally:
            await hold.leave()
        if not watching.cancelled():
            watching.result()


async def ask_running(data: Path, request: Request) -> Reply:
    """One question to the supervisor that runs now; raises `ServerStartFailed` without one."""
    paths = await asyncio.to_thread(data_paths, data)
    connection = await connect(recorded_address(paths))
    reply = None
    if connection is not None:
        with contextlib.closing(connection):
            reply = await connection.ask(request)
    match reply:
        case None | Ending():
            raise ServerStartFailed(f"no embedded servers run on {paths.data}; start them first")
        case Failed(message=message):
            raise ServerStartFailed(message)
        case _:
            return reply


class _Hold:
    """The connection that keeps the servers running for us."""

    def __init__(self, paths: DataPaths, wish: Attach) -> None:
        self._paths = paths
        self._wish = wish
        self._connection: Connection | None = None

    async def attach(self) -> Mapping[ServerName, RunningServer]:
        """Get a connection, and the servers; raises `ServerStartFailed`."""
        self._connection, servers = await _attach(self._paths, self._wish)
        return servers

    async def watch(self) -> None:
        """Attach again when the connection is lost; returns when the supervisor was told to end."""
        while self._connection and not isinstance(await self._connection.unasked(), Ending):
            self._connection.close()
            self._connection = None
            await self.attach()

    async def leave(self) -> None:
        """Let the servers end, if nobody else needs them."""
        if self._connection is not None:
            await self._connection.leave()


async def _attach(
    paths: DataPaths, wish: Attach
) -> tuple[Connection, Mapping[ServerName, RunningServer]]:
    starts = 0
    log_start = log_size(paths.log)
    try:
        async with asyncio.timeout(ATTACH_SECONDS_MAX):
            while True:
                started = await asyncio.to_thread(start_unless_running, paths)
                starts += started
                address = str(paths.control_socket) if started else recorded_address(paths)
                if (connection := await connect(address)) is not None:
                    match await _ask_or_close(connection, wish):
                        case Attached(servers=servers):
                            return connection, servers
                        case Failed(message=message):
                            await connection.leave()
                            raise ServerStartFailed(message)
                        case _:
                            connection.close()
                if starts >= STARTS_MAX:
                    raise ServerStartFailed(
                        f"the supervisor of the embedded servers ended {starts} times without an "
                        f"answer. The end of {paths.log}:\n{log_end(paths.log, since=log_start)}"
                    )
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise ServerStartFailed(
            f"no embedded servers after {ATTACH_SECONDS_MAX:.0f} s; if the process named in "
            f"{paths.lock} hangs, end it and try again. The end of {paths.log}:\n"
            f"{log_end(paths.log)}"
        ) from None


async def _ask_or_close(connection: Connection, wish: Attach) -> Reply | None:
    reply = None
    try:
        reply = await connection.ask(wish)
    finally:
        if reply is None:  # or cancelled
            connection.close()
    return reply
