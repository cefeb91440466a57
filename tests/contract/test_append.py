"""Appending: numbers, ids, rivals, batches, and what a session's life allows."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from eventlog import (
    ANY,
    Appended,
    CompactionCompleted,
    Custom,
    EventIdReused,
    EventLog,
    InvalidEvent,
    InvalidRequest,
    MessageAdded,
    MessageCompleted,
    MessageInterrupted,
    MessageStarted,
    Session,
    SessionClosed,
    SessionClosedError,
    SessionCreated,
    SessionDeleted,
    SessionDeletedError,
    SessionNotFound,
    SessionUpdated,
    TokenAppended,
    TokensAppended,
    WrongExpectedSeq,
)
from eventlog.testing import message, read_all, refused, take
from tests.conftest import OpenLog

# --- numbers and order ---------------------------------------------------------------------------


async def test_append_when_acknowledged_before_another_is_sent_has_the_lower_seq(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Acknowledged before sent means a lower seq, whichever process appends."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)

    done: list[Appended] = []
    for number in range(30):
        writer = session if number % 2 else other
        done.append(await writer.append(message(str(number))))

    assert [each.first_seq for each in done] == list(range(2, 32))
    contents = [_content(each.event) for each in await read_all(session, after=1)]
    assert contents == [str(number) for number in range(30)]


async def test_append_when_called_together_keeps_the_order_of_the_calls(any_log: EventLog) -> None:
    """Within a process, calls that are under way at once are numbered in the order they began."""
    session = await any_log.create_session()

    done = await asyncio.gather(*(session.append(message(str(each))) for each in range(500)))

    assert [each.first_seq for each in done] == list(range(2, 502))


async def test_positions_when_many_sessions_append_are_contiguous(any_log: EventLog) -> None:
    """Each shard's positions are 1, 2, 3, … and every row has one."""
    sessions = [await any_log.create_session() for _ in range(20)]
    done = await asyncio.gather(
        *(session.append([message(), message()]) for session in sessions for _ in range(5))
    )

    heads = await any_log.store.feed_heads()
    rows = [
        row
        for shard in range(any_log.store.shards)
        for row in await any_log.store.read_feed(shard, after=0, limit=1_000)
    ]

    assert sum(heads) == len(rows) == 20 + 2 * len(done)
    for shard, head in enumerate(heads):
        positions = [row.position for row in rows if _shard(any_log, row.session_id) == shard]
        assert positions == list(range(1, head + 1))
    first_rows = {(row.session_id, row.seq): row.position for row in rows}
    assert all(first_rows[each.session_id, each.first_seq] == each.position for each in done)


def _shard(log: EventLog, session_id: uuid.UUID) -> int:
    return log.handle(session_id).shard


async def test_recorded_at_when_appended_is_the_time_and_never_goes_back(
    any_log: EventLog,
) -> None:
    """`recorded_at` is the store's time, aware, one for a batch, and only goes forward."""
    session = await any_log.create_session()
    for _ in range(5):
        await session.append([message(), message()])

    times = [each.recorded_at for each in await read_all(session)]

    assert all(earlier <= later for earlier, later in pairwise(times))
    assert times[1] == times[2]
    assert abs(times[0] - datetime.now(UTC)) < timedelta(minutes=5)


# --- expected seq --------------------------------------------------------------------------------


async def test_append_when_expected_seq_is_right_is_stored(any_log: EventLog) -> None:
    """The seq one has read, or ANY."""
    session = await any_log.create_session()

    one = await session.append(message(), expected_seq=1)
    two = await session.append(message(), expected_seq=one.last_seq)
    three = await session.append(message(), expected_seq=ANY)

    assert [each.first_seq for each in (one, two, three)] == [2, 3, 4]


async def test_append_when_expected_seq_is_wrong_says_what_it_is(any_log: EventLog) -> None:
    """A wrong expectation is refused with the facts that are needed to decide again."""
    session = await any_log.create_session()
    await session.append(message())

    for expected in (0, 1, 3, 2**62 - 1):
        with refused(WrongExpectedSeq) as caught:
            await session.append(message("never"), expected_seq=expected)

        error = caught.error
        assert (error.session_id, error.expected, error.actual) == (session.id, expected, 2)
    assert await session.head() == 2


