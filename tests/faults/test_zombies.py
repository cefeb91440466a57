"""Processes that are killed, or frozen for so long that others take over, and then go on.

A frozen process (SIGSTOP) doesn't know that time passed. What it held, a shard or an open reply,
belongs to somebody else when it wakes up; nothing that it does from then on may be stored.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from eventlog import (
    EventLog,
    Message,
    MessageFenced,
    MessageInterrupted,
    RecordedEvent,
    Session,
    Settings,
    TokenAppended,
)
from eventlog.log import EventLog as Log
from eventlog.postgres import PostgresStore
from eventlog.schema import APP_ROLE
from eventlog.store import Answer, Command
from eventlog.testing import read_all, until
from projections.checkpoint import PROJECTION, postgres_of
from tests.conftest import OpenLog
from tests.faults.children import Process, append_until, process
from tests.projections.checks import differences, project_all
from workers.projector import lag, run_projector
from workers.reaper import REASON, reap

pytestmark = pytest.mark.faults

SECONDS_MAX = 40.0
LEASE_SECONDS = 1.0
"""Of the projector that takes over; the frozen one has the lease that it was given before."""


# --- a projector ---------------------------------------------------------------------------------


async def held_by(log: EventLog) -> dict[str, int]:
    """How many shards each projector holds."""
    held: dict[str, int] = {}
    for _, owner, _, is_valid in await postgres_of(log).fetch("leases", PROJECTION):
        if is_valid:
            held[owner] = held.get(owner, 0) + 1
    return held


async def has_caught_up(log: EventLog) -> bool:
    """Whether the views show all there is."""
    return not any((await lag(log)).values())


async def epochs(log: EventLog) -> dict[int, int]:
    """Of each shard that was projected the lease under which its checkpoint was last moved."""
    async with postgres_of(log).connection() as connection:
        records = await connection.fetch("select shard, epoch from eventlog.checkpoints")
    return {record[0]: record[1] for record in records}


async def test_projector_when_frozen_past_its_lease_writes_nothing_more(
    log: EventLog, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    """Another takes its shards; when it goes on it is refused, and the views are the fold."""
    sessions = [await log.create_session() for _ in range(8)]
    stop = asyncio.Event()

    async with AsyncExitStack() as stack:
        frozen = await stack.enter_async_context(
            process(
                *("-m", "workers.cli", "project", "--name", "frozen"),
                output=tmp_path / "projector.log",
                EVENTLOG_POSTGRES_URL=postgres_url,
                EVENTLOG_REDIS_URL=redis_url,
            )
        )
        appending = asyncio.create_task(append_until(stop, sessions))
        await until(lambda: holds_all(log, "frozen"), seconds=SECONDS_MAX)
        await frozen.until_said(lambda lines: any("leases_taken" in line for line in lines))
        frozen.signal(signal.SIGSTOP)

        other = asyncio.create_task(
            run_projector(log, stop, name="other", lease_seconds=LEASE_SECONDS)
        )
        await until(lambda: holds_all(log, "other"), seconds=SECONDS_MAX)
        before = await epochs(log)
        frozen.signal(signal.SIGCONT)
        # Its rows from before, and more that gathered in its socket, meet the new epoch.
        await frozen.until_said(lambda lines: any("lease_lost" in line for line in lines))
        frozen.signal(signal.SIGKILL)

        stop.set()
        await appending
        await other
    await project_all(log)
    assert await has_caught_up(log)
    assert await differences(log) == []
    after = await epochs(log)
    assert all(after[shard] >= epoch for shard, epoch in before.items())


async def holds_all(log: EventLog, name: str) -> bool:
    """Whether one projector holds every shard."""
    held = await held_by(log)
    return any(owner.startswith(name) and held[owner] == log.store.shards for owner in held)


# --- a writer ------------------------------------------------------------------------------------


@asynccontextmanager
async def streaming(
    session: Session, postgres_url: str, folder: Path
) -> AsyncIterator[tuple[Process, str]]:
    """A process that streams into the session, some increments of it stored; and its message."""
    arguments = ("-m", "tests.faults.streamer", postgres_url, str(session.id))
    async with process(*arguments, output=folder / "streamer.log") as writer:
        await writer.until_said(len)
        await until(lambda: has_seq(session, 50), seconds=SECONDS_MAX)
        yield writer, writer.said()[0]


async def has_seq(session: Session, seq: int) -> bool:
    """Whether the session has come that far."""
    return await session.head() >= seq


def increments(events: list[RecordedEvent], message_id: str) -> list[str]:
    """What is stored of a message, piece by piece."""
    return [
        each.event.text
        for each in events
        if isinstance(each.event, TokenAppended) and each.event.message_id == message_id
    ]


async def assert_ended(session: Session, message_id: str, reason: str) -> None:
    """The message has one end, nothing follows it, and it says what was stored until then."""
    events = await read_all(session)
    (end,) = [each for each in events if isinstance(each.event, MessageInterrupted)]
    assert isinstance(end.event, MessageInterrupted)
    pieces = increments(events, message_id)
    assert pieces == [f"{number} " for number in range(len(pieces))]
    assert (end.event.content, end.event.reason) == ("".join(pieces), reason)
    assert increments(events[end.seq :], message_id) == []
    (stored,) = (await session.replay()).messages
    assert isinstance(stored, Message)
    assert (stored.status, stored.content) == ("interrupted", "".join(pieces))


async def test_reply_when_its_writer_is_killed_is_closed_with_what_was_stored(
    log: EventLog, postgres_url: str, tmp_path: Path
) -> None:
    """As long as it was heard of lately nobody closes it; then whoever asks does."""
    session = await log.create_session()
    async with streaming(session, postgres_url, tmp_path) as (writer, message_id):
        assert await session.interrupt(idle_seconds=30) == []
        writer.signal(signal.SIGKILL)

    async def is_closed() -> bool:
        return await session.interrupt(idle_seconds=0.5, reason="dead") == [message_id]

    await until(is_closed, seconds=SECONDS_MAX)
    assert await session.interrupt() == []
    await assert_ended(session, message_id, "dead")


async def test_reaper_when_a_writer_was_killed_closes_its_reply(
    open_log: OpenLog, postgres_url: str, tmp_path: Path
) -> None:
    """The reaper finds it in the views, without being told of the session."""
    log = await open_log(reply_idle_seconds=0.5)
    session = await log.create_session()
    async with streaming(session, postgres_url, tmp_path) as (writer, message_id):
        writer.signal(signal.SIGKILL)
    await project_all(log)

    async def is_reaped() -> bool:
        return await reap(log) == 1

    await until(is_reaped, seconds=SECONDS_MAX)
    assert await reap(log) == 0
    await assert_ended(session, message_id, REASON)


async def test_writer_when_frozen_and_fenced_is_told_and_stores_nothing_more(
    log: EventLog, postgres_url: str, tmp_path: Path
) -> None:
    """It wakes up in the middle of its reply, which someone else has closed."""
    session = await log.create_session()
    async with streaming(session, postgres_url, tmp_path) as (writer, message_id):
        writer.signal(signal.SIGSTOP)
        assert await session.interrupt(reason="frozen") == [message_id]
        writer.signal(signal.SIGCONT)
        await writer.until_said(lambda lines: "fenced" in lines)
    await assert_ended(session, message_id, "frozen")


class Trusting(PostgresStore):
    """The store without its fence: a frame is taken whether or not its message has ended."""

    async def commit(self, lane: int, commands: list[Command]) -> list[Answer]:
        for command in commands:
            command.unless = None
        return await super().commit(lane, commands)


async def test_writer_when_nothing_fences_it_writes_behind_the_end(postgres_url: str) -> None:
    """The control: without the fence increments are stored after the message's end."""
    store = Trusting(postgres_url, tenant_id=0, shards=16, role=APP_ROLE)
    await store.open()
    log = Log(store, settings=Settings(), redis_url=None, servers=None)
    async with log.running():
        session = await log.create_session()
        with pytest.raises(MessageFenced):  # at its end, which has an id that is taken
            async with session.reply() as reply:
                await reply.write("before")
                await reply.drain()
                await session.interrupt()
                await reply.write("behind")
        events = await read_all(session)
        assert increments(events, reply.message_id) == ["before", "behind"]
