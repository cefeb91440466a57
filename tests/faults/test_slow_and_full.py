"""Postgres paused, away, full of connections or locked: appends wait, then end within their time.

What an append is told must be true: what was acknowledged is there once, what was refused is not,
and what is unknown is settled by asking again with the same id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from eventlog import (
    Appended,
    EventLog,
    EventLogError,
    MessageAdded,
    OutcomeUnknown,
    Session,
    Settings,
    Unavailable,
)
from eventlog.embedded.temporary import PostgresServer, temporary_postgres
from eventlog.schema import migrate
from eventlog.telemetry import metrics
from eventlog.testing import message, read_all, until
from tests.support.servers import connected

pytestmark = pytest.mark.faults

IMPATIENT = Settings(append_timeout_seconds=1.0)
"""For servers that stay away longer."""
LATE_SECONDS_MAX = 1.5
"""How much later than that an append may end on a busy machine."""
SETTLE_SECONDS_MAX = 20.0
CONNECTIONS_MAX = 12


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A Postgres of the test's own."""
    settings = {"max_connections": str(CONNECTIONS_MAX), "superuser_reserved_connections": "0"}
    with temporary_postgres(tmp_path, settings=settings) as running:
        yield running


@pytest.fixture
async def session_id(server: PostgresServer) -> UUID:
    """A session on it."""
    await migrate(server.url)
    async with EventLog.open(server.url, "none") as log:
        return (await log.create_session(UUID(int=2))).id


class Attempt:
    """An append under way, and how long it took."""

    def __init__(self, session: Session, text: str) -> None:
        self.text = text
        self.event_id = uuid4()
        self.seconds = 0.0
        self._task = asyncio.create_task(self._run(session))

    async def _run(self, session: Session) -> Appended | EventLogError:
        begin = time.monotonic()
        try:
            return await session.append(message(self.text), event_id=self.event_id)
        except (OutcomeUnknown, Unavailable) as error:
            return error
        finally:
            self.seconds = time.monotonic() - begin

    async def outcome(self) -> Appended | EventLogError:
        """What it was told."""
        return await self._task


async def ask_again(session: Session, attempt: Attempt) -> Appended:
    """The answer to the same append, as soon as there is one."""
    async with asyncio.timeout(SETTLE_SECONDS_MAX):
        while True:
            try:
                return await session.append(message(attempt.text), event_id=attempt.event_id)
            except (OutcomeUnknown, Unavailable):
                continue


async def settle(session: Session, attempts: list[Attempt]) -> None:
    """Ask again for each: what was told was true, and in the end every event is there once."""
    for attempt in attempts:
        outcome = await attempt.outcome()
        again = await ask_again(session, attempt)
        match outcome:
            case Appended():
                assert again.duplicate
                assert (again.first_seq, again.position) == (outcome.first_seq, outcome.position)
            case Unavailable():
                assert not again.duplicate
            case _:
                assert isinstance(outcome, OutcomeUnknown)
    events = await read_all(session, after=1)
    assert [each.seq for each in events] == list(range(2, len(attempts) + 2))
    contents = [str(each.event.content) for each in events if isinstance(each.event, MessageAdded)]
    assert sorted(contents) == sorted(each.text for each in attempts)


async def all_stored(attempts: list[Attempt]) -> bool:
    """Whether every append was acknowledged."""
    return all([isinstance(await each.outcome(), Appended) for each in attempts])


async def test_appends_when_postgres_is_paused_wait_for_it(
    server: PostgresServer, session_id: UUID
) -> None:
    """Connections stay open and nobody answers for a while: every append succeeds afterwards."""
    async with EventLog.open(server.url, "none") as log:
        session = await log.session(session_id)
        server.pause()
        attempts = [Attempt(session, str(number)) for number in range(20)]
        await asyncio.sleep(2)  # this is the fault, not a wait for something
        server.resume()

        assert await all_stored(attempts)
        await settle(session, attempts)


