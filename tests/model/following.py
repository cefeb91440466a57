"""A subscriber of a model run: what it gets must be the log from its cursor on, nothing else."""

from __future__ import annotations

from eventlog import RecordedEvent, SessionSubscription
from eventlog.testing import take
from tests.model.conversations import Conversation
from tests.model.processes import Process


class Follower:
    """Follows one session, over reconnects and in several processes."""

    def __init__(self, chat: Conversation, process: Process, cursor: int) -> None:
        self.chat = chat
        self.process = process
        self.cursor = cursor
        self._subscription: SessionSubscription | None = None

    async def get(self, count_max: int) -> None:
        """Take up to so many of the events that are there, and compare them."""
        count = min(count_max, self.chat.head - self.cursor)
        if not count:
            return
        got = await self.process.run(self._take(count))
        assert got == self.chat.history[self.cursor : self.cursor + count]
        self.cursor += count

    async def _take(self, count: int) -> list[RecordedEvent]:
        if self._subscription is None:
            session = self.chat.on(self.process)
            self._subscription = session.subscribe(after=self.cursor)
        return await take(self._subscription, count)

    async def move(self, process: Process) -> None:
        """Drop the connection, and go on from the cursor in some process."""
        await self.drop()
        self.process = process

    async def drop(self) -> None:
        """Lose the connection."""
        if self._subscription is not None:
            await self._subscription.aclose()
            self._subscription = None

    def lose_process(self, process: Process) -> None:
        """The process died, and the subscription with it."""
        self._subscription = None
        self.process = process
