"""What all tests share: servers by name, a fresh database for each test, and logs on them.

    postgres_server  postgres_url   on each Postgres: the embedded one, and the one that was given
    redis_url                       on each Redis
    both in one test                on pairs: each server at least once, not all with all
    log                             an EventLog on each pair of servers
    any_log                         the same, and in memory: the contract suites
    open_log                        opens further logs on the same database, as other processes do
    new_database                    databases that a test may change in other ways than by rows

Property tests try the same examples at every run, so that a verdict is about the code and not about
luck; `EVENTLOG_TEST_RANDOM=1` lets them look for others.

`EVENTLOG_TEST_POSTGRES_URL` and `EVENTLOG_TEST_REDIS_URL` add servers. Nothing is started before a
test asks for it, and then once for each process of the run.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import settings

from eventlog import EventLog, Settings
from eventlog.memory import MemoryStore
from eventlog.testing import FakeClock
from tests.support.servers import PostgresUnderTest, TestServers, pairs, postgres_names, redis_names

settings.register_profile(
    "tests",
    deadline=None,  # machines differ in speed
    max_examples=100,
    print_blob=True,
    derandomize=not os.environ.get("EVENTLOG_TEST_RANDOM"),
)
settings.load_profile("tests")

OpenLog = Callable[..., Awaitable[EventLog]]
"""`await open_log(redis=…, settings=…, **settings)`: another EventLog on the test's database."""
NewDatabase = Callable[..., Awaitable[str]]
"""`await new_database(empty=False)`: URL of a database of its own."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each server, or pair of servers, that it needs."""
    names = metafunc.fixturenames
    if "postgres_server" in names and "redis_url" in names:
        both: list[tuple[str | None, str | None]] = [*pairs()]
        ids = [
            postgres if "backend" in names else f"{postgres}-{redis}" for postgres, redis in pairs()
        ]
        if "any_log" in names:
            both.insert(0, (None, None))
            ids.insert(0, "memory")
        metafunc.parametrize(("postgres_server", "redis_url"), both, ids=ids, indirect=True)
    elif "postgres_server" in names:
        metafunc.parametrize("postgres_server", postgres_names(), indirect=True)
    elif "redis_url" in names:
        metafunc.parametrize("redis_url", redis_names(), indirect=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TestServers]:
    """The servers of this process' tests."""
    started = TestServers(tmp_path_factory.mktemp("servers"))
    yield started
    await started.aclose()


# --- servers and databases -----------------------------------------------------------------------


@pytest.fixture
def postgres_server(
    request: pytest.FixtureRequest, servers: TestServers
) -> PostgresUnderTest | None:
    """A running Postgres; None where the log is in memory."""
    return servers.postgres(request.param) if request.param else None


@pytest.fixture
def redis_url(request: pytest.FixtureRequest, servers: TestServers) -> str | None:
    """A running Redis or Valkey, shared by all tests; None where the log is in memory."""
    return servers.redis(request.param) if request.param else None


@pytest.fixture
async def postgres_url(
    postgres_server: PostgresUnderTest | None, servers: TestServers
) -> AsyncIterator[str | None]:
    """A migrated database without events; None where the log is in memory."""
    if postgres_server is None:
        yield None
        return
    async with postgres_server.database() as url:
        yield url
        await servers.forget(url)


@pytest.fixture
async def new_database(
    postgres_server: PostgresUnderTest, servers: TestServers
) -> AsyncIterator[NewDatabase]:
    """Makes databases that are dropped afterwards, migrated ones or (`empty=True`) empty ones."""
    async with AsyncExitStack() as stack:

        async def make(*, empty: bool = False) -> str:
            url = await stack.enter_async_context(postgres_server.new_database(empty=empty))
            stack.push_async_callback(servers.forget, url)
            return url

        yield make


# --- logs ----------------------------------------------------------------------------------------


class Backend:
    """Where a test's logs live: a database and a Redis, or a store in memory."""

    def __init__(self, postgres_url: str | None, redis_url: str | None) -> None:
        self.postgres_url = postgres_url
        self.redis_url = redis_url
        self.clock = FakeClock()
        """Clock of the store in memory; elsewhere nobody looks at it."""
        self.memory = None if postgres_url else MemoryStore(now_us=self.clock)
        self._stack = AsyncExitStack()

    async def open(
        self, *, redis: str | None = None, settings: Settings | None = None, **changes: Any
    ) -> EventLog:
        """Open a log that is closed after the test. `redis="none"`: without Redis."""
        chosen = settings or Settings(**changes)
        if self.memory is not None:
            opening = EventLog.in_memory(settings=chosen, store=self.memory)
        else:
            opening = EventLog.open(self.postgres_url, redis or self.redis_url, settings=chosen)
        return await self._stack.enter_async_context(opening)

    async def aclose(self) -> None:
        """Close every log that was opened."""
        await self._stack.aclose()


@pytest.fixture
async def backend(postgres_url: str | None, redis_url: str | None) -> AsyncIterator[Backend]:
    """What the logs of one test have in common."""
    shared = Backend(postgres_url, redis_url)
    yield shared
    await shared.aclose()


@pytest.fixture
async def log(backend: Backend) -> EventLog:
    """A log on Postgres and Redis."""
    return await backend.open()


@pytest.fixture
async def any_log(backend: Backend) -> EventLog:
    """A log in memory, or on Postgres and Redis: what holds for one holds for all."""
    return await backend.open()


@pytest.fixture
def open_log(backend: Backend) -> OpenLog:
    """Opens further logs on the same database: they share nothing else, as if other processes."""
    return backend.open
