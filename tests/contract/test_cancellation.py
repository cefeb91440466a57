"""Cancelling callers: what was not sent is withdrawn, what was sent is known before they go on."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from eventlog import (
    EventLog,
    MessageCompleted,
    MessageInterrupted,
    MessageStarted,
    OutcomeUnknown,
    Session,
    TokenAppended,
    Unavailable,
)
from eventlog.errors import Refused
from eventlog.store import Busy, ConnectionLost
from eventlog.telemetry import metrics
from eventlog.testing import message, read_all, refused, until
from tests.contract.test_replies import increments, kinds
from tests.support.gates import held


async def settled(*tasks: asyncio.Future[Any]) -> list[Any]:
    """What became of the tasks, within a bound."""
    async with asyncio.timeout(20):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def turns(count: int = 20) -> None:
    """Let every task that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


# --- appends -------------------------------------------------------------------------------------


async def test_append_when_cancelled_in_the_queue_is_withdrawn(any_log: EventLog) -> None:
    """What waits behind another commit is taken back: it is not stored, and others are."""
    session = await any_log.create_session()
    with held(any_log) as gate:
        flying = asyncio.ensure_future(session.append(message("flying")))
        await gate.reached.wait()
        queued = [asyncio.ensure_future(session.append(message(f"{n}"))) for n in range(3)]
        await turns()
        queued[1].cancel()
        await turns()
        assert queued[1].cancelled()
        gate.open.set()
        await settled(flying, queued[0], queued[2])

    contents = [getattr(each.event, "content", None) for each in await read_all(session, after=1)]
    assert contents == ["flying", "0", "2"]


async def test_append_when_cancelled_in_flight_ends_when_its_outcome_is_known(
    any_log: EventLog,
) -> None:
    """The cancellation reaches the caller after the commit, however often it is cancelled."""
    session = await any_log.create_session()
    with held(any_log) as gate:
        flying = asyncio.ensure_future(session.append(message("flying")))
        await gate.reached.wait()
        for _ in range(3):
            flying.cancel()
            await turns()
            assert not flying.done()
        gate.open.set()
        (done,) = await settled(flying)

    assert isinstance(done, asyncio.CancelledError)
    assert await session.head() == 2


async def test_append_when_cancelled_in_flight_and_refused_is_not_stored(
    any_log: EventLog,
) -> None:
    """A refusal that comes after the cancellation is an outcome, too."""
    session = await any_log.create_session()
    with held(any_log) as gate:
        flying = asyncio.ensure_future(session.append(message(), expected_seq=7))
        await gate.reached.wait()
        flying.cancel()
        await turns()
        gate.open.set()
        (done,) = await settled(flying)

    assert isinstance(done, asyncio.CancelledError)
    assert await session.head() == 1


async def test_append_when_cancelled_at_any_moment_is_stored_or_not_but_settled(
    any_log: EventLog,
) -> None:
    """Whenever the cancellation comes, nothing of the call happens after the caller went on."""
    session = await any_log.create_session()

    for moment in range(40):
        task = asyncio.ensure_future(session.append([message(f"{moment}")] * 2))
        await turns(moment)
        task.cancel()
        await settled(task)
        seq = await session.head()
        await session.append(message("next"))
        assert await session.head() == seq + 1
        assert seq % 2 == (moment + 1) % 2  # the batch whole, or nothing of it


async def test_append_when_cancelled_can_be_repeated_by_its_id(any_log: EventLog) -> None:
    """Whoever wants to know asks again with the same id."""
    session = await any_log.create_session()
    event_id = uuid.uuid4()
    with held(any_log) as gate:
        flying = asyncio.ensure_future(session.append(message("x"), event_id=event_id))
        await gate.reached.wait()
        flying.cancel()
        gate.open.set()
        await settled(flying)

    again = await session.append(message("x"), event_id=event_id)

    assert again.duplicate
    assert await session.head() == 2