async def test_append_when_expected_seq_is_that_of_a_frame_is_stored(any_log: EventLog) -> None:
    """A frame's seq is its last increment's; the one inside it is no session's end."""
    session = await any_log.create_session()
    async with session.reply(flush_seconds=60) as reply:
        await reply.write("first")
        await reply.drain()
        for _ in range(9):
            await reply.write("x")
        await reply.drain()
        with refused(WrongExpectedSeq):
            await session.append(message(), expected_seq=8)
        done = await session.append(message(), expected_seq=12)

    assert done.first_seq == 13


async def test_append_when_expected_seq_is_no_seq_is_refused(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """Not a whole number in range: said at the door."""
    session = await any_log.create_session()
    bad: list[Any] = [-1, 2**62, 2**70, 1.0, "1", None, True, [1]]

    for expected in bad:
        with subtests.test(expected=expected), refused(InvalidRequest):
            await session.append(message(), expected_seq=expected)

    assert await session.head() == 1


async def test_append_when_rivals_in_two_processes_expect_one_seq_has_one_winner(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """50 rivals from two processes, three rounds: one winner each."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)

    for seq in (1, 2, 3):
        done = await asyncio.gather(
            *(
                (session if number % 2 else other).append(message(str(number)), expected_seq=seq)
                for number in range(50)
            ),
            return_exceptions=True,
        )
        won = [each for each in done if isinstance(each, Appended)]
        assert [each.first_seq for each in won] == [seq + 1]
        assert sum(isinstance(each, WrongExpectedSeq) for each in done) == 49


# --- event ids -----------------------------------------------------------------------------------


async def test_append_when_repeated_by_another_process_is_a_duplicate(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Whoever retries, whenever, with whichever expectation: the first answer."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)
    event_id = uuid.uuid4()
    first = await session.append([message("a"), message("b")], event_id=event_id, expected_seq=1)
    await session.append(message("c"))

    again = [
        await other.append([message("a"), message("b")], event_id=event_id, expected_seq=1),
        await other.append([message("a"), message("b")], event_id=str(event_id)),
        await session.append([message("a"), message("b")], event_id=event_id, expected_seq=77),
    ]

    assert all(each.duplicate for each in again)
    assert {(each.first_seq, each.last_seq, each.position) for each in again} == {
        (first.first_seq, first.last_seq, first.position)
    }
    assert await session.head() == 4


async def test_append_when_repeated_at_once_is_stored_once(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """20 identical calls from two processes: one event, 19 duplicates."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)
    event_id = uuid.uuid4()

    done = await asyncio.gather(
        *(
            (session if number % 2 else other).append(message("a"), event_id=event_id)
            for number in range(20)
        )
    )

    assert {each.first_seq for each in done} == {2}
    assert sum(each.duplicate for each in done) == 19
    assert await session.head() == 2


async def test_append_when_repeated_after_the_end_is_still_answered(any_log: EventLog) -> None:
    """A retry that comes after the session was closed and deleted gets its answer all the same."""
    session = await any_log.create_session()
    event_id, closing_id = uuid.uuid4(), uuid.uuid4()
    first = await session.append(message("a"), event_id=event_id)
    closed = await session.append(SessionClosed(), event_id=closing_id)
    await session.delete()

    assert (await session.append(message("a"), event_id=event_id)).first_seq == first.first_seq
    assert (await session.append(SessionClosed(), event_id=closing_id)).last_seq == closed.last_seq


async def test_append_when_id_is_of_another_session_is_stored(any_log: EventLog) -> None:
    """Ids are per session: what one session holds says nothing to another."""
    event_id = uuid.uuid4()
    sessions = [await any_log.create_session() for _ in range(2)]

    done = [await each.append(message("a"), event_id=event_id) for each in sessions]

    assert [each.duplicate for each in done] == [False, False]


async def test_append_when_id_overlaps_other_content_is_refused(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """A retry must be the whole batch as it was; a prefix or a longer one is another content."""
    session = await any_log.create_session()

    for stored, retried in (("ab", "a"), ("a", "ab"), ("ab", "ax"), ("ab", "ba"), ("abc", "abcd")):
        event_id = uuid.uuid4()
        done = await session.append([message(text) for text in stored], event_id=event_id)
        with subtests.test(stored=stored, retried=retried):
            with refused(EventIdReused) as caught:
                await session.append([message(text) for text in retried], event_id=event_id)
            assert caught.error.event_id == event_id
            assert await session.head() == done.last_seq


async def test_append_when_a_later_id_of_the_batch_is_taken_is_refused(any_log: EventLog) -> None:
    """The id of a batch's second event may be taken although that of its first is not."""
    session = await any_log.create_session()
    event_id = uuid.uuid4()
    taken = uuid.uuid5(event_id, "1")  # what a batch under `event_id` gives its second event
    await session.append(message("a"), event_id=taken)

    with refused(EventIdReused) as caught:
        await session.append([message("x"), message("y")], event_id=event_id)

    assert caught.error.event_id == taken
    assert await session.head() == 2


async def test_append_when_ids_collide_within_one_commit_stores_one(any_log: EventLog) -> None:
    """Of two calls under way at once whose batches share an id, one is stored, one refused."""
    session = await any_log.create_session()
    event_id = uuid.uuid4()

    done = await asyncio.gather(
        session.append(message("neighbour before")),
        session.append([message("x"), message("y")], event_id=event_id),
        session.append(message("a"), event_id=uuid.uuid5(event_id, "1")),
        session.append(message("neighbour after")),
        return_exceptions=True,
    )

    assert [type(each) for each in done] == [Appended, Appended, EventIdReused, Appended]
    assert await session.head() == 5


async def test_append_when_one_batch_ends_a_message_twice_is_refused(any_log: EventLog) -> None:
    """A batch that names one id twice can't be stored whole, so it isn't stored at all."""
    session = await any_log.create_session()

    with refused(EventIdReused):
        await session.append(
            [
                MessageStarted(message_id="m"),
                MessageCompleted(message_id="m", content="a"),
                MessageInterrupted(message_id="m", content="b"),
            ]
        )

    assert await session.head() == 1


async def test_append_when_event_id_is_no_uuid_is_refused(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """An event id is a UUID; the error says how to get one."""
    session = await any_log.create_session()
    bad: list[Any] = ["", "not a uuid", "1234", 5, 1.5, b"1" * 16, ["x"]]

    for event_id in bad:
        with subtests.test(event_id=event_id):
            with refused(InvalidRequest) as caught:
                await session.append(message(), event_id=event_id)
            assert "uuid" in str(caught.error).lower()

    assert await session.head() == 1


# --- messages that stream ------------------------------------------------------------------------


async def test_append_when_a_message_ends_twice_is_refused(any_log: EventLog) -> None:
    """Completion, interruption, with or without an id of the caller's: a message ends once."""
    session = await any_log.create_session()
    await session.append(MessageStarted(message_id="m"))
    await session.append(MessageCompleted(message_id="m", content="done"))

    again = await session.append(MessageCompleted(message_id="m", content="done"))
    assert again.duplicate
    for ending in (
        MessageCompleted(message_id="m", content="other"),
        MessageInterrupted(message_id="m"),
    ):
        with refused(EventIdReused):
            await session.append(ending)
        with refused(EventIdReused):
            await session.append(ending, event_id=uuid.uuid4())
        with refused(EventIdReused):
            await session.append([message("with it"), ending])

    assert await session.head() == 3


async def test_append_when_a_message_starts_twice_is_refused(any_log: EventLog) -> None:
    """A message id is used once in a session."""
    session = await any_log.create_session()
    await session.append(MessageStarted(message_id="m", agent="a"))

    assert (await session.append(MessageStarted(message_id="m", agent="a"))).duplicate
    with refused(EventIdReused):
        await session.append(MessageStarted(message_id="m", agent="b"))
    with refused(EventIdReused):
        await session.append(MessageStarted(message_id="m", agent="b"), event_id=uuid.uuid4())


# --- batches -------------------------------------------------------------------------------------


async def test_append_when_batch_is_at_its_limit_is_stored(any_log: EventLog) -> None:
    """1,000 events go, 1,001 don't, and none of those is stored."""
    session = await any_log.create_session()

    done = await session.append([message(str(number)) for number in range(1_000)])
    with refused(InvalidRequest) as caught:
        await session.append([message(str(number)) for number in range(1_001)])

    assert (done.first_seq, done.last_seq) == (2, 1_001)
    assert "1000" in str(caught.error)
    assert await session.head() == 1_001


async def test_append_when_batch_has_too_many_bytes_is_refused(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Events that fit one by one may be too much for one transaction; the error says to split."""
    session = await (await open_log(event_bytes_max=2**20)).session(
        (await any_log.create_session()).id
    )
    large = "x" * (2**20 - 100)

    with refused(InvalidRequest) as caught:
        await session.append([message(large) for _ in range(100)])

    assert "split" in str(caught.error)
    assert await session.head() == 1


async def test_append_when_batches_interleave_keeps_each_together(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Batches of two processes never mix: each has consecutive seqs."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)

    done = await asyncio.gather(
        *(
            (session if number % 2 else other).append([message(f"{number}")] * 5)
            for number in range(40)
        )
    )

    texts = [_content(each.event) for each in await read_all(session, after=1)]
    assert len(texts) == 200
    assert all(len(set(texts[at : at + 5])) == 1 for at in range(0, 200, 5))
    assert sorted(each.first_seq for each in done) == list(range(2, 202, 5))


def _content(event: object) -> object:
    assert isinstance(event, MessageAdded)
    return event.content


# --- what can't be appended ----------------------------------------------------------------------


NO_EVENTS: list[Any] = [
    SessionCreated(),
    TokensAppended(message_id="m", texts=["a"], ms=[1]),
    TokenAppended(message_id="m", text="a"),
    "text",
    None,
    {"type": "message.added"},
    42,
    MessageAdded,
    MessageAdded(role="nobody"),  # type: ignore[arg-type]
    MessageAdded(role="user", content=b"bytes"),  # type: ignore[arg-type]
    MessageAdded(role="user", token_count="5"),  # type: ignore[arg-type]
    MessageAdded(role="user", metadata=[]),  # type: ignore[arg-type]
    Custom(name=None),  # type: ignore[arg-type]
    Custom(name="x", data={1: "keys are strings"}),
    Custom(name="x", data=object()),
    CompactionCompleted(summary="s", from_seq=1, to_seq=2**63),
]


async def test_append_when_it_is_no_event_is_refused(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """What is no event, or has a field of another type, is refused by name, before it is sent."""
    session = await any_log.create_session()

    for event in NO_EVENTS:
        with subtests.test(event=repr(event)[:60]):
            with refused(InvalidEvent):
                await session.append(event)
            with refused(InvalidEvent):
                await session.append([message(), event])

    assert await session.head() == 1


ACTS: dict[str, Callable[[Session], Awaitable[object]]] = {
    "append": lambda session: session.append(message()),
    "append expecting": lambda session: session.append(message(), expected_seq=0),
    "append by id": lambda session: session.append(message(), event_id=uuid.uuid4()),
    "head": lambda session: session.head(),
    "replay": lambda session: session.replay(),
    "replay at 0": lambda session: session.replay(0),
    "context": lambda session: session.context(),
    "fork": lambda session: session.fork(),
    "rewind": lambda session: session.rewind(to=0),
    "undo": lambda session: session.undo(),
    "clear": lambda session: session.clear(),
    "close": lambda session: session.close(),
    "delete": lambda session: session.delete(),
    "interrupt": lambda session: session.interrupt(),
    "read": read_all,
    "reply": lambda session: session.reply().__aenter__(),
    "subscribe": lambda session: take(session.subscribe(), 1),
}


async def test_session_when_it_does_not_exist_refuses_everything(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """A handle of a session that was never made is told so by every method."""
    session = any_log.handle(uuid.uuid4())

    for name, act in ACTS.items():
        with subtests.test(act=name), refused(SessionNotFound):
            await act(session)

    assert await any_log.store.heads([session.id]) == {}


# --- a session's end -----------------------------------------------------------------------------


async def test_append_when_session_is_closed_takes_only_its_deletion(any_log: EventLog) -> None:
    """After the close nothing but a deletion is stored; after that nothing."""
    session = await any_log.create_session()
    await session.close()

    for attempt in (session.append(message()), session.update(title="x"), session.close()):
        with refused(SessionClosedError):
            await attempt
    with refused(SessionClosedError):
        await session.append(message(), expected_seq=1)
    await session.delete()
    for attempt in (session.append(message()), session.delete()):
        with refused(SessionDeletedError):
            await attempt

    assert await session.head() == 3


@pytest.mark.parametrize("last", [SessionClosed(), SessionDeleted()], ids=["closed", "deleted"])
async def test_append_when_something_follows_the_end_in_one_batch_is_refused(
    any_log: EventLog, last: SessionClosed | SessionDeleted
) -> None:
    """The end of a session is the end of its batch: nothing may slip in behind it."""
    session = await any_log.create_session()

    with refused(InvalidRequest):
        await session.append([message(), last, message("behind the end")])

    assert await session.head() == 1
    await session.append([message(), last])
    assert await session.head() == 3


async def test_append_when_called_with_the_end_keeps_the_order_of_the_calls(
    any_log: EventLog,
) -> None:
    """What was called before the end is stored, what was called after it is refused."""
    session = await any_log.create_session()

    done = await asyncio.gather(
        session.append(message("before")),
        session.append(SessionClosed()),
        session.append(message("after")),
        return_exceptions=True,
    )

    assert [type(each) for each in done] == [Appended, Appended, SessionClosedError]


# --- sessions by key -----------------------------------------------------------------------------


async def test_create_session_when_key_exists_returns_it_unchanged(any_log: EventLog) -> None:
    """The first creation counts; a later one with other fields changes nothing."""
    first = await any_log.create_session("k", user_id="ada", title="one", metadata={"a": 1})
    again = await any_log.create_session("k", user_id="bob", title="two", metadata={"b": 2})

    state = await again.replay()
    assert again.id == first.id
    assert (state.key, state.user_id, state.title) == ("k", "ada", "one")
    assert (state.metadata, state.seq) == ({"a": 1}, 1)


async def test_create_session_when_two_processes_race_makes_one(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """One key at once from two processes: one session, one first event."""
    other = await open_log()

    made = await asyncio.gather(
        *((any_log if number % 2 else other).create_session("race") for number in range(20))
    )

    assert len({each.id for each in made}) == 1
    assert await made[0].head() == 1


async def test_create_session_when_key_is_a_uuid_stands_for_itself(any_log: EventLog) -> None:
    """A UUID, or its text, is the session's id; other texts are names for one."""
    chosen = uuid.uuid4()
    session = await any_log.create_session(chosen)

    assert session.id == chosen
    assert (await any_log.session(str(chosen))).id == chosen
    assert (await any_log.session(chosen.hex.upper())).id == chosen
    with refused(SessionNotFound):
        await any_log.session("{" + str(chosen) + "}")


async def test_create_session_when_key_is_any_text_finds_it_again(any_log: EventLog) -> None:
    """Any text is a key, kept exactly."""
    for key in ("a", "  ", "ключ", "👩‍👩‍👧", "x" * 100_000, "a\u0000b", "../..", "'; drop table"):
        session = await any_log.create_session(key)

        assert (await any_log.session(key)).id == session.id
        assert (await session.replay()).key == key


async def test_session_when_key_is_no_text_is_refused(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """An empty key, one without a UTF-8 form and one of another type are refused by name."""
    bad: list[Any] = ["", "\ud800", 5, 1.5, b"bytes", ("a",)]

    for key in bad:
        with subtests.test(key=ascii(key)):
            with refused(InvalidRequest):
                await any_log.create_session(key)
            with refused(InvalidRequest):
                await any_log.session(key)


async def test_update_when_patched_changes_title_and_metadata(any_log: EventLog) -> None:
    """A patch: named keys change, None removes, the rest stays."""
    session = await any_log.create_session(title="t", metadata={"a": 1, "b": 2})

    await session.update(metadata={"a": None, "c": 3})
    await session.append(SessionUpdated(title="u"))

    state = await session.replay()
    assert (state.title, state.metadata) == ("u", {"b": 2, "c": 3})
