"""The subscriber of the demo: keeps all that it gets, prints it, and takes the time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Final

import msgspec

from eventlog import RecordedEvent, Session, TokenAppended
from workers.commands.live import LiveView
from workers.demo.player import Player

REACH_SECONDS_MAX: Final = 20.0
"""How long after the last append everything may take; the checks say what is missing then."""


class Latency(msgspec.Struct, frozen=True):
    """From `reply.write()` to the subscriber's hands, for one increment."""

    seconds: float
    with_redis: bool


class Watcher:
    """One live subscriber, from seq 0."""

    def __init__(self, session: Session, view: LiveView, *, lose: int | None = None) -> None:
        self.received: list[RecordedEvent] = []
        self.latencies: list[Latency] = []
        self.redis_is_up = True
        self.player: Player | None = None
        self._session = session
        self._view = view
        self._lose = lose
        self._counted: Counter[str] = Counter()
        self._moved = asyncio.Event()

    async def watch(self) -> None:
        """Receive for ever; cancel it when it is enough."""
        async with self._session.subscribe(after=0) as events:
            async for recorded in events:
                self._measure(recorded)
                if self._lose is None or len(self.received) != self._lose:
                    self.received.append(recorded)
                else:
                    self._lose = None  # the check of the checks: they must notice
                self._view.show(recorded)
                self._moved.set()

    def _measure(self, recorded: RecordedEvent) -> None:
        event = recorded.event
        if self.player is None or not isinstance(event, TokenAppended):
            return
        sent = self.player.sent.get(event.message_id, [])
        number = self._counted[event.message_id]
        self._counted[event.message_id] += 1
        if number < len(sent):
            seconds = time.monotonic() - sent[number]
            self.latencies.append(Latency(seconds, self.redis_is_up))

    async def reach(self, seq: int) -> bool:
        """Wait until the event with this seq is here; False when that takes too long."""
        try:
            async with asyncio.timeout(REACH_SECONDS_MAX):
                while not self.received or self.received[-1].seq < seq:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True
