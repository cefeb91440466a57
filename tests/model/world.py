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
from msgspec.structs import replace

from eventlog import EventLog
from eventlog import events as ev
from eventlog.envelope import pack_row
from eventlog.feeds import last_position
from eventlog.views import view_of
from tests.model.conversations import Conversation, Open
from tests.model.following import Follower, UserFollower
from tests.model.laboratory import SHARDS, Laboratory
from tests.model.processes import Process
from tests.model.projecting import Stepper, check_other_views, check_session_view

Result = TypeVar("Result")
Action = Callable[..., Coroutine[Any, Any, None]]
FEED_ROWS_CHECKED: Final = 100
ZOMBIES_MAX: Final = 2
"""Older projectors that lost their shards are forgotten."""

KINDS: Final = (
    ev.MessageAdded(role="user"),
    ev.MessageAdded(
        role="assistant",
        agent="coder",
        model="large",
        tool_calls=[ev.ToolCall(id="c1", name="look"), ev.ToolCall(id="c2\0", name="look")],
        usage=ev.Usage(input_tokens=7, output_tokens=3, cached_tokens=2),
        token_count=3,
    ),
    ev.MessageAdded(role="tool", tool_call_id="c1", name="look", reasoning="hm"),
)
"""What messages are like."""
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
            values = (f"{name}={value!r}" for name, value in chosen.items())
            self._steps.append(f"made.{act.__name__}({', '.join(values)})")
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
        self._steps: list[str] = []
        """The actions so far, as a test would call them by hand."""
        self.user_id = str(self._namespace)
        self.chats: list[Conversation] = []
        self.followers: list[Follower] = []
        self.holder: Stepper | None = None
        """The projector that holds the shards, as long as it lives."""
        self.zombies: list[Stepper] = []
        """Projectors that lost them to another one. When that dies, they don't get them back."""
        self.run(self._begin())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something on the laboratory's loop."""
        try:
            return self.lab.run(work)
        except BaseException as error:
            self._failed = True
            # Hypothesis shows no example of a failure that doesn't come again.
            error.add_note("\n".join(["It failed after:", *self._steps]))
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
        """An id that no other example uses. Its end, and so its shard, doesn't depend on chance."""
        self._made += 1
        random = uuid.uuid5(self._namespace, str(self._made))
        return uuid.UUID(bytes=random.bytes[:-2] + self._made.to_bytes(2, "big"))

    def new_message(self, text: str = "hi") -> ev.MessageAdded:
        """A message with an id of its own: the log and its twin would make different ones.

        One of a user, of an agent that calls a tool, or of the tool, in turns.
        """
        self._made += 1
        said = KINDS[self._made % len(KINDS)]
        return replace(said, content=text, message_id=f"m{self._made}")

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
        if self.holder is not None:
            self.zombies = [*self.zombies, self.holder][-ZOMBIES_MAX:]
        self.holder = stepper = Stepper(process)
        await process.run(stepper.begin())
        return stepper

    def lose_steppers(self, process: Process) -> None:
        """The process died, and its projectors with it."""
        self.zombies = [each for each in self.zombies if each.process is not process]
        if self.holder is not None and self.holder.process is process:
            self.holder = None

    # --- what holds ---

    @invariant()
    def check(self) -> None:
        """What must hold after every step."""
        self.run(self._check())

    async def _check(self) -> None:
        process = self.process(self._made)
        for chat in self.chats:
            await chat.refresh(process)
            seq = await check_session_view(process, chat)
            if seq != chat.compared_seq:
                await check_other_views(self.lab.superuser, chat, seq)
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
            await check_other_views(self.lab.superuser, chat, chat.head)
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