async def test_append_when_timed_out_by_its_caller_is_settled(any_log: EventLog) -> None:
    """`asyncio.timeout` around an append: it raises, after the outcome is known."""
    session = await any_log.create_session()
    with held(any_log) as gate, pytest.raises(TimeoutError):
        asyncio.get_running_loop().call_later(0.1, gate.open.set)
        async with asyncio.timeout(0.01):
            await session.append(message())

    assert await session.head() == 2


async def test_append_when_cancelled_while_postgres_is_away_ends_soon(any_log: EventLog) -> None:
    """What was never sent is withdrawn between two tries; nobody waits for its deadline."""
    session = await any_log.create_session()

    async def away(lane: int, commands: Any) -> Any:
        raise Unavailable("away")

    any_log.store.commit = away  # type: ignore[method-assign]
    retries = metrics.append_retries
    waiting = [asyncio.ensure_future(session.append(message(f"{n}"))) for n in range(3)]
    await until(lambda: metrics.append_retries > retries + 1)
    waiting[0].cancel()
    waiting[2].cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(waiting[0], waiting[2], return_exceptions=True)
    del any_log.store.commit
    await settled(waiting[1])

    contents = [getattr(each.event, "content", None) for each in await read_all(session, after=1)]
    assert contents == ["1"]


async def test_append_when_cancelled_with_an_unknown_outcome_says_so(
    any_log: EventLog, open_log: Any
) -> None:
    """An outcome that can't be found out is the cause of the cancellation, not lost in it."""
    made = await any_log.create_session()
    log = await open_log(append_timeout_seconds=0.5)
    session = await log.session(made.id)
    reached = asyncio.Event()

    async def lost(lane: int, commands: Any) -> Any:
        reached.set()
        raise ConnectionLost("cut")

    causes: list[BaseException | None] = []

    async def append() -> None:
        try:
            await session.append(message())
        except asyncio.CancelledError as cancelled:
            causes.append(cancelled.__cause__)
            raise

    log.store.commit = lost
    flying = asyncio.ensure_future(append())
    await reached.wait()
    flying.cancel()
    (done,) = await settled(flying)

    assert isinstance(done, asyncio.CancelledError)
    assert [type(cause) for cause in causes] == [OutcomeUnknown]


async def test_append_when_postgres_is_away_ends_refused_or_unknown(
    any_log: EventLog, open_log: Any
) -> None:
    """After its time a call that was never sent is refused, one that may be stored is unknown."""
    made = await any_log.create_session()
    log = await open_log(append_timeout_seconds=0.5)
    session = log.handle(made.id)

    for error, expected in (
        (Unavailable("away"), Unavailable),
        (Busy("locked"), Unavailable),
        (ConnectionLost("cut"), OutcomeUnknown),
    ):

        async def fail(lane: int, commands: Any, error: Exception = error) -> Any:
            raise error

        log.store.commit = fail
        with refused(expected):
            await session.append(message())

    del log.store.commit
    assert (await made.append(message())).first_seq == 2


async def test_append_when_its_error_is_a_bug_ends_for_everybody(any_log: EventLog) -> None:
    """An error that nobody expects refuses the commands it hits, and the log goes on."""
    session = await any_log.create_session()

    async def fail(lane: int, commands: Any) -> Any:
        raise RuntimeError("unheard of")

    any_log.store.commit = fail  # type: ignore[method-assign]
    done = await settled(*(asyncio.ensure_future(session.append(message())) for _ in range(5)))
    del any_log.store.commit

    assert all(isinstance(each, Refused) for each in done)
    assert (await session.append(message())).first_seq == 2


# --- replies -------------------------------------------------------------------------------------


async def ended(session: Session) -> list[object]:
    """The message's events, once it has ended; it must, without anybody's help."""

    async def is_over() -> bool:
        return not (await session.replay()).open_messages

    await until(is_over)
    return [each.event for each in await read_all(session, after=1)]


