"""For testing an EventLog, and programs that use one: a clock, waiting for facts, the contract.

`LogContract` holds what every log promises, as test methods for pytest (with pytest-asyncio or
anyio). Give it a fixture `log` and it tests that log:

    class TestMyLog(LogContract):
        @pytest.fixture
        async def log(self):
            async with EventLog.in_memory() as log:
                yield log

`rich_history(log)` writes a session in which everything happens, `assert_replays(session)` compares
its replay at every seq with the fold of its events. Nothing here sleeps: `until` and `take` wait
for a fact, with a bound.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

import msgspec

from eventlog import events as ev
from eventlog.envelope import RecordedEvent
from eventlog.errors import (
    EventIdReused,
    InvalidEvent,
    InvalidRequest,
    MessageFenced,
    SessionClosed,
    SessionDeleted,
    SessionNotFound,
    WrongExpectedSeq,
)
from eventlog.folding import fold, initial
from eventlog.log import EventLog
from eventlog.session import Session
from eventlog.state import SessionState

WAIT_SECONDS_MAX: Final = 20.0
"""Longest time to wait for a fact; a test that waits longer fails."""
RIVALS: Final = 50
Item = TypeVar("Item")
Failure = TypeVar("Failure", bound=BaseException)


class FakeClock:
    """A clock for `MemoryStore(now_us=clock)`: every look is a moment later, by `step_seconds`.

    It begins at `start` (now, when that is None) and can be moved both ways.
    """

    def __init__(self, start: datetime | None = None, *, step_seconds: float = 0.001) -> None:
        self._now_us = time.time_ns() // 1_000 if start is None else _in_us(start)
        self._step_us = round(step_seconds * 1_000_000)

    def __call__(self) -> int:
        self._now_us += self._step_us
        return self._now_us

    def advance(self, seconds: float) -> None:
        """Let time pass; with negative seconds the clock was set back."""
        self._now_us += round(seconds * 1_000_000)

    def set(self, to: datetime) -> None:
        """Let it be that time (aware)."""
        self._now_us = _in_us(to)


def _in_us(at: datetime) -> int:
    return round(at.timestamp() * 1_000_000)


# --- waiting -------------------------------------------------------------------------------------


async def until(
    fact: Callable[[], object | Awaitable[object]], *, seconds: float = WAIT_SECONDS_MAX
) -> None:
    """Wait until `fact()` is true; raises `AssertionError` when it isn't within `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found = fact()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        if time.monotonic() > end:
            raise AssertionError(f"not true within {seconds} s: {fact}")
        await asyncio.sleep(0.002)


async def take(
    items: AsyncIterator[Item], count: int, *, seconds: float = WAIT_SECONDS_MAX
) -> list[Item]:
    """The next `count` items; `AssertionError`, with what came, when that takes too long."""
    found: list[Item] = []
    try:
        async with asyncio.timeout(seconds):
            while len(found) < count:
                found.append(await anext(items))
    except TimeoutError:
        raise AssertionError(f"{len(found)} of {count} items in {seconds} s: {found!r}") from None
    except StopAsyncIteration:
        raise AssertionError(f"ended after {len(found)} of {count} items: {found!r}") from None
    return found


async def read_all(session: Session, *, after: int = 0) -> list[RecordedEvent]:
    """All events of a session, one for each seq."""
    return [each async for each in session.read(after=after)]


class Caught(Generic[Failure]):
    """The error that `refused` waited for, once it came."""

    error: Failure


@contextmanager
def refused(kind: type[Failure]) -> Iterator[Caught[Failure]]:
    """Expect an error in the block, and that its message says something."""
    caught: Caught[Failure] = Caught()
    try:
        yield caught
    except kind as error:
        caught.error = error
        assert len(str(error)) > 10, f"{kind.__name__} says only {str(error)!r}"
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


# --- sessions to test with -----------------------------------------------------------------------


def message(text: str = "hi", role: ev.Role = "user", **fields: Any) -> ev.MessageAdded:
    """A message to append."""
    return ev.MessageAdded(role=role, content=text, **fields)


