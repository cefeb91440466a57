"""A Redis of one's own for the tests that flush or stop it, and a log on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio

from eventlog import EventLog
from eventlog.embedded.temporary import ValkeyServer, temporary_valkey
from tests.conftest import OpenLog
from tests.support import redis_json


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey that the test may flush, stop and start again."""
    with temporary_valkey(tmp_path) as server:
        yield server


@pytest.fixture
async def own_log(open_log: OpenLog, valkey: ValkeyServer) -> EventLog:
    """A log on that Valkey."""
    return await open_log(redis=valkey.url)


@pytest.fixture
async def client(valkey: ValkeyServer) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of that Valkey, to look at it and to do harm."""
    async with redis.asyncio.from_url(valkey.url) as opened:
        yield opened


@pytest.fixture(params=["hash", "json"])
def cache_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey of the test's own: without RedisJSON, and with it."""
    settings = None
    if request.param == "json":
        settings = redis_json.settings_for(tmp_path / "module")
        if settings is None:
            pytest.skip(redis_json.WITHOUT)
    with temporary_valkey(tmp_path, settings=settings) as server:
        yield server
