"""Where Postgres and Redis come from: a URL that was set, or an embedded server.

Everything else asks here and knows no more than two URLs. A URL that is set wins; what has none is
embedded; with both set (or Redis `none`) nothing is started and no folder is touched.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import msgspec

from eventlog.embedded.client import ask_running, attached
from eventlog.embedded.messages import (
    AskStatus,
    ServerName,
    ServerStatus,
    Start,
    Status,
    Stop,
)
from eventlog.errors import InvalidSetting
from eventlog.settings import Settings

NO_REDIS = "none"


class Servers(msgspec.Struct, frozen=True, kw_only=True):
    """The servers to use, and what to tell people about them."""

    postgres_url: str
    """asyncpg DSN; an embedded one is its owner's, who may do everything."""
    redis_url: str | None
    """None: there is none, on purpose."""
    origin: tuple[str, ...]
    """A line per server: what runs where. Holds no password."""
    postgres_embedded: bool
    redis_embedded: bool


@asynccontextmanager
async def open_servers(settings: Settings) -> AsyncIterator[Servers]:
    """The servers that `settings` ask for, running for as long as the block does.

    Embedded servers are shared with every process that uses the same data folder, and end with the
    last of them. Raises `ServerStartFailed`.
    """
    wanted = _wanted(settings)
    if not wanted:
        yield _resolved(settings, {}, {})
        return
    async with attached(settings.data, wanted) as running:
        yield _resolved(
            settings,
            {name: server.url for name, server in running.items()},
            {name: server.origin for name, server in running.items()},
        )


async def stop_redis(settings: Settings) -> None:
    """Stop the embedded Valkey, its data saved, and leave it stopped; for demonstrations.

    Raises `InvalidSetting` when Redis is not embedded, `ServerStartFailed` when nothing runs.
    """
    _demand_embedded_redis(settings)
    await ask_running(settings.data, Stop(server="valkey"))


async def start_redis(settings: Settings) -> None:
    """Start the embedded Valkey again; returns when it answers. Raises as `stop_redis`."""
    _demand_embedded_redis(settings)
    await ask_running(settings.data, Start(server="valkey"))


async def server_status(settings: Settings) -> tuple[ServerStatus, ...]:
    """State and pid of each embedded server; raises `ServerStartFailed` when nothing runs."""
    match await ask_running(settings.data, AskStatus()):
        case Status(servers=servers):
            return servers
        case reply:
            raise TypeError(f"the supervisor answered {reply!r}")


def _wanted(settings: Settings) -> tuple[ServerName, ...]:
    names: list[ServerName] = []
    if settings.postgres_url is None:
        names.append("postgres")
    if settings.redis_url is None:
        names.append("valkey")
    return tuple(names)


def _resolved(
    settings: Settings, urls: dict[ServerName, str], origins: dict[ServerName, str]
) -> Servers:
    redis_url = settings.redis_url or urls["valkey"]
    without_redis = redis_url.lower() == NO_REDIS
    redis_origin = origins.get("valkey") or (
        "no Redis (EVENTLOG_REDIS_URL is none): subscriptions poll Postgres"
        if without_redis
        else f"Redis from EVENTLOG_REDIS_URL ({_place(redis_url)})"
    )
    postgres_url = settings.postgres_url or urls["postgres"]
    postgres_origin = origins.get("postgres") or (
        f"Postgres from EVENTLOG_POSTGRES_URL ({_place(postgres_url)})"
    )
    return Servers(
        postgres_url=postgres_url,
        redis_url=None if without_redis else redis_url,
        origin=(postgres_origin, redis_origin),
        postgres_embedded="postgres" in urls,
        redis_embedded="valkey" in urls,
    )


def _place(url: str) -> str:
    """Host and database of a URL: never its user, password or options."""
    parts = urlsplit(url)
    if "@" in parts.path + parts.query + parts.fragment:
        return "address not shown"  # a password with a `/`, `?` or `#`: the parts mean nothing
    host = parts.netloc.rpartition("@")[2] or parse_qs(parts.query).get("host", [""])[0]
    return f"{host}{parts.path}" or "local socket"


def _demand_embedded_redis(settings: Settings) -> None:
    if settings.redis_url is not None:
        raise InvalidSetting(
            "EVENTLOG_REDIS_URL is set, so Redis is not embedded and can't be stopped from here"
        )
