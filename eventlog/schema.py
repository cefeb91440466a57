"""Installing the schema, upgrading it, and checking before use that it and the server are right.

Migrations are sql/migrations/NNNN_name.sql. Each runs in its own transaction and is recorded with
its sha256; an advisory lock lets one process migrate while others wait. A migration that was
changed after it ran is an error: what ran can't be edited.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec

from eventlog.errors import SchemaMismatch, Unavailable, UnsafeServer
from eventlog.queries import sql_folder

APP_ROLE: Final = "eventlog_app"
SERVER_VERSION_MIN: Final = 150_000
_FILE: Final = re.compile(r"^(\d{4})_(\w+)\.sql$")
_LOCK: Final = 0x6576_6C6F
"""Advisory lock that a migration holds ("evlo")."""


class Migration(msgspec.Struct, frozen=True):
    """One file of sql/migrations."""

    number: int
    name: str
    sql: str
    sha256: str


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a Postgres server says of itself, as far as it matters here."""

    version: str
    version_number: int
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    user: str
    has_app_role: bool
    """The role `eventlog_app` exists and this login may become it."""
    applied: dict[int, str]
    """Migrations that ran, by number, with their sha256."""
    shards: int | None
    """None: no log is installed."""


def migrations(folder: Path | None = None) -> list[Migration]:
    """All migrations in order; raises `SchemaMismatch` for a gap or a misnamed file."""
    found = []
    for path in sorted((folder or sql_folder() / "migrations").glob("*.sql")):
        match = _FILE.match(path.name)
        if match is None:
            raise SchemaMismatch(f"{path.name} is not named NNNN_name.sql")
        sql = path.read_text("utf-8")
        digest = hashlib.sha256(sql.encode()).hexdigest()
        found.append(Migration(int(match[1]), match[2], sql, digest))
    if [each.number for each in found] != list(range(1, len(found) + 1)):
        raise SchemaMismatch("migrations are not numbered 0001, 0002, … without a gap")
    return found


async def migrate(
    url: str, *, shards: int = 16, wanted: list[Migration] | None = None
) -> list[Migration]:
    """Bring the database up to date; returns the migrations that ran now.

    `url` is a login that may create schemas (and, the first time, roles). `shards` counts only when
    the log is created. Safe to run from several processes at once.
    """
    connection = await _connect(url)
    try:
        await connection.execute("select pg_advisory_lock($1)", _LOCK)
        await connection.execute(
            "create schema if not exists eventlog;"
            "create table if not exists eventlog.migrations (number int primary key,"
            " name text not null, sha256 text not null, applied_at timestamptz default now())"
        )
        applied = await _applied(connection)
        pending = check_applied(applied, wanted or migrations())
        for each in pending:
            async with connection.transaction():
                await connection.execute(each.sql)
                await connection.execute(
                    "insert into eventlog.migrations (number, name, sha256) values ($1, $2, $3)",
                    each.number,
                    each.name,
                    each.sha256,
                )
        await connection.execute(
            "insert into eventlog.log (shards) values ($1) on conflict do nothing", shards
        )
        if pending:
            # Statistics of the new tables: no plan shall be made from the guesses without them.
            await connection.execute("analyze eventlog.events")
        return pending
    finally:
        await connection.close()


def check_applied(applied: dict[int, str], wanted: list[Migration]) -> list[Migration]:
    """Those of `wanted` that are still to run; raises `SchemaMismatch` when history differs."""
    newer = sorted(set(applied) - {each.number for each in wanted})
    if newer:
        raise SchemaMismatch(
            f"the database has migration {newer[-1]:04d}, which this version doesn't know; "
            "upgrade conversation-eventlog"
        )
    for each in wanted:
        if each.number in applied and applied[each.number] != each.sha256:
            raise SchemaMismatch(
                f"migration {each.number:04d}_{each.name} was changed after it ran here; "
                "put the file back as it was and write a new migration instead"
            )
    return [each for each in wanted if each.number not in applied]


async def inspect_server(url: str) -> ServerFacts:
    """Ask the server what it is and what is installed. Raises `Unavailable`."""
    connection = await _connect(url)
    try:
        record = await connection.fetchrow(
            "select current_setting('server_version'), current_setting('server_version_num')::int,"
            " current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on',"
            " current_setting('synchronous_commit'), session_user,"
            " exists (select from pg_roles where rolname = $1"
            "         and pg_has_role(session_user, oid, 'member')),"
            " to_regclass('eventlog.migrations') is not null",
            APP_ROLE,
        )
        assert record is not None
        applied: dict[int, str] = {}
        shards = None
        if record[7]:
            applied = await _applied(connection)
            if applied:
                shards = await connection.fetchval("select shards from eventlog.log")
        return ServerFacts(
            version=record[0],
            version_number=record[1],
            fsync=record[2],
            full_page_writes=record[3],
            synchronous_commit=record[4],
            user=record[5],
            has_app_role=record[6],
            applied=applied,
            shards=shards,
        )
    finally:
        await connection.close()


def check_server(facts: ServerFacts, *, unsafe_durability: bool) -> None:
    """Refuse a server that can't keep the promises. Raises `UnsafeServer`, `SchemaMismatch`."""
    if facts.version_number < SERVER_VERSION_MIN:
        raise SchemaMismatch(f"Postgres {facts.version} is too old; 15 or newer is needed")
    off = [
        name
        for name, on in (
            ("fsync", facts.fsync),
            ("full_page_writes", facts.full_page_writes),
            ("synchronous_commit", facts.synchronous_commit != "off"),
        )
        if not on
    ]
    if off and not unsafe_durability:
        raise UnsafeServer(
            f"this Postgres has {' and '.join(off)} off: it may lose acknowledged events. "
            "Switch it on, or set EVENTLOG_UNSAFE_DURABILITY=1 if losing them is all right"
        )
    if check_applied(facts.applied, migrations()) or facts.shards is None:
        raise SchemaMismatch(
            "the schema of this database is missing or older than this version; "
            "run: eventlog migrate"
        )


async def _applied(connection: asyncpg.Connection[Any]) -> dict[int, str]:
    records = await connection.fetch("select number, sha256 from eventlog.migrations")
    return {record[0]: record[1] for record in records}


async def _connect(url: str) -> asyncpg.Connection[Any]:
    try:
        return await asyncpg.connect(
            url, timeout=10, server_settings={"application_name": "eventlog-setup"}
        )
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Unavailable(
            f"Postgres can't be reached: {error}. Check EVENTLOG_POSTGRES_URL, or leave it unset "
            "to use the embedded server"
        ) from error
