"""The reaper ends replies whose writers died, and leaves those alone that are only slow."""

from __future__ import annotations

import asyncio

import pytest

from eventlog import EventLog, InvalidSetting, MessageFenced, MessageStarted, Session
from eventlog.testing import message, refused, until
from tests.conftest import OpenLog
from tests.projections.checks import differences, project_all
from workers.reaper import reap, run_reaper

IDLE_SECONDS = 1.0


@pytest.fixture
async def impatient_log(open_log: OpenLog) -> EventLog:
    """A log that gives a silent writer a second."""
    return await open_log(reply_idle_seconds=IDLE_SECONDS)


async def abandoned(log: EventLog, message_id: str = "m1") -> Session:
    """A session with a reply that nobody writes any more."""
    session = await log.create_session()
    await session.append([message("hello?"), MessageStarted(message_id=message_id)])
    return session


async def open_in(session: Session) -> list[str]:
    """Ids of the messages that still stream."""
    return [each.message_id for each in (await session.replay()).open_messages]


async def test_reaper_when_a_writer_is_silent_ends_its_reply(impatient_log: EventLog) -> None:
    """With what had arrived; the writer, should it live, learns of it."""
    session = await impatient_log.create_session()

    async def reaped() -> bool:
        return await reap(impatient_log) == 1

    with refused(MessageFenced):
        async with session.reply(message_id="\u0000id", flush_seconds=0) as reply:
            await reply.write("half a sen")
            await until(lambda: has_text(session, "half a sen"))
            await project_all(impatient_log)
            await until(reaped)
            for _ in range(10_000):
                await reply.write("tence")
                await asyncio.sleep(0.01)

    (ended,) = (await session.replay()).messages
    assert (ended.content, ended.status) == ("half a sen", "interrupted")
    assert ended.interrupt_reason == "abandoned"
    await project_all(impatient_log)
    assert await reap(impatient_log) == 0
    assert await differences(impatient_log) == []


async def has_text(session: Session, text: str) -> bool:
    """Whether the log has so much of the session's only message."""
    messages = (await session.replay()).messages
    return bool(messages) and messages[0].content == text


async def test_reaper_when_a_reply_is_old_but_alive_leaves_it(impatient_log: EventLog) -> None:
    """It began long ago, and increments still come."""
    dead = await abandoned(impatient_log)
    session = await impatient_log.create_session()
    async with session.reply(message_id="alive", flush_seconds=0) as reply:
        await reply.write("a")
        await until(lambda: has_text(session, "a"))
        await project_all(impatient_log)
        begin = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < begin + 2 * IDLE_SECONDS:
            await reply.write("a")
            await asyncio.sleep(IDLE_SECONDS / 50)
        assert await reap(impatient_log) == 1

        assert await open_in(session) == ["alive"]
        assert await open_in(dead) == []


async def test_reaper_when_sessions_take_nothing_more_passes_them_over(
    impatient_log: EventLog,
) -> None:
    """Deleted, cleared, retracted: nothing is left to be ended."""
    deleted = await abandoned(impatient_log)
    await deleted.delete()
    cleared = await abandoned(impatient_log)
    await cleared.clear()
    await project_all(impatient_log)
    await asyncio.sleep(IDLE_SECONDS)

    assert await reap(impatient_log) == 0


async def test_reapers_when_several_run_end_a_reply_once(
    impatient_log: EventLog, open_log: OpenLog
) -> None:
    """As workers, each with a log of its own."""
    sessions = [await abandoned(impatient_log, f"m{each}") for each in range(5)]
    await project_all(impatient_log)
    stop = asyncio.Event()
    logs = [impatient_log, await open_log(reply_idle_seconds=IDLE_SECONDS)]
    workers = [asyncio.create_task(run_reaper(each, stop)) for each in logs]

    async def all_ended() -> bool:
        return not [name for each in sessions for name in await open_in(each)]

    await until(all_ended)
    stop.set()
    await asyncio.gather(*workers)

    assert [await each.head() for each in sessions] == [4] * 5


async def test_reaper_when_the_log_is_in_memory_says_so() -> None:
    """It looks for open replies in the views."""
    async with EventLog.in_memory() as log:
        with refused(InvalidSetting):
            await run_reaper(log, asyncio.Event())
