"""Opening a log: as whom, on which event loop, and how often."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import asyncpg
import pytest
import uvloop

from eventlog import EventLog, Settings, Unavailable, UnsafeServer
from eventlog.embedded.temporary import temporary_postgres
from eventlog.schema import migrate
from eventlog.testing import LogContract, assert_replays, message, rich_history, take
from tests.conftest import NewDatabase
from tests.support.servers import PostgresUnderTest, connected


async def test_open_when_the_login_is_a_member_of_the_app_role_only_works(
    postgres_server: PostgresUnderTest, new_database: NewDatabase, redis_url: str
) -> None:
    """As in production: a login that owns nothing, and may do what eventlog_app may."""
    url = await new_database()
    name = f"eventlog_test_{uuid.uuid4().hex[:12]}"
    async with connected(url) as owner:
        await owner.execute(f"create role {name} login in role eventlog_app")
    try:
        login = url.replace("postgres@", f"{name}@", 1)
        async with EventLog.open(login, redis_url, settings=Settings()) as log:
            session = await rich_history(log)
            await assert_replays(session, step=10)
            await take(session.subscribe(), 5)
        async with connected(login) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("delete from eventlog.events")
    finally:
        async with connected(url) as owner:
            await owner.execute(f"drop owned by {name}; drop role {name}")


def test_log_when_run_by_uvloop_keeps_its_promises(tmp_path: Path) -> None:
    """The other event loop: replies, subscriptions, rivals and cancellations."""

    async def run(url: str) -> None:
        await migrate(url)
        async with EventLog.open(url, "none", settings=Settings()) as log:
            contract = LogContract()
            await contract.test_append_when_rivals_expect_one_seq_has_one_winner(log)
            await contract.test_reply_when_it_ends_is_stored_as_written(log)
            await contract.test_subscription_when_events_come_has_each_once_in_order(log)
            session = await log.create_session()
            task = asyncio.create_task(session.append(message()))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await session.head() in {1, 2}

    with temporary_postgres(tmp_path) as server:
        uvloop.run(run(server.url))


async def test_open_when_many_processes_open_and_close_leaves_no_connection(
    postgres_url: str, redis_url: str
) -> None:
    """Every connection is given back, also by a log whose opener failed."""
    for _ in range(5):
        async with EventLog.open(postgres_url, redis_url, settings=Settings()) as log:
            session = await log.create_session()
            await take(session.subscribe(), 1)
        with pytest.raises(RuntimeError):
            async with EventLog.open(postgres_url, redis_url, settings=Settings()) as log:
                await log.create_session()
                raise RuntimeError

    async with connected(postgres_url) as connection:
        others = await connection.fetchval(
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
            " and backend_type = 'client backend'"
        )
    assert others == 0


async def test_open_when_postgres_is_not_there_says_so(tmp_path: Path) -> None:
    """An address where nobody listens, and a database that does not exist."""
    for url in (
        "postgresql://postgres@127.0.0.1:1/test",
        f"postgresql://postgres@/test?host={tmp_path}",
    ):
        with pytest.raises(Unavailable, match="EVENTLOG_POSTGRES_URL"):
            async with EventLog.open(url, "none", settings=Settings()):
                pass


async def test_open_when_the_server_may_lose_commits_is_refused(tmp_path: Path) -> None:
    """A real server with fsync off: refused, unless one says that it is all right."""
    with temporary_postgres(tmp_path, settings={"fsync": "off"}) as server:
        await migrate(server.url)
        with pytest.raises(UnsafeServer, match="fsync"):
            async with EventLog.open(server.url, "none", settings=Settings()):
                pass
        settings = Settings(unsafe_durability=True)
        async with EventLog.open(server.url, "none", settings=settings) as log:
            await log.create_session()
