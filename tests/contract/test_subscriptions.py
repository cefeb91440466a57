"""Subscriptions to a session: every event after the cursor, once, in order, live, to its end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from eventlog import (
    EventLog,
    InvalidRequest,
    RecordedEvent,
    Session,
    SessionClosed,
    SessionDeleted,
    SessionNotFound,
    Unavailable,
)
from eventlog.tail import TAIL_LENGTH
from eventlog.testing import message, read_all, refused, rich_history, take, until
from tests.conftest import Backend, OpenLog

WAIT_SECONDS = 20.0


async def collect(items: AsyncIterator[RecordedEvent]) -> list[RecordedEvent]:
    """All items up to the end, which must come."""
    async with asyncio.timeout(WAIT_SECONDS):
        return [each async for each in items]


async def chat(session: Session, count: int) -> None:
    """Messages and replies, increments among them."""
    for number in range(count):
        await session.append(message(f"{number}"))
        async with session.reply(flush_seconds=0) as reply:
            for _ in range(10):
                await reply.write("x")


# --- history, then live --------------------------------------------------------------------------


async def test_subscription_when_it_begins_anywhere_has_all_that_follows(
    any_log: EventLog,
) -> None:
    """From every cursor, inside frames too, history and live are one sequence."""
    session = await rich_history(any_log)
    async with session.reply(flush_seconds=60) as reply:
        for _ in range(5):
            await reply.write("x")
    head = await session.head()
    subscriptions = [session.subscribe(after=after) for after in range(head + 1)]
    tasks = [asyncio.create_task(collect(each)) for each in subscriptions]

    await until(lambda: all(each.state == "live" for each in subscriptions))
    await chat(session, 3)
    await session.close()
    seen = await asyncio.gather(*tasks)

    events = await read_all(session)
    for after, found in enumerate(seen):
        assert found == events[after:], after


async def test_subscription_when_another_process_appends_is_live(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Events of two processes, seen by subscribers in a third and in each of the two."""
    session = await any_log.create_session()
    logs = [any_log, await open_log(), await open_log()]
    handles = [await each.session(session.id) for each in logs]
    tasks = [asyncio.create_task(collect(each.subscribe())) for each in handles]

    await asyncio.gather(chat(handles[0], 5), chat(handles[1], 5))
    await session.close()

    events = await read_all(session)
    for seen in await asyncio.gather(*tasks):
        assert seen == events


async def test_subscription_when_it_waits_gets_the_next_event_soon(any_log: EventLog) -> None:
    """An event reaches those who wait for it, whether Redis carries it or Postgres is polled."""
    session = await any_log.create_session()
    subscription = session.subscribe(after=1)
    waiting = asyncio.create_task(take(subscription, 1))
    await until(lambda: subscription.state == "live")

    done = await session.append(message())

    (event,) = await waiting
    assert (event.seq, subscription.cursor) == (done.first_seq, done.first_seq)


async def test_subscription_when_resumed_by_its_cursor_misses_and_repeats_nothing(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Cut off after every few events, resumed in this process and another."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)
    writing = asyncio.create_task(chat(session, 8))
    seen: list[RecordedEvent] = []
    cursor = 0

    while cursor < 105:
        where = session if len(seen) % 2 else other
        async with where.subscribe(after=cursor) as subscription:
            seen += await take(subscription, min(1 + len(seen) % 5, 105 - cursor))
            cursor = subscription.cursor
    await writing

    assert seen == (await read_all(session))[: len(seen)]


async def test_subscription_when_two_begin_at_different_places_each_has_its_own(
    any_log: EventLog,
) -> None:
    """Those who share what is read live don't share where they stand."""
    session = await any_log.create_session()
    first = session.subscribe()
    await take(first, 1)
    await chat(session, 2)
    second = session.subscribe(after=3)
    third = session.subscribe(after=await session.head())
    waiting = asyncio.create_task(take(third, 1))
    events = await read_all(session)

    assert await take(second, len(events) - 3) == events[3:]
    assert await take(first, len(events) - 1) == events[1:]
    done = await session.append(message())
    for one in ((await take(first, 1))[0], (await take(second, 1))[0], (await waiting)[0]):
        assert one.seq == done.first_seq


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [SessionClosed, SessionDeleted])
async def test_subscription_when_the_session_ends_ends_after_that_event(
    any_log: EventLog, last: type[SessionClosed | SessionDeleted]
) -> None:
    """Live, from history, and from a cursor at the very end."""
    session = await any_log.create_session()
    live = session.subscribe()
    waiting = asyncio.create_task(collect(live))
    await until(lambda: live.state == "live")

    await session.append([message(), last()])

    assert [each.seq for each in await waiting] == [1, 2, 3]
    assert live.state == "ended"
    assert [each.seq for each in await collect(session.subscribe())] == [1, 2, 3]
    assert await collect(session.subscribe(after=3)) == []
    with pytest.raises(StopAsyncIteration):
        await anext(live)


async def test_subscription_when_closed_and_deleted_has_both_events(any_log: EventLog) -> None:
    """Whoever reads the close as history finds the deletion behind it by its cursor."""
    session = await any_log.create_session()
    await session.close()
    await session.delete()

    first = await collect(session.subscribe())
    rest = await collect(session.subscribe(after=first[-1].seq))

    assert [each.seq for each in first + rest] == [1, 2, 3]
    assert await collect(session.subscribe(after=3)) == []


