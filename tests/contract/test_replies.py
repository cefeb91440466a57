"""Streaming a reply: what was written is what is stored, in order, and a message ends once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from eventlog import (
    Appended,
    Event,
    EventIdReused,
    EventLog,
    InvalidEvent,
    InvalidRequest,
    MessageAdded,
    MessageCompleted,
    MessageFenced,
    MessageInterrupted,
    MessageStarted,
    RecordedEvent,
    RunStopRequested,
    SessionClosedError,
    TokenAppended,
    ToolCall,
    Usage,
)
from eventlog.testing import message, read_all, refused, until
from tests.conftest import OpenLog
from tests.support.gates import held


def increments(events: Sequence[RecordedEvent], message_id: str | None = None) -> list[str]:
    """Texts of the token increments, in order."""
    return [
        each.event.text
        for each in events
        if isinstance(each.event, TokenAppended)
        and (message_id is None or each.event.message_id == message_id)
    ]


def kinds(events: Sequence[RecordedEvent]) -> list[type[Event]]:
    """The events' classes, in order."""
    return [type(each.event) for each in events]


# --- what is written is stored -------------------------------------------------------------------


async def test_reply_when_written_fast_loses_no_increment(any_log: EventLog) -> None:
    """3,000 increments without a pause, however they are gathered into frames."""
    pieces = [f"{number} " for number in range(3_000)]

    for flush_seconds in (0, 0.001, 60):
        session = await any_log.create_session()
        async with session.reply(flush_seconds=flush_seconds) as reply:
            for piece in pieces:
                await reply.write(piece)

        events = await read_all(session)
        assert increments(events) == pieces
        assert [each.seq for each in events] == list(range(1, len(pieces) + 4))
        assert (await session.replay()).messages[0].content == "".join(pieces)


async def test_reply_when_frames_are_read_keeps_their_bounds(any_log: EventLog) -> None:
    """A frame has at most 32 increments and, but for a single one, at most about 8 KB of text."""
    session = await any_log.create_session()

    async with session.reply(flush_seconds=60) as reply:
        for number in range(200):
            await reply.write("x" * (1 if number % 2 else 3_000))
        await reply.write("y" * 100_000)

    rows = await any_log.store.read_session(session.id, after=0, until=None, limit=1_000)
    frames = [row for row in rows if row.span > 1 or row.flags & 1]
    assert sum(row.span for row in frames) == 201
    assert max(row.span for row in frames) <= 32
    assert max(len(row.data) for row in frames[:-1]) < 12_000
    assert max(len(row.data) for row in frames) > 100_000


async def test_reply_when_it_begins_sends_its_first_increment_at_once(any_log: EventLog) -> None:
    """A reader sees the first word without waiting for a frame to fill, the rest by and by."""
    session = await any_log.create_session()

    async with session.reply(flush_seconds=60) as reply:
        await reply.write("first")
        await until(lambda: reply.last_seq == 3)
        await reply.write("gathers")
        assert increments(await read_all(session)) == ["first"]
        await reply.drain()
        assert increments(await read_all(session)) == ["first", "gathers"]


async def test_reply_when_time_passes_sends_what_gathered(any_log: EventLog) -> None:
    """After `flush_seconds` a frame leaves without another write."""
    session = await any_log.create_session()

    async with session.reply(flush_seconds=0.01) as reply:
        for piece in ("a", "b", "c"):
            await reply.write(piece)
        await until(lambda: reply.last_seq == 5)

    assert increments(await read_all(session)) == ["a", "b", "c"]


async def test_reply_when_nothing_is_written_is_an_empty_message(any_log: EventLog) -> None:
    """A block without a write, or with empty ones, is a message without text."""
    session = await any_log.create_session()

    async with session.reply() as reply:
        await reply.write("")

    assert kinds(await read_all(session))[1:] == [MessageStarted, MessageCompleted]
    (stored,) = (await session.replay()).messages
    assert (stored.content, stored.status) == ("", "complete")