async def test_reply_when_its_task_is_cancelled_is_interrupted_with_what_was_written(
    any_log: EventLog,
) -> None:
    """What the user saw is what is stored, and nothing stays open."""
    session = await any_log.create_session()
    writing = asyncio.Event()

    async def speak() -> None:
        async with session.reply(flush_seconds=60) as reply:
            await reply.write("a")
            await reply.write("b")
            writing.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(speak())
    await writing.wait()
    task.cancel()
    (done,) = await settled(task)

    assert isinstance(done, asyncio.CancelledError)
    last = (await ended(session))[-1]
    assert isinstance(last, MessageInterrupted)
    assert (last.content, last.reason) == ("ab", "cancelled")
    assert increments(await read_all(session)) == ["a", "b"]


@pytest.mark.parametrize("waiting", ["write", "drain", "complete"])
async def test_reply_when_cancelled_while_it_waits_ends_all_the_same(
    any_log: EventLog, waiting: str
) -> None:
    """Cancelled twice in `write`, in `drain` or while it completes: the message ends, once."""
    session = await any_log.create_session()
    pieces = [f"{number} " for number in range(6_000 if waiting == "write" else 50)]
    written: list[str] = []

    async def speak() -> None:
        async with session.reply(flush_seconds=0) as reply:
            opened.set()
            await begin.wait()
            for piece in pieces:
                written.append(piece)
                await reply.write(piece)
            if waiting == "drain":
                await reply.drain()

    opened, begin = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(speak())
    await opened.wait()
    with held(any_log) as gate:
        begin.set()
        await gate.reached.wait()
        await turns()
        task.cancel()
        await turns()
        task.cancel()
        await turns()
        gate.open.set()
        (done,) = await settled(task)

    assert isinstance(done, asyncio.CancelledError)
    events = await ended(session)
    ends = [each for each in events if isinstance(each, MessageCompleted | MessageInterrupted)]
    assert len(ends) == 1
    assert ends[0].content == "".join(written)
    assert increments(await read_all(session)) == written


async def test_reply_when_cancelled_at_any_moment_leaves_nothing_open(any_log: EventLog) -> None:
    """From its beginning to its end, at whatever moment: the message is ended or never began."""
    for moment in range(0, 60, 2):
        session = await any_log.create_session()

        async def speak(session: Session = session) -> None:
            async with session.reply(flush_seconds=0) as reply:
                for _ in range(3):
                    await reply.write("x")
                    await asyncio.sleep(0)

        task = asyncio.create_task(speak())
        await turns(moment)
        task.cancel()
        await settled(task)

        events = await ended(session)
        ends = [each for each in events if isinstance(each, MessageCompleted | MessageInterrupted)]
        starts = [each for each in events if isinstance(each, MessageStarted)]
        assert len(ends) == len(starts), moment
        if ends:
            heard = "".join(each.text for each in events if isinstance(each, TokenAppended))
            assert ends[0].content == heard


async def test_reply_when_its_log_is_closed_ends_before_that(
    open_log: Any, any_log: EventLog
) -> None:
    """Closing a log waits for the interruptions of replies whose tasks were cancelled."""
    session = await any_log.create_session()
    tasks: list[asyncio.Task[None]] = []

    async def speak(where: Session) -> None:
        async with where.reply(flush_seconds=60) as reply:
            await reply.write("x")
            await reply.write("y")
            await asyncio.Event().wait()

    log = await open_log()
    for _ in range(5):
        tasks.append(asyncio.create_task(speak(await log.session(session.id))))
    await until(lambda: len(log.open_replies.get(session.id, ())) == 5)
    await turns()
    for task in tasks:
        task.cancel()
    await settled(*tasks)

    events = await read_all(session)
    assert kinds(events).count(MessageInterrupted) == 5
    assert sorted(increments(events)) == ["x"] * 5 + ["y"] * 5
