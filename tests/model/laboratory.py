"""Where model runs happen: private servers, one loop, and ways to make Redis forget.

The servers are shared by all examples of a run; every example has sessions of its own. There are
few shards and short feeds, snapshots after a few rows and chunks of a few messages, so that what
usually takes thousands of events happens within an example.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import pytest
import redis

import eventlog.entries
import eventlog.hub
import eventlog.replay
import eventlog.snapshots
import projections.messages
from eventlog import Settings
from eventlog.embedded.temporary import temporary_postgres, temporary_valkey
from eventlog.postgres import prepare_connection
from eventlog.schema import migrate
from tests.model.processes import NAME, Process, know_processes

SHARDS: Final = 2
FEED_ROWS_MAX: Final = 40
STREAM_NODE_ENTRIES: Final = 5
"""Redis trims feeds in pieces of so many rows."""
SNAPSHOT_ROWS: Final = 5
CHUNK_LENGTH: Final = 4
CHECK_SECONDS: Final = 0.1
"""A publication that got lost in silence is noticed after so long, and not after seconds."""
STEP_SECONDS_MAX: Final = 30.0

Result = TypeVar("Result")


class Laboratory:
    """Servers, and the loop on which everything of a run happens."""

    def __init__(self, postgres_url: str, redis_url: str) -> None:
        self.postgres_url = postgres_url
        self.redis_url = redis_url
        self.redis: redis.Redis = redis.Redis.from_url(redis_url)
        self.runner = asyncio.Runner()
        self.seen: Counter[str] = Counter()
        """What took place, so that a run can tell whether it has shown anything."""
        know_processes(self.runner.get_loop())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something on the loop, within a bound."""
        return self.runner.run(_bounded(work))

    async def start_process(self, **settings: Any) -> Process:
        """Another process on these servers."""
        chosen = Settings(feed_rows_max=FEED_ROWS_MAX, **settings)
        return await Process.start(
            self.postgres_url, self.redis_url, shards=SHARDS, settings=chosen
        )

    async def connections(self, of: str) -> int:
        """How many backends of Postgres serve the processes of that name (a LIKE pattern)."""
        count: int = await self.superuser.fetchval(
            "select count(*) from pg_stat_activity where application_name like $1", of
        )
        return count

    async def cut_connections(self) -> None:
        """End every connection of every process, whatever it is at."""
        await self.superuser.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            f" where application_name like '{NAME}%'"
        )

    async def connect(self) -> None:
        """Install the schema, and stay connected as the server's owner."""
        await migrate(self.postgres_url, shards=SHARDS)
        self.superuser: asyncpg.Connection[Any] = await asyncpg.connect(self.postgres_url)
        await prepare_connection(self.superuser)

    # --- Redis ---

    def feeds(self) -> list[bytes]:
        """Names of the feeds there are."""
        return list(self.redis.scan_iter(match="eventlog:*:feed"))

    def lose_tail(self, feed: bytes, count: int) -> None:
        """Let a feed be as a replica had it that lacks the newest rows."""
        entries: Any = self.redis.xrange(feed)
        with self.redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(feed)
            for entry_id, fields in entries[: len(entries) - count]:
                pipeline.xadd(feed, fields, id=entry_id)
            pipeline.execute()

    def close(self) -> None:
        """Leave the servers."""
        self.run(self.superuser.close())
        self.runner.close()
        self.redis.close()


async def _bounded(work: Coroutine[Any, Any, Result]) -> Result:
    async with asyncio.timeout(STEP_SECONDS_MAX):
        return await work


@contextmanager
def laboratory(folder: Path) -> Iterator[Laboratory]:
    """Servers in a folder, and the library's limits made small."""
    with ExitStack() as stack:
        # Nobody cuts the power here: the disk need not be waited for.
        settings = {"fsync": "off", "full_page_writes": "off"}
        postgres = stack.enter_context(temporary_postgres(folder / "pg", settings=settings))
        valkey = stack.enter_context(temporary_valkey(folder / "valkey"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(eventlog.hub, "CHECK_SECONDS", CHECK_SECONDS)
        patch.setattr(eventlog.replay, "SNAPSHOT_ROWS", SNAPSHOT_ROWS)
        for module in (eventlog.entries, eventlog.snapshots, projections.messages):
            patch.setattr(module, "CHUNK_LENGTH", CHUNK_LENGTH)
        lab = Laboratory(postgres.url, valkey.url)
        stack.callback(lab.close)
        lab.redis.config_set("stream-node-max-entries", STREAM_NODE_ENTRIES)
        lab.run(lab.connect())
        yield lab
