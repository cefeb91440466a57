"""Changing a conversation by appending: rewind, undo, clear, close, taking over a dead reply.

Each of these reads the state, decides, and appends with `expected_seq`, so what it decided on is
what was there; when somebody else appended meanwhile it reads and decides again. In a session where
others append without pause it would never get a turn: after some tries it locks the shard.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from eventlog import events as ev
from eventlog.entries import Message
from eventlog.envelope import Appended, Draft, new_id
from eventlog.errors import EventIdReused, InvalidRequest, WrongExpectedSeq
from eventlog.state import SessionState

if TYPE_CHECKING:
    from eventlog.session import Session

CONTENDED_TRIES_MAX: Final = 8
"""Rivals that may append in between before the shard is locked to get a turn."""


async def decide(
    session: Session,
    choose: Callable[[SessionState], list[Draft]],
    *,
    read: Callable[[], Awaitable[SessionState]] | None = None,
) -> tuple[SessionState, Appended | None]:
    """Append what `choose` makes of the newest state; nothing when it chooses nothing.

    `read`: how to get at that state; None: by replaying the session.
    """
    read = read or session.replay
    for _ in range(CONTENDED_TRIES_MAX):
        state = await read()
        drafts = choose(state)
        if not drafts:
            return state, None
        try:
            return state, await session.append_drafts(drafts, expected_seq=state.seq)
        except (WrongExpectedSeq, EventIdReused):
            continue
    return await session.decide_alone(choose, read)


def interruption(message: Message, reason: str) -> ev.MessageInterrupted:
    """The early end of a message, with what had arrived of it."""
    return ev.MessageInterrupted(
        message_id=message.message_id,
        content=message.content if isinstance(message.content, str) else "",
        reasoning=message.reasoning,
        tool_calls=message.tool_calls,
        reason=reason,
    )


async def rewind(session: Session, to: int, reason: str | None) -> Appended:
    """See `Session.rewind`."""
    then = await session.replay(to)

    def choose(now: SessionState) -> list[Draft]:
        if now.is_rewound(to):
            raise InvalidRequest(
                f"seq {to} was left behind by a rewind and can't be gone back to; "
                f"fork(at={to}) makes a session that goes on from there"
            )
        drafts = [session.draft(interruption(each, "rewound")) for each in now.open_messages]
        drafts.append(session.draft(ev.SessionRewound(to_seq=to, reason=reason)))
        drafts += [
            session.draft(interruption(each, "rewound"), new_id()) for each in then.open_messages
        ]
        return drafts

    _, appended = await decide(session, choose)
    assert appended is not None
    return appended


async def undo(session: Session, count: int, reason: str | None) -> list[Message]:
    """See `Session.undo`."""

    def choose(state: SessionState) -> list[Draft]:
        last = list(state.messages)[-count:]
        drafts = [session.draft(interruption(e, "undone")) for e in last if e.status == "open"]
        return drafts + [
            session.draft(ev.MessageRetracted(message_id=each.message_id, reason=reason))
            for each in reversed(last)
        ]

    state, _ = await decide(session, choose)
    return list(state.messages)[-count:]


async def end(
    session: Session,
    event: ev.SessionCleared | ev.SessionClosed | ev.SessionDeleted,
    reason: str,
) -> Appended:
    """Append an event that ends what is being said, and with it the replies that are open."""

    def choose(state: SessionState) -> list[Draft]:
        drafts = [session.draft(interruption(each, reason)) for each in state.open_messages]
        return [*drafts, session.draft(event)]

    _, appended = await decide(session, choose)
    assert appended is not None
    return appended


async def interrupt(
    session: Session, message_id: str | None, reason: str, idle_seconds: float
) -> list[str]:
    """See `Session.interrupt`."""
    closed: list[str] = []
    state = await session.replay()
    for message in state.open_messages:
        if message_id is not None and message.message_id != message_id:
            continue
        if idle_seconds and await _silent_seconds(session, message, state.seq) < idle_seconds:
            continue
        if await _fence(session, message.message_id, reason):
            closed.append(message.message_id)
    return closed


async def _fence(session: Session, message_id: str, reason: str) -> bool:
    """Append the end of an open message, with exactly what had arrived. False: it had ended."""

    def choose(state: SessionState) -> list[Draft]:
        return [
            session.draft(interruption(each, reason))
            for each in state.open_messages
            if each.message_id == message_id
        ]

    _, appended = await decide(session, choose)
    return appended is not None


async def _silent_seconds(session: Session, message: Message, seq: int) -> float:
    last = message.recorded_at
    async for recorded in session.read(after=message.seq, until=seq, frames=True):
        if getattr(recorded.event, "message_id", None) == message.message_id:
            last = recorded.recorded_at
    return (datetime.now(UTC) - last).total_seconds()
