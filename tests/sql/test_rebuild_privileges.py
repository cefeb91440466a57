"""What the service may do to tables of views: call four functions, and no more."""

from __future__ import annotations

import asyncpg
import pytest

from eventlog import EventLog

FORBIDDEN = {
    "create a table": "create table eventlog.session_views_next (x int)",
    "drop a table": "drop table eventlog.session_views",
    "rename a table": "alter table eventlog.session_views rename to mine",
    "build an index": "create index mine on eventlog.session_views (title)",
    "make up a rebuild": "insert into eventlog.rebuilds (name, views, versions)"
    " values ('x', '{}', '{}')",
    "change its views": "update eventlog.rebuilds set views = '{sessions}'",
    "forget it": "delete from eventlog.rebuilds",
    "move its end": "update eventlog.rebuild_shards set position = 0",
    "forget a shard": "delete from eventlog.rebuild_shards",
    "call what creates": "select eventlog.make_rebuild_table('session_views', 'mine')",
    "call what forgets": "select eventlog.forget_rebuild(1)",
}


@pytest.mark.parametrize("what", sorted(FORBIDDEN))
async def test_statement_when_sent_by_the_service_is_refused(
    log: EventLog, postgres_url: str, what: str
) -> None:
    """Every way around the functions ends in 42501, insufficient privilege."""
    connection = await asyncpg.connect(postgres_url, server_settings={"role": "eventlog_app"})
    try:
        await connection.execute(
            "select eventlog.begin_rebuild('rebuild:usage', '{usage}', '{1}', false)"
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(FORBIDDEN[what])
        await connection.execute(
            "select eventlog.abandon_rebuild(max(number)) from eventlog.rebuilds"
        )
    finally:
        await connection.close()


async def test_rebuild_when_begun_with_names_of_other_tables_makes_none(
    log: EventLog, postgres_url: str
) -> None:
    """Tables come from a list in the function; the caller's text is only compared."""
    connection = await asyncpg.connect(postgres_url, server_settings={"role": "eventlog_app"})
    tables = (
        "select count(*) from pg_class"
        " where relnamespace = 'eventlog'::regnamespace and relkind = 'r'"
    )
    try:
        before = await connection.fetchval(tables)
        number = await connection.fetchval(
            "select eventlog.begin_rebuild('x', $1, '{1,1}', false)",
            ["events", "usage (x int); drop table eventlog.events; --"],
        )
        assert await connection.fetchval(tables) == before
        await connection.execute("select eventlog.abandon_rebuild($1)", number)
        assert await connection.fetchval("select to_regclass('eventlog.events') is not null")
    finally:
        await connection.close()


async def test_switch_when_the_tables_are_not_complete_is_refused(
    log: EventLog, postgres_url: str
) -> None:
    """Before the indexes are there nothing is put into service."""
    connection = await asyncpg.connect(postgres_url, server_settings={"role": "eventlog_app"})
    try:
        number = await connection.fetchval(
            "select eventlog.begin_rebuild('x', '{usage}', '{1}', false)"
        )
        with pytest.raises(asyncpg.PostgresError, match="no rebuild that could be switched"):
            await connection.execute("select eventlog.switch_rebuild($1, 100)", number)
        await connection.execute("select eventlog.abandon_rebuild($1)", number)
    finally:
        await connection.close()
