"""A call whose connection was lost may still be executed, long after its retry was answered.

Postgres reads what was sent before it notices that nobody waits for the answer. So before a command
is tried again, the backend that has it must be gone; else the event is stored twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventlog import EventLog, Settings
from eventlog.embedded.temporary import temporary_postgres
from eventlog.errors import OutcomeUnknown
from eventlog.log import EventLog as Log
from eventlog.postgres import PostgresStore
from eventlog.schema import APP_ROLE, migrate
from eventlog.telemetry import metrics
from eventlog.testing import message, read_all, refused, until
from tests.support.proxy import Proxy, proxy
from tests.support.servers import connected


@pytest.fixture
async def between(tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of a Postgres of the test's own."""
    with temporary_postgres(tmp_path) as server:
        await migrate(server.url)
        async with proxy(server.url) as made:
            yield made


class Trusting(PostgresStore):
    """The store without its protection: a lost backend is forgotten."""

    async def _end_lost_backend(self, lane: int) -> None:  # type: ignore[misc,unused-ignore]
        self._lost_backends.clear()


async def lose_a_call(log: EventLog, between: Proxy, text: str) -> tuple[int, asyncio.Task[Any]]:
    """Freeze the backend, let it be sent an append, cut the connection: the call lies there."""
    session = await log.session("k")
    store: Any = log.store
    pid: int = store._lanes[session.shard % log.settings.lanes].get_server_pid()
    os.kill(pid, signal.SIGSTOP)
    between.watch(text.encode())
    task = asyncio.create_task(session.append(message(text)))
    await until(lambda: between.seen_count)
    between.cut()
    return pid, task


async def resume(pid: int, log: EventLog) -> None:
    """Let it go on, and wait for its end."""
    os.kill(pid, signal.SIGCONT)
    store: Any = log.store

    async def is_gone() -> bool:
        async with connected(store._url) as connection:
            return not await connection.fetchval(
                "select exists (select from pg_stat_activity where pid = $1)", pid
            )

    await until(is_gone)


async def contents(log: EventLog) -> list[object]:
    events = await read_all(await log.session("k"))
    assert [each.seq for each in events] == list(range(1, len(events) + 1))
    return [getattr(each.event, "content", None) for each in events[1:]]


async def test_append_when_its_first_call_is_executed_late_is_stored_once(between: Proxy) -> None:
    """The retry waits until the old backend is gone, and finds what that one did."""
    async with EventLog.open(between.url, "none", settings=Settings()) as log:
        session = await log.create_session("k")
        await session.append(message("before"))

        retries = metrics.append_retries
        pid, task = await lose_a_call(log, between, "the late one")
        await until(lambda: task.done() or metrics.append_retries > retries + 1)
        assert not task.done()
        await resume(pid, log)
        done = await task
        await session.append(message("after"))

        assert await contents(log) == ["before", "the late one", "after"]
        assert done.first_seq == 3


async def test_append_when_its_first_call_never_ends_is_unknown(between: Proxy) -> None:
    """As long as the old backend lives nobody can say what will become of the call."""
    settings = Settings(append_timeout_seconds=2)
    async with EventLog.open(between.url, "none", settings=settings) as log:
        session = await log.create_session("k")
        await session.append(message("before"))

        pid, task = await lose_a_call(log, between, "the late one")
        with refused(OutcomeUnknown):
            await task
        await resume(pid, log)
        await session.append(message("after"))

        assert await contents(log) in (
            ["before", "after"],
            ["before", "the late one", "after"],
        )


async def test_append_when_lost_backends_are_forgotten_is_stored_twice(between: Proxy) -> None:
    """The control: a store that simply tries again has the event twice in the end."""
    store = Trusting(between.url, tenant_id=0, shards=16, role=APP_ROLE)
    await store.open()
    log = Log(store, settings=Settings(), redis_url=None, servers=None)
    async with log.running():
        session = await log.create_session("k")
        await session.append(message("before"))

        pid, task = await lose_a_call(log, between, "the late one")
        await task
        await resume(pid, log)

        assert await contents(log) == ["before", "the late one", "the late one"]
