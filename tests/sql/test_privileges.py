"""Append-only by privilege: the role the service works as can't change what is stored."""

from __future__ import annotations

import asyncpg
import pytest

from eventlog import EventLog
from eventlog.envelope import new_id
from eventlog.testing import message

FORBIDDEN = {
    "insert": "insert into eventlog.events select * from eventlog.events limit 1",
    "update": "update eventlog.events set data = 'x'",
    "erase": "update eventlog.events set data = '', flags = flags | 16",
    "update one column": "update eventlog.events set flags = 16 where false",
    "delete": "delete from eventlog.events",
    "truncate": "truncate eventlog.events",
    "lock rows": "select * from eventlog.events for update",
    "upsert": "insert into eventlog.events select * from eventlog.events limit 1"
    " on conflict do nothing",
    "copy": "copy eventlog.events from stdin",
    "drop": "drop table eventlog.events",
    "alter": "alter table eventlog.events add column x int",
    "disable triggers": "alter table eventlog.events disable trigger all",
    "change owners": "update eventlog.session_owners set tenant_id = 9",
    "change the log": "update eventlog.log set shards = 3",
    "new function": "create function eventlog.f() returns int language sql as 'select 1'",
    "forge an erasure": "insert into eventlog.erasures (begun_at, session_id, tenant_id, shard,"
    " requested_by) values (now(), gen_random_uuid(), 0, 0, 'me')",
    "change an erasure": "update eventlog.erasures set reason = 'another'",
    "forget an erasure": "delete from eventlog.erasures",
    "forget all erasures": "truncate eventlog.erasures",
    "erase views only": "select eventlog.erase_views(0::smallint, gen_random_uuid())",
    "write views": "select eventlog.write_erased_view('events', 0::smallint, gen_random_uuid(), 1)",
    "disown": "delete from eventlog.session_owners",
    "take the schema": "alter schema eventlog rename to mine",
}


@pytest.mark.parametrize("what", sorted(FORBIDDEN))
async def test_statement_when_sent_by_the_service_is_refused(
    log: EventLog, postgres_url: str, what: str
) -> None:
    """Every way of changing stored events ends in 42501, insufficient privilege."""
    await log.create_session("k")
    connection = await asyncpg.connect(postgres_url, server_settings={"role": "eventlog_app"})
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            if what == "copy":
                await connection.copy_records_to_table(
                    "events", schema_name="eventlog", records=[(1,)], columns=["position"]
                )
            else:
                await connection.execute(FORBIDDEN[what])
    finally:
        await connection.close()


async def test_update_when_sent_by_the_owner_works(log: EventLog, postgres_url: str) -> None:
    """The control: without the role's limits the same statement changes the event."""
    session = await log.create_session("k")
    await session.append(message("kept"))
    connection = await asyncpg.connect(postgres_url)
    try:
        changed = await connection.execute("update eventlog.events set tenant_id = tenant_id")
    finally:
        await connection.close()

    assert changed == "UPDATE 2"


async def test_append_when_sent_by_the_service_works(log: EventLog, postgres_url: str) -> None:
    """The library itself works as that role."""
    session = await log.create_session("k")
    assert (await session.append(message("hello"))).last_seq == 2
    assert await log.store.fetch("identity")  # type: ignore[attr-defined]

    async with log.store.connection() as connection:  # type: ignore[attr-defined]
        assert await connection.fetchval("select current_user") == "eventlog_app"


async def test_erase_when_the_session_lives_or_is_anothers_changes_nothing(log: EventLog) -> None:
    """The function is the only way, and asks for a tombstone, and whose it is."""
    session = await log.create_session("k")
    await session.append(message("kept"))
    ask = "select eventlog.erase($1, $2, $3, 1000, null, null)"
    async with log.store.connection() as connection:  # type: ignore[attr-defined]
        assert await connection.fetchval(ask, session.shard, session.id, 0) == 3
        assert await connection.fetchval(ask, session.shard, new_id(), 0) == 2
        await session.delete()
        assert await connection.fetchval(ask, session.shard, session.id, 7) == 2
        assert [each.content for each in (await session.replay()).messages] == ["kept"]
        assert await connection.fetchval(ask, session.shard, session.id, 0) == 0
        assert await connection.fetchval("select count(*) from eventlog.erasures") == 1


async def test_readable_when_events_were_erased_says_so(log: EventLog, postgres_url: str) -> None:
    """People with psql see which rows they are, and no error."""
    session = await log.create_session("k")
    fork = await session.fork()
    await session.erase(forks=True)
    connection = await asyncpg.connect(postgres_url)
    try:
        records = await connection.fetch(
            "select type, event::text from eventlog.readable order by session_id = $1, seq", fork.id
        )
    finally:
        await connection.close()

    assert {record["type"] for record in records} == {"erased"}
    links = [record["event"] for record in records if record["event"] is not None]
    assert links == [
        f'{{"type":"session.created","parent_session_id":"{session.id}","parent_seq":1}}'
    ]
