"""The state machine: random actions of writers, readers, projectors and faults, and what must hold.

Two processes share a log; a third log, in memory, is the twin to which every action is done as
well. Faults are actions like others: Redis forgets, answers get lost, connections are cut, and
processes die in the middle of what they do. After each action every session is what its twin is.
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
    SessionClosedError,
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
        self._failed = False
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
        where=pick,
        who=pick,
        texts=st.lists(texts, max_size=3),
        fact=facts | st.none(),
        expecting=st.sampled_from(("any", "any", "right", "wrong")),
        named=st.booleans(),
        faults=faults,
    )
    def append(
        self,
        *,
        where: int,
        who: int,
        texts: list[str],
        fact: ev.StoredEvent | None,
        expecting: str,
        named: bool,
        faults: list[Fault],
    ) -> None:
        """Append one or several events, whatever happens to the connection meanwhile."""
        batch: list[ev.StoredEvent] = [self.new_message(text) for text in texts]
        if fact is not None or not batch:
            batch.append(fact or self.new_message())
        self.run(
            self._append(
                self.chat(where),
                self.process(who),
                batch,
                expecting=expecting,
                named=named,
                faults=faults,
            )
        )

    async def _append(
        self,
        chat: Conversation,
        process: Process,
        batch: list[ev.StoredEvent],
        *,
        expecting: str,
        named: bool,
        faults: list[Fault],
    ) -> None:
        expected = chat.head + (expecting == "wrong") if expecting != "any" else ANY
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
                self._append_again(
                    chat, chat.done[which % len(chat.done)], self.process(who), change
                )
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
                done.answer.first_seq,
                done.answer.position,
                done.answer.recorded_at,
            )

    @rule(where=pick, who=pick, named=st.booleans(), stored=st.booleans())
    def append_without_answer(self, where: int, who: int, named: bool, stored: bool) -> None:
        """An append whose outcome stays unknown is settled by asking again with its id."""
        chat = self.chat(where)
        if not chat.closed:
            self.run(self._append_without_answer(chat, self.process(who), named, stored))

    async def _append_without_answer(
        self, chat: Conversation, process: Process, named: bool, stored: bool
    ) -> None:
        impatient = await self.lab.start_process(append_timeout_seconds=0.1)
        event, event_id = self.new_message(), self.new_id() if named else None
        lost: Fault = "lost after" if stored else "lost before"
        impatient.store.plan.append(lost)
        impatient.store.plan.extend("unreachable" for _ in range(50))
        answer = await impatient.run(ending(chat.on(impatient).append(event, event_id=event_id)))
        assert isinstance(answer, OutcomeUnknown)
        await impatient.close()
        again = await chat.both(
            process,
            lambda session: session.append(event, event_id=answer.event_id),
            retried=True,
        )
        assert again.duplicate == stored
        chat.done.append(Done([event], answer.event_id, again))

    @rule(
        places=st.lists(st.tuples(pick, pick, st.booleans()), min_size=2, max_size=8),
        trouble=st.sampled_from(("", "", "cut", "flush", "sweep")),
        after=ticks,
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
        answers = [await task for *_, task in calls]
        for chat in self.chats:
            mine = [
                (expects, event, answer)
                for (each, expects, event, _), answer in zip(calls, answers, strict=True)
                if each is chat
            ]
            await self._judge_rivals(chat, mine)

    async def _judge_rivals(
        self, chat: Conversation, calls: list[tuple[bool, ev.MessageAdded, Any]]
    ) -> None:
        """Of those who expect the same seq at most one is stored; one is, if all expect it."""
        before, refusals = chat.head, (WrongExpectedSeq, SessionClosedError)
        stored = [(event, each) for _, event, each in calls if isinstance(each, Appended)]
        await chat.absorb(self.processes[0], [[event] for event, _ in stored])
        for event, each in stored:
            assert chat.history[each.first_seq - 1].event == event
        for expects, _, each in calls:
            assert isinstance(each, (Appended, *refusals))
            assert not isinstance(each, WrongExpectedSeq) or (expects and each.actual > before)
        winners = [each for expects, _, each in calls if expects and isinstance(each, Appended)]
        assert len(winners) <= 1
        if calls and all(expects for expects, _, _ in calls) and not chat.closed:
            assert winners

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
    def write(self, which: int, pieces: list[str], channel: Channel, faults: list[Fault]) -> None:
        """Write increments, and wait until they are stored."""
        if found := self.reply(which):
            self.run(self._write(*found, pieces, channel, faults))

    async def _write(
        self,
        chat: Conversation,
        reply: Open,
        pieces: list[str],
        channel: Channel,
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
            self.run(self._write_among(*found, self.process(who), pieces, others=others, same=same))

    async def _write_among(
        self,
        chat: Conversation,
        reply: Open,
        process: Process,
        pieces: list[str],
        *,
        others: int,
        same: bool,
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
        who=pick,
        after=ticks,
        which=pick,
        pieces=pieces,
        places=st.lists(pick, min_size=1, max_size=5),
    )
    def crash(
        self, *, who: int, after: int, which: int, pieces: list[str], places: list[int]
    ) -> None:
        """A process dies while it appends and streams; the next one asks what became of it."""
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
        streaming = [
            (chat, each) for chat in self.chats for each in chat.replies if each.process is process
        ]
        streams: dict[uuid.UUID, list[ev.Event]] = {}
        if streaming:
            chat, reply = streaming[which % len(streaming)]
            message_id = reply.real.message_id
            streams[chat.id] = [
                ev.TokenAppended(message_id=message_id, text=piece) for piece in pieces
            ]
            await process.run(ending(_write(reply.real, pieces, "text", drain=False)))
        await asyncio.sleep(after * 0.0005)
        await self._die(process)
        for chat in self.chats:
            due = [streams.get(chat.id, [])]
            due += [[event] for each, event, _, _ in calls if each is chat]
            await chat.absorb(self.processes[0], due, whole=False)
            chat.replies = [each for each in chat.replies if each.process is not process]
        for chat, event, event_id, task in calls:
            await self._settle(chat, event, event_id, task)

    async def _settle(
        self,
        chat: Conversation,
        event: ev.StoredEvent,
        event_id: uuid.UUID,
        task: asyncio.Task[Any],
    ) -> None:
        """Ask again, with the same id, in another process."""
        again = await chat.both(
            self.processes[0], lambda session: session.append(event, event_id=event_id)
        )
        known = None if task.cancelled() else task.result()
        if isinstance(known, Appended):
            assert again.duplicate
            assert (again.first_seq, again.position) == (known.first_seq, known.position)
        if isinstance(again, Appended):
            chat.done.append(Done([event], event_id, again))

    async def _die(self, process: Process) -> None:
        await process.crash()
        await until(lambda: self._has_no_connection(process))
        self.processes.remove(process)
        self.processes.append(await self.lab.start_process())
        for follower in self.followers:
            if follower.process is process:
                follower.lose_process(self.processes[0])
        self.steppers = [each for each in self.steppers if each.process is not process]

    async def _has_no_connection(self, process: Process) -> bool:
        return not await self.lab.connections(process.name)

    # --- readers ---

    @rule(where=pick, who=pick, at=pick, by_time=st.booleans())
    def replay(self, where: int, who: int, at: int, by_time: bool) -> None:
        """The state at any seq, or any time, is the fold of the events up to it."""
        self.run(self._replay(self.chat(where), self.process(who), at, by_time))

    async def _replay(self, chat: Conversation, process: Process, at: int, by_time: bool) -> None:
        seq = max(1, chat.head - at)
        moment: Any = seq
        if by_time:
            moment = chat.history[seq - 1].recorded_at
            seq = max(each.seq for each in chat.history if each.recorded_at <= moment)
        state = await process.run(chat.on(process).replay(moment))
        assert shown(state) == shown(chat.folded(seq))
        context = await process.run(chat.on(process).context(at=moment))
        assert context == chat.folded(seq).context()

    @rule(where=pick, who=pick, back=pick)
    def follow(self, where: int, who: int, back: int) -> None:
        """Subscribe from some cursor."""
        chat = self.chat(where)
        follower = Follower(chat, self.process(who), max(0, chat.head - back))
        self.followers = [*self.followers[-3:], follower]

    @precondition(lambda self: self.followers)
    @rule(which=pick, count=st.integers(1, 12))
    def receive(self, which: int, count: int) -> None:
        """A subscriber asks for some events that are there."""
        self.run(self.followers[which % len(self.followers)].get(count))

    @precondition(lambda self: self.followers)
    @rule(which=pick, who=pick)
    def reconnect(self, which: int, who: int) -> None:
        """A subscriber goes on from its cursor, perhaps in another process."""
        follower = self.followers[which % len(self.followers)]
        self.run(follower.move(self.process(who)))

    # --- projectors ---

    @rule(who=pick)
    def begin_to_project(self, who: int) -> None:
        """A projector takes all shards from the one before, which doesn't know of it."""
        self.run(self._begin_to_project(self.process(who)))

    async def _begin_to_project(self, process: Process) -> None:
        self.steppers = [*self.steppers[-2:], Stepper(process)]
        await process.run(self.steppers[-1].begin())

    @rule(
        shard=st.integers(0, SHARDS - 1),
        count=st.sampled_from((1, 2, 5, 20, 1000)),
        death=st.sampled_from(DEATHS),
        from_redis=st.booleans(),
    )
    def project(self, shard: int, count: int, death: Death, from_redis: bool) -> None:
        """Project a batch; perhaps the projector dies around its commit."""
        if self.steppers:
            self.run(self._project(self.steppers[-1], shard, count, death, from_redis))

    async def _project(
        self, stepper: Stepper, shard: int, count: int, death: Death, from_redis: bool
    ) -> None:
        work = stepper.step(shard, count, death, from_redis=from_redis)
        try:
            await stepper.process.run(work)
        except Died:
            self.steppers.remove(stepper)

    @rule(shard=st.integers(0, SHARDS - 1))
    def project_as_a_zombie(self, shard: int) -> None:
        """A projector whose shards were taken tries to go on, and is refused."""
        if len(self.steppers) > 1:
            zombie = self.steppers[-2]
            assert not self.run(zombie.process.run(zombie.can_write(shard)))

    # --- what holds ---

    @invariant()
    def check(self) -> None:
        """What must hold after every step."""
        self.run(self._check())

    async def _check(self) -> None:
        process = self.processes[self._made % len(self.processes)]
        for chat in self.chats:
            await chat.refresh(process)
            await check_session_view(process, chat)
        for shard in range(SHARDS):
            await self._check_feed(process, shard)

    async def _check_feed(self, process: Process, shard: int, *, rows_max: int = 100) -> int:
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
        await self._sweep(process)
        heads = await process.store.feed_heads()
        for shard, head in enumerate(heads):
            assert await self._check_feed(process, shard, rows_max=1_000) == head
        await self._begin_to_project(process)
        await process.run(self.steppers[-1].catch_up())
        for chat in self.chats:
            assert await check_session_view(process, chat) == chat.head
            await check_message_views(self.lab.superuser, chat, chat.on(process).shard)
        for follower in self.followers:
            await follower.get(1_000)

    async def _close(self) -> None:
        for follower in self.followers:
            await follower.drop()
        for process in self.processes:
            await process.close()
        await self._stack.aclose()


async def _write(reply: Any, pieces: list[str], channel: Channel, *, drain: bool = True) -> None:
    tool_call_id = "c1" if channel == "tool-arguments" else None
    for piece in pieces:
        await reply.write(piece, channel=channel, tool_call_id=tool_call_id)
    if drain:
        await reply.drain()