async def rich_history(log: EventLog, key: str | None = None) -> Session:
    """A session in which everything happens: 37 events, open for more."""
    session = await log.create_session(key, user_id="ada", title="t", metadata={"a": 1, "b": 2})
    await session.append([message("be brief", "system"), message("one", token_count=3)])
    async with session.reply(agent="planner", model="m", flush_seconds=0) as reply:
        for piece in ("he", "llo ", "\u0000", "wörld 👩‍👩‍👧"):
            await reply.write(piece)
        await reply.write("because", channel="reasoning")
        await reply.write('{"q":', channel="tool-arguments", tool_call_id="c1")
        await session.append(ev.RunStopRequested(run_id="r0"))
        await reply.write("1}", channel="tool-arguments", tool_call_id="c1")
        reply.finish(usage=ev.Usage(input_tokens=5, output_tokens=7), finish_reason="stop")
    await session.append(message("42", "tool", tool_call_id="c1"))
    await session.append(ev.AgentHandedOff(to_agent="coder", context={"why": [1, None]}))
    try:
        async with session.reply(agent="coder", flush_seconds=0) as broken:
            await broken.write("half a sen")
            raise ConnectionResetError("the provider hung up")
    except ConnectionResetError:
        pass
    await session.append([ev.RunStarted(run_id="r1"), ev.ScratchpadWritten(name="n", value=[1])])
    await session.update(title="t2", metadata={"a": None, "c": 3})
    compacted = await session.append(
        ev.CompactionCompleted(summary="all of it", from_seq=1, to_seq=6, kept=[2], tokens_after=2)
    )
    undone = await session.append([message("oops"), message("never mind", "assistant")])
    await session.undo(2)
    await session.append(ev.CompactionReverted(compaction_seq=compacted.first_seq))
    await session.append([message("two"), ev.Custom(name="app.seen", data={"x": 1.5})])
    await session.rewind(to=undone.first_seq)
    await session.append([ev.RunFinished(run_id="r1"), ev.AgentActivated(agent="critic")])
    await session.clear()
    await session.append([message("anew", token_count=1), ev.ScratchpadWritten(name="n")])
    await session.append([ev.CompactionRequested(), ev.CompactionFailed(reason="too short")])
    return session


async def assert_replays(session: Session, *, step: int = 1) -> None:
    """At every `step`-th seq the replay equals the fold of the events up to there."""
    folded = initial(session.id)
    for recorded in await read_all(session):
        folded = fold(folded, [recorded])
        if recorded.seq % step:
            continue
        replayed = await session.replay(recorded.seq)
        assert shown(replayed) == shown(folded), f"at seq {recorded.seq}"


def shown(state: SessionState) -> dict[str, Any]:
    """What can be seen of a state, in comparable form; a fork's id counts as its parent's."""
    fields = {name: getattr(state, name) for name in SessionState.__struct_fields__}
    fields |= {"messages": list(state.messages), "context": state.context()}
    fields |= {"agent": state.current_agent, "opened": sorted(state.opened)}
    for name in ("entries", "session_id"):
        del fields[name]
    return fields


# --- the contract --------------------------------------------------------------------------------


