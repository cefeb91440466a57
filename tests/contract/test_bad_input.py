"""Input that breaks things: stored exactly, or refused whole by an error that says what to do.

Each kind goes through the real API on every store, alone, in a batch and among neighbours that are
committed with it. Whatever becomes of it, the neighbours are stored, and everything that is stored
can be read again, one by one, folded, forked and subscribed to.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from eventlog import (
    Appended,
    Custom,
    EventIdReused,
    EventLog,
    EventLogError,
    InvalidEvent,
    InvalidRequest,
    MessageAdded,
    ScratchpadWritten,
    Session,
    SessionNotFound,
    SessionUpdated,
    ToolCall,
    Usage,
    WrongExpectedSeq,
)
from eventlog.testing import assert_replays, message, read_all, refused, take
from tests.conftest import OpenLog


def nested(depth: int) -> Any:
    """Lists within lists, made without recursion."""
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


EXACT: dict[str, Any] = {
    "NUL in content": message("a\u0000b\u0000"),
    "NUL everywhere": MessageAdded(
        role="user",
        name="\u0000",
        message_id="\u0000m",
        metadata={"\u0000": "\u0000"},
        native={"\u0000": ["\u0000"]},
        tool_calls=[ToolCall(id="\u0000", name="\u0000", arguments="\u0000")],
    ),
    "what looks like an escape": message('\\u0000 \\ud800 \\\\ " \\n'),
    "separators of JavaScript": message("\u2028\u2029"),
    "right to left override": message("\u202etxt.exe\u202c"),
    "noncharacters": message("\ufffe\uffff\U0010ffff"),
    "every plane": message("".join(chr(plane * 0x10000 + 0x41) for plane in range(17))),
    "byte order mark": message("\ufefftext"),
    "emoji of many parts": message("👩‍👩‍👧‍👦🏳️‍🌈"),
    "a combining bomb": message("Z" + "\u0300" * 10_000),
    "control characters": message("".join(map(chr, range(32))) + "\x7f\x85\x1b[31m"),
    "line ends": message("a\r\nb\rc\n\n"),
    "empty": message(""),
    "spaces": message(" \t \u00a0\u3000"),
    "a megabyte": message("x" * 2**20),
    "10 MB": message("é" * (5 * 2**20)),
    "largest integers": Custom(name="x", data=[2**63 - 1, -(2**63), 2**53 + 1, 0, -1]),
    "floats at their limits": Custom(name="x", data=[1.7976931348623157e308, 5e-324, 0.1, 1e22]),
    "depth at its limit": Custom(name="x", data=nested(128)),
    "10,000 keys": Custom(name="x", data={f"k{n}": n for n in range(10_000)}),
    "empty names": ScratchpadWritten(name="", value=""),
    "a key that looks like a path": ScratchpadWritten(name="../../$..__proto__", value={}),
    "text that looks like SQL": message("'; drop table eventlog.events; --"),
    "text that looks like an event": message('{"type":"session.deleted"}'),
    "raw JSON": Custom(name="x", data=msgspec.Raw(b'{"a":[1,2,{"b":null}]}')),
}
"""What must come back equal to what was given."""

REFUSED: dict[str, Any] = {
    "lone high surrogate": message("a\ud800"),
    "lone low surrogate": message("\udfffa"),
    "surrogates in the wrong order": message("\udc00\ud800"),
    "surrogate in a key": Custom(name="x", data={"\ud800": 1}),
    "surrogate deep inside": MessageAdded(role="user", native=[{"a": ["\ud800"]}]),
    "surrogate in a name": ScratchpadWritten(name="\ud800"),
    "NaN": Custom(name="x", data=float("nan")),
    "infinity deep inside": Custom(name="x", data={"a": [1, {"b": float("-inf")}]}),
    "NaN in metadata": SessionUpdated(metadata={"a": float("nan")}),
    "2^63": Custom(name="x", data=2**63),
    "-2^63-1": Custom(name="x", data=[-(2**63) - 1]),
    "10^5000": Custom(name="x", data=10**4000),
    "2^63 tokens": MessageAdded(role="user", token_count=2**63),
    "2^64 used": MessageAdded(role="user", usage=Usage(input_tokens=2**64)),
    "depth 129": Custom(name="x", data=nested(129)),
    "depth 10,000": Custom(name="x", data=nested(10_000)),
    "depth 100,000": MessageAdded(role="user", native=nested(100_000)),
    "more than the limit": message("x" * (17 * 2**20)),
    "more than the limit, as JSON": message("\u0000" * (3 * 2**20)),
    "invalid UTF-8": MessageAdded(role="user", content=b"\xff\xfe"),  # type: ignore[arg-type]
    "invalid UTF-8 in raw JSON": Custom(name="x", data=msgspec.Raw(b'"\xff"')),
    "overlong UTF-8 in raw JSON": Custom(name="x", data=msgspec.Raw(b'"\xc0\x80"')),
    "broken raw JSON": Custom(name="x", data=msgspec.Raw(b'{"a":')),
    "NaN in raw JSON": Custom(name="x", data=msgspec.Raw(b"NaN")),
    "bytes": Custom(name="x", data=b"bytes"),
    "a set": Custom(name="x", data={1, 2}),
    "a number as key": Custom(name="x", data={1: 2}),
    "None as key": Custom(name="x", data={None: 2}),
    "an object": Custom(name="x", data=object()),
    "itself": None,  # filled below
}
"""What is refused whole."""

_ITSELF: list[Any] = []
_ITSELF.append(_ITSELF)
REFUSED["itself"] = Custom(name="x", data=_ITSELF)


async def test_input_when_it_can_be_stored_comes_back_exactly(
    any_log: EventLog, open_log: OpenLog, subtests: pytest.Subtests
) -> None:
    """Text of every kind, numbers at their limits, 10 MB: equal after every round trip."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)
    live = asyncio.create_task(take(other.subscribe(after=1), len(EXACT), seconds=60))

    given = []
    for name, event in EXACT.items():
        with subtests.test(given=name):
            done = await session.append(event)
            (found,) = await read_all(other, after=done.last_seq - 1)
            assert _plain(found.event) == _plain(event)
        given.append(event)

    seen = [_plain(each.event) for each in await live]
    assert seen == [_plain(each) for each in given]
    await assert_replays(session, step=5)
    assert (await (await session.fork()).replay()).context() == await other.context()


