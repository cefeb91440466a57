"""Reading a session's events: from any cursor, to any end, one by one or as stored."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from eventlog import (
    EventLog,
    InvalidRequest,
    RecordedEvent,
    Session,
    SessionNotFound,
    TokenAppended,
    TokensAppended,
)
from eventlog.testing import message, read_all, refused, rich_history


async def framed_session(log: EventLog) -> Session:
    """A session whose rows hold the seqs 1, 2, 3 (a frame of one), 4–13 (of ten), 14, 15."""
    session = await log.create_session()
    async with session.reply(flush_seconds=60) as reply:
        await reply.write("0")
        await reply.drain()
        for number in range(1, 11):
            await reply.write(f"{number}")
        await reply.drain()
    await session.append(message())
    return session


async def test_read_when_cut_anywhere_is_the_slice(any_log: EventLog) -> None:
    """Every pair of cursors gives exactly the events between them, also inside a frame."""
    session = await framed_session(any_log)
    whole = await read_all(session)
    assert len(whole) == 15

    for after in range(17):
        for until in range(17):
            found = [each async for each in session.read(after=after, until=until)]
            assert found == whole[after : max(after, until)], (after, until)


async def test_read_when_frames_are_asked_for_gives_one_for_each_row(any_log: EventLog) -> None:
    """Frames come uncut under the seq of their last increment; other events as they are."""
    session = await framed_session(any_log)

    frames = [each async for each in session.read(frames=True)]
    cut = [each async for each in session.read(after=6, until=8, frames=True)]

    assert [each.seq for each in frames] == [1, 2, 3, 13, 14, 15]
    assert [type(each.event) for each in frames[2:4]] == [TokensAppended, TokensAppended]
    assert isinstance(frames[3].event, TokensAppended)
    assert frames[3].event.texts == [str(number) for number in range(1, 11)]
    assert len(frames[3].event.ms) == 10
    assert cut == [frames[3]]


async def test_read_when_increments_are_asked_for_gives_one_for_each_seq(
    any_log: EventLog,
) -> None:
    """Each increment has its own seq and names its message; those of a frame share id and time."""
    session = await framed_session(any_log)

    increments = (await read_all(session))[3:13]

    assert [each.seq for each in increments] == list(range(4, 14))
    assert [_increment(each).text for each in increments] == [str(n) for n in range(1, 11)]
    assert len({_increment(each).message_id for each in increments}) == 1
    assert len({(each.event_id, each.recorded_at) for each in increments}) == 1


def _increment(recorded: RecordedEvent) -> TokenAppended:
    assert isinstance(recorded.event, TokenAppended)
    return recorded.event


async def test_read_when_longer_than_a_page_is_whole(any_log: EventLog) -> None:
    """A history of several pages comes as one sequence."""
    session = await any_log.create_session()
    for start in range(0, 2_500, 500):
        await session.append([message(str(number)) for number in range(start, start + 500)])

    assert [each.seq for each in await read_all(session)] == list(range(1, 2_502))
    assert [each.seq for each in await read_all(session, after=1_001)][:2] == [1_002, 1_003]


async def test_read_when_rows_are_large_is_whole(any_log: EventLog) -> None:
    """Rows of a megabyte are read in smaller pages, and come all the same."""
    session = await any_log.create_session()
    for number in range(20):
        await session.append(message(str(number) * 1_000_000))

    lengths = [len(each.event.content) for each in await read_all(session, after=1)]  # type: ignore[union-attr]

    assert lengths == [1_000_000] * 10 + [2_000_000] * 10


async def test_read_when_repeated_gives_the_same_for_ever(any_log: EventLog) -> None:
    """An earlier full read is a prefix of every later one."""
    session = await rich_history(any_log)
    earlier = await read_all(session)

    await session.append(message())
    async with session.reply() as reply:
        await reply.write("more")

    assert (await read_all(session))[: len(earlier)] == earlier


async def test_read_when_cursor_is_beyond_the_end_is_empty(any_log: EventLog) -> None:
    """A cursor at or beyond the end yields nothing and is no error."""
    session = await any_log.create_session()

    assert await read_all(session, after=1) == []
    assert await read_all(session, after=2**62 - 1) == []


async def test_read_when_cursor_is_no_seq_is_refused(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """A cursor is a whole number in range."""
    session = await any_log.create_session()
    bad: list[Any] = [-1, 2**62, 1.0, "1", True]

    for seq in bad:
        with subtests.test(seq=seq):
            with refused(InvalidRequest):
                await read_all(session, after=seq)
            with refused(InvalidRequest):
                async for _ in session.read(until=seq):
                    pass


async def test_read_when_session_is_closed_or_deleted_gives_its_events(any_log: EventLog) -> None:
    """What was said stays readable for whoever holds the session."""
    session = await any_log.create_session()
    await session.append(message())
    await session.close()
    await session.delete()

    assert [each.seq for each in await read_all(session)] == [1, 2, 3, 4]
    assert (await session.replay()).status == "deleted"
    with refused(SessionNotFound):
        await read_all(any_log.handle(uuid.uuid4()))
