"""What all actions of a model run share: the conversations, the processes, and what must hold.

Every number that an action draws chooses among the things that there are then, by its remainder, so
what Hypothesis draws never depends on what the servers did.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from eventlog import EventLog
from eventlog import events as ev
from eventlog.envelope import pack_row
from eventlog.fanout import last_position
from eventlog.views import view_of
from tests.model.conversations import Conversation, Open
from tests.model.following import Follower, UserFollower
from tests.model.laboratory import SHARDS, Laboratory
from tests.model.processes import Process
from tests.model.projecting import Stepper, check_message_views, check_session_view

Result = TypeVar("Result")
Action = Callable[..., Coroutine[Any, Any, None]]
FEED_ROWS_CHECKED: Final = 100

pick: Final = st.integers(0, 11)
"""Chooses one of the things there are."""
texts: Final = st.sampled_from(("hello ", "wörld ", "\0", "👩‍👩‍👧 ", "a b c "))
pieces: Final = st.lists(texts, min_size=1, max_size=6)
moments: Final = st.integers(0, 12).map(lambda number: number * 0.0005)
"""Seconds after which a fault happens to what is under way."""


def action(**drawn: Any) -> Callable[[Action], Any]:
    """A rule of the machine that runs on the laboratory's loop."""

    def decorate(act: Action) -> Any:
        @functools.wraps(act)
        def run(self: World, **chosen: Any) -> None:
            self.run(act(self, **chosen))

        make: Any = rule
        return make(**drawn)(run)

    return decorate


class World(RuleBasedStateMachine):
    """One example: a few conversations, two processes, and their twin."""

    def __init__(self, lab: Laboratory) -> None:
        super().__init__()
        self.lab = lab
        self._stack = AsyncExitStack()
        self._namespace = uuid.uuid4()
        self._made = 0
        self._failed = False
        self.user_id = str(self._namespace)
        self.chats: list[Conversation] = []
        self.followers: list[Follower] = []
        self.steppers: list[Stepper] = []
        """Projectors, the one that holds the shards last."""
        self.run(self._begin())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something on the laboratory's loop."""
        try:
            return self.lab.run(work)
        except BaseException:
            self._failed = True
            raise

    async def _begin(self) -> None:
        self.twin: EventLog = await self._stack.enter_async_context(EventLog.in_memory())
        self.processes = [await self.lab.start_process() for _ in range(2)]
        self.user_follower = UserFollower(self.user_id, self.processes[0])
        await self.user_follower.begin()
        await self.new_chat()

    async def new_chat(self) -> Conversation:
        """Another session, in the log and in the twin."""
        session_id, process = self.new_id(), self.processes[0]
        await process.run(process.log.create_session(session_id, user_id=self.user_id))
        return self.know(
            session_id, await self.twin.create_session(session_id, user_id=self.user_id)
        )

    def know(self, session_id: uuid.UUID, twin: Any) -> Conversation:
        """From now on this is one of the conversations."""
        chat = Conversation(session_id, twin)
        self.chats.append(chat)
        return chat

    # --- names and choices ---

    def new_id(self) -> uuid.UUID:
        """An id that no other example uses."""
        self._made += 1
        return uuid.uuid5(self._namespace, str(self._made))

    def new_message(self, text: str = "hi") -> ev.MessageAdded:
        """A message with an id of its own: the log and its twin would make different ones."""
        self._made += 1
        return ev.MessageAdded(role="user", content=text, message_id=f"m{self._made}")

    def new_message_id(self) -> str:
        """Of a reply."""
        self._made += 1
        return f"r{self._made}"

    def chat(self, number: int) -> Conversation:
        """One of the conversations."""
        return self.chats[number % len(self.chats)]

    def process(self, number: int) -> Process:
        """One of the processes."""
        return self.processes[number % len(self.processes)]

    def reply(self, number: int) -> tuple[Conversation, Open] | None:
        """One of the replies that stream now."""
        streaming = [(chat, each) for chat in self.chats for each in chat.replies]
        return streaming[number % len(streaming)] if streaming else None

    # --- what several actions do ---

    async def sweep_feeds(self, process: Process) -> None:
        """What the relay does."""
        assert process.log.fanout is not None
        await process.run(process.log.fanout.sweep())

    async def begin_stepper(self, process: Process) -> Stepper:
        """A projector takes every shard."""
        stepper = Stepper(process)
        self.steppers = [*self.steppers[-2:], stepper]
        await process.run(stepper.begin())
        return stepper

    # --- what holds ---

    @invariant()
    def check(self) -> None:
        """What must hold after every step."""
        self.run(self._check())

    async def _check(self) -> None:
        process = self.process(self._made)
        for chat in self.chats:
            await chat.refresh(process)
            await check_session_view(process, chat)
            await self._check_cached_view(process, chat)
        for shard in range(SHARDS):
            await self._check_feed(process, shard, rows_max=FEED_ROWS_CHECKED)

    async def _check_cached_view(self, process: Process, chat: Conversation) -> None:
        """From wherever it comes, a view is the fold at its seq, and one reads what one wrote."""
        view = await process.run(chat.on(process).view())
        assert view == view_of(chat.folded(view.seq))
        view = await process.run(chat.on(process).view(min_seq=chat.head))
        assert view == view_of(chat.folded(chat.head))

    async def _check_feed(self, process: Process, shard: int, *, rows_max: int) -> int:
        """A feed is a contiguous copy of rows in Postgres; returns its last position."""
        assert process.log.fanout is not None
        name = (await process.log.fanout.keys()).feed(shard)
        newest: Any = self.lab.redis.xrevrange(name, count=rows_max)
        if not newest:
            return 0
        entries = newest[::-1]
        first = last_position(entries)
        rows = await process.store.read_feed(shard, after=first - 1, limit=len(entries))
        assert [(f"{row.position}-0".encode(), {b"r": pack_row(row)}) for row in rows] == entries
        return rows[-1].position

    def teardown(self) -> None:
        """Heal everything: then nothing may be missing anywhere."""
        try:
            if not self._failed:
                self.run(self._heal())
        finally:
            self.run(self._close())

    async def _heal(self) -> None:
        process = self.processes[0]
        await self.sweep_feeds(process)
        heads = await process.store.feed_heads()
        for shard, head in enumerate(heads):
            assert await self._check_feed(process, shard, rows_max=1_000) == head
        stepper = await self.begin_stepper(process)
        await process.run(stepper.catch_up())
        for chat in self.chats:
            assert await check_session_view(process, chat) == chat.head
            await check_message_views(self.lab.superuser, chat, chat.on(process).shard)
        for follower in self.followers:
            await follower.get(1_000)
        await self.user_follower.get(self.chats, 1_000)

    async def _close(self) -> None:
        for follower in self.followers:
            await follower.drop()
        await self.user_follower.drop()
        for process in self.processes:
            await process.close()
        await self._stack.aclose()