def _plain(event: Any) -> Any:
    """The event as plain JSON values, so that raw JSON compares with what it was read as."""
    return msgspec.json.decode(msgspec.json.encode(event))


async def test_input_when_it_can_not_be_stored_is_refused_whole(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """Alone and within a batch: a typed error that says where and what to do, nothing stored."""
    session = await any_log.create_session()

    for name, event in REFUSED.items():
        with subtests.test(given=name):
            with refused(InvalidEvent) as caught:
                await session.append(event)
            text = str(caught.error)
            assert len(text) < 2_000
            text.encode()  # printable everywhere
            with refused(InvalidEvent):
                await session.append([message("before"), event, message("after")])

    assert await session.head() == 1


async def test_input_when_it_is_bad_does_not_hurt_its_neighbours(any_log: EventLog) -> None:
    """Bad and good calls at once, in many sessions: exactly the good ones are stored."""
    sessions = [await any_log.create_session() for _ in range(5)]
    acts: list[tuple[Session, Any, bool]] = []
    for number, event in enumerate(REFUSED.values()):
        session = sessions[number % 5]
        acts += [(session, event, False), (session, message(f"{number}"), True)]

    done = await asyncio.gather(
        *(session.append(event) for session, event, _ in acts), return_exceptions=True
    )

    for (_, _, good), result in zip(acts, done, strict=True):
        assert isinstance(result, Appended if good else InvalidEvent), result
    assert sum([await each.head() for each in sessions]) == 5 + len(REFUSED)


TAKEN = uuid.uuid4()
Attempt = Callable[[EventLog, Session], Any]
REQUESTS: dict[str, tuple[Attempt, type[EventLogError]]] = {
    "empty batch": (lambda log, session: session.append([]), InvalidRequest),
    "batch of 1,001": (lambda log, session: session.append([message()] * 1_001), InvalidRequest),
    "reused id": (
        lambda log, session: session.append(message("other"), event_id=TAKEN),
        EventIdReused,
    ),
    "unknown session": (
        lambda log, session: log.handle(uuid.uuid4()).append(message()),
        SessionNotFound,
    ),
    "wrong seq": (lambda log, session: session.append(message(), expected_seq=0), WrongExpectedSeq),
    "seq from the future": (
        lambda log, session: session.append(message(), expected_seq=2**61),
        WrongExpectedSeq,
    ),
    "seq of 2^63": (
        lambda log, session: session.append(message(), expected_seq=2**63),
        InvalidRequest,
    ),
    "negative seq": (
        lambda log, session: session.append(message(), expected_seq=-1),
        InvalidRequest,
    ),
    "id with a surrogate": (
        lambda log, session: session.append(message(), event_id="\ud800"),
        InvalidRequest,
    ),
    "message id with a surrogate": (
        lambda log, session: session.reply(message_id="\ud800").__aenter__(),
        InvalidRequest,
    ),
    "user with a surrogate": (
        lambda log, session: log.create_session(user_id="\ud800"),
        InvalidEvent,
    ),
    "title with a surrogate": (
        lambda log, session: log.create_session(title="\ud800"),
        InvalidEvent,
    ),
    "key with a surrogate": (lambda log, session: log.create_session("\ud800"), InvalidRequest),
    "metadata with NaN": (
        lambda log, session: log.create_session(metadata={"a": float("nan")}),
        InvalidEvent,
    ),
    "fork with NaN": (
        lambda log, session: session.fork(metadata={"a": float("nan")}),
        InvalidEvent,
    ),
    "replay beyond the end": (lambda log, session: session.replay(3), InvalidRequest),
    "fork beyond the end": (lambda log, session: session.fork(at=3), InvalidRequest),
    "cursor beyond the end": (
        lambda log, session: take(session.subscribe(after=3), 1),
        InvalidRequest,
    ),
}


async def test_request_when_it_is_bad_is_refused_by_name(
    any_log: EventLog, subtests: pytest.Subtests
) -> None:
    """The issue's table, as requests: each has its error, each message says what to do."""
    session = await any_log.create_session()
    await session.append(message("first"), event_id=TAKEN)

    for name, (act, expected) in REQUESTS.items():
        with subtests.test(request=name):
            with refused(expected) as caught:
                await act(any_log, session)
            str(caught.error).encode()

    assert await session.head() == 2


async def test_request_when_it_is_bad_and_batched_hits_only_itself(any_log: EventLog) -> None:
    """Refused and good commands of one commit: each gets its own answer."""
    session, closed = await any_log.create_session(), await any_log.create_session()
    await session.append(message("first"), event_id=TAKEN)
    await closed.close()

    done = await asyncio.gather(
        session.append(message("1")),
        session.append(message("other"), event_id=TAKEN),
        any_log.handle(uuid.uuid4()).append(message()),
        session.append(message("2")),
        closed.append(message()),
        session.append(message("first"), event_id=TAKEN),
        session.append(message("3"), expected_seq=0),
        session.append(message("4")),
        return_exceptions=True,
    )

    results = [each if isinstance(each, Appended) else type(each).__name__ for each in done]
    assert [each.first_seq if isinstance(each, Appended) else each for each in results] == [
        *(3, "EventIdReused", "SessionNotFound", 4, "SessionClosed", 2, "WrongExpectedSeq", 5)
    ]
