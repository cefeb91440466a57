"""Replay and context: the state at any seq and any time, as it was and for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventlog import (
    CompactionCompleted,
    CompactionReverted,
    EventLog,
    InvalidRequest,
    RecordedEvent,
    Session,
    ToolCall,
    fold,
    initial,
)
from eventlog.testing import (
    assert_replays,
    message,
    read_all,
    refused,
    rich_history,
    shown,
)
from tests.conftest import Backend, OpenLog

# --- at a seq ------------------------------------------------------------------------------------


async def test_replay_when_asked_by_another_process_is_the_same(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """At every seq, by a process that remembers nothing and one that saw it all."""
    session = await rich_history(any_log)
    other = await (await open_log()).session(session.id)

    for seq in range(await session.head(), -1, -1):
        assert shown(await other.replay(seq)) == shown(await session.replay(seq)), seq


async def test_replay_when_events_follow_stays_the_same(any_log: EventLog) -> None:
    """What was at a seq is not changed by what comes later: not by rewind, clear or compaction."""
    session = await any_log.create_session()
    await session.append([message("one"), message("two", "assistant")])
    before = [shown(await session.replay(seq)) for seq in range(4)]

    await session.append(CompactionCompleted(summary="s", from_seq=1, to_seq=2))
    await session.rewind(to=2)
    await session.undo()
    await session.clear()
    await session.append(message("three"))

    assert [shown(await session.replay(seq)) for seq in range(4)] == before


async def test_replay_when_a_reply_is_open_has_what_had_arrived(any_log: EventLog) -> None:
    """In the middle of a reply, and of a frame: exactly the increments up to the seq."""
    session = await any_log.create_session()
    async with session.reply(flush_seconds=60) as reply:
        for piece in "abcdefghij":
            await reply.write(piece)
        await reply.drain()
        for seq, text in ((2, ""), (3, "a"), (4, "ab"), (7, "abcde"), (12, "abcdefghij")):
            (message_,) = (await session.replay(seq)).messages
            assert (message_.content, message_.status) == (text, "open")
        now = await session.replay()
        assert (now.messages[0].content, now.seq) == ("abcdefghij", 12)

    assert (await session.replay(7)).messages[0].status == "open"
    assert (await session.replay()).messages[0].status == "complete"
    await assert_replays(session)


async def test_replay_when_two_replies_are_open_has_both(any_log: EventLog) -> None:
    """Two messages that stream at once, read at every seq between."""
    session = await any_log.create_session()
    async with session.reply(flush_seconds=0) as one, session.reply(flush_seconds=0) as two:
        for number in range(10):
            await one.write(f"{number}")
            await two.write(f"{number}", channel="reasoning")
            await one.drain()
            await two.drain()

    await assert_replays(session)


async def test_replay_at_zero_is_the_empty_session(any_log: EventLog) -> None:
    """Before the first event there is nothing."""
    session = await rich_history(any_log)

    state = await session.replay(0)

    assert (state.seq, list(state.messages), state.created_at) == (0, [], None)


async def test_replay_when_the_point_is_no_point_is_refused(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """A seq beyond the end, a negative one, a naive datetime and other types."""
    session = await any_log.create_session()
    bad: list[Any] = [2, -1, 2**62, True, datetime(2026, 1, 1)]  # noqa: DTZ001

    for at in bad:
        with subtests.test(at=at), refused(InvalidRequest):
            await session.replay(at)


# --- at a time -----------------------------------------------------------------------------------


async def test_replay_at_a_time_is_the_state_after_the_last_event_by_then(
    backend: Backend, any_log: EventLog
) -> None:
    """At each event's own time, a moment before and a moment after."""
    session = await rich_history(any_log)
    events = await read_all(session)
    moment = timedelta(microseconds=1)

    for each in events:
        assert (await session.replay(each.recorded_at)).seq == _last_by(each.recorded_at, events)
        earlier = each.recorded_at - moment
        assert (await session.replay(earlier)).seq == _last_by(earlier, events)
    assert (await session.replay(events[0].recorded_at - timedelta(days=365))).seq == 0
    assert (await session.replay(datetime.now(UTC) + timedelta(days=365))).seq == events[-1].seq


