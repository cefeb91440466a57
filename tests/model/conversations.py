"""A conversation of a model run: the session in the log under test, and its twin in memory.

Whatever is done to the session is done to the twin, and must end in the same way: stored at the
same seqs, or refused for the same reason. After every step the session is read back. It must hold
exactly what the twin holds, and what it held before must be there unchanged, byte for byte.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from eventlog import (
    Appended,
    Erased,
    Erasure,
    EventLogError,
    Message,
    MessageFenced,
    RecordedEvent,
    Reply,
    Session,
    SessionState,
    TokenAppended,
    WrongExpectedSeq,
    fold,
    initial,
)
from eventlog import events as ev
from eventlog.testing import read_all
from tests.model.processes import Process


class Done(msgspec.Struct, frozen=True):
    """An append that was acknowledged."""

    events: list[ev.StoredEvent]
    event_id: UUID
    answer: Appended


class Open(msgspec.Struct):
    """A reply that streams: in a process, and in the twin."""

    process: Process
    real: Reply
    twin: Reply


class Conversation:
    """One session, in the log under test and in memory."""

    def __init__(self, session_id: UUID, twin: Session) -> None:
        self.id = session_id
        self.twin = twin
        self.history: list[RecordedEvent] = []
        """What the log held when it was last read."""
        self.done: list[Done] = []
        self.replies: list[Open] = []
        self.compared_seq = 0
        """Up to which seq its views were compared last."""
        self.erased_ids: set[UUID] = set()
        """Sessions that were erased, of all that it may hold events of."""

    @property
    def head(self) -> int:
        """Its last seq."""
        return len(self.history)

    @property
    def closed(self) -> bool:
        """Whether nothing may be appended any more."""
        last = self.history[-1].event if self.history else None
        return self.erased or isinstance(last, ev.SessionClosed)

    @property
    def erased(self) -> bool:
        """Whether it is, and not only what it inherited."""
        return self.id in self.erased_ids

    def holds(self, other: Conversation) -> bool:
        """Whether events of the other one are part of this one."""
        return any(each.session_id == other.id for each in self.history)

    @property
    def parent_id(self) -> UUID | None:
        """The session that it continues; what it inherited may all be from before that one."""
        first = next(each.event for each in self.history if each.session_id == self.id)
        assert isinstance(first, ev.SessionCreated | Erased)
        return first.parent_session_id

    def forget_what_was_said(self, erased: set[UUID]) -> None:
        """Expect from now on that the events of these sessions, among those here, are bare."""
        self.erased_ids |= erased
        self.history = [
            replace(each, event=bare(each.event)) if each.session_id in erased else each
            for each in self.history
        ]
        self.compared_seq = 0

    def on(self, process: Process) -> Session:
        """The session's handle in a process."""
        return process.log.handle(self.id)

    async def both(
        self,
        process: Process,
        act: Callable[[Session], Awaitable[Any]],
        *,
        retried: bool = False,
    ) -> Any:
        """Do something in the log and in the twin; it must end alike. Returns the log's answer.

        `retried`: faults were planned, so an answer may rightly say that it is a duplicate.
        """
        real = await process.run(ending(act(self.on(process))))
        twin = await ending(act(self.twin))
        assert comparable(real, retried=retried) == comparable(twin, retried=retried)
        return real

    async def refresh(self, process: Process) -> None:
        """Read the session, and compare it with the past and with the twin."""
        now = await process.run(_read(self.on(process)))
        assert now[: len(self.history)] == self.history, "what was stored has changed"
        self.history = now
        for each in now:
            assert isinstance(each.event, Erased) == (each.session_id in self.erased_ids)
        twin = await read_all(self.twin)
        assert [each.seq for each in now] == list(range(1, len(now) + 1))
        assert [each.event for each in now] == [each.event for each in twin]
        times = [each.recorded_at for each in now]
        assert times == sorted(times)

    async def absorb(
        self, process: Process, sequences: list[list[ev.Event]], *, whole: bool = True
    ) -> None:
        """Check that what several writers stored is a merge of their sequences; tell the twin.

        Unless `whole`, each writer may have stored only the beginning of its sequence.
        """
        now = await process.run(_read(self.on(process)))
        rest = [list(each) for each in sequences]
        for recorded in now[await self.twin.head() :]:
            source = next((each for each in rest if each and each[0] == recorded.event), None)
            assert source is not None, f"nobody stored {recorded} there; due were {rest}"
            source.pop(0)
            await self._repeat(recorded)
        assert not whole or not any(rest), f"not stored: {rest}"
        await self.refresh(process)

    async def _repeat(self, recorded: RecordedEvent) -> None:
        event = recorded.event
        if isinstance(event, TokenAppended):
            reply = next(each for each in self.replies if each.twin.message_id == event.message_id)
            await reply.twin.write(
                event.text, channel=event.channel, tool_call_id=event.tool_call_id
            )
            await reply.twin.drain()
            return
        assert isinstance(event, ev.MessageAdded)
        await self.twin.append(event, event_id=recorded.event_id)

    def folded(self, at: int) -> SessionState:
        """The fold of the first `at` events."""
        return fold(initial(self.id), self.history[:at])


def bare(event: ev.Event) -> Erased:
    """What is left of an event when its session is erased: of a fork's first one the link."""
    match event:
        case Erased():
            return event
        case ev.SessionCreated(parent_session_id=parent_id, parent_seq=seq):
            tag = ev.tag_of(event)
            return Erased(tag=tag, parent_session_id=parent_id, parent_seq=seq)
        case _:
            return Erased(tag=ev.tag_of(event))


async def _read(session: Session) -> list[RecordedEvent]:
    return await read_all(session)


async def ending(work: Awaitable[Any]) -> Any:
    """What a call returned, or the error it raised on purpose."""
    try:
        return await work
    except EventLogError as error:
        return error


def comparable(answer: Any, *, retried: bool = False) -> object:
    """The part of an answer that is the same in the log and in memory."""
    match answer:
        case Appended():
            duplicate = None if retried else answer.duplicate
            return answer.first_seq, answer.last_seq, duplicate
        case WrongExpectedSeq():
            return type(answer), answer.expected, answer.actual
        case Erasure():
            return answer.session_id, answer.events
        case MessageFenced():
            return type(answer), answer.message_id
        case EventLogError():
            return type(answer)
        case Session():
            return answer.id
        case [Message(), *_]:
            return [(each.message_id, each.content) for each in answer]
        case _:
            return answer
