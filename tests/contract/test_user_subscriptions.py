"""Subscriptions to a user: all sessions of theirs, those created later too, resumable."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import pytest

from eventlog import EventLog, InvalidRequest, RecordedEvent, Session, UserSubscription
from eventlog.subscription import FeedCursor
from eventlog.testing import message, read_all, refused, rich_history, take, until
from tests.conftest import OpenLog


def by_session(events: Iterable[RecordedEvent]) -> dict[UUID, list[RecordedEvent]]:
    """The events of each session, in the order they came."""
    found: dict[UUID, list[RecordedEvent]] = defaultdict(list)
    for each in events:
        found[each.session_id].append(each)
    return found


async def started(subscription: UserSubscription) -> asyncio.Task[list[RecordedEvent]]:
    """A task that takes the next event, once the subscription knows where it begins."""
    task = asyncio.create_task(take(subscription, 1))

    def begun() -> bool:
        try:
            return bool(subscription.cursor)
        except InvalidRequest:
            return False

    await until(begun)
    return task


async def test_user_subscription_when_sessions_come_and_go_has_all_of_them(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Sessions that exist, sessions created later, by other processes, forks; nobody else's."""
    first = await any_log.create_session(user_id="ada")
    foreign = await any_log.create_session(user_id="bob")
    other = await open_log()
    subscription = any_log.subscribe(user_id="ada")
    next_one = await started(subscription)

    await first.append(message("known"))
    second = await other.create_session(user_id="ada")
    await foreign.append(message("foreign"))
    async with second.reply(flush_seconds=0) as reply:
        for _ in range(5):
            await reply.write("x")
    fork = await first.fork()
    await any_log.create_session()
    await fork.append(message("fork"))

    events = await next_one + await take(subscription, 10)
    found = by_session(events)
    assert found == {
        first.id: await read_all(first, after=1),
        second.id: await read_all(second),
        fork.id: await read_all(fork, after=2),
    }


async def test_user_subscription_when_asked_from_the_start_has_history_first(
    any_log: EventLog,
) -> None:
    """What the sessions hold, then what comes, without gap or repeat."""
    sessions = [await rich_history(any_log) for _ in range(3)]
    await rich_history_of(any_log, "bob")
    count = sum([await each.head() for each in sessions])
    subscription = any_log.subscribe(user_id="ada", from_start=True)

    history = await take(subscription, count)
    for each in sessions:
        await each.append(message("live"))
    live = await take(subscription, 3)

    found = by_session(history + live)
    assert found == {each.id: await read_all(each) for each in sessions}


async def rich_history_of(log: EventLog, user_id: str) -> Session:
    session = await log.create_session(user_id=user_id)
    await session.append([message()] * 10)
    return session


async def test_user_subscription_when_sessions_are_written_while_it_starts_misses_none(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """History and live part meet at one point, however much is appended meanwhile."""
    sessions = [await any_log.create_session(user_id="ada") for _ in range(5)]
    other = await open_log()
    stop = asyncio.Event()

    async def write(session: Session) -> None:
        while not stop.is_set():
            await session.append([message()] * 3)

    writers = [asyncio.create_task(write(await other.session(each.id))) for each in sessions]
    subscription = any_log.subscribe(user_id="ada", from_start=True)
    events = await take(subscription, 300)
    stop.set()
    await asyncio.gather(*writers)
    heads = {each.id: await each.head() for each in sessions}
    events += await take(subscription, sum(heads.values()) - 300)

    for each in sessions:
        assert [e.seq for e in events if e.session_id == each.id] == list(
            range(1, heads[each.id] + 1)
        )


async def test_user_subscription_when_resumed_by_its_cursor_goes_on_exactly_there(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Cut off after every few events; only the increments of one row may come again."""
    sessions = [await any_log.create_session(user_id="ada") for _ in range(3)]
    subscription = any_log.subscribe(user_id="ada")
    next_one = await started(subscription)
    for number in range(20):
        await sessions[number % 3].append([message(f"{number}"), message()])
    seen = await next_one
    other = await open_log()

    while len(seen) < 40:
        cursor = subscription.cursor
        await subscription.aclose()
        subscription = (other if len(seen) % 2 else any_log).subscribe(user_id="ada", after=cursor)
        seen += await take(subscription, min(3, 40 - len(seen)))

    assert by_session(seen) == {each.id: await read_all(each, after=1) for each in sessions}


async def test_user_subscription_when_resumed_inside_a_row_repeats_that_row(
    any_log: EventLog,
) -> None:
    """A cursor counts rows: increments of a row half delivered come again, none is missed."""
    session = await any_log.create_session(user_id="ada")
    subscription = any_log.subscribe(user_id="ada")
    next_one = await started(subscription)
    async with session.reply(flush_seconds=60) as reply:
        for piece in "abcdef":
            await reply.write(piece)
    seen = await next_one + await take(subscription, 3)

    resumed = any_log.subscribe(user_id="ada", after=subscription.cursor)
    again = await take(resumed, 6)

    assert [each.seq for each in seen] == [2, 3, 4, 5]
    assert [each.seq for each in again] == [4, 5, 6, 7, 8, 9]


async def test_user_subscription_when_nothing_of_the_user_happens_still_moves(
    any_log: EventLog,
) -> None:
    """Others' events move the cursor along, so that a resumption does not read them all again."""
    await any_log.create_session(user_id="ada")
    subscription = any_log.subscribe(user_id="ada")
    next_one = await started(subscription)
    before = subscription.cursor
    foreign = await any_log.create_session(user_id="bob")

    await foreign.append([message()] * 20)
    await until(lambda: subscription.cursor != before)

    mine = await any_log.create_session(user_id="ada")
    assert [each.session_id for each in await next_one] == [mine.id]


async def test_user_subscription_when_the_cursor_is_none_of_this_log_is_refused(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """Garbage, cursors of other logs and cursors ahead of this one."""
    await any_log.create_session(user_id="ada")
    subscription = any_log.subscribe(user_id="ada")
    next_one = await started(subscription)
    good = subscription.cursor
    log_id, positions = _parts(good)
    bad: dict[str, Any] = {
        "empty": "",
        "garbage": "not a cursor",
        "not ascii": "ключ",
        "another log": _cursor(uuid.uuid4(), positions),
        "ahead": _cursor(log_id, [2**40] * len(positions)),
        "too few": _cursor(log_id, positions[:-1]),
        "no text": 5,
    }
    next_one.cancel()

    for name, cursor in bad.items():
        with subtests.test(cursor=name), refused(InvalidRequest):
            await take(any_log.subscribe(user_id="ada", after=cursor), 1)


def _parts(cursor: str) -> tuple[UUID, list[int]]:
    decoded = FeedCursor.decode(cursor)
    return decoded.log_id, decoded.positions


def _cursor(log_id: UUID, positions: list[int]) -> str:
    return FeedCursor(log_id, positions).encode()


async def test_user_subscription_when_there_are_many_each_has_its_users(
    any_log: EventLog,
) -> None:
    """20 users, each with a subscriber: nobody sees another's events."""
    users = [f"user {number}" for number in range(20)]
    subscriptions = {each: any_log.subscribe(user_id=each) for each in users}
    tasks = {each: await started(subscriptions[each]) for each in users}

    sessions = {each: await any_log.create_session(user_id=each) for each in users}
    await asyncio.gather(*(each.append([message()] * 3) for each in sessions.values()))

    for user in users:
        events = await tasks[user] + await take(subscriptions[user], 3)
        assert [(each.session_id, each.seq) for each in events] == [
            (sessions[user].id, seq) for seq in (1, 2, 3, 4)
        ]