async def test_appends_when_postgres_is_paused_for_longer_end_in_time(
    server: PostgresServer, session_id: UUID
) -> None:
    """After `append_timeout_seconds` a caller is told, whatever the call itself still waits for."""
    async with EventLog.open(server.url, "none", settings=IMPATIENT) as log:
        session = await log.session(session_id)
        first = Attempt(session, "first")
        await first.outcome()
        server.pause()
        try:
            sent = Attempt(session, "sent")
            await asyncio.sleep(0.1)  # so that the others come when its commit is under way
            queued = [Attempt(session, str(number)) for number in range(5)]
            outcomes = [type(await each.outcome()) for each in (sent, *queued)]
        finally:
            server.resume()

        assert outcomes[0] is OutcomeUnknown
        assert {OutcomeUnknown, Unavailable}.issuperset(outcomes)
        for each in (sent, *queued):
            assert 1.0 <= each.seconds < 1.0 + LATE_SECONDS_MAX
        await settle(session, [first, sent, *queued])


async def test_appends_when_postgres_comes_back_succeed(
    server: PostgresServer, session_id: UUID
) -> None:
    """Killed and started again: appends before, meanwhile and after, without an error."""
    async with EventLog.open(server.url, "none") as log:
        session = await log.session(session_id)
        attempts = [Attempt(session, f"before {number}") for number in range(20)]
        await asyncio.sleep(0.01)  # some of them are on their way
        await asyncio.to_thread(server.kill)
        attempts += [Attempt(session, f"meanwhile {number}") for number in range(20)]
        await asyncio.sleep(1)  # this is the fault, not a wait for something
        await asyncio.to_thread(server.start)

        assert await all_stored(attempts)
        await settle(session, attempts)


async def test_appends_when_postgres_stays_away_end_in_time(
    server: PostgresServer, session_id: UUID
) -> None:
    """Killed and not started: nobody waits longer than he said he would."""
    async with EventLog.open(server.url, "none", settings=IMPATIENT) as log:
        session = await log.session(session_id)
        attempts = [Attempt(session, f"before {number}") for number in range(10)]
        await asyncio.sleep(0.01)  # some of them are on their way
        await asyncio.to_thread(server.kill)
        late = [Attempt(session, f"meanwhile {number}") for number in range(10)]
        outcomes = [await each.outcome() for each in (*attempts, *late)]
        await asyncio.to_thread(server.start)

        assert all(type(each) is Unavailable for each in outcomes[10:])
        for attempt in (*attempts, *late):
            assert attempt.seconds < 1.0 + LATE_SECONDS_MAX
        await settle(session, attempts + late)


async def test_appends_when_connections_are_used_up_wait_for_one(
    server: PostgresServer, session_id: UUID
) -> None:
    """Foreign clients hold every connection; when they leave, the append goes through."""
    async with EventLog.open(server.url, "none") as log, AsyncExitStack() as foreign:
        session = log.handle(session_id)
        with pytest.raises(asyncpg.TooManyConnectionsError):
            for _ in range(CONNECTIONS_MAX + 1):
                connection = await asyncpg.connect(server.url)
                foreign.push_async_callback(connection.close)

        retries = metrics.append_retries
        attempts = [Attempt(session, str(number)) for number in range(5)]
        await until(lambda: metrics.append_retries > retries + 2)
        await foreign.aclose()

        assert await all_stored(attempts)
        await settle(session, attempts)


async def test_appends_when_a_foreign_lock_is_in_the_way_wait_for_it(
    server: PostgresServer, session_id: UUID
) -> None:
    """Somebody holds the shard, and then the table, for a while; other shards are not held up."""
    settings = Settings(lanes=2)
    async with (
        EventLog.open(server.url, "none", settings=settings) as log,
        connected(server.url) as foreign,
        connected(server.url) as watcher,
    ):
        session = await log.session(session_id)
        other = await log.create_session(UUID(int=session_id.int + 1))
        async with foreign.transaction():
            await foreign.execute(
                "select pg_advisory_xact_lock('eventlog.events'::regclass::oid::int, $1)",
                session.shard,
            )
            attempts = [Attempt(session, str(number)) for number in range(5)]
            await until(lambda: waits_for_a_lock(watcher))
            await other.append(message("not held up"))
            await foreign.execute("lock table eventlog.events in share mode")
            await asyncio.sleep(1)  # this is the fault, not a wait for something
            assert await waits_for_a_lock(watcher)

        assert await all_stored(attempts)
        await settle(session, attempts)


async def waits_for_a_lock(connection: asyncpg.Connection[asyncpg.Record]) -> bool:
    """Whether one of our connections does."""
    found: bool = await connection.fetchval(
        "select exists (select from pg_stat_activity"
        " where application_name = 'eventlog' and wait_event_type = 'Lock')"
    )
    return found