async def test_reply_when_channels_alternate_keeps_each_apart(any_log: EventLog) -> None:
    """Text, reasoning and tool arguments come in the order written, and end up apart."""
    session = await any_log.create_session()
    written: list[tuple[str, Any, str | None]] = [
        ("think", "reasoning", None),
        ("ing", "reasoning", None),
        ("Hel", "text", None),
        ('{"a":', "tool-arguments", "c1"),
        ('{"b":', "tool-arguments", "c2"),
        ("1}", "tool-arguments", "c1"),
        ("lo", "text", None),
        ("2}", "tool-arguments", "c2"),
    ]

    async with session.reply(flush_seconds=60) as reply:
        for text, channel, tool_call_id in written:
            await reply.write(text, channel=channel, tool_call_id=tool_call_id)

    found = [each.event for each in await read_all(session)]
    assert [
        (each.text, each.channel, each.tool_call_id)
        for each in found
        if isinstance(each, TokenAppended)
    ] == written
    (stored,) = (await session.replay()).messages
    assert (stored.content, stored.reasoning) == ("Hello", "thinking")
    assert {(call.id, call.arguments) for call in stored.tool_calls} == {
        ("c1", '{"a":1}'),
        ("c2", '{"b":2}'),
    }


async def test_reply_when_finished_with_facts_states_them(any_log: EventLog) -> None:
    """What `finish` says is in the message's end, and counts."""
    session = await any_log.create_session()
    calls = [ToolCall(id="c1", name="look", arguments="{}")]

    async with session.reply(agent="a", model="m", name="n", metadata={"x": 1}) as reply:
        await reply.write("text")
        reply.finish(tool_calls=calls, usage=Usage(output_tokens=7), finish_reason="stop")
        reply.finish(metadata={"y": 2}, native={"id": "resp_1"})

    (stored,) = (await session.replay()).messages
    assert (stored.agent, stored.model, stored.name, stored.role) == ("a", "m", "n", "assistant")
    assert (stored.content, stored.tool_calls, stored.token_count) == ("text", calls, 7)
    assert (stored.metadata, stored.native) == ({"x": 1, "y": 2}, {"id": "resp_1"})


async def test_reply_when_streamed_folds_like_the_same_message_added_whole(
    any_log: EventLog,
) -> None:
    """However a message came into the log, the view shows the same."""
    streamed, whole = await any_log.create_session(), await any_log.create_session()

    async with streamed.reply(agent="a", message_id="m") as reply:
        for piece in ("Hel", "lo"):
            await reply.write(piece)
        reply.finish(finish_reason="stop", token_count=2)
    await whole.append(
        message(
            "Hello", "assistant", agent="a", message_id="m", finish_reason="stop", token_count=2
        )
    )

    left, right = await streamed.replay(), await whole.replay()
    assert left.context() == right.context()
    assert (left.token_count, left.message_count, left.current_agent) == (
        *(right.token_count, right.message_count, right.current_agent),
    )


# --- among others --------------------------------------------------------------------------------


async def test_reply_when_others_append_keeps_the_order_of_the_calls(any_log: EventLog) -> None:
    """Any other event of the session comes after the increments written before it."""
    session = await any_log.create_session()
    same = await any_log.session(session.id)

    async with session.reply(flush_seconds=60) as reply:
        for number in range(20):
            await reply.write(f"{number}")
            await reply.write(".")
            await (session if number % 2 else same).append(message(f"{number}"))

    told = [
        each.event.text if isinstance(each.event, TokenAppended) else each.event.content
        for each in await read_all(session, after=2)
        if isinstance(each.event, TokenAppended | MessageAdded)
    ]
    assert told == [text for n in range(20) for text in (f"{n}", ".", f"{n}")]


