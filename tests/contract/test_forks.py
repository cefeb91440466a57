"""Forks: a session that continues another from a seq, and is a session like any other."""

from __future__ import annotations

import asyncio

from eventlog import (
    EventLog,
    InvalidRequest,
    MessageInterrupted,
    Session,
    SessionClosed,
    SessionClosedError,
    SessionCreated,
    SessionExists,
    TokenAppended,
    TokensAppended,
)
from eventlog.memory import MemoryStore
from eventlog.testing import assert_replays, message, read_all, refused, rich_history, take
from tests.conftest import OpenLog


async def contents(session: Session) -> list[object]:
    """Contents of the conversation's messages."""
    return [each.content for each in (await session.replay()).messages]


async def test_fork_when_made_anywhere_reads_as_one_history(any_log: EventLog) -> None:
    """At every seq: the parent's events up to it, then its own, numbered without a gap."""
    parent = await rich_history(any_log)
    whole = await read_all(parent)

    for at in range(1, len(whole) + 1, 3):
        fork = await parent.fork(at=at)
        events = await read_all(fork)
        assert events[:at] == whole[:at]
        assert [each.seq for each in events] == list(range(1, len(events) + 1)), at
        created = events[at]
        assert isinstance(created.event, SessionCreated)
        assert (created.session_id, created.event.parent_seq) == (fork.id, at)
        assert [each async for each in fork.read(after=at - 1, until=at + 1)] == events[
            at - 1 : at + 1
        ]


async def test_fork_when_both_go_on_keeps_them_apart(any_log: EventLog) -> None:
    """What is appended to one is not in the other."""
    parent = await any_log.create_session(user_id="ada", title="t", metadata={"a": 1})
    await parent.append([message("shared"), message("parent's")])

    fork = await parent.fork(at=2, title="u", metadata={"b": 2})
    await parent.append(message("more parent's"))
    await fork.append(message("fork's"))

    assert await contents(parent) == ["shared", "parent's", "more parent's"]
    assert await contents(fork) == ["shared", "fork's"]
    state = await fork.replay()
    assert (state.session_id, state.parent_session_id, state.parent_seq) == (fork.id, parent.id, 2)
    assert (state.user_id, state.title, state.metadata) == ("ada", "u", {"a": 1, "b": 2})


