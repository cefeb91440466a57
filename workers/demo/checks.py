"""What the demo claims, looked at afterwards. Each check says what it compared, and can fail."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import datetime
from typing import Final

import msgspec

from eventlog import EventLog, RecordedEvent, Session, SessionState, TokenAppended, fold, initial
from eventlog.errors import EventLogError
from eventlog.state import SessionHeader
from eventlog.views import view_of
from projections.checkpoint import postgres_of
from workers.demo.player import Player
from workers.demo.watcher import Watcher

SETTLE_SECONDS_MAX: Final = 15.0
"""How long relay and projector may take to catch up at the end."""
POLL_SECONDS: Final = 0.05
REPLY_INCREMENTS_MIN: Final = 8
"""So many increments of text before a point are a reply that streams."""
_COMPARED: Final = [name for name in SessionHeader.__struct_fields__ if name != "opened"]


class Check(msgspec.Struct, frozen=True):
    """A claim, and what is wrong with it; empty when it holds."""

    claim: str
    wrong: str = ""


class Then(msgspec.Struct, frozen=True, kw_only=True):
    """The conversation at one point of its past, replayed, and folded from what was received."""

    title: str
    state: SessionState
    expected: SessionState


async def run_checks(
    log: EventLog, session: Session, watcher: Watcher, player: Player
) -> tuple[list[Check], list[Then]]:
    """All checks, after the conversation is over, and the points in time that one of them tried."""
    head = await session.head()
    await watcher.reach(head)
    state = await session.replay()
    past = await _points(session, watcher.received)
    checks = [
        _check_once(watcher.received, head),
        _check_said(state, player),
        await _check_resumed(session, watcher.received, head),
        _check_past(past),
        await _check_view(log, session),
    ]
    if log.fanout is not None:
        checks.append(await _check_feeds(log))
    return checks, past


def _check_once(received: list[RecordedEvent], head: int) -> Check:
    claim = f"the subscriber got seq 1 to {head:,}, each once and in order"
    for expected, recorded in enumerate(received, 1):
        if recorded.seq != expected:
            return Check(claim, f"after seq {expected - 1:,} came {recorded.seq:,}")
    if len(received) != head:
        return Check(claim, f"it got {len(received):,} events")
    return Check(claim)


def _check_said(state: SessionState, player: Player) -> Check:
    claim = f"{len(player.said)} streamed replies are stored word for word"
    messages = {message.message_id: message for message in state.messages}
    for message_id, spoken in player.said.items():
        message = messages.get(message_id)
        if message is None:
            return Check(claim, f"reply {message_id} is not there")
        heard = (message.content, message.reasoning, message.tool_calls)
        if heard != (spoken.content, spoken.reasoning, spoken.tool_calls):
            return Check(claim, f"reply {message_id} at seq {message.seq:,} is not what was said")
    return Check(claim)


async def _check_resumed(session: Session, received: list[RecordedEvent], head: int) -> Check:
    cursor = head // 2
    claim = f"a subscriber that comes back at seq {cursor:,} gets the rest, and nothing twice"
    rest: list[RecordedEvent] = []
    try:
        async with asyncio.timeout(SETTLE_SECONDS_MAX), session.subscribe(after=cursor) as events:
            while len(rest) < head - cursor:
                rest.append(await anext(events))
    except TimeoutError:
        return Check(claim, f"it got {len(rest):,} of {head - cursor:,} events")
    if rest != [each for each in received if each.seq > cursor]:
        return Check(claim, f"its {len(rest):,} events are not what the first one got")
    return Check(claim)


async def _points(session: Session, received: list[RecordedEvent]) -> list[Then]:
    """Three points of the past: a time, a seq within a streaming reply, a seq near the end."""
    if not received:
        return []
    early = received[len(received) // 4].recorded_at
    streaming = _mid_reply(received)
    late = received[len(received) * 9 // 10].seq
    points: list[tuple[str, int | datetime]] = [
        (f"at {early.astimezone():%H:%M:%S.%f}", early),
        (f"at seq {streaming:,}, in mid-reply", streaming),
        (f"at seq {late:,}", late),
    ]
    return [await _then(session, received, title, at) for title, at in points]


async def _then(
    session: Session, received: list[RecordedEvent], title: str, at: int | datetime
) -> Then:
    if isinstance(at, datetime):
        seen = [each for each in received if each.recorded_at <= at]
    else:
        seen = [each for each in received if each.seq <= at]
    expected = fold(initial(session.id), seen)
    return Then(title=title, state=await session.replay(at), expected=expected)


def _mid_reply(received: list[RecordedEvent]) -> int:
    """A seq with text of one reply before and after it, after the middle if there is one."""
    late = range(len(received) * 6 // 10, len(received))
    for place in itertools.chain(late, range(len(received))):
        around = received[max(0, place - REPLY_INCREMENTS_MIN) : place + 2]
        texts = [
            each.event.message_id
            for each in around
            if isinstance(each.event, TokenAppended) and each.event.channel == "text"
        ]
        if len(texts) == REPLY_INCREMENTS_MIN + 2 and len(set(texts)) == 1:
            return received[place].seq
    return received[len(received) // 2].seq


def _check_past(past: list[Then]) -> Check:
    claim = "three points of the past, replayed, are what the subscriber had seen by then"
    for then in past:
        if difference := _difference(then.state, then.expected):
            return Check(claim, f"{then.title}: {difference}")
    return Check(claim, "" if past else "nothing was received")


def _difference(state: SessionState, expected: SessionState) -> str:
    for name in _COMPARED:
        if getattr(state, name) != getattr(expected, name):
            return f"{name} differs"
    return "" if list(state.messages) == list(expected.messages) else "the messages differ"


async def _check_view(log: EventLog, session: Session) -> Check:
    claim = "the session's view, as the projector keeps it, equals the fold of the log"
    state = await session.replay()
    expected = view_of(state)
    store = postgres_of(log)
    view = await store.session_view(session.id)
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while (view is None or view.seq < expected.seq) and time.monotonic() < deadline:
        await asyncio.sleep(POLL_SECONDS)
        view = await store.session_view(session.id)
    if view is None:
        return Check(claim, "the view has no such session")
    claim += f" ({view.message_count} messages, seq {view.seq:,})"
    for name in view.__struct_fields__:
        if getattr(view, name) != getattr(expected, name):
            return Check(claim, f"{name} is {getattr(view, name)!r:.60}")
    if view.message_count != len(state.messages):
        return Check(claim, f"{len(state.messages)} messages are in the fold")
    return Check(claim)


async def _check_feeds(log: EventLog) -> Check:
    claim = "Redis is again a copy of the log's end, in every shard"
    assert log.fanout is not None
    heads = await log.store.feed_heads()
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        try:
            ends = await log.fanout.ends()
        except EventLogError as error:
            ends, why = [], str(error)
        else:
            why = "it lacks rows of some shards"
            if all(end >= head for end, head in zip(ends, heads, strict=True)):
                return Check(claim)
        if time.monotonic() > deadline:
            return Check(claim, why)
        await asyncio.sleep(POLL_SECONDS)