def _last_by(at: datetime, events: list[RecordedEvent]) -> int:
    return max((each.seq for each in events if each.recorded_at <= at), default=0)


async def test_replay_at_a_time_before_a_fork_began_is_its_parents_state(
    any_log: EventLog,
) -> None:
    """A fork's past is its parent's: times before the fork find the parent's events."""
    parent = await any_log.create_session()
    times = [(await parent.append(message(f"{n}"))).recorded_at for n in range(5)]
    forks = [await parent.fork(at=4)]
    forks.append(await forks[0].fork())
    await forks[-1].append(message("newest"))

    for fork in forks:
        events = await read_all(fork)
        for at in (*times, times[0] - timedelta(days=1), *(each.recorded_at for each in events)):
            assert (await fork.replay(at)).seq == _last_by(at, events), at


async def test_replay_at_a_time_finds_it_among_thousands(any_log: EventLog) -> None:
    """Frames, batches and single events, several pages of them."""
    session = await any_log.create_session()
    async with session.reply(flush_seconds=0) as reply:
        for number in range(700):
            await reply.write("x")
            if number % 7 == 0:
                await reply.drain()
            if number % 50 == 0:
                await session.append([message()] * 3)
    events = await read_all(session)

    for each in events[::37]:
        assert (await session.replay(each.recorded_at)).seq == _last_by(each.recorded_at, events)


# --- the context ---------------------------------------------------------------------------------


async def test_context_when_nothing_is_compacted_is_the_conversation(any_log: EventLog) -> None:
    """Messages as a provider takes them, tool calls and their answers included."""
    session = await any_log.create_session()
    call = ToolCall(id="c1", name="look", arguments='{"q":1}')
    await session.append(
        [
            message("be brief", "system"),
            message("one", name="ada"),
            message("", "assistant", tool_calls=[call]),
            message("42", "tool", tool_call_id="c1"),
            message([{"type": "text", "text": "two"}]),  # type: ignore[arg-type]
        ]
    )

    function = {"name": "look", "arguments": '{"q":1}'}
    assert await session.context() == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one", "name": "ada"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
    ]


async def test_context_when_compacted_is_kept_messages_summary_and_the_rest(
    any_log: EventLog,
) -> None:
    """The summary stands for what it covers, until it is reverted; the events stay."""
    session = await any_log.create_session()
    await session.append([message("rules", "system")] + [message(f"{n}") for n in range(5)])
    done = await session.append(
        CompactionCompleted(summary="0 to 3", from_seq=1, to_seq=6, kept=[2])
    )
    await session.append(message("after"))

    contents = [each["content"] for each in await session.context()]
    assert contents[0] == "rules"
    assert contents[1].endswith("0 to 3")
    assert contents[2:] == ["4", "after"]
    assert (await session.context(at=7))[-1]["content"] == "4"
    await session.append(CompactionReverted(compaction_seq=done.first_seq))
    contents = [each["content"] for each in await session.context()]
    assert contents == ["rules", "0", "1", "2", "3", "4", "after"]


async def test_context_when_a_seq_is_demanded_has_it_or_says_so(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Whoever was told of a seq gets a context that has it, from any process."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)

    for number in range(10):
        done = await session.append(message(f"{number}"))
        context = await other.context(min_seq=done.last_seq)
        assert context[-1]["content"] == f"{number}"
    with refused(InvalidRequest):
        await other.context(min_seq=12)


async def test_context_when_read_along_equals_that_of_the_replay(any_log: EventLog) -> None:
    """At every seq of a rich history the context is the context of the state."""
    session = await rich_history(any_log)

    for seq in range(1, await session.head() + 1):
        assert await session.context(at=seq) == (await session.replay(seq)).context(), seq


async def test_state_when_folded_by_the_caller_equals_the_replay(any_log: EventLog) -> None:
    """The fold that is exported is the fold that replay uses."""
    session: Session = await rich_history(any_log)

    folded = fold(initial(session.id), await read_all(session))

    assert shown(folded) == shown(await session.replay())