async def test_fork_when_made_of_a_fork_goes_back_to_the_root(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Forks of forks, at their own seqs and at seqs before they began, read by another process."""
    root = await any_log.create_session()
    await root.append([message(f"root {n}") for n in range(5)])
    first = await root.fork(at=4)
    await first.append([message("first")])
    second = await first.fork()
    await second.append(message("second"))
    before_it_began = await second.fork(at=3)
    other = await open_log()

    assert await contents(second) == ["root 0", "root 1", "root 2", "first", "second"]
    assert await contents(before_it_began) == ["root 0", "root 1"]
    for fork in (first, second, before_it_began):
        await assert_replays(fork)
        assert await read_all(await other.session(fork.id)) == await read_all(fork)


async def test_fork_when_nested_deep_still_reads(any_log: EventLog, open_log: OpenLog) -> None:
    """An agent that forks at every turn ends up deep: 30 levels, some left before they began."""
    session = await any_log.create_session()
    for number in range(30):
        await session.append(message(f"{number}"))
        session = await session.fork(at=await session.head() - (number % 5 == 4))
    other = (await open_log()).handle(session.id)

    assert await contents(other) == [f"{n}" for n in range(30) if n % 5 != 4]
    events = await read_all(other)
    assert [each.seq for each in events] == list(range(1, len(events) + 1))
    await assert_replays(other, step=10)


async def test_fork_when_nested_a_thousand_deep_needs_no_stack() -> None:
    """The chain of parents is walked, not recursed into."""
    store = MemoryStore()
    async with EventLog.in_memory(store=store) as log:
        session = await log.create_session()
        for seq in range(1, 1_200):
            created = SessionCreated(parent_session_id=session.id, parent_seq=seq)
            session = await log.create(created)

    async with EventLog.in_memory(store=store) as log:
        assert len(await read_all(log.handle(session.id))) == 1_200


async def test_fork_when_made_inside_a_frame_cuts_it(any_log: EventLog) -> None:
    """In the middle of a stored row: increment by increment, as frames, and in the state."""
    parent = await any_log.create_session()
    async with parent.reply(flush_seconds=60) as reply:
        for piece in "abcdefgh":
            await reply.write(piece)
        await reply.drain()

    fork = await parent.fork(at=7)
    events = await read_all(fork)
    frames = [each async for each in fork.read(frames=True)]

    assert [each.event.text for each in events if isinstance(each.event, TokenAppended)] == list(
        "abcde"
    )
    assert [each.seq for each in events] == list(range(1, 10))
    texts = [each.event.texts for each in frames if isinstance(each.event, TokensAppended)]
    assert [text for piece in texts for text in piece] == list("abcde")
    seqs = [each.seq for each in frames]
    assert seqs == sorted(set(seqs))
    (message_,) = (await fork.replay()).messages
    assert (message_.content, message_.status) == ("abcde", "interrupted")
    await assert_replays(fork)
    assert (await parent.replay()).messages[0].content == "abcdefgh"


async def test_fork_when_a_reply_is_open_ends_it_in_the_fork_only(any_log: EventLog) -> None:
    """The parent's reply goes on; the fork has what had arrived, as an interrupted message."""
    parent = await any_log.create_session()

    async with parent.reply(flush_seconds=0) as reply:
        await reply.write("half ")
        await reply.drain()
        fork = await parent.fork()
        await reply.write("whole")

    assert await contents(parent) == ["half whole"]
    (message_,) = (await fork.replay()).messages
    assert (message_.content, message_.status) == ("half ", "interrupted")
    assert isinstance((await read_all(fork))[-1].event, MessageInterrupted)
    async with fork.reply() as reply:
        await reply.write("fork's")
    assert await contents(fork) == ["half ", "fork's"]


async def test_fork_when_the_parent_is_closed_goes_on(any_log: EventLog) -> None:
    """The fork of a closed session is open; subscriptions do not end in its past."""
    parent = await any_log.create_session()
    await parent.append(message("said"))
    await parent.close()

    fork = await parent.fork()
    await fork.append(message("goes on"))

    assert (await fork.replay()).status == "open"
    seen = await take(fork.subscribe(), 5)
    assert [type(each.event) for each in seen[2:4]] == [SessionClosed, SessionCreated]
    live = asyncio.ensure_future(take(fork.subscribe(after=5), 1))
    await fork.append(message("live"))
    assert [each.seq for each in await live] == [6]
    with refused(SessionClosedError):
        await parent.append(message("never"))


async def test_fork_when_asked_for_by_key_is_found_by_it(any_log: EventLog) -> None:
    """A key names one session, and a fork's key is no exception."""
    parent = await any_log.create_session("parent")
    fork = await parent.fork(key="fork")

    assert (await any_log.session("fork")).id == fork.id
    with refused(SessionExists):
        await parent.fork(key="fork")
    with refused(SessionExists):
        await parent.fork(key="parent")


async def test_fork_when_there_is_nothing_to_fork_is_refused(any_log: EventLog) -> None:
    """Before the first event, or beyond the end."""
    parent = await any_log.create_session()

    for at in (0, 2, -1):
        with refused(InvalidRequest):
            await parent.fork(at=at)


async def test_fork_when_changed_behaves_as_any_session(any_log: EventLog) -> None:
    """Rewound to before it began, undone, cleared, closed; expected seqs count its own numbers."""
    parent = await any_log.create_session()
    await parent.append([message(f"{n}") for n in range(5)])
    fork = await parent.fork(at=4)

    await fork.append(message("a"), expected_seq=5)
    await fork.rewind(to=3)
    assert await contents(fork) == ["0", "1"]
    await fork.append([message("b"), message("c")])
    await fork.undo(2)
    assert await contents(fork) == ["0", "1"]
    await fork.undo()
    assert await contents(fork) == ["0"]
    await fork.clear()
    await fork.close()

    assert await contents(fork) == []
    assert await contents(parent) == ["0", "1", "2", "3", "4"]
    await assert_replays(fork)


async def test_fork_when_subscribed_is_history_of_all_parts_and_live(any_log: EventLog) -> None:
    """From any cursor, in the parent's part, at the border and in its own."""
    parent = await any_log.create_session()
    async with parent.reply(flush_seconds=60) as reply:
        for piece in "abcdefgh":
            await reply.write(piece)
    fork = await parent.fork(at=6)
    await fork.append(message("own"))
    events = await read_all(fork)
    assert len(events) == 9

    for after in range(9):
        assert await take(fork.subscribe(after=after), 9 - after) == events[after:]
    subscription = fork.subscribe(after=4)
    assert await take(subscription, 5) == events[4:]
    await parent.append(message("not the fork's"))
    await fork.append(message("live"))
    assert (await take(subscription, 1))[0].seq == 10
