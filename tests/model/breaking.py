"""Actions that break things: Redis forgets, publications get lost, processes die."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from hypothesis import strategies as st

from eventlog import Appended
from eventlog import events as ev
from eventlog.testing import until
from tests.model.conversations import Conversation, Done, ending
from tests.model.following import Follower, UserFollower
from tests.model.processes import Process
from tests.model.world import World, action, moments, pick, pieces
from tests.model.writing import increments, write_all


class Forgetting(World):
    """What may happen to Redis."""

    @action()
    async def flush_redis(self) -> None:
        """Redis forgets everything."""
        self.lab.redis.flushall()

    @action(which=pick)
    async def delete_feed(self, which: int) -> None:
        """A feed is evicted."""
        if feeds := sorted(self.lab.feeds()):
            self.lab.redis.delete(feeds[which % len(feeds)])

    @action(which=pick, count=st.integers(1, 5))
    async def lose_tail(self, which: int, count: int) -> None:
        """A failover to a replica that lacks the newest rows."""
        if feeds := sorted(self.lab.feeds()):
            self.lab.lose_tail(feeds[which % len(feeds)], count)

    @action(where=pick, who=pick)
    async def append_unpublished(self, where: int, who: int) -> None:
        """A process dies, for Redis' part, between its commit and its publication."""
        process, event = self.process(who), self.new_message()
        fanout = process.log.fanout
        assert fanout is not None
        vars(fanout)["offer"] = lambda *_: None
        try:
            await self.chat(where).both(process, lambda session: session.append(event))
        finally:
            del vars(fanout)["offer"]

    @action(who=pick)
    async def sweep(self, who: int) -> None:
        """The relay looks at every feed."""
        await self.sweep_feeds(self.process(who))


class Dying(World):
    """A process dies; whoever comes next asks what became of what it did."""

    @action(
        who=pick,
        after=moments,
        which=pick,
        said=pieces,
        places=st.lists(pick, min_size=1, max_size=5),
    )
    async def crash(
        self, *, who: int, after: float, which: int, said: list[str], places: list[int]
    ) -> None:
        """In the middle of appends, and of a reply."""
        process = self.process(who)
        calls = []
        for where in places:
            chat, event, event_id = self.chat(where), self.new_message(), self.new_id()
            work = chat.on(process).append(event, event_id=event_id)
            calls.append((chat, event, event_id, process.task(ending(work))))
        streams = await self._write_to_one(process, which, said)
        await asyncio.sleep(after)
        await self._die(process)
        for chat in self.chats:
            due = [streams.get(chat.id, [])]
            due += [[event] for each, event, _, _ in calls if each is chat]
            await chat.absorb(self.processes[0], due, whole=False)
            chat.replies = [each for each in chat.replies if each.process is not process]
        for chat, event, event_id, task in calls:
            await self._ask_again(chat, event, event_id, task)

    async def _write_to_one(
        self, process: Process, which: int, said: list[str]
    ) -> dict[uuid.UUID, list[ev.Event]]:
        """Write into a reply of the process, if it has one, without waiting."""
        streaming = [
            (chat, each) for chat in self.chats for each in chat.replies if each.process is process
        ]
        if not streaming:
            return {}
        chat, reply = streaming[which % len(streaming)]
        await process.run(ending(write_all(reply.real, said, drain=False)))
        return {chat.id: increments(reply, said)}

    async def _ask_again(
        self,
        chat: Conversation,
        event: ev.StoredEvent,
        event_id: uuid.UUID,
        task: asyncio.Task[Any],
    ) -> None:
        """The same append in another process: what the dead one was told is true."""
        again = await chat.both(
            self.processes[0], lambda session: session.append(event, event_id=event_id)
        )
        told = None if task.cancelled() else task.result()
        if isinstance(told, Appended):
            assert again.duplicate
            assert (again.first_seq, again.position) == (told.first_seq, told.position)
        elif isinstance(again, Appended):
            self.lab.seen["dead writer: " + ("stored" if again.duplicate else "not stored")] += 1
        if isinstance(again, Appended):
            chat.done.append(Done([event], event_id, again))

    async def _die(self, process: Process) -> None:
        await process.crash()
        await until(lambda: self._is_gone(process))
        self.processes.remove(process)
        self.processes.append(await self.lab.start_process())
        followers: list[Follower | UserFollower] = [*self.followers, self.user_follower]
        for follower in followers:
            if follower.process is process:
                follower.lose_process(self.processes[0])
        self.lose_steppers(process)

    async def _is_gone(self, process: Process) -> bool:
        """Whether Postgres has finished what it was sent."""
        return not await self.lab.connections(process.name)
