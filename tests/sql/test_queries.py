"""The SQL the library sends: every query fits the schema, and hot reads stay on their indexes."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from eventlog import EventLog, MessageAdded
from eventlog.envelope import new_id
from eventlog.postgres import SERVER_SETTINGS
from eventlog.queries import load_queries, query
from tests.conftest import NewDatabase

ROWS = 200_000
SESSIONS = 200
HOT_READS = {
    "read_session": ("events_pkey", (3, 50, 2**62, 1000)),
    "read_structure": ("events_structure", (3, 50, 2**62, 1000)),
    "read_feed": ("events_feed", (3, 5000, 1000)),
}


async def connect(url: str, **settings: str) -> asyncpg.Connection[Any]:
    """A connection with the settings of the library's own."""
    return await asyncpg.connect(url, server_settings={**SERVER_SETTINGS, **settings})


@pytest.mark.parametrize("name", sorted(load_queries()))
async def test_query_when_prepared_fits_the_schema(postgres_url: str, name: str) -> None:
    """Names, types and numbers of parameters are right, for the role that will send it."""
    connection = await connect(postgres_url, role="eventlog_app")
    try:
        await connection.prepare(query(name))
    finally:
        await connection.close()


async def fill(connection: asyncpg.Connection[Any]) -> asyncpg.Record:
    """A large table; returns one of its sessions."""
    await connection.execute(
        """
        insert into eventlog.events
        select row_number() over (partition by s.shard order by g.n, s.id), g.n, now(), s.id,
               gen_random_uuid(), 0, s.shard, 1, case when g.n % 10 = 1 then 10 else 12 end,
               case when g.n % 10 = 1 then 0 else 1 end, '{}'::bytea
        from generate_series(1, $1::int / $2::int) as g (n)
        cross join (select md5(i::text)::uuid as id, (i % 16)::smallint as shard
                    from generate_series(1, $2::int) as t (i)) s
        """,
        ROWS,
        SESSIONS,
    )
    record: asyncpg.Record | None = await connection.fetchrow(
        "select session_id, shard from eventlog.events where shard = 3 limit 1"
    )
    assert record is not None
    return record


async def test_hot_reads_when_the_table_grew_after_planning_use_their_indexes(
    new_database: NewDatabase,
) -> None:
    """Plans made while the table was empty are the ones that are good when it is large."""
    url = await new_database()
    admin = await asyncpg.connect(url)
    reader = await connect(url)
    try:
        for name, (_, arguments) in HOT_READS.items():
            for _ in range(7):  # a generic plan is made and kept
                await reader.fetch(query(name), *_filled(name, new_id(), arguments))
        session = await fill(admin)
        await admin.execute("analyze eventlog.events")
        for name, (index, arguments) in HOT_READS.items():
            plan = json.loads(
                await reader.fetchval(
                    "explain (analyze, buffers, format json) "
                    + _literal(name, session["session_id"], arguments)
                )
            )[0]
            text = json.dumps(plan)
            assert f'"{index}"' in text, (name, plan)
            assert "Seq Scan" not in text
            assert '"Node Type": "Sort"' not in text
            assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 2_500
    finally:
        await admin.close()
        await reader.close()


async def test_appends_when_the_table_is_large_read_few_pages(new_database: NewDatabase) -> None:
    """What `append` looks up costs a few index pages, whether the session is short or long."""
    url = await new_database()
    admin = await asyncpg.connect(url)
    try:
        await fill(admin)
        await admin.execute("analyze eventlog.events")
        async with EventLog.open(url, "none") as log:
            session = await log.create_session()
            for number in range(20):
                await session.append(MessageAdded(role="user", content=str(number)))
        await admin.execute("select pg_stat_force_next_flush()")
        scans = await admin.fetchval(
            "select seq_tup_read from pg_stat_user_tables where relname = 'events'"
        )
        assert scans < 2 * ROWS, "append scanned the table"
    finally:
        await admin.close()


async def test_readable_when_events_hold_anything_json_can_shows_them(
    log: EventLog, postgres_url: str
) -> None:
    """People with psql see JSON, NUL escapes and frames included."""
    session = await log.create_session("k", title="nul \x00 and 🎉")
    async with session.reply(agent="a") as reply:
        for piece in ("a\x00", "b", "c"):
            await reply.write(piece)

    connection = await asyncpg.connect(postgres_url)
    try:
        records = await connection.fetch(
            "select first_seq, seq, type, event::text from eventlog.readable"
            " where session_id = $1 order by seq",
            session.id,
        )
    finally:
        await connection.close()

    assert [record["type"] for record in records][:3] == [
        "session.created",
        "message.started",
        "tokens.appended",
    ]
    assert json.loads(records[0]["event"])["title"] == "nul \x00 and 🎉"
    assert [record["first_seq"] for record in records][1:] == [
        record["seq"] + 1 for record in records[:-1]
    ]


def _filled(name: str, session_id: Any, arguments: tuple[int, ...]) -> tuple[Any, ...]:
    if name == "read_feed":
        return arguments
    shard, *rest = arguments
    return (shard, session_id, *rest)


def _literal(name: str, session_id: Any, arguments: tuple[int, ...]) -> str:
    text = query(name).rstrip(";")
    values = _filled(name, session_id, arguments)
    for number, value in reversed(list(enumerate(values, 1))):
        text = text.replace(f"${number}", str(value) if isinstance(value, int) else f"'{value}'")
    return text
