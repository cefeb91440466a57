"""Actions of those who read: replay at any point, subscribers, projectors."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from eventlog.testing import shown
from tests.model.following import Follower
from tests.model.laboratory import SHARDS
from tests.model.projecting import DEATHS, Death, Died
from tests.model.world import World, action, pick

shards = st.integers(0, SHARDS - 1)


class Replaying(World):
    """States of the past."""

    @action(where=pick, who=pick, back=st.integers(0, 60), by_time=st.booleans())
    async def replay(self, where: int, who: int, back: int, by_time: bool) -> None:
        """The state at any seq, or any time, is the fold of the events up to it."""
        chat, process = self.chat(where), self.process(who)
        seq = max(1, chat.head - back)
        moment: Any = seq
        if by_time:
            moment = chat.history[seq - 1].recorded_at
            seq = max(each.seq for each in chat.history if each.recorded_at <= moment)
        state = await process.run(chat.on(process).replay(moment))
        assert shown(state) == shown(chat.folded(seq))
        context = await process.run(chat.on(process).context(at=moment))
        assert context == chat.folded(seq).context()


class Following(World):
    """Subscribers that come, go, and come back elsewhere."""

    @action(where=pick, who=pick, back=pick)
    async def follow(self, where: int, who: int, back: int) -> None:
        """Subscribe from some cursor."""
        chat = self.chat(where)
        follower = Follower(chat, self.process(who), max(0, chat.head - back))
        for old in self.followers[:-3]:
            await old.drop()
        self.followers = [*self.followers[-3:], follower]

    @precondition(lambda self: self.followers)
    @action(which=pick, count=st.integers(1, 12))
    async def receive(self, which: int, count: int) -> None:
        """A subscriber asks for some events that are there."""
        await self.followers[which % len(self.followers)].get(count)

    @precondition(lambda self: self.followers)
    @action(which=pick, who=pick)
    async def reconnect(self, which: int, who: int) -> None:
        """A subscriber goes on from its cursor, perhaps in another process."""
        await self.followers[which % len(self.followers)].move(self.process(who))

    @action(count=st.integers(1, 30))
    async def receive_for_user(self, count: int) -> None:
        """Who follows all sessions of a user asks for some events that are there."""
        await self.user_follower.get(self.chats, count)

    @action(who=pick)
    async def reconnect_for_user(self, who: int) -> None:
        """The same goes on from its cursor, perhaps in another process."""
        await self.user_follower.move(self.process(who))


class Projecting(World):
    """Projectors that take the shards from one another, and die."""

    @action(who=pick)
    async def begin_to_project(self, who: int) -> None:
        """A projector takes all shards from the one before, which doesn't know of it."""
        await self.begin_stepper(self.process(who))

    @action(
        shard=shards,
        count=st.sampled_from((1, 2, 5, 20, 1000)),
        death=st.sampled_from(DEATHS),
        from_redis=st.booleans(),
    )
    async def project(self, shard: int, count: int, death: Death, from_redis: bool) -> None:
        """Project a batch; perhaps the projector dies around its commit."""
        stepper = self.holder
        if stepper is None:
            return
        try:
            await stepper.process.run(stepper.step(shard, count, death, from_redis=from_redis))
        except Died:
            self.lab.seen[f"projector died {death}"] += 1
            self.holder = None

    @action(shard=shards)
    async def project_as_a_zombie(self, shard: int) -> None:
        """A projector whose shards were taken tries to go on, and is refused."""
        if not self.zombies:
            return
        zombie = self.zombies[-1]
        refused = await zombie.process.run(zombie.is_refused(shard))
        assert refused is not False
        self.lab.seen["projector fenced"] += bool(refused)
