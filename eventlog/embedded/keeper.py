"""Keeps one server running: the part of the supervisor that there is one of per server.

    down ── start ──> starting ──> up ── died ──> (pause) ──> starting …
                                   up ── stop ──> stopped ── start ──> …
                         too many deaths in a while ──> failed ── start ──> …

All moves happen under one lock, so a start waits for a stop in progress and the other way round.
A server that died by itself is started again after a pause that doubles; when it dies too often in
a while it is given up, until somebody asks for it again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from eventlog.embedded.child import Child
from eventlog.embedded.messages import RunningServer, ServerName, ServerState, ServerStatus
from eventlog.errors import ServerStartFailed

RESTARTS_MAX = 8
RESTART_WINDOW_SECONDS = 60.0
"""More deaths than that within this time: given up."""
PAUSE_SECONDS_FIRST = 0.05
PAUSE_SECONDS_MAX = 5.0
"""Pause before a restart; doubles with each death in the window."""


class Server(Protocol):
    """How to run one kind of server; `Postgres` and `Valkey` are the two. All calls block."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def origin(self) -> str: ...
    def prepare(self) -> None: ...
    def spawn(self) -> Child: ...
    def wait_ready(self, child: Child) -> None: ...
    def recover(self, failure: ServerStartFailed) -> bool: ...
    def stop(self, child: Child) -> None: ...


class Keeper:
    """One server of a supervisor."""

    def __init__(self, name: ServerName, server: Server, log: Callable[[str], None]) -> None:
        self.name = name
        self._server = server
        self._log = log
        self._state: ServerState = "down"
        self._child: Child | None = None
        self._restarts = 0
        self._deaths: deque[float] = deque()
        self._moving = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    @property
    def status(self) -> ServerStatus:
        return ServerStatus(
            name=self.name,
            state=self._state,
            pid=self._child.pid if self._child is not None else None,
            restarts=self._restarts,
        )

    @property
    def running(self) -> RunningServer:
        return RunningServer(url=self._server.url, origin=self._server.origin)

    async def attach(self) -> None:
        """Return when it is up, or stopped on purpose; raises `ServerStartFailed`."""
        if self._state != "stopped":
            await self.start()

    async def start(self) -> None:
        """Return when it is up; raises `ServerStartFailed`."""
        async with self._moving:
            if self._child is None or self._child.exit_code is not None:
                if self._state == "failed":
                    self._deaths.clear()
                await self._bring_up()

    async def stop(self) -> None:
        """Return when it has ended; it stays so until `start`."""
        async with self._moving:
            child, self._child = self._child, None
            self._state = "stopped"
            if self._watching is not None:
                self._watching.cancel()
                self._watching = None
            if child is not None:
                await asyncio.to_thread(self._server.stop, child)
                self._log(f"{self._server.name} stopped")

    async def _bring_up(self) -> None:
        self._state = "starting"
        started = time.monotonic()
        try:
            try:
                child = await self._try()
            except ServerStartFailed as failure:
                if not await asyncio.to_thread(self._server.recover, failure):
                    raise
                self._log(f"{failure}\nits damaged files were moved aside")
                child = await self._try()
        except ServerStartFailed:
            self._state = "failed"
            raise
        except OSError as error:
            self._state = "failed"
            raise ServerStartFailed(f"embedded {self._server.name}: {error}") from error
        took = time.monotonic() - started
        self._log(f"{self._server.name} up in {took:.2f} s, pid {child.pid}")
        self._child = child
        self._state = "up"
        self._watching = asyncio.create_task(self._watch(child))

    async def _try(self) -> Child:
        await asyncio.to_thread(self._server.prepare)
        # Not on a helper thread: the kernel ends the server when the thread that started it
        # ends, and this one lives as long as the supervisor.
        child = self._server.spawn()
        await asyncio.to_thread(self._server.wait_ready, child)
        return child

    async def _watch(self, child: Child) -> None:
        code = await asyncio.to_thread(child.wait)
        async with self._moving:
            if self._child is not child:
                return
            self._child = None
            self._log(f"{self._server.name} (pid {child.pid}) died with code {code}")
            self._watching = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        while True:
            self._state = "starting"
            pause = self._pause_after_death()
            if pause is None:
                self._state = "failed"
                self._log(f"{self._server.name} died {RESTARTS_MAX} times in a row: given up")
                return
            await asyncio.sleep(pause)
            async with self._moving:
                if self._child is not None:
                    return  # somebody asked for it and was faster
                try:
                    await self._bring_up()
                except ServerStartFailed as failure:
                    self._log(str(failure))
                    continue
                self._restarts += 1
                return

    def _pause_after_death(self) -> float | None:
        """Seconds to wait before the next try; None when there were too many."""
        now = time.monotonic()
        while self._deaths and now - self._deaths[0] > RESTART_WINDOW_SECONDS:
            self._deaths.popleft()
        if len(self._deaths) >= RESTARTS_MAX:
            return None
        pause: float = PAUSE_SECONDS_FIRST * 2 ** len(self._deaths)
        self._deaths.append(now)
        return min(pause, PAUSE_SECONDS_MAX)
