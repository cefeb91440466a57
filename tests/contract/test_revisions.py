"""Rewind, undo, clear, close, delete: all of them append, and the past stays as it was."""

from __future__ import annotations

import asyncio

from eventlog import (
    EventLog,
    InvalidRequest,
    MessageFenced,
    MessageRetracted,
    Session,
    SessionDeletedError,
)
from eventlog.testing import assert_replays, message, read_all, refused, rich_history, shown
from tests.conftest import OpenLog
from tests.contract.test_forks import contents


async def talk(log: EventLog, count: int = 4) -> Session:
    """A session with messages "0", "1", … at seqs 2, 3, …"""
    session = await log.create_session()
    await session.append([message(f"{number}") for number in range(count)])
    return session


# --- rewind --------------------------------------------------------------------------------------


async def test_rewind_when_done_makes_the_conversation_what_it_was(any_log: EventLog) -> None:
    """The messages and the context are those of the replay there, unless that was left behind."""
    for to in range(0, 37, 3):
        session = await rich_history(any_log)
        head = await session.head()
        then = await session.replay(to)
        if (await session.replay()).is_rewound(to):
            with refused(InvalidRequest) as caught:
                await session.rewind(to=to)
            assert f"fork(at={to})" in str(caught.error)
            continue

        done = await session.rewind(to=to)

        now = await session.replay()
        assert [each.content for each in now.messages] == [each.content for each in then.messages]
        assert now.context() == [
            *then.context(),
            # What was open then is shown with what it had, as interrupted.
            *({"role": "assistant", "content": e.content} for e in then.open_messages if e.content),
        ]
        assert now.open_messages == []
        assert done.first_seq == head + 1
        await assert_replays(session, step=7)


async def test_rewind_when_done_twice_and_across_each_other_is_consistent(
    any_log: EventLog,
) -> None:
    """Rewinds to before, between and after other rewinds."""
    session = await talk(any_log)

    for to in (3, 7, 2, 10, 12, 1, 0):
        await session.rewind(to=to)
        await session.append(message(f"after {to}"))
        await assert_replays(session)


async def test_rewind_when_inside_a_reply_shows_what_it_had_then(any_log: EventLog) -> None:
    """To the middle of a message, and of a frame, that was completed since."""
    session = await any_log.create_session()
    async with session.reply(flush_seconds=60) as reply:
        for piece in "abcdef":
            await reply.write(piece)
        await reply.drain()

    await session.rewind(to=5)

    (message_,) = (await session.replay()).messages
    assert (message_.content, message_.status) == ("abc", "interrupted")
    await assert_replays(session)


async def test_rewind_when_a_reply_streams_fences_it(any_log: EventLog) -> None:
    """The writer learns that its message is gone; nothing of it follows the rewind."""
    session = await talk(any_log, 1)

    with refused(MessageFenced):
        async with session.reply(flush_seconds=0) as reply:
            await reply.write("x")
            await reply.drain()
            await session.rewind(to=2)
            await reply.write("y")
            await reply.drain()

    assert await contents(session) == ["0"]


