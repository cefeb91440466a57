"""Many writers, some of them slow to commit: numbers stay contiguous, readers skip nothing.

The control does the same with a table numbered by a `bigserial` and read by "number > last": there
numbers are given before the commit and become visible out of order, so that a reader skips rows.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any
from uuid import UUID

import asyncpg

from eventlog import EventLog
from eventlog.append_call import append_arguments
from eventlog.envelope import Draft, new_id
from eventlog.events import TYPE_CODES
from eventlog.postgres import PostgresStore, prepare_connection
from eventlog.queries import query
from eventlog.store import Command
from eventlog.testing import message
from tests.conftest import OpenLog

WRITERS = 16
SESSIONS = 20
APPENDS = 25
"""Appends of each writer."""


async def slow_append(url: str, session_id: UUID, shard: int) -> None:
    """Append as a foreign process would that is held up between its insert and its commit."""
    connection = await asyncpg.connect(url)
    try:
        await prepare_connection(connection)
        data = b'{"type":"message.added","role":"user","content":"slow"}'
        draft = Draft(new_id(), TYPE_CODES["message.added"], 0, 1, data)
        transaction = connection.transaction()
        await transaction.start()
        await connection.fetch(
            query("append"), *append_arguments(0, [Command(session_id, shard, [draft])])
        )
        await connection.execute("select pg_sleep($1)", random.uniform(0.005, 0.05))
        await transaction.commit()
    finally:
        await connection.close()


async def test_numbers_when_many_write_and_some_are_slow_are_contiguous_and_never_skipped(
    log: EventLog, open_log: OpenLog, postgres_url: str
) -> None:
    """Positions and seqs without a gap; a tailing reader and a subscriber miss nothing."""
    other = await open_log()
    sessions = [await log.create_session(f"s{number}") for number in range(SESSIONS)]
    done = asyncio.Event()
    assert isinstance(log.store, PostgresStore)
    store = log.store

    async def write(number: int) -> None:
        writing = log if number % 2 else other
        for _ in range(APPENDS):
            session = random.choice(sessions)
            if number == 0:
                await slow_append(postgres_url, session.id, session.shard)
            else:
                await writing.handle(session.id).append(message(f"{number}"))

    async def tail(shard: int) -> list[int]:
        """Read the feed by "position > last", as fast as can be."""
        seen: list[int] = []
        while True:
            finished = done.is_set()
            rows = await store.read_feed(shard, after=seen[-1] if seen else 0, limit=50)
            seen += [row.position for row in rows]
            if finished and not rows:
                return seen
            await asyncio.sleep(0)

    async def follow(key: str) -> list[int]:
        seen: list[int] = []
        async for event in (await other.session(key)).subscribe():
            seen.append(event.seq)
            if type(event.event).__name__ == "SessionClosed":
                break
        return seen

    tails = [asyncio.create_task(tail(shard)) for shard in range(store.shards)]
    followers = [asyncio.create_task(follow(f"s{number}")) for number in range(SESSIONS)]
    await asyncio.gather(*(write(number) for number in range(WRITERS)))
    for session in sessions:
        await session.close()
    done.set()

    total = 0
    for shard, positions in enumerate(await asyncio.gather(*tails)):
        assert positions == list(range(1, len(positions) + 1)), shard
        total += len(positions)
    assert total == 2 * SESSIONS + WRITERS * APPENDS
    async with asyncio.timeout(30):
        for seqs in await asyncio.gather(*followers):
            assert seqs == list(range(1, len(seqs) + 1))


async def test_numbers_when_given_by_a_serial_are_skipped_by_who_tails_them(
    postgres_url: str,
) -> None:
    """The control: the way that is not ours must lose rows under the same load."""
    admin = await asyncpg.connect(postgres_url)
    await admin.execute("create table serial_log (id bigserial primary key, writer int)")
    done = asyncio.Event()

    async def write(number: int) -> None:
        connection = await asyncpg.connect(postgres_url)
        for _ in range(APPENDS):
            async with connection.transaction():
                await connection.execute("insert into serial_log (writer) values ($1)", number)
                if number == 0:
                    await connection.execute("select pg_sleep(0.02)")
        await connection.close()

    async def tail() -> set[int]:
        seen: set[int] = set()
        last = 0
        while True:
            finished = done.is_set()
            records = await admin.fetch("select id from serial_log where id > $1 order by id", last)
            for record in records:
                last = record[0]
                seen.add(last)
            if finished and not records:
                return seen
            await asyncio.sleep(0)

    try:
        reader = asyncio.create_task(tail())
        await asyncio.gather(*(write(number) for number in range(WRITERS)))
        done.set()
        seen = await reader
        stored = await admin.fetchval("select count(*) from serial_log")
        assert stored == WRITERS * APPENDS
        assert len(seen) < stored, "the naive reader should have skipped rows"
    finally:
        await admin.execute("drop table serial_log")
        await admin.close()


async def test_expected_seq_when_fifty_race_for_it_is_won_once(
    log: EventLog, open_log: OpenLog
) -> None:
    """Rivals in two processes: one append is stored, all others are told the seq that is."""
    other = await open_log()
    session = await log.create_session("race")
    rival = other.handle(session.id)

    outcomes: list[Any] = await asyncio.gather(
        *(
            (session if number % 2 else rival).append(message(str(number)), expected_seq=1)
            for number in range(50)
        ),
        return_exceptions=True,
    )

    kinds: defaultdict[str, int] = defaultdict(int)
    for outcome in outcomes:
        kinds[type(outcome).__name__] += 1
    assert dict(kinds) == {"Appended": 1, "WrongExpectedSeq": 49}
    assert await session.head() == 2