async def test_replies_when_two_stream_at_once_do_not_mix(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Two agents of two processes stream into one session: each message is whole."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)

    async def speak(where: Any, name: str) -> str:
        async with where.reply(agent=name, flush_seconds=0) as reply:
            for number in range(300):
                await reply.write(f"{name}{number} ")
                if number % 50 == 0:
                    await reply.drain()
        return str(reply.message_id)

    ids = await asyncio.gather(speak(session, "a"), speak(session, "b"), speak(other, "c"))

    events = await read_all(session)
    assert [each.seq for each in events] == list(range(1, len(events) + 1))
    for message_id, name in zip(ids, "abc", strict=True):
        assert increments(events, message_id) == [f"{name}{number} " for number in range(300)]
    assert [each.status for each in (await session.replay()).messages] == ["complete"] * 3


async def test_reply_when_several_tasks_write_and_drain_loses_nothing(any_log: EventLog) -> None:
    """One reply may be written to by several tasks; none of them waits for ever."""
    session = await any_log.create_session()

    async with session.reply(flush_seconds=0) as reply:

        async def write(name: str) -> None:
            for number in range(20):
                await reply.write(f"{name}{number}")
                await reply.drain()

        async with asyncio.timeout(20):
            await asyncio.gather(*(write(name) for name in "abcd"))

    found = increments(await read_all(session))
    assert sorted(found) == sorted(f"{name}{number}" for name in "abcd" for number in range(20))


async def test_reply_when_the_log_is_slow_makes_its_writer_wait(any_log: EventLog) -> None:
    """`write` waits while too much is not acknowledged: memory is bounded, nothing is lost."""
    session = await any_log.create_session()
    written = 0

    async def write() -> None:
        nonlocal written
        for number in range(10_000):
            await reply.write(f"{number} ")
            written += 1

    async with session.reply(flush_seconds=0) as reply:
        with held(any_log) as gate:
            task = asyncio.create_task(write())
            await gate.reached.wait()
            for _ in range(100):
                await asyncio.sleep(0)
            stuck = written
            gate.open.set()
            await task

    assert 4_000 < stuck < 4_300
    assert increments(await read_all(session)) == [f"{number} " for number in range(10_000)]


# --- ends ----------------------------------------------------------------------------------------


async def test_reply_when_its_block_raises_is_interrupted_with_what_was_written(
    any_log: EventLog,
) -> None:
    """The exception goes on; the message keeps its text and says why it ended."""
    session = await any_log.create_session()

    with pytest.raises(ConnectionResetError, match="hung up"):
        async with session.reply(flush_seconds=60) as reply:
            await reply.write("first ")
            await reply.write("not yet sent")
            raise ConnectionResetError("the provider hung up \ud800")

    events = await read_all(session)
    end = events[-1].event
    assert isinstance(end, MessageInterrupted)
    assert (end.content, end.reason) == (
        "first not yet sent",
        "ConnectionResetError: the provider hung up \\ud800",
    )
    assert increments(events) == ["first ", "not yet sent"]
    assert reply.status == "interrupted"
    assert (await session.replay()).messages[0].status == "interrupted"


async def test_reply_when_its_end_can_not_be_stored_is_interrupted(
    any_log: EventLog, open_log: OpenLog, subtests: pytest.Subtests
) -> None:
    """Facts that no event can hold raise; the message ends all the same, with what was written."""
    log = await open_log(event_bytes_max=2**20)
    bad: dict[str, dict[str, Any]] = {
        "nan": {"native": float("nan")},
        "surrogate": {"content": "\ud800"},
        "no usage": {"usage": 5},
        "key": {"metadata": {1: 2}},
        "too long": {"content": "x" * 2**20},
    }

    for name, facts in bad.items():
        session = await log.create_session()
        with subtests.test(facts=name):
            with pytest.raises((InvalidEvent, AttributeError)):
                async with session.reply() as reply:
                    await reply.write("text")
                    reply.finish(**facts)
            (stored,) = (await session.replay()).messages
            assert (stored.content, stored.status) == ("text", "interrupted")


async def test_reply_when_written_what_no_event_can_hold_is_refused(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """Refused at the door, by name; what was written before is kept, and can be read."""
    bad: list[tuple[Any, dict[str, Any]]] = [
        ("\ud800", {}),
        (None, {}),
        (5, {}),
        (b"bytes", {}),
        ("a", {"channel": "nowhere"}),
        ("a", {"channel": None}),
        ("a", {"channel": "tool-arguments", "tool_call_id": 5}),
        ("a", {"channel": "tool-arguments", "tool_call_id": "\udc00"}),
    ]

    for text, place in bad:
        session = await any_log.create_session()
        with subtests.test(text=ascii(text), place=ascii(place)):
            with refused(InvalidEvent):
                async with session.reply(flush_seconds=60) as reply:
                    await reply.write("first")
                    await reply.write("second")
                    await reply.write(text, **place)
            assert increments(await read_all(session)) == ["first", "second"]
            (stored,) = (await session.replay()).messages
            assert (stored.content, stored.status) == ("firstsecond", "interrupted")


async def test_reply_when_it_gets_longer_than_an_event_ends_with_what_fits(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """A message's end carries all of its text, so the text has a limit; no message stays open."""
    made = await any_log.create_session()
    session = await (await open_log(event_bytes_max=100_000)).session(made.id)

    with refused(InvalidEvent) as caught:
        async with session.reply() as reply:
            for _ in range(1_000):
                await reply.write('"\u0000' * 100)  # eight bytes as JSON, each time

    assert "EVENTLOG_EVENT_BYTES_MAX" in str(caught.error)
    (stored,) = (await session.replay()).messages
    assert stored.status == "interrupted"
    assert 80_000 < len(stored.content) * 4 < 100_000


async def test_reply_when_used_outside_its_block_is_refused(any_log: EventLog) -> None:
    """Before and after its block a reply takes nothing."""
    session = await any_log.create_session()
    reply = session.reply()

    with refused(InvalidRequest):
        await reply.write("too early")
    async with reply:
        await reply.write("in time")
    with refused(InvalidRequest):
        await reply.write("too late")

    assert increments(await read_all(session)) == ["in time"]


async def test_reply_when_flush_seconds_is_out_of_range_is_refused(any_log: EventLog) -> None:
    """0 to 60 seconds."""
    session = await any_log.create_session()

    for seconds in (-1, 61, float("nan")):
        with refused(InvalidRequest):
            session.reply(flush_seconds=seconds)


# --- one writer for one message ------------------------------------------------------------------


async def test_reply_when_its_message_id_is_taken_is_refused(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Two writers can't stream one message, not even when they start it in the same way."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)

    async with session.reply(message_id="m", agent="a") as reply:
        for rival in (session, other):
            with refused(EventIdReused):
                await rival.reply(message_id="m", agent="a").__aenter__()
            with refused(EventIdReused):
                await rival.reply(message_id="m", agent="b").__aenter__()
        await reply.write("mine")
    with refused(EventIdReused):
        await other.reply(message_id="m", agent="a").__aenter__()

    assert kinds(await read_all(session))[1:] == [MessageStarted, TokenAppended, MessageCompleted]


async def test_reply_when_another_process_takes_it_over_is_fenced(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """The second writer ends the message as it is stored; of the first nothing follows."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)

    with refused(MessageFenced) as caught:
        async with session.reply(flush_seconds=60) as reply:
            await reply.write("stored ")
            await reply.drain()
            await reply.write("gathering")
            assert await other.interrupt(reason="taken over") == [reply.message_id]
            assert await other.interrupt() == []
            for _ in range(100):
                await reply.write("more")
                await reply.drain()

    assert (caught.error.session_id, caught.error.message_id) == (session.id, reply.message_id)
    assert reply.status == "fenced"
    events = await read_all(session)
    assert increments(events) == ["stored "]
    assert kinds(events)[1:] == [MessageStarted, TokenAppended, MessageInterrupted]
    (stored,) = (await session.replay()).messages
    assert (stored.content, stored.interrupt_reason) == ("stored ", "taken over")


async def test_reply_when_fenced_before_its_end_can_not_complete(any_log: EventLog) -> None:
    """A writer that was only slow learns of it at the end of its block, if not before."""
    session = await any_log.create_session()

    with refused(MessageFenced):
        async with session.reply() as reply:
            await session.interrupt(reply.message_id)

    assert kinds(await read_all(session))[1:] == [MessageStarted, MessageInterrupted]


async def test_reply_when_ended_by_two_at_once_ends_once(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Completion and two take-overs race: one of them ends the message, whoever it is."""
    other = await open_log()
    for _ in range(10):
        session = await any_log.create_session()
        reply = await session.reply().__aenter__()
        await reply.write("text")
        rivals = (session, await other.session(session.id))

        await asyncio.gather(
            reply.__aexit__(None, None, None),
            *(rival.interrupt() for rival in rivals),
            return_exceptions=True,
        )

        ends = [
            each
            for each in await read_all(session)
            if isinstance(each.event, MessageCompleted | MessageInterrupted)
        ]
        assert len(ends) == 1
        assert (await session.replay()).messages[0].content in {"", "text"}


async def test_reply_when_a_queued_batch_ends_its_message_is_not_stored_behind(
    any_log: EventLog,
) -> None:
    """A frame that is queued behind the batch that ends its message is refused, not let by."""
    session = await any_log.create_session()
    replies = [await session.reply(flush_seconds=0).__aenter__() for _ in range(2)]
    ends = [MessageInterrupted(message_id=each.message_id) for each in replies]
    with held(any_log) as gate:
        first = asyncio.ensure_future(session.append(message("in flight")))
        await gate.reached.wait()
        batch = asyncio.ensure_future(session.append(ends))
        await asyncio.sleep(0)
        for reply in replies:
            await reply.write("behind")
        gate.open.set()
        await asyncio.gather(first, batch)

    for reply in replies:
        with refused(MessageFenced):
            await reply.drain()
        await reply.__aexit__(MessageFenced, reply._error, None)

    assert kinds(await read_all(session))[-3:] == [
        *(MessageAdded, MessageInterrupted, MessageInterrupted)
    ]


async def test_interrupt_when_only_silent_ones_are_meant_leaves_the_others(
    any_log: EventLog,
) -> None:
    """`idle_seconds` spares a reply of which something was stored just now."""
    session = await any_log.create_session()
    reply = await session.reply().__aenter__()
    await reply.write("x")
    await reply.drain()

    assert await session.interrupt(idle_seconds=60) == []
    assert await session.interrupt("another message") == []
    assert await session.interrupt(reply.message_id) == [reply.message_id]
    await reply.__aexit__(MessageFenced, MessageFenced(session.id, reply.message_id), None)


async def test_reply_when_the_session_is_closed_is_interrupted(any_log: EventLog) -> None:
    """Closing a session ends what streams into it; the writer is told."""
    session = await any_log.create_session()

    with refused(SessionClosedError):
        async with session.reply(flush_seconds=0) as reply:
            await reply.write("x")
            await reply.drain()
            await session.close()
            await reply.write("y")

    state = await session.replay()
    assert (state.status, state.open_messages) == ("closed", [])
    assert increments(await read_all(session)) == ["x"]


async def test_close_when_replies_begin_meanwhile_leaves_none_open(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """A closed session holds no message that streams, whatever was begun at the same time."""
    other = await open_log()
    for _ in range(5):
        session = await any_log.create_session()
        twin = await other.session(session.id)

        async def speak(where: Any) -> None:
            async with where.reply(flush_seconds=0) as reply:
                for number in range(50):
                    await reply.write(f"{number}")
                    await asyncio.sleep(0)

        done = await asyncio.gather(
            *(speak(where) for where in (session, twin, session, twin)),
            session.close(),
            return_exceptions=True,
        )

        state = await session.replay()
        assert isinstance(done[-1], Appended), done[-1]
        assert state.status == "closed"
        assert state.open_messages == []


async def test_run_when_asked_to_stop_is_seen_while_it_streams(any_log: EventLog) -> None:
    """A stop request comes into the session between the increments of the run it is for."""
    session = await any_log.create_session()
    seen: list[int] = []

    async def stop() -> None:
        async for recorded in session.subscribe():
            if isinstance(recorded.event, TokenAppended):
                await session.append(RunStopRequested(run_id="r"))
                return

    async with asyncio.timeout(20):
        stopping = asyncio.create_task(stop())
        async with session.reply(flush_seconds=0) as reply:
            while not stopping.done():
                await reply.write("x")
                await asyncio.sleep(0.001)
        seen = [
            each.seq for each in await read_all(session) if isinstance(each.event, RunStopRequested)
        ]

    assert seen
    assert (await session.replay()).messages[0].status == "complete"


async def test_reply_when_made_for_an_unknown_message_to_interrupt_does_nothing(
    any_log: EventLog,
) -> None:
    """Interrupting where nothing streams appends nothing."""
    session = await any_log.create_session()

    assert await session.interrupt() == []
    assert await session.interrupt(str(uuid.uuid4())) == []
    assert await session.head() == 1
