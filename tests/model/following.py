"""Subscribers of a model run: what they get must be the log from their cursor on, nothing else."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from eventlog import RecordedEvent, SessionSubscription, UserSubscription
from eventlog import events as ev
from eventlog.subscription import ENDS
from eventlog.testing import take, until
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
        due = self.chat.history[self.cursor : self.cursor + count_max]
        ends = [number for number, each in enumerate(due, 1) if self._ends(each)]
        due = due[: ends[0]] if ends else due
        if not due:
            return
        got = await self.process.run(self._take(len(due)))
        assert [each.seq for each in got] == [each.seq for each in due]
        for event, expected in zip(got, due, strict=True):
            # A hub looks for erasures now and then: until then it may have more than it should.
            assert event == expected or event.session_id in self.chat.erased_ids
        self.cursor += len(due)
        if ends:
            await self.drop()  # there is more if what was closed is deleted, for who asks again
            await self.get(count_max - len(due))

    def _ends(self, recorded: RecordedEvent) -> bool:
        """Whether a subscription ends here."""
        return recorded.session_id == self.chat.id and ev.tag_of(recorded.event) in ENDS

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


class UserFollower:
    """Follows all sessions of a user, from before there were any."""

    def __init__(self, user_id: str, process: Process) -> None:
        self.process = process
        self._user_id = user_id
        self._subscription: UserSubscription | None = None
        self._cursor: str | None = None
        self._got: defaultdict[UUID, int] = defaultdict(int)
        """How many events of each session, those of its parent not counted."""
        self._resumed = False

    async def begin(self) -> None:
        """Subscribe, and wait until that has begun."""
        self._subscription = self.process.log.subscribe(user_id=self._user_id)
        waiting = self.process.task(anext(self._subscription))
        await until(self._has_begun)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    def _has_begun(self) -> bool:
        assert self._subscription is not None
        try:
            self._cursor = self._subscription.cursor
        except ValueError:
            return False
        return True

    async def get(self, chats: Sequence[Conversation], count_max: int) -> None:
        """Take up to so many of the events that are there: of each session the next ones."""
        own = {
            chat.id: [each for each in chat.history if each.session_id == chat.id]
            for chat in chats
            if not chat.erased
        }
        due = min(count_max, sum(len(own[each]) - self._got[each] for each in own))
        while due > 0:
            (event,) = await self.process.run(self._take())
            if event.session_id not in own:
                continue  # it was erased, so the user has it no more; some of it was on its way
            events, done = own[event.session_id], self._got[event.session_id]
            if self._resumed and event in events[:done]:
                # Resumed inside a row, whose increments come again.
                assert event.event_id == events[done - 1].event_id
                continue
            assert event == events[done]
            self._got[event.session_id] += 1
            due -= 1

    async def _take(self) -> list[RecordedEvent]:
        if self._subscription is None:
            self._subscription = self.process.log.subscribe(
                user_id=self._user_id, after=self._cursor
            )
        got = await take(self._subscription, 1)
        self._cursor = self._subscription.cursor
        return got

    async def move(self, process: Process) -> None:
        """Drop the connection, and go on from the cursor in some process."""
        await self.drop()
        self.process = process
        self._resumed = True

    async def drop(self) -> None:
        """Lose the connection."""
        if self._subscription is not None:
            await self._subscription.aclose()
            self._subscription = None

    def lose_process(self, process: Process) -> None:
        """The process died, and the subscription with it."""
        self._subscription = None
        self.process = process
        self._resumed = True
