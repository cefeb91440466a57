"""Workers and migrations as processes: they start, do their work, and stop when told to."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from eventlog import EventLog, MessageAdded, Settings
from tests.cli.command import WAIT_SECONDS_MAX, CommandLine
from tests.conftest import NewDatabase
from workers.projector import lag

STOP_SECONDS_MAX = 5.0


async def test_up_when_started_runs_everything_until_interrupted(tmp_path: Path) -> None:
    """On a bare data folder: servers, schema, workers; SIGINT ends all within seconds."""
    up = CommandLine({"data": str(tmp_path / "data")})

    async with await up.start("up") as running:
        await running.until("Ctrl-C stops all")
        async with EventLog.open(settings=Settings(data=tmp_path / "data")) as log:
            session = await log.create_session(key="hello")
            await session.append(MessageAdded(role="user", content="Hi"))
            await until_projected(log)
            assert [view.key for view in (await log.sessions()).items] == ["hello"]
        seconds = await running.interrupt(signal.SIGINT)

        assert running.process.returncode == 0
        assert seconds < STOP_SECONDS_MAX
    for name in (
        "Postgres",
        "Redis",
        "relay",
        "projector",
        "reaper",
        "expirer",
        "compactor",
        "16 shards",
        "stopped",
    ):
        assert name in running.output


@pytest.mark.parametrize("worker", ["relay", "project", "reap", "expire-worker", "compact-worker"])
async def test_worker_when_told_to_stop_ends_cleanly(eventlog: CommandLine, worker: str) -> None:
    """Each is its own process, and SIGTERM is how a supervisor ends it: exit code 0."""
    async with await eventlog.start(worker) as running:
        assert running.process.stderr is not None
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            assert b".started" in await running.process.stderr.readline()
        seconds = await running.interrupt(signal.SIGTERM)

        assert running.process.returncode == 0
        assert seconds < STOP_SECONDS_MAX


async def test_project_when_two_run_shares_the_work(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Two projectors, and one that dies: what is appended is in the views all the same."""
    async with (
        await eventlog.start("project", "--name", "one") as one,
        await eventlog.start("project", "--name", "two"),
    ):
        session = await opened.create_session(key=key)
        await until_projected(opened)
        one.process.kill()
        await session.append(MessageAdded(role="user", content="Hi"))
        await until_projected(opened)
        view = await session.view()

    assert view.message_count == 1


def test_relay_when_there_is_no_redis_says_so(data_folder: Path) -> None:
    """A setting that makes no sense with this command: exit code 2."""
    without = CommandLine({"data": str(data_folder), "redis_url": "none"})

    assert "has none" in without.run("relay", code=2).stderr


async def test_migrate_when_the_database_is_empty_installs_the_schema(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    """--check says what is pending with exit code 1; afterwards there is nothing to do."""
    given = CommandLine(
        {
            "data": str(tmp_path / "unused"),
            "postgres_url": await new_database(empty=True),
            "redis_url": "none",
        }
    )

    pending = given.run("migrate", "--check", code=1).stdout
    too_early = given.run("sessions", code=2).stderr
    applied = given.run("migrate").stdout
    again = given.run("migrate").stdout
    done = given.run("migrate", "--check").stdout

    assert pending.startswith("pending: 0001_log\n")
    assert "eventlog migrate" in too_early
    assert applied == pending.replace("pending", "applied")
    assert "nothing was changed" in again
    assert "up to date" in done
    given.run("append", "hello", "Hi", "--create")
    assert not (tmp_path / "unused").exists()


def test_migrate_when_embedded_works_too(tmp_path: Path) -> None:
    """A new data folder: the server is started for it, and ends with it."""
    embedded = CommandLine({"data": str(tmp_path / "data")})

    assert "applied: 0001_log" in embedded.run("migrate").stdout
    assert "up to date" in embedded.run("migrate", "--check").stdout


async def until_projected(log: EventLog) -> None:
    """Wait until the views show all of the log."""
    await until_so(lambda: is_projected(log))


async def is_projected(log: EventLog) -> bool:
    """Whether the views show all of the log."""
    return not any((await lag(log)).values())


async def until_so(fact: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not await fact():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)
