"""The databases that tests get look as if they were just migrated, whatever a test did before."""

from __future__ import annotations

import asyncio

from eventlog import EventLog, Settings
from eventlog.testing import rich_history
from tests.support.servers import PostgresUnderTest, TestServers, connected, delete_keys

COUNTS = """
select (select count(*) from eventlog.events), (select count(*) from eventlog.session_owners),
       (select count(*) from eventlog.snapshots), (select count(*) from eventlog.log)
"""


async def test_database_when_rows_were_written_is_put_back(
    postgres_server: PostgresUnderTest, redis_url: str, servers: TestServers
) -> None:
    """Given out again without its rows, under the id of another log, its feeds gone."""
    async with postgres_server.database() as url:
        async with EventLog.open(url, redis_url, settings=Settings()) as log:
            await rich_history(log)
            assert log.fanout is not None
            await log.fanout.drained()
            first = await log.store.identity()
        await servers.forget(url)
        assert await delete_keys(redis_url, f"eventlog:{first.log_id.hex[:16]}:*") == 0

    async with postgres_server.database() as again:
        async with connected(again) as connection:
            assert tuple(await connection.fetchrow(COUNTS) or ()) == (0, 0, 0, 1)
        async with EventLog.open(again, redis_url, settings=Settings()) as log:
            assert (await log.store.identity()).log_id != first.log_id

    assert again == url


async def test_database_when_more_than_rows_changed_is_dropped(
    postgres_server: PostgresUnderTest,
) -> None:
    """A new table, another right, another function body: the next test gets another database."""
    changes = (
        "create table eventlog.mine (n int)",
        "alter table eventlog.events add column mine int",
        "grant insert on eventlog.events to eventlog_app",
        "create or replace function eventlog.identity() returns table (log_id uuid, epoch text,"
        " shards int) language sql as $$ select gen_random_uuid(), '1', 16 $$",
        "drop index eventlog.events_by_id",
    )
    for change in changes:
        async with postgres_server.database() as url, connected(url) as connection:
            await connection.execute(change)
        async with postgres_server.database() as other:
            assert other != url, change


async def test_database_when_connections_were_left_open_ends_them(
    postgres_server: PostgresUnderTest,
) -> None:
    """A test that forgot to close hurts nobody but itself."""
    async with postgres_server.database() as url:
        left = connected(url)
        connection = await left.__aenter__()
        await connection.execute("begin; lock table eventlog.events")

    async with asyncio.timeout(10), postgres_server.database() as again, connected(again) as other:
        assert await other.fetchval("select count(*) from eventlog.events") == 0
    assert connection.is_closed() or await _is_dead(connection)


async def _is_dead(connection: object) -> bool:
    try:
        await connection.execute("select 1")  # type: ignore[attr-defined]
    except Exception as error:
        return bool(str(error))
    return False
