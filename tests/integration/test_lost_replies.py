"""Answers lost after the commit: the caller gets the first answer, nothing is stored twice.

The control takes the look-up of retried ids away; then the same fault must store the event twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from eventlog import ANY, EventLog, Settings, TokenAppended
from eventlog.embedded.temporary import temporary_postgres
from eventlog.log import EventLog as Log
from eventlog.postgres import PostgresStore
from eventlog.schema import APP_ROLE, migrate
from eventlog.store import Answer, Command
from eventlog.testing import message, read_all
from tests.support.proxy import Proxy
from tests.support.proxy import proxy as proxied


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy in front of a Postgres of the test's own."""
    with temporary_postgres(tmp_path) as server:
        await migrate(server.url)
        async with proxied(server.url) as running:
            yield running


class Forgetful(PostgresStore):
    """The store without its protection: a retry looks for nothing."""

    async def commit(self, lane: int, commands: list[Command]) -> list[Answer]:
        for command in commands:
            command.sent = False
        return await super().commit(lane, commands)


async def contents(log: EventLog, session_id: UUID) -> list[str]:
    state = await log.handle(session_id).replay()
    return [str(each.content) for each in state.messages]


async def test_append_when_its_reply_is_lost_returns_the_first_answer(proxy: Proxy) -> None:
    """Single events, with and without expected seq and id, batches, new sessions."""
    async with EventLog.open(proxy.url, "none") as log:
        session = await log.create_session("k")

        for number, (exact, event_id) in enumerate(
            ((False, None), (True, None), (False, UUID(int=5)))
        ):
            await session.append(message(f"before {number}"))
            seq = await session.head()
            proxy.cut_next_reply(b"the lost one")
            done = await session.append(
                message(f"the lost one {number}"),
                expected_seq=seq if exact else ANY,
                event_id=event_id,
            )

            assert done.duplicate
            assert done.last_seq == seq + 1

        proxy.cut_next_reply(b"the lost batch")
        done = await session.append([message("the lost batch"), message("and more")])
        assert (done.duplicate, done.last_seq - done.first_seq) == (True, 1)
        assert proxy.cuts == 4

        proxy.cut_next_reply(b"session.created")
        created = await log.create_session("another")
        assert [event.seq for event in await read_all(created)] == [1]

        found = await contents(log, session.id)
        assert len(found) == len(set(found)) == 8


async def test_reply_when_answers_are_lost_keeps_each_increment_once(proxy: Proxy) -> None:
    """Frames have no index of ids: a retry looks behind the last acknowledged seq."""
    async with EventLog.open(proxy.url, "none") as log:
        session = await log.create_session("k")
        async with session.reply(agent="a", flush_seconds=0) as reply:
            for number in range(300):
                if number % 60 == 30:
                    proxy.cut_next_reply(b"tokens.appended")
                await reply.write(f"{number} ")
                if number % 10 == 0:
                    await reply.drain()

        texts = [
            event.event.text
            for event in await read_all(session)
            if isinstance(event.event, TokenAppended)
        ]
        assert proxy.cuts == 5
        assert "".join(texts) == "".join(f"{number} " for number in range(300))


async def test_append_when_retries_look_for_nothing_is_stored_twice(proxy: Proxy) -> None:
    """The control: without the check the lost answer doubles the event."""
    store = Forgetful(proxy.url, tenant_id=0, shards=16, role=APP_ROLE)
    await store.open()
    log = Log(store, settings=Settings(), redis_url=None, servers=None)
    async with log.running():
        session = await log.create_session("k")
        await session.append(message("before"))
        proxy.cut_next_reply(b"the lost one")
        await session.append(message("the lost one"))

        assert (await contents(log, session.id)).count("the lost one") == 2
