"""The state machine: random actions of writers, readers, projectors and faults, and what must hold.

Two processes share a log; a third log, in memory, is the twin to which every action is done as
well. Faults are actions like others: Redis forgets, answers get lost, connections are cut, processes
die in the middle of what they do. After each action every session is what its twin is.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from eventlog import (
    ANY,
    Appended,
    EventIdReused,
    EventLog,
    MessageFenced,
    OutcomeUnknown,
    Refused,
    Unavailable,
    WrongExpectedSeq,
)
from eventlog import events as ev
from eventlog.envelope import pack_row
from eventlog.events import Channel
from eventlog.fanout import last_position
from eventlog.testing import shown, until
from tests.model.conversations import Conversation, Done, Open, ending
from tests.model.following import Follower
from tests.model.laboratory import SHARDS, Laboratory
from tests.model.processes import FAULTS, Fault, Process
from tests.model.projecting import (
    DEATHS,
    Death,
    Died,
    Stepper,
    check_message_views,
    check_session_view,
)

Result = TypeVar("Result")
CONVERSATIONS_MAX: Final = 4
FEED_ROWS_CHECKED: Final = 100

pick = st.integers(0, 11)
"""Chooses one of the things there are then: the number modulo how many."""
texts = st.sampled_from(("hello ", "wörld ", "\0", "👩‍👩‍👧 ", "a b c "))
pieces = st.lists(texts, min_size=1, max_size=6)
channels = st.sampled_from(("text", "text", "reasoning", "tool-arguments"))
ticks = st.integers(0, 12)
faults = st.lists(st.sampled_from(FAULTS), max_size=3)
facts = st.sampled_from(
    (
        ev.AgentActivated(agent="coder"),
        ev.AgentHandedOff(to_agent="critic", context={"why": 1}),
        ev.ScratchpadWritten(name="n", value=[1, None]),
        ev.SessionUpdated(title="t", metadata={"a": 1}),
        ev.RunStarted(run_id="r"),
        ev.RunFinished(run_id="r"),
        ev.Custom(name="app.seen", data="\0"),
        ev.CompactionCompleted(summary="all", from_seq=1, to_seq=2, kept=[2]),
    )
)
"""Events that are no messages."""


class ConversationMachine(RuleBasedStateMachine):
    """One example: a few conversations, two processes, their twin."""

    def __init__(self, lab: Laboratory) -> None:
        super().__init__()
        self.lab = lab
        self._stack = AsyncExitStack()
        self._namespace = uuid.uuid4()
        self._made = 0
        self.chats: list[Conversation] = []
        self.followers: list[Follower] = []
        self.zombies: list[Stepper] = []
        self.stepper: Stepper | None = None
        self.run(self._begin())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something on the laboratory's loop."""
        return self.lab.run(work)

    async def _begin(self) -> None:
        self.twin: EventLog = await self._stack.enter_async_context(EventLog.in_memory())
        self.processes = [await self.lab.start_process() for _ in range(2)]
        await self._create()

    async def _create(self) -> Conversation:
        session_id = self.new_id()
        await self.processes[0].run(self.processes[0].log.create_session(session_id, user_id="ada"))
        return self._know(session_id, await self.twin.create_session(session_id, user_id="ada"))

    def _know(self, session_id: uuid.UUID, twin: Any) -> Conversation:
        chat = Conversation(session_id, twin)
        self.chats.append(chat)
        return chat

    # --- names and choices ---

    def new_id(self) -> uuid.UUID:
        """An id that no other example uses."""
        self._made += 1
        return uuid.uuid5(self._namespace, str(self._made))

    def new_message(self, text: str = "hi") -> ev.MessageAdded:
        """A message with an id of its own: the log and its twin make different ones."""
        self._made += 1
        return ev.MessageAdded(role="user", content=text, message_id=f"m{self._made}")

    def chat(self, number: int) -> Conversation:
        return self.chats[number % len(self.chats)]

    def process(self, number: int) -> Process:
        return self.processes[number % len(self.processes)]

    def reply(self, number: int) -> tuple[Conversation, Open] | None:
        """One of the replies that stream now."""
        streaming = [(chat, each) for chat in self.chats for each in chat.replies]
        return streaming[number % len(streaming)] if streaming else None

    # --- appending ---

    @rule(
        where=pick, who=pick, texts=st.lists(texts, max_size=3), fact=facts | st.none(),
        expecting=st.sampled_from(("any", "any", "right", "wrong")), named=st.booleans(),
        faults=faults,
    )
    def append(
        self, where: int, who: int, texts: list[str], fact: ev.StoredEvent | None,
        expecting: str, named: bool, faults: list[Fault],
    ) -> None:
        """Append one or several events, whatever happens to the connection meanwhile."""
        batch: list[ev.StoredEvent] = [self.new_message(text) for text in texts]
        if fact is not None or not batch:
            batch.append(fact or self.new_message())
        self.run(self._append(self.chat(where), self.process(who), batch, expecting, named, faults))

    async def _append(
        self, chat: Conversation, process: Process, batch: list[ev.StoredEvent],
        expecting: str, named: bool, faults: list[Fault],
    ) -> None:
        expected = {"any": ANY, "right": chat.head, "wrong": chat.head + 1}[expecting]
        event_id = self.new_id() if named else None
        process.store.plan.extend(faults)
        answer = await chat.both(
            process,
            lambda session: session.append(batch, expected_seq=expected, event_id=event_id),
            retried=bool(faults),
        )
        process.store.plan.clear()
        if event_id is not None and isinstance(answer, Appended):
            chat.done.append(Done(batch, event_id, answer))

    @rule(where=pick, which=pick, who=pick, change=st.sampled_from(("", "other", "more", "less")))
    def append_again(self, where: int, which: int, who: int, change: str) -> None:
        """Append under an id that is in the log: the same gets the same answer, else is refused."""
        chat = self.chat(where)
        if chat.done:
            self.run(
                self._append_again(chat, chat.done[which % len(chat.done)], self.process(who), change)
            )

    async def _append_again(
        self, chat: Conversation, done: Done, process: Process, change: str
    ) -> None:
        batch = {
            "": done.events,
            "other": [self.new_message("other"), *done.events[1:]],
            "more": [*done.events, self.new_message("more")],
            "less": done.events[:-1],
        }[change]
        if not batch:
            return
        answer = await chat.both(
            process, lambda session: session.append(batch, event_id=done.event_id)
        )
        if change:
            assert isinstance(answer, EventIdReused)
        else:
            assert isinstance(answer, Appended)
            assert (answer.first_seq, answer.position, answer.recorded_at) == (
                done.answer.first_seq, done.answer.position, done.answer.recorded_at,
            )

    @rule(where=pick, who=pick, named=st.booleans(), stored=st.booleans())
    def append_without_answer(self, where: int, who: int, named: bool, stored: bool) -> None:
        """An append whose outcome stays unknown is settled by asking again with its id."""
        self.run(self._append_without_answer(self.chat(where), who, named, stored))

    async def _append_without_answer(
        self, chat: Conversation, who: int, named: bool, stored: bool
    ) -> None:
        impatient = await self.lab.start_process(append_timeout_seconds=0.1)
        event, event_id = self.new_message(), self.new_id() if named else None
        lost: Fault = "lost after" if stored else "lost before"
        impatient.store.plan.extend([lost, *["unreachable" for _ in range(50)]])
        answer = await impatient.run(ending(chat.on(impatient).append(event, event_id=event_id)))
        assert isinstance(answer, OutcomeUnknown)
        await impatient.close()
        again = await chat.both(
            self.process(who),
            lambda session: session.append(event, event_id=answer.event_id),
            retried=True,
        )
        assert again.duplicate == stored
        chat.done.append(Done([event], answer.event_id, again))

    @rule(
        places=st.lists(st.tuples(pick, pick, st.booleans()), min_size=2, max_size=8),
        trouble=st.sampled_from(("", "", "cut", "flush", "sweep")), after=ticks,
    )
    def append_together(
        self, places: list[tuple[int, int, bool]], trouble: str, after: int
    ) -> None:
        """Many append at once, some of them with the same expectation."""
        self.run(self._append_together(places, trouble, after))

    async def _append_together(
        self, places: list[tuple[int, int, bool]], trouble: str, after: int
    ) -> None:
        calls = []
        for where, who, expects in places:
            chat, process, event = self.chat(where), self.process(who), self.new_message()
            expected = chat.head if expects else ANY
            work = chat.on(process).append(event, expected_seq=expected)
            calls.append((chat, expects, event, process.task(ending(work))))
        await asyncio.sleep(after * 0.0005)
        await self._trouble(trouble)
        stored: dict[int, list[list[ev.Event]]] = {}
        for chat, expects, event, task in calls:
            answer = await task
            if isinstance(answer, Appended):
                stored.setdefault(self.chats.index(chat), []).append([event])
            else:
                assert expects and isinstance(answer, WrongExpectedSeq), answer
                assert answer.actual > chat.head
        for index, sequences in stored.items():
            await self.chats[index].absorb(self.processes[0], sequences)
        for chat in self.chats:
            rivals = [(expects, task.result()) for each, expects, _, task in calls if each is chat]
            winners = [
                answer for expects, answer in rivals if expects and isinstance(answer, Appended)
            ]
            assert len(winners) <= 1
            assert winners or not rivals or not all(expects for expects, _ in rivals)

    async def _trouble(self, kind: str) -> None:
        if kind == "cut":
            await self.lab.cut_connections()
        elif kind == "flush":
            self.lab.redis.flushall()
        elif kind == "sweep":
            await self._sweep(self.processes[1])

    # --- replies ---

    @rule(where=pick, who=pick, flush_seconds=st.sampled_from((0.0, 0.04)))
    def begin_reply(self, where: int, who: int, flush_seconds: float) -> None:
        """Begin to stream a message."""
        self._made += 1
        message_id, chat, process = f"r{self._made}", self.chat(where), self.process(who)
        self.run(self._begin_reply(chat, process, message_id, flush_seconds))

    async def _begin_reply(
        self, chat: Conversation, process: Process, message_id: str, flush_seconds: float
    ) -> None:
        def begin(session: Any) -> Any:
            reply = session.reply(message_id=message_id, agent="a", flush_seconds=flush_seconds)
            return reply.__aenter__()

        real = await process.run(ending(begin(chat.on(process))))
        twin = await ending(begin(chat.twin))
        if isinstance(twin, Refused):
            assert type(real) is type(twin)
            return
        chat.replies.append(Open(process, real, twin))

    @rule(which=pick, pieces=pieces, channel=channels, faults=faults)
    def write(
        self, which: int, pieces: list[str], channel: Channel, faults: list[Fault]
    ) -> None:
        """Write increments, and wait until they are stored."""
        if found := self.reply(which):
            self.run(self._write(*found, pieces, channel, faults))

    async def _write(
        self, chat: Conversation, reply: Open, pieces: list[str], channel: Channel,
        faults: list[Fault],
    ) -> None:
        reply.process.store.plan.extend(faults)
        real = await reply.process.run(ending(_write(reply.real, pieces, channel)))
        reply.process.store.plan.clear()
        twin = await ending(_write(reply.twin, pieces, channel))
        assert type(real) is type(twin), (real, twin)
        if isinstance(real, MessageFenced):
            await self._end(chat, reply, "complete")

    @rule(which=pick, who=pick, pieces=pieces, others=st.integers(1, 3), same=st.booleans())
    def write_while_others_append(
        self, which: int, who: int, pieces: list[str], others: int, same: bool
    ) -> None:
        """Others append to the session while increments are on their way."""
        if found := self.reply(which):
            self.run(self._write_among(*found, self.process(who), pieces, others, same))

    async def _write_among(
        self, chat: Conversation, reply: Open, process: Process, pieces: list[str],
        others: int, same: bool,
    ) -> None:
        """`same`: the process that streams appends as well, so what it wrote before comes first."""
        if reply.twin.message_id not in (await chat.twin.replay()).opened:
            return  # fenced: `write` has that case
        events: list[ev.Event] = []
        tasks = []
        for number in range(others):
            message = self.new_message()
            events.append(message)
            writer = reply.process if same else process
            for piece in pieces[number::others]:
                await reply.process.run(reply.real.write(piece))
            tasks.append(writer.task(chat.on(writer).append(message)))
        await asyncio.gather(*tasks)
        await reply.process.run(reply.real.drain())
        written = [piece for number in range(others) for piece in pieces[number::others]]
        increments: list[ev.Event] = [
            ev.TokenAppended(message_id=reply.real.message_id, text=piece) for piece in written
        ]
        await chat.absorb(process, [increments, events])

    @rule(which=pick, how=st.sampled_from(("complete", "complete", "fail")))
    def end_reply(self, which: int, how: str) -> None:
        """Complete a reply, or let its generator fail."""
        if found := self.reply(which):
            self.run(self._end(*found, how))

    async def _end(self, chat: Conversation, reply: Open, how: str) -> None:
        chat.replies.remove(reply)
        error = None if how == "complete" else ConnectionResetError("the provider hung up")
        kind = type(error) if error else None
        real = await reply.process.run(ending(reply.real.__aexit__(kind, error, None)))
        twin = await ending(reply.twin.__aexit__(kind, error, None))
        assert type(real) is type(twin), (real, twin)
        assert reply.real.status == reply.twin.status

    @rule(where=pick, who=pick)
    def take_over(self, where: int, who: int) -> None:
        """Close the replies of others; what they write from then on is refused."""
        self.run(self.chat(where).both(self.process(who), lambda session: session.interrupt()))

    # --- revisions ---

    @precondition(lambda self: len(self.chats) < CONVERSATIONS_MAX)
    @rule(where=pick, who=pick, back=pick)
    def fork(self, where: int, who: int, back: int) -> None:
        """Continue a conversation elsewhere, from now or from before."""
        self.run(self._fork(self.chat(where), self.process(who), back))

    async def _fork(self, chat: Conversation, process: Process, back: int) -> None:
        key, at = str(self.new_id()), max(1, chat.head - back)
        fork = await chat.both(process, lambda session: session.fork(at=at, key=key))
        self._know(fork.id, await self.twin.session(key))

    @precondition(lambda self: len(self.chats) < CONVERSATIONS_MAX)
    @rule()
    def create(self) -> None:
        """Begin another conversation."""
        self.run(self._create())

    @rule(where=pick, who=pick, back=pick)
    def rewind(self, where: int, who: int, back: int) -> None:
        """Go back to an earlier seq."""
        chat = self.chat(where)
        to = max(0, chat.head - back)
        self.run(chat.both(self.process(who), lambda session: session.rewind(to=to)))

    @rule(where=pick, who=pick, count=st.integers(1, 3))
    def undo(self, where: int, who: int, count: int) -> None:
        """Take back the newest messages."""
        self.run(self.chat(where).both(self.process(who), lambda session: session.undo(count)))

    @rule(where=pick, who=pick)
    def clear(self, where: int, who: int) -> None:
        """Start over."""
        self.run(self.chat(where).both(self.process(who), lambda session: session.clear()))

    @precondition(lambda self: len(self.chats) > 1)
    @rule(who=pick)
    def close(self, who: int) -> None:
        """Close the newest conversation: nothing may be appended to it any more."""
        self.run(self.chats[-1].both(self.process(who), lambda session: session.close()))

    # --- Redis ---

    @rule()
    def flush_redis(self) -> None:
        """Redis forgets everything."""
        self.lab.redis.flushall()

    @rule(which=pick)
    def delete_feed(self, which: int) -> None:
        """A feed is evicted."""
        if feeds := sorted(self.lab.feeds()):
            self.lab.redis.delete(feeds[which % len(feeds)])

    @rule(which=pick, count=st.integers(1, 5))
    def lose_tail(self, which: int, count: int) -> None:
        """A failover to a replica that lacks the newest rows."""
        if feeds := sorted(self.lab.feeds()):
            self.lab.lose_tail(feeds[which % len(feeds)], count)

    @rule(where=pick, who=pick)
    def append_unpublished(self, where: int, who: int) -> None:
        """A process dies, for Redis' part, between its commit and its publication."""
        self.run(self._append_unpublished(self.chat(where), self.process(who)))

    async def _append_unpublished(self, chat: Conversation, process: Process) -> None:
        fanout = process.log.fanout
        assert fanout is not None
        vars(fanout)["offer"] = lambda *_: None
        event = self.new_message()
        await chat.both(process, lambda session: session.append(event))
        del vars(fanout)["offer"]

    @rule(who=pick)
    def sweep(self, who: int) -> None:
        """The relay looks at every feed."""
        self.run(self._sweep(self.process(who)))

    async def _sweep(self, process: Process) -> None:
        assert process.log.fanout is not None
        await process.run(process.log.fanout.sweep())

    # --- death ---

    @rule(
        who=pick, after=ticks, which=pick, pieces=pieces,
        places=st.lists(pick, min_size=1, max_size=5),
    )
    def crash(
        self, who: int, after: int, which: int, pieces: list[str], places: list[int]
    ) -> None:
        """A process dies while it appends and streams; whoever comes next asks what became of it."""
        self.run(self._crash(who, after, which, pieces, places))

    async def _crash(
        self, who: int, after: int, which: int, pieces: list[str], places: list[int]
    ) -> None:
        process = self.process(who)
        calls = []
        for where in places:
            chat, event, event_id = self.chat(where), self.new_message(), self.new_id()
            work = chat.on(process).append(event, event_id=event_id)
            calls.append((chat, event, event_id, process.task(ending(work))))
        mine = [(chat, each) for chat in self.chats for each in chat.replies
                if each.process is process]
        streaming = mine[which % len(mine)] if mine else None
        if streaming is not None:
            for piece in pieces:
                await process.run(ending(streaming[1].real.write(piece)))
        await asyncio.sleep(after * 0.0005)
        await self._die(process)
        if streaming is not None:
            await self._see_what_was_written(*streaming, pieces, [call[1] for call in calls])
        for chat, event, event_id, task in calls:
            known = task.result() if not task.cancelled() else None
            survivor = self.processes[0]
            answer = await survivor.run(ending(chat.on(survivor).append(event, event_id=event_id)))
            if isinstance(known, Appended):
                assert isinstance(answer, Appended) and answer.duplicate
                assert answer.first_seq == known.first_seq
        for chat, replies in ((each, list(each.replies)) for each in self.chats):
            chat.replies = [each for each in replies if each.process is not process]
            await self._tell_the_twin(chat)

    async def _die(self, process: Process) -> None:
        before = await self.lab.backends()
        others = [each for each in self.processes if each is not process]
        await process.crash()
        self.processes = [*others, await self.lab.start_process()]
        for follower in self.followers:
            if follower.process is process:
                await follower.lose_process(self.processes[-1])
        if self.stepper is not None and self.stepper.process is process:
            self.stepper = None
        self.zombies = [each for each in self.zombies if each.process is not process]

    @invariant()
    def check(self) -> None:
        """What must hold after every step."""
        self.run(self._check())

    async def _check(self) -> None: ...


async def _write(reply: Any, pieces: list[str], channel: Channel) -> None:
    tool_call_id = "c1" if channel == "tool-arguments" else None
    for piece in pieces:
        await reply.write(piece, channel=channel, tool_call_id=tool_call_id)
    await reply.drain()
