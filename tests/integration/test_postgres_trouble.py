"""Postgres restarted, cut off and silent: calls end by name, nothing is lost, doubled or skipped.

Everybody keeps a journal of what they did and were told; at the end the checker compares it with
the log.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from eventlog import EventLog, OutcomeUnknown, Session, SessionCreated, Settings, Unavailable
from eventlog.embedded.temporary import PostgresServer, temporary_postgres
from eventlog.postgres import PostgresStore
from eventlog.schema import APP_ROLE, migrate
from eventlog.testing import message, read_all, refused, take, until
from tests.support.checker import (
    Connected,
    Delivered,
    Journal,
    Read,
    check,
    history_of,
    mark_of,
    read_journal,
)
from tests.support.proxy import Proxy, proxy
from tests.support.servers import TestServers

SESSIONS = 6


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PostgresServer]:
    """A Postgres of the test's own, which it may treat as it likes."""
    with temporary_postgres(tmp_path) as started:
        asyncio.run(migrate(started.url))
        yield started


@pytest.fixture
async def between(server: PostgresServer) -> AsyncIterator[Proxy]:
    """A proxy in front of it."""
    async with proxy(server.url) as made:
        yield made


class Crew:
    """Writers, readers and subscribers who note what they do and what they get."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.stopping = asyncio.Event()
        self.acknowledged = 0

    async def create(self, log: EventLog) -> Session:
        """A session, journalled like any append."""
        session_id = uuid.uuid4()
        op = self.journal.sending(session_id, [SessionCreated()])
        session = await log.create_session(session_id)
        self.journal.done(op, "stored", 1)
        return session

    async def write(self, session: Session, name: str) -> None:
        """Append until it is time to stop, each event until its outcome is known."""
        number = 0
        while not self.stopping.is_set():
            events = [message(f"{name} {number} {part}") for part in range(1 + number % 3)]
            event_id, op = uuid.uuid4() if number % 2 else None, None
            op = self.journal.sending(session.id, events)
            while True:
                try:
                    done = await session.append(events, event_id=event_id)
                except Unavailable:
                    op = self.journal.sending(session.id, events, op)
                except OutcomeUnknown as unknown:
                    event_id = unknown.event_id
                    op = self.journal.sending(session.id, events, op)
                else:
                    self.journal.done(op, "stored", done.first_seq)
                    self.acknowledged += 1
                    break
            number += 1

    async def read(self, session: Session) -> None:
        """Read to the end, again and again."""
        while not self.stopping.is_set():
            sent_at = time.monotonic()
            with suppress(Unavailable):
                marks = [mark_of(each.event) for each in await read_all(session)]
                self.journal.write(Read(str(session.id), 0, marks, sent_at, time.monotonic()))
            await asyncio.sleep(0.02)

    async def follow(self, session: Session, name: str) -> None:
        """Subscribe, and begin again after every 40 events."""
        cursor = 0
        while True:
            self.journal.write(Connected(name, str(session.id), cursor, time.monotonic()))
            async with session.subscribe(after=cursor) as subscription:
                for _ in range(40):
                    each = await anext(subscription)
                    self.journal.write(
                        Delivered(
                            name, str(session.id), each.seq, mark_of(each.event), time.monotonic()
                        )
                    )
                cursor = subscription.cursor


async def test_clients_when_postgres_is_killed_and_restarted_lose_and_double_nothing(
    server: PostgresServer, redis_url: str, servers: TestServers, tmp_path: Path
) -> None:
    """Killed and stopped while two processes' writers, readers and subscribers are at work."""
    path = tmp_path / "journal"
    crew = Crew(Journal(path))
    async with (
        EventLog.open(server.url, redis_url, settings=Settings()) as log,
        EventLog.open(server.url, redis_url, settings=Settings()) as other,
    ):
        sessions = [await crew.create(log) for _ in range(SESSIONS)]
        writing = [
            asyncio.create_task(crew.write(where.handle(each.id), f"{number}"))
            for number, where in enumerate((log, other, log))
            for each in sessions
        ]
        reading = [asyncio.create_task(crew.read(each)) for each in sessions[:2]]
        following = [
            asyncio.create_task(crew.follow(where.handle(each.id), f"ui {number}"))
            for number, where in enumerate((log, other))
            for each in sessions
        ]

        for fault in ("kill", "stop", "kill"):
            before = crew.acknowledged
            await until(lambda before=before: crew.acknowledged > before + 100)  # type: ignore[misc]
            crew.journal.fault(fault)
            await asyncio.to_thread(getattr(server, fault))
            await asyncio.to_thread(server.start)
        before = crew.acknowledged
        await until(lambda: crew.acknowledged > before + 200)
        crew.stopping.set()
        await asyncio.gather(*writing, *reading)

        history = await history_of(log, [str(each.id) for each in sessions])
        delivered = 2 * sum(len(events) for events in history.values())

        def is_delivered() -> bool:
            return path.read_bytes().count(b'"Delivered"') >= delivered

        await until(is_delivered)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        crew.journal.close()
    await servers.forget(server.url)

    report = check(read_journal(path), history, complete=True)
    assert not report.violations, report
    assert report.counts["faults"] == 3
    assert report.counts["stored_after_faults"] > 200
    assert report.counts["reconnects"] > SESSIONS
    assert report.counts["unknown"] == 0


