"""How the benchmarks use the library: the only file here that knows how a log is opened.

The library is imported inside functions, so that `limits` and `yardstick` run without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import redis.asyncio

from benchmarks.load import wait_until
from benchmarks.servers import Ground

if TYPE_CHECKING:
    from eventlog import EventLog, MessageAdded, Session

SHARDS = 16
CONTENT = "x" * 200
"""A message of 200 bytes; the yardstick's rows hold the same event as JSON."""
WORDS = ("The ", "log", " keeps", " it", ", so", " read", " all", " of", " that", ".")
"""Token increments as they come from models: 3.9 characters on average."""
PUBLISH_TIMEOUT_SECONDS = 60
FRAME_TYPE = 12
"""Column `type` of a row that is a frame of increments."""
_POLL_SECONDS = 0.002
_HEADS = """
    select coalesce(sum((select max(position) from eventlog.events where shard = s)), 0)::bigint
    from generate_series(0, $1::int - 1) as s
"""


@asynccontextmanager
async def new_log(ground: Ground) -> AsyncIterator[EventLog]:
    """The schema installed in a fresh database, and the log open on it."""
    from eventlog.schema import migrate

    await migrate(ground.postgres_url, shards=SHARDS)
    async with open_log(ground.postgres_url, ground.redis_url) as log:
        yield log


@asynccontextmanager
async def open_log(postgres_url: str, redis_url: str) -> AsyncIterator[EventLog]:
    """One more EventLog on a database that has the schema; for the second process too."""
    import structlog

    from eventlog import EventLog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    async with EventLog.open(postgres=postgres_url, redis=redis_url) as log:
        yield log


async def new_sessions(log: EventLog, count: int) -> list[Session]:
    """Sessions with keys of their own, all of one user."""
    made = await asyncio.gather(*(log.create_session(user_id="bench") for _ in range(count)))
    return list(made)


def message(content: str = CONTENT) -> MessageAdded:
    from eventlog import MessageAdded

    return MessageAdded(role="user", content=content)


async def published(ground: Ground) -> None:
    """Return when every row in Postgres has reached its shard's feed in Redis."""
    rows = await ground.connection.fetchval(_HEADS, SHARDS)

    async def arrived() -> bool:
        return await _published_rows(ground.redis) >= int(rows)

    await wait_until(arrived, poll_seconds=_POLL_SECONDS, timeout_seconds=PUBLISH_TIMEOUT_SECONDS)


async def settled(ground: Ground, *, increments: int) -> None:
    """Return when so many increments are committed."""

    async def stored() -> bool:
        found = await ground.connection.fetchval(
            "select coalesce(sum(span), 0)::bigint from eventlog.events where type = $1",
            FRAME_TYPE,
        )
        return int(found) >= increments

    await wait_until(stored, poll_seconds=0.2, timeout_seconds=PUBLISH_TIMEOUT_SECONDS)


async def _published_rows(client: redis.asyncio.Redis) -> int:
    """Sum of the feeds' last positions (an entry's id is `<position>-0`)."""
    feeds = [key async for key in client.scan_iter(match="*:feed", count=1000)]
    if not feeds:
        return 0
    pipeline = client.pipeline(transaction=False)
    for key in feeds:
        pipeline.xinfo_stream(key)
    answers: list[dict[str, Any]] = await pipeline.execute()
    return sum(int(bytes(answer["last-generated-id"]).partition(b"-")[0]) for answer in answers)
