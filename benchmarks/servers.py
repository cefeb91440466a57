"""Where the servers are, and a fresh database on them for each case.

URLs given on the command line win, then `EVENTLOG_POSTGRES_URL` and `EVENTLOG_REDIS_URL`, then the
embedded servers in a folder of their own that is removed afterwards. On a server that others use
too, a case makes its own Postgres database (`bench_` and random digits, dropped at the end) and
takes a numbered Redis database that was empty, marks it as taken, and deletes its keys at the end.
Nothing here ever flushes a server or stops one it did not start.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

REDIS_DATABASES = range(15, 0, -1)
"""Numbered Redis databases that may be taken, in the order they are tried; 0 never is."""
_CLAIM = "benchmarks:claim"
_CLAIM_SECONDS = 3600
_DELETE_KEYS_PER_CALL = 500


@dataclass(frozen=True, slots=True)
class Place:
    """The servers of this run: admin URLs, and what to call them in the report."""

    postgres_url: str
    redis_url: str
    kind: str

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[Ground]:
        """An empty database and an empty Redis database, both gone again afterwards."""
        async with AsyncExitStack() as stack:
            postgres_url, name = await stack.enter_async_context(_database(self.postgres_url))
            redis_url = await stack.enter_async_context(_redis_database(self.redis_url))
            connection = await asyncpg.connect(postgres_url)
            stack.push_async_callback(connection.close, timeout=10)
            client = redis_client(redis_url)
            stack.push_async_callback(client.aclose)
            await connection.execute("checkpoint")
            yield Ground(postgres_url, redis_url, name, connection, client)


@dataclass(frozen=True, slots=True)
class Ground:
    """One fresh database of each kind, with a connection for looking at it."""

    postgres_url: str
    redis_url: str
    database: str
    connection: asyncpg.Connection[Any]
    redis: redis.asyncio.Redis


@asynccontextmanager
async def open_place(postgres_url: str | None, redis_url: str | None) -> AsyncIterator[Place]:
    """The servers by URL, or embedded ones for whichever URL is missing."""
    if postgres_url and redis_url:
        yield Place(postgres_url, redis_url, "by URL")
        return
    from eventlog.embedded import open_servers
    from eventlog.settings import read_settings

    settings = read_settings()
    folder = _scratch_folder(settings.data)
    try:
        settings = msgspec.structs.replace(
            settings,
            postgres_url=postgres_url or settings.postgres_url,
            redis_url=redis_url or settings.redis_url,
            data=folder,
        )
        async with open_servers(settings) as servers:
            kind = "embedded" if servers.postgres_embedded else "by URL"
            if servers.redis_url is None:
                raise SystemExit("the benchmarks need a Redis; EVENTLOG_REDIS_URL says none")
            yield Place(servers.postgres_url, servers.redis_url, kind)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def redis_client(url: str) -> redis.asyncio.Redis:
    """A client that sends each command once: a retried XADD would be a second entry."""
    return redis.asyncio.Redis.from_url(
        url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=None
    )


def _with_redis_database(url: str, number: int) -> str:
    """The URL with another database number: in the path, or in the query for a Unix socket."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        query = [(name, value) for name, value in parse_qsl(parts.query) if name != "db"]
        return urlunsplit(parts._replace(query=urlencode([*query, ("db", str(number))])))
    return urlunsplit(parts._replace(path=f"/{number}"))


def _scratch_folder(data: Path) -> Path:
    """A new folder beside the log's own data: on the same disk, because /tmp may be memory."""
    parent = data.parent
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="eventlog-bench-", dir=parent))


@asynccontextmanager
async def _database(admin_url: str) -> AsyncIterator[tuple[str, str]]:
    name = f"bench_{secrets.token_hex(5)}"
    admin = await asyncpg.connect(admin_url)
    try:
        await admin.execute(f'create database "{name}"')
        try:
            yield urlunsplit(urlsplit(admin_url)._replace(path=f"/{name}")), name
        finally:
            await admin.execute(f'drop database if exists "{name}" with (force)')
    finally:
        await admin.close()


@asynccontextmanager
async def _redis_database(url: str) -> AsyncIterator[str]:
    token = f"{os.getpid()}:{secrets.token_hex(5)}"
    for number in REDIS_DATABASES:
        own_url = _with_redis_database(url, number)
        client = redis_client(own_url)
        try:
            taken = await client.dbsize() > 0
            if not taken and await client.set(_CLAIM, token, nx=True, ex=_CLAIM_SECONDS):
                try:
                    yield own_url
                finally:
                    await _delete_keys(client)
                return
        finally:
            await client.aclose()
    raise SystemExit(
        f"no empty Redis database among {min(REDIS_DATABASES)}–{max(REDIS_DATABASES)}; "
        "the benchmarks only use one that nobody else uses: free one, or pass another --redis URL"
    )


async def _delete_keys(client: redis.asyncio.Redis) -> None:
    batch: list[bytes] = []
    async for key in client.scan_iter(count=_DELETE_KEYS_PER_CALL):
        batch.append(key)
        if len(batch) == _DELETE_KEYS_PER_CALL:
            await client.unlink(*batch)
            batch.clear()
    if batch:
        await client.unlink(*batch)