async def test_subscription_when_its_cursor_is_beyond_the_end_is_refused(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """A cursor of another session or log is noticed, whoever else follows the session."""
    session = await any_log.create_session()
    following = session.subscribe()
    await take(following, 1)

    for where in (session, await (await open_log()).session(session.id)):
        for after in (2, 1_000, 2**62 - 1):
            with refused(InvalidRequest) as caught:
                await take(where.subscribe(after=after), 1)
            assert "after=0" in str(caught.error)
    bad: list[Any] = [-1, 2**62, 1.0, "1", None]
    for after in bad:
        with refused(InvalidRequest):
            session.subscribe(after=after)


async def test_subscription_when_the_session_is_unknown_is_refused(any_log: EventLog) -> None:
    """From the iterator, by name."""
    with refused(SessionNotFound):
        await take(any_log.handle(uuid.uuid4()).subscribe(), 1)


async def test_subscription_when_closed_by_its_owner_yields_nothing_more(
    any_log: EventLog,
) -> None:
    """After `aclose`, or its block, it is over."""
    session = await any_log.create_session()
    await chat(session, 1)

    async with session.subscribe() as subscription:
        await take(subscription, 2)
    with pytest.raises(StopAsyncIteration):
        await anext(subscription)


async def test_subscription_when_its_log_is_closed_says_so(
    backend: Backend, any_log: EventLog
) -> None:
    """Nobody waits for ever for a log that was closed under it."""
    session = await any_log.create_session(user_id="ada")
    waits = [
        asyncio.create_task(take(session.subscribe(after=1), 1)),
        asyncio.create_task(take(any_log.subscribe(user_id="ada"), 1)),
    ]
    await until(lambda: len(any_log.hub._feeds) == 16 and bool(any_log.hub._sessions))

    await backend.aclose()

    async with asyncio.timeout(WAIT_SECONDS):
        for done in await asyncio.gather(*waits, return_exceptions=True):
            assert isinstance(done, Unavailable), done
    with refused(Unavailable):
        await take(session.subscribe(), 1)


async def test_subscription_when_its_task_is_cancelled_leaves_nothing_behind(
    any_log: EventLog,
) -> None:
    """Waiting with a time limit, again and again: no waiter piles up, and no event is lost."""
    session = await any_log.create_session()
    subscription = session.subscribe(after=1)
    await any_log.create_session()

    for _ in range(50):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(subscription)
    await until(lambda: subscription.state == "live" or _nudge(subscription))
    done = await session.append(message())

    assert [each.seq for each in await take(subscription, 1)] == [done.first_seq]
    tail = subscription._tail
    assert tail is not None
    assert len(tail.waiters) <= 1


async def _nudge(subscription: Any) -> bool:
    try:
        async with asyncio.timeout(0.01):
            await anext(subscription)
    except TimeoutError:
        return False
    raise AssertionError("an event came that nobody appended")


# --- many, and slow ones -------------------------------------------------------------------------


async def test_subscriptions_when_there_are_many_each_have_everything(any_log: EventLog) -> None:
    """200 subscribers of one session, 5 each of 40 others."""
    session = await any_log.create_session()
    others = [await any_log.create_session() for _ in range(40)]
    tasks = [asyncio.create_task(collect(session.subscribe())) for _ in range(200)]
    tasks += [asyncio.create_task(collect(each.subscribe())) for each in others for _ in range(5)]

    await asyncio.gather(*(chat(each, 1) for each in (session, *others)))
    await asyncio.gather(*(each.close() for each in (session, *others)))

    seen = await asyncio.gather(*tasks)
    events = await read_all(session)
    assert all(found == events for found in seen[:200])
    for number, other in enumerate(others):
        expected = await read_all(other)
        assert all(seen[200 + 5 * number + each] == expected for each in range(5))


async def test_subscription_when_slow_falls_behind_catches_up_and_slows_nobody(
    any_log: EventLog,
) -> None:
    """More than the shared tail holds passes by: the slow one reads it from the log."""
    session = await any_log.create_session()
    slow, quick = session.subscribe(), session.subscribe()
    assert len(await take(slow, 1)) == 1
    count = 3 * TAIL_LENGTH
    quickly = asyncio.create_task(take(quick, count + 1))

    for _ in range(0, count, 512):
        await session.append([message()] * 512)
    await quickly
    seen = await take(slow, count)

    assert [each.seq for each in seen] == list(range(2, count + 2))
    states = {slow.state}
    done = await session.append(message())
    assert [each.seq for each in await take(slow, 1)] == [done.first_seq]
    assert states <= {"live", "fell_behind"}


async def test_subscription_when_nobody_asks_it_holds_little(any_log: EventLog) -> None:
    """What a subscription keeps is bounded, however far it is behind."""
    session = await any_log.create_session()
    slow, quick = session.subscribe(), session.subscribe()
    await take(slow, 1)
    await take(quick, 1)

    for _ in range(30):
        await session.append([message()] * 512)
        await take(quick, 512)

    tail = slow._tail
    assert tail is not None
    assert len(tail.items) <= 2 * TAIL_LENGTH
