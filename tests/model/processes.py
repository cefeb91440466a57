"""Processes of a model run: event logs on one loop that share nothing but the servers and can die.

A process is everything that one EventLog started. Its tasks are known by a context variable that
they inherit, so `crash` can end them all at once, with their connections, and without any of the
clean-up that closing would do. What it had sent may still be stored, as after a SIGKILL.

`FaultyStore` is the store on Postgres with planned faults of single commits.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeVar

from eventlog import EventLog, Settings, Unavailable
from eventlog.postgres import PostgresStore
from eventlog.redis_link import RedisLink
from eventlog.schema import APP_ROLE
from eventlog.store import Answer, Busy, Command, ConnectionLost
from eventlog.testing import until

Fault = Literal["none", "unreachable", "busy", "lost before", "lost after"]
FAULTS: Final[tuple[Fault, ...]] = ("none", "unreachable", "busy", "lost before", "lost after")
CRASH_SECONDS_MAX: Final = 10.0
NAME: Final = "process-"

Result = TypeVar("Result")
_numbers = itertools.count(1)
_running: ContextVar[Process | None] = ContextVar("_running", default=None)


class FaultyStore(PostgresStore):
    """Each commit takes the next fault of the plan; without one it is as always."""

    def __init__(self, url: str, *, tenant_id: int, shards: int, name: str) -> None:
        super().__init__(url, tenant_id=tenant_id, shards=shards, role=APP_ROLE)
        self._settings["application_name"] = name
        self.plan: deque[Fault] = deque()

    async def commit(self, lane: int, commands: list[Command]) -> list[Answer]:
        """Commit, with the fault that is due."""
        fault = self.plan.popleft() if self.plan else "none"
        if fault == "unreachable":
            raise Unavailable("planned: can't connect")
        if fault == "busy":
            raise Busy("planned: a lock was not free in time")
        if fault == "lost before":
            raise ConnectionLost("planned: the call got lost")
        answers = await super().commit(lane, commands)
        if fault == "lost after":
            raise ConnectionLost("planned: the answer got lost")
        return answers


class Process:
    """One EventLog and all that it started."""

    def __init__(self, log: EventLog, store: FaultyStore, name: str) -> None:
        self.name = name
        """By which Postgres knows its connections."""
        self.log = log
        self.store = store
        self.tasks: set[asyncio.Task[Any]] = set()
        self._stack = AsyncExitStack()

    @staticmethod
    async def start(
        postgres_url: str, redis_url: str, *, shards: int, settings: Settings
    ) -> Process:
        """A new process on the given servers, whose schema is installed."""
        name = f"{NAME}{next(_numbers)}"
        store = FaultyStore(postgres_url, tenant_id=0, shards=shards, name=name)
        log = EventLog(store, settings=settings, redis_url=redis_url, servers=None)
        process = Process(log, store, name)
        await process.run(process._open())
        return process

    async def _open(self) -> None:
        await self.store.open()
        await self._stack.enter_async_context(self.log.running())

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something inside this process: what it starts belongs to the process."""
        token = _running.set(self)
        try:
            return await work
        finally:
            _running.reset(token)

    def task(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """The same beside the caller; it dies with the process."""
        token = _running.set(self)
        try:
            return asyncio.create_task(work)
        finally:
            _running.reset(token)

    async def crash(self) -> None:
        """End everything where it stands; nothing is flushed, finished or taken leave of."""
        for connection in self.store._lanes.values():
            connection.terminate()
        if self.store._pool is not None:
            self.store._pool.terminate()
        for task in self.tasks:
            task.cancel()
        for link in self._links():
            await link._drop()
        await until(self._is_dead, seconds=CRASH_SECONDS_MAX)

    def _links(self) -> list[RedisLink]:
        log = self.log
        links = [log.fanout._link if log.fanout else None, log.hub._link]
        links.append(log.views.cache._link if log.views.cache else None)
        return [each for each in links if each is not None]

    def _is_dead(self) -> bool:
        """Whether all tasks have ended. Some wait on when they are cancelled once, rightly."""
        alive = [task for task in self.tasks if not task.done()]
        for task in alive:
            task.cancel()
        return not alive

    async def close(self) -> None:
        """End it cleanly."""
        await self.run(self._stack.aclose())


def know_processes(loop: asyncio.AbstractEventLoop) -> None:
    """Let every task of the loop belong to the process in which it was started."""

    def make(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **options)
        process = _running.get()
        if process is not None:
            process.tasks.add(task)
            task.add_done_callback(process.tasks.discard)
        return task

    loop.set_task_factory(make)  # type: ignore[arg-type]  # typeshed wants a generic function
