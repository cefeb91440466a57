"""What the demo claims, looked at afterwards. Each check says what it compared, and can fail."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Final

import msgspec

from eventlog import EventLog, RecordedEvent, Session, SessionState, fold, initial
from eventlog.errors import EventLogError
from eventlog.state import SessionHeader
from eventlog.views import view_of
from projections.checkpoint import postgres_of
from workers.demo.player import Player
from workers.demo.watcher import Watcher

SETTLE_SECONDS_MAX: Final = 15.0
"""How long relay and projector may take to catch up at the end."""
POLL_SECONDS: Final = 0.05
_COMPARED: Final = [name for name in SessionHeader.__struct_fields__ if name != "opened"]


class Check(msgspec.Struct, frozen=True):
    """A claim, and what is wrong with it; empty when it holds."""

    claim: str
    wrong: str = ""


class Then(msgspec.Struct, frozen=True, kw_only=True):
    """The conversation at one point of its past, replayed, and folded from what was received."""

    title: str
    at: int | datetime
    state: SessionState
    expected: SessionState


async def run_checks(
    log: EventLog, session: Session, watcher: Watcher, player: Player
) -> tuple[list[Check], list[Then]]:
    """All checks, after the conversation is over, and the points in time that one of them tried."""
    head = await session.head()
    await watcher.reach(head)
    state = await session.replay()
    past = [await then for then in _points(session, watcher.received)]
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
    async with session.subscribe(after=cursor) as events:
        while len(rest) < head - cursor:
            rest.append(await anext(events))
    if rest != [each for each in received if each.seq > cursor]:
        return Check(claim, f"its {len(rest):,} events are not what the first one got")
    return Check(claim)


def _points(session: Session, received: list[RecordedEvent]):  # type: ignore[no-untyped-def]
    raise NotImplementedError