async def test_rewind_when_others_append_decides_again(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """A rewind among appends is stored once, and what it decided on is what was there."""
    session = await talk(any_log)
    other = await (await open_log()).session(session.id)

    await asyncio.gather(
        session.rewind(to=3),
        *(other.append(message(f"rival {number}")) for number in range(5)),
    )

    assert (await contents(session))[:2] == ["0", "1"]
    await assert_replays(session)


async def test_rewind_when_contended_without_end_gets_its_turn(any_log: EventLog) -> None:
    """A rival that is first each time: in the end the shard is locked and the rival waits."""
    session = await talk(any_log)
    append = session.append_drafts

    async def rival_first(*arguments: object, **options: object) -> object:
        await append([session.draft(message("rival"))])
        return await append(*arguments, **options)  # type: ignore[arg-type]

    session.append_drafts = rival_first  # type: ignore[method-assign,assignment]

    await session.rewind(to=2)

    assert [str(each.content) for each in (await session.replay()).messages] == [
        str(each.content) for each in (await session.replay(2)).messages
    ]


async def test_rewind_when_the_seq_is_none_of_the_session_is_refused(any_log: EventLog) -> None:
    """Beyond the end, or not a seq."""
    session = await talk(any_log)

    for to in (6, -1, 2**70):
        with refused(InvalidRequest):
            await session.rewind(to=to)

    assert await session.head() == 5


# --- undo ----------------------------------------------------------------------------------------


async def test_undo_when_called_takes_back_the_newest(any_log: EventLog) -> None:
    """One, several, more than there are; the answer is what was taken, oldest first."""
    session = await talk(any_log)

    one = await session.undo()
    two = await session.undo(2, reason="mistaken")
    rest = await session.undo(10)
    none = await session.undo()

    assert [[each.content for each in taken] for taken in (one, two, rest, none)] == [
        ["3"],
        ["1", "2"],
        ["0"],
        [],
    ]
    assert await contents(session) == []
    retracted = [
        each.event for each in await read_all(session) if isinstance(each.event, MessageRetracted)
    ]
    assert [each.reason for each in retracted] == [None, "mistaken", "mistaken", None]
    await assert_replays(session)


async def test_undo_when_the_newest_streams_ends_it(any_log: EventLog) -> None:
    """A message that is being generated is ended, then taken back."""
    session = await talk(any_log, 1)

    with refused(MessageFenced):
        async with session.reply(flush_seconds=0) as reply:
            await reply.write("x")
            await reply.drain()
            assert [each.content for each in await session.undo()] == ["x"]

    assert await contents(session) == ["0"]
    assert (await session.replay()).open_messages == []
    await assert_replays(session)


async def test_undo_when_the_count_is_none_is_refused(any_log: EventLog) -> None:
    """At least one message."""
    session = await talk(any_log)

    for count in (0, -1):
        with refused(InvalidRequest):
            await session.undo(count)


async def test_undo_when_called_by_two_at_once_takes_two(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Two undos are two messages, never the same one twice."""
    session = await talk(any_log, 6)
    other = await (await open_log()).session(session.id)

    taken = await asyncio.gather(*(each.undo() for each in (session, other, session, other)))

    assert sorted(each[0].content for each in taken) == ["2", "3", "4", "5"]
    assert await contents(session) == ["0", "1"]


# --- clear, close, delete ------------------------------------------------------------------------


async def test_clear_when_called_starts_over(any_log: EventLog) -> None:
    """No message and no context; title, metadata and the events stay."""
    session = await rich_history(any_log)
    events = await read_all(session)
    before = await session.replay()

    await session.clear(reason="new topic")
    await session.append(message("first again"))

    state = await session.replay()
    assert [each.content for each in state.messages] == ["first again"]
    assert (state.title, state.metadata, state.status) == (before.title, before.metadata, "open")
    assert (await read_all(session))[: len(events)] == events
    assert shown(await session.replay(before.seq)) == shown(before)


async def test_clear_when_a_reply_streams_ends_it(any_log: EventLog) -> None:
    """What is generated for the old conversation does not come into the new one."""
    session = await any_log.create_session()

    with refused(MessageFenced):
        async with session.reply(flush_seconds=0) as reply:
            await reply.write("old")
            await reply.drain()
            await session.clear()
            await reply.write("new")

    assert await contents(session) == []
    assert (await session.replay()).open_messages == []


async def test_close_when_called_leaves_reading_and_forking(any_log: EventLog) -> None:
    """A closed session is read, replayed and forked as before."""
    session = await talk(any_log)

    done = await session.close(reason="done")

    assert (await session.replay()).status == "closed"
    assert await contents(session) == ["0", "1", "2", "3"]
    assert (await any_log.session(session.id)).id == session.id
    assert await contents(await session.fork(at=3)) == ["0", "1"]
    assert done.last_seq == await session.head()


async def test_delete_when_called_hides_the_session(any_log: EventLog) -> None:
    """Its key opens nothing and makes nothing any more."""
    session = await any_log.create_session("k")

    await session.delete()

    assert (await session.replay()).status == "deleted"
    with refused(SessionDeletedError):
        await any_log.session("k")
    with refused(SessionDeletedError):
        await any_log.create_session("k")
    with refused(SessionDeletedError):
        await session.delete()
