"""The agent of the demo: plays a recorded conversation as if it happened now.

Messages of the user and outputs of tools are appended whole. What the assistant said is streamed in
token-like pieces: reasoning, text, arguments of calls. The whole is stretched over a given time, by
an absolute schedule, so that a slow moment is made good. At given points of it the player waits for
something to be done to Redis, in the middle of a reply, and goes on.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from eventlog import Session
from eventlog import events as ev
from eventlog.integrations.transcripts import (
    Imported,
    ImportedCompaction,
    ImportedReversal,
    ImportedRewind,
    Transcript,
)
from workers.commands.look import plain_text

WHOLE_WEIGHT: Final = 15
"""A whole event takes as long as so many increments."""
_PIECES: Final = re.compile(r" ?\w{1,7}|[^\w\s]{1,3}|\s+")


class Moment(msgspec.Struct, frozen=True):
    """Something to be done when this part of the conversation has been played."""

    at: float
    act: Callable[[], Awaitable[None]]


class Spoken(msgspec.Struct, kw_only=True):
    """An assistant's message, as it is streamed."""

    content: ev.Content
    reasoning: str
    tool_calls: list[ev.ToolCall]
    opening: dict[str, Any]
    ending: dict[str, Any]

    def pieces(self) -> list[tuple[str, ev.Channel, str | None]]:
        """Its increments: reasoning, text, arguments of each call."""
        runs: list[tuple[str, ev.Channel, str | None]] = [
            (self.reasoning, "reasoning", None),
            (plain_text(self.content), "text", None),
            *((call.arguments, "tool-arguments", call.id) for call in self.tool_calls),
        ]
        return [
            (piece, channel, call)
            for text, channel, call in runs
            for piece in _PIECES.findall(text)
        ]


class Player:
    """Plays one transcript into one session."""

    def __init__(
        self,
        session: Session,
        transcript: Transcript,
        *,
        seconds: float,
        moments: list[Moment],
    ) -> None:
        self.sent: dict[str, list[float]] = {}
        """For each streamed message, when each of its increments was written."""
        self.said: dict[str, Spoken] = {}
        """For each streamed message what it is in the transcript."""
        self._session = session
        self._steps = [_step(each.event) for each in transcript.events]
        self._weight = max(1, sum(_weight(step) for step in self._steps))
        self._done = 0
        self._seconds = seconds
        self._moments = sorted(moments, key=lambda each: each.at)
        self._begin = 0.0
        self._first: list[int] = []
        self._last: list[int] = []

    async def play(self) -> None:
        """Play all of it."""
        self._begin = time.monotonic()
        for step in self._steps:
            if isinstance(step, Spoken):
                first, last = await self._speak(step)
            elif step is None:
                first = last = self._last[-1] if self._last else 1
            else:
                done = await self._session.append(self._placed(step))
                first, last = done.first_seq, done.last_seq
                await self._pace(WHOLE_WEIGHT)
            self._first.append(first)
            self._last.append(last)
        while self._moments:
            await self._moments.pop(0).act()

    async def _speak(self, spoken: Spoken) -> tuple[int, int]:
        async with self._session.reply(**spoken.opening) as reply:
            first = reply.last_seq
            sent = self.sent.setdefault(reply.message_id, [])
            self.said[reply.message_id] = spoken
            for text, channel, call in spoken.pieces():
                sent.append(time.monotonic())
                await reply.write(text, channel=channel, tool_call_id=call)
                await self._pace(1)
                if self._moments and self._done >= self._moments[0].at * self._weight:
                    await self._moments.pop(0).act()
            reply.finish(content=spoken.content, tool_calls=spoken.tool_calls, **spoken.ending)
        return first, reply.last_seq

    async def _pace(self, weight: int) -> None:
        self._done += weight
        due = self._begin + self._seconds * self._done / self._weight
        await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _placed(self, event: Imported) -> ev.StoredEvent:
        """The event with seqs of this session where the transcript has indexes."""
        match event:
            case ImportedCompaction():
                to_seq = self._last[event.covers_to] if event.covers_to >= 0 else 1
                return event.placed(
                    from_seq=min(self._first[event.covers_from], to_seq) if self._first else 1,
                    to_seq=to_seq,
                    kept=[self._first[index] for index in event.kept],
                )
            case ImportedRewind():
                return ev.SessionRewound(to_seq=self._last[event.to] if event.to >= 0 else 1)
            case ImportedReversal():
                return ev.CompactionReverted(compaction_seq=self._first[event.compaction])
            case _:
                return event


def _step(event: Imported) -> Imported | Spoken | None:
    """What to do for an event: stream it, append it whole, or nothing."""
    match event:
        case ev.MessageAdded(role="assistant"):
            return Spoken(
                content=event.content,
                reasoning=event.reasoning,
                tool_calls=event.tool_calls,
                opening={"agent": event.agent, "model": event.model, "name": event.name},
                ending={
                    "finish_reason": event.finish_reason,
                    "usage": event.usage,
                    "token_count": event.token_count,
                },
            )
        case ev.MessageCompleted() | ev.MessageInterrupted():  # of an export of ours
            return Spoken(
                content=event.content,
                reasoning=event.reasoning,
                tool_calls=event.tool_calls,
                opening={},
                ending={},
            )
        case ev.MessageStarted() | ev.SessionClosed():
            return None
        case ev.MessageAdded():
            return msgspec.structs.replace(event, message_id="")
        case _:
            return event


def _weight(step: Imported | Spoken | None) -> int:
    match step:
        case None:
            return 0
        case Spoken():
            return len(step.pieces())
        case _:
            return WHOLE_WEIGHT
