"""Append-only by privilege: the role the service works as can't change what is stored."""

from __future__ import annotations

import asyncpg
import pytest

from eventlog import EventLog
from eventlog.testing import message

FORBIDDEN = {
    "insert": "insert into eventlog.events select * from eventlog.events limit 1",
    "update": "update eventlog.events set data = 'x'",
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