class LogContract:
    """What every EventLog promises. Subclass it as `Test…` with a fixture `log`."""

    async def test_seqs_when_appended_are_contiguous_from_one(self, log: EventLog) -> None:
        """Events are numbered 1, 2, 3, …, a batch without anything in between."""
        session = await log.create_session()

        one = await session.append(message())
        many = await session.append([message(), message(), message()])

        assert (one.first_seq, one.last_seq) == (2, 2)
        assert (many.first_seq, many.last_seq) == (3, 5)
        assert [each.seq for each in await read_all(session)] == [1, 2, 3, 4, 5]

    async def test_read_when_appended_gives_back_what_was_given(self, log: EventLog) -> None:
        """A read after the ack has the event, equal to what was appended."""
        session = await log.create_session(metadata={"nul": "\u0000", "deep": [[{"x": [None]}]]})
        given = message("\u0000 \u2028 \u202e 👩‍👩‍👧", native={"exact": [1, 1.5, True, None, ""]})

        done = await session.append(given)
        (found,) = await read_all(session, after=1)

        assert found.event == given
        assert (found.session_id, found.seq, found.event_id) == (session.id, 2, done.event_id)
        assert found.recorded_at == done.recorded_at
        assert found.recorded_at.tzinfo is not None

    async def test_append_when_repeated_with_its_id_stores_once(self, log: EventLog) -> None:
        """The same id and events again: the first answer, marked as a duplicate."""
        session = await log.create_session()
        event_id, batch = uuid.uuid4(), [message("a"), message("b")]

        first = await session.append(batch, event_id=event_id)
        await session.append(message("c"))
        again = await session.append(batch, event_id=event_id)

        assert (first.duplicate, again.duplicate) == (False, True)
        assert msgspec.structs.replace(again, duplicate=False) == first
        assert await session.head() == 4

    async def test_append_when_id_has_other_content_is_refused(self, log: EventLog) -> None:
        """An id names one event for ever."""
        session = await log.create_session()
        event_id = uuid.uuid4()
        await session.append(message("a"), event_id=event_id)

        with refused(EventIdReused) as caught:
            await session.append(message("b"), event_id=event_id)

        assert caught.error.event_id == event_id
        assert await session.head() == 2

    async def test_append_when_rivals_expect_one_seq_has_one_winner(self, log: EventLog) -> None:
        """Of many who believe the same last seq, exactly one is stored."""
        session = await log.create_session()

        done = await asyncio.gather(
            *(session.append(message(str(each)), expected_seq=1) for each in range(RIVALS)),
            return_exceptions=True,
        )

        lost = [each for each in done if isinstance(each, WrongExpectedSeq)]
        assert len(lost) == RIVALS - 1
        assert {(each.expected, each.actual) for each in lost} == {(1, 2)}
        assert await session.head() == 2

    async def test_append_when_one_event_is_bad_stores_nothing_of_the_batch(
        self, log: EventLog
    ) -> None:
        """A batch is stored whole or not at all."""
        session = await log.create_session()

        with refused(InvalidEvent):
            await session.append([message(), ev.Custom(name="x", data=float("nan")), message()])
        with refused(InvalidRequest):
            await session.append([])

        assert await session.head() == 1

    async def test_session_when_unknown_closed_or_deleted_refuses_by_name(
        self, log: EventLog
    ) -> None:
        """Each reason why a session takes no events has its own error."""
        closed, deleted = await log.create_session(), await log.create_session("gone")
        await closed.close()
        await deleted.delete()

        with refused(SessionNotFound):
            await log.handle(uuid.uuid4()).append(message())
        with refused(SessionClosed):
            await closed.append(message())
        with refused(SessionDeleted):
            await deleted.append(message())
        with refused(SessionNotFound):
            await log.session("never made")
        with refused(SessionDeleted):
            await log.create_session("gone")

    async def test_session_when_created_by_key_is_found_by_key_and_id(self, log: EventLog) -> None:
        """One key is one session, whoever creates it and how often."""
        made = await asyncio.gather(*(log.create_session("chat-42") for _ in range(10)))

        found = await log.session("chat-42")
        by_id = await log.session(found.id)

        assert {each.id for each in made} == {found.id} == {by_id.id}
        assert await found.head() == 1

    async def test_reply_when_it_ends_is_stored_as_written(self, log: EventLog) -> None:
        """Increments come back one for each seq, in order, and the message carries all of them."""
        session = await log.create_session()
        pieces = [f"{number} " for number in range(100)]

        async with session.reply(agent="a") as reply:
            for piece in pieces:
                await reply.write(piece)

        events = [each.event for each in await read_all(session)]
        assert [each.text for each in events if isinstance(each, ev.TokenAppended)] == pieces
        assert isinstance(events[-1], ev.MessageCompleted)
        (stored,) = (await session.replay()).messages
        assert (stored.content, stored.status) == ("".join(pieces), "complete")

    async def test_reply_when_taken_over_stores_nothing_more(self, log: EventLog) -> None:
        """A writer whose message another one closed is told so, and is not stored any more."""
        session = await log.create_session()
        with refused(MessageFenced):
            async with session.reply() as reply:
                await reply.write("seen")
                await reply.drain()
                assert await session.interrupt() == [reply.message_id]
                await reply.write("not seen")

        events = [each.event for each in await read_all(session, after=2)]
        assert [type(each) for each in events] == [ev.TokenAppended, ev.MessageInterrupted]

    async def test_replay_at_every_seq_equals_the_fold(self, log: EventLog) -> None:
        """Replay at a seq is the fold of the events up to it, in a session where much happens."""
        await assert_replays(await rich_history(log))

    async def test_fork_when_made_continues_at_its_seq(self, log: EventLog) -> None:
        """A fork has its parent's events up to the seq, then its own; the parent goes its way."""
        session = await rich_history(log)
        before = await read_all(session)

        fork = await session.fork(at=20)
        await asyncio.gather(fork.append(message("there")), session.append(message("here")))
        events = await read_all(fork)

        assert events[:20] == before[:20]
        assert [each.seq for each in events] == list(range(1, len(events) + 1))
        assert isinstance(events[20].event, ev.SessionCreated)
        await assert_replays(fork)

    async def test_subscription_when_events_come_has_each_once_in_order(
        self, log: EventLog
    ) -> None:
        """History, then live, without gap or repeat, to the session's end."""
        session = await rich_history(log)

        async def write() -> None:
            for number in range(50):
                await session.append(message(str(number)))
            await session.close()

        seen: list[RecordedEvent] = []
        async with asyncio.timeout(WAIT_SECONDS_MAX), asyncio.TaskGroup() as group:
            group.create_task(write())
            async for event in session.subscribe(after=7):
                seen.append(event)

        assert seen == await read_all(session, after=7)