class Forgetful(PostgresStore):
    """The store without its protection: a retry looks for nothing."""

    async def commit(self, lane: int, commands: list[Any]) -> list[Any]:
        for command in commands:
            command.sent = False
        return await super().commit(lane, commands)


async def test_checker_when_retries_look_for_nothing_sees_events_twice(
    between: Proxy, tmp_path: Path
) -> None:
    """The control: with the protection removed the same check finds what it is there to find."""
    path = tmp_path / "journal"
    crew = Crew(Journal(path))
    store = Forgetful(between.url, tenant_id=0, shards=16, role=APP_ROLE)
    await store.open()
    log = EventLog(store, settings=Settings(), redis_url=None, servers=None)
    async with log.running():
        session = await crew.create(log)
        op = crew.journal.sending(session.id, [message("lost")])
        between.cut_next_reply(b'"lost"')
        done = await session.append(message("lost"))
        crew.journal.done(op, "stored", done.first_seq)
        history = await history_of(log, [str(session.id)])
    crew.journal.close()

    assert between.cuts == 1
    assert check(read_journal(path), history).kinds == {"twice"}


async def test_calls_when_postgres_is_silent_end_in_their_time(between: Proxy) -> None:
    """A network that swallows everything: appends end by name, and go on when it is back."""
    settings = Settings(append_timeout_seconds=1.0)
    async with EventLog.open(between.url, "none", settings=settings) as log:
        session = await log.create_session()
        await session.append(message("before"))
        between.stall()

        began = time.monotonic()
        done = await asyncio.gather(
            *(session.append(message(f"{number}")) for number in range(5)), return_exceptions=True
        )
        assert all(isinstance(each, OutcomeUnknown | Unavailable) for each in done), done
        assert time.monotonic() - began < 10

        between.stall(False)
        await until(lambda: _appended(session))
        contents = [getattr(each.event, "content", "") for each in await read_all(session)]
        assert len(contents) == len(set(contents))


async def _appended(session: Session) -> bool:
    try:
        await session.append(message("after"), event_id=uuid.UUID(int=7))
    except (OutcomeUnknown, Unavailable):
        return False
    return True


async def test_calls_when_postgres_is_away_are_refused_and_subscribers_wait(
    between: Proxy,
) -> None:
    """Connections cut and refused: reads and appends end by name, subscriptions just wait."""
    settings = Settings(append_timeout_seconds=0.5)
    async with EventLog.open(between.url, "none", settings=settings) as log:
        session = await log.create_session(user_id="ada")
        subscription = session.subscribe(after=1)
        waiting = asyncio.create_task(take(subscription, 1, seconds=60))
        users = asyncio.create_task(take(log.subscribe(user_id="ada"), 1, seconds=60))
        await until(lambda: subscription.state == "live")
        between.refuse()
        between.cut()

        with refused(Unavailable):
            await session.replay()
        with refused(Unavailable):
            await session.append(message("never"))
        with refused(Unavailable):
            await log.session(session.id)
        assert not waiting.done()
        assert not users.done()

        between.refuse(False)
        await until(lambda: _appended(session))
        assert [each.seq for each in await waiting + await users] == [2, 2]
