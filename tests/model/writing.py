"""Actions of writers: appends of every kind, replies, revisions; each with faults of its own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from eventlog import (
    ANY,
    Appended,
    EventIdReused,
    MessageFenced,
    OutcomeUnknown,
    Refused,
    SessionClosedError,
    SessionDeletedError,
    SessionErasedError,
    WrongExpectedSeq,
)
from eventlog import events as ev
from eventlog.events import Channel
from tests.model.conversations import Conversation, Done, Open, ending
from tests.model.processes import FAULTS, Fault
from tests.model.world import World, action, moments, pick, pieces, texts

CONVERSATIONS_MAX: Final = 4
channels: Final = st.sampled_from(("text", "text", "reasoning", "tool-arguments"))
fault_plans: Final = st.lists(st.sampled_from(FAULTS), max_size=3)
facts: Final = st.sampled_from(
    (
        ev.AgentActivated(agent="coder"),
        ev.AgentHandedOff(to_agent="critic", context={"why": 1}),
        ev.ScratchpadWritten(name="n", value=[1, None]),
        ev.ScratchpadWritten(name="n"),
        ev.ScratchpadWritten(name="o\0", value={"a": "\0"}),
        ev.SessionUpdated(title="t", metadata={"a": 1}),
        ev.SessionExpirySet(ttl_seconds=3_600),
        ev.SessionExpirySet(expires_at=datetime(2100, 1, 1, tzinfo=UTC)),
        ev.RunStarted(run_id="r"),
        ev.RunStarted(run_id="s", agent="coder", metadata={"a": 1}),
        ev.RunStopRequested(run_id="s", reason="enough"),
        ev.RunFinished(run_id="r", usage=ev.Usage(input_tokens=5)),
        ev.RunFailed(run_id="s", error="\0"),
        ev.Custom(name="app.seen", data="\0"),
        ev.CompactionCompleted(summary="all", from_seq=1, to_seq=2, kept=[2]),
        ev.CompactionRequested(instructions="short"),
        ev.CompactionFailed(reason="busy", kind="timeout", attempts=2),
        ev.MessageAdded(
            role="assistant", tool_calls=[ev.ToolCall(id="c1", name="look")], message_id="calls"
        ),
        ev.MessageAdded(role="tool", content="found\0", tool_call_id="c1", message_id="found"),
    )
)
"""Events that are no messages."""
REFUSALS: Final = (WrongExpectedSeq, SessionClosedError, SessionDeletedError)
"""What an append may end with that came too late."""


class Appending(World):
    """One append, the same again, one whose answer never came, and many at once."""

    @action(
        where=pick,
        who=pick,
        said=st.lists(texts, max_size=3),
        fact=facts | st.none(),
        expecting=st.sampled_from(("any", "any", "right", "wrong")),
        named=st.booleans(),
        faults=fault_plans,
    )
    async def append(
        self,
        *,
        where: int,
        who: int,
        said: list[str],
        fact: ev.StoredEvent | None,
        expecting: str,
        named: bool,
        faults: list[Fault],
    ) -> None:
        """Append one or several events, whatever happens to the connection meanwhile."""
        chat, process = self.chat(where), self.process(who)
        batch: list[ev.StoredEvent] = [self.new_message(text) for text in said]
        if fact is not None or not batch:
            batch.append(fact or self.new_message())
        expected = chat.head + (expecting == "wrong") if expecting != "any" else ANY
        event_id = self.new_id() if named else None
        process.store.plan.extend(faults)
        answer = await chat.both(
            process,
            lambda session: session.append(batch, expected_seq=expected, event_id=event_id),
            retried=bool(faults),
        )
        process.store.plan.clear()
        if isinstance(answer, Appended):
            self.lab.seen["first answer given again"] += answer.duplicate
            if event_id is not None:
                chat.done.append(Done(batch, event_id, answer))

    @action(where=pick, which=pick, who=pick, change=st.sampled_from(("", "other", "more", "less")))
    async def append_again(self, where: int, which: int, who: int, change: str) -> None:
        """Append under an id that is in the log: the same gets the same answer, else is refused."""
        chat = self.chat(where)
        if not chat.done:
            return
        done = chat.done[which % len(chat.done)]
        batch = {
            "": done.events,
            "other": [self.new_message("other"), *done.events[1:]],
            "more": [*done.events, self.new_message("more")],
            "less": done.events[:-1],
        }[change]
        if not batch:
            return
        answer = await chat.both(
            self.process(who), lambda session: session.append(batch, event_id=done.event_id)
        )
        if chat.erased:
            assert isinstance(answer, SessionErasedError)
        elif change:
            assert isinstance(answer, EventIdReused)
            self.lab.seen["id refused for other content"] += 1
        else:
            assert isinstance(answer, Appended)
            assert answer.first_seq == done.answer.first_seq
            assert answer.position == done.answer.position
            assert answer.recorded_at == done.answer.recorded_at

    @action(
        where=pick, who=pick, count=st.integers(1, 3), named=st.booleans(), stored=st.booleans()
    )
    async def append_without_answer(
        self, where: int, who: int, count: int, named: bool, stored: bool
    ) -> None:
        """An append whose outcome stays unknown is settled by asking again with its id."""
        chat = self.chat(where)
        if chat.closed:
            return
        impatient = await self.lab.start_process(append_timeout_seconds=0.1)
        batch: list[ev.StoredEvent] = [self.new_message() for _ in range(count)]
        event_id = self.new_id() if named else None
        impatient.store.plan.append("lost after" if stored else "lost before")
        impatient.store.plan.extend("unreachable" for _ in range(50))
        answer = await impatient.run(ending(chat.on(impatient).append(batch, event_id=event_id)))
        assert isinstance(answer, OutcomeUnknown)
        unknown = answer.event_id
        await impatient.close()
        again = await chat.both(
            self.process(who),
            lambda session: session.append(batch, event_id=unknown),
            retried=True,
        )
        assert again.duplicate == stored
        self.lab.seen["unknown outcome settled"] += 1
        chat.done.append(Done(batch, unknown, again))

    @action(
        places=st.lists(st.tuples(pick, pick, st.booleans()), min_size=2, max_size=8),
        trouble=st.sampled_from(("", "", "cut", "flush", "sweep")),
        after=moments,
    )
    async def append_together(
        self, places: list[tuple[int, int, bool]], trouble: str, after: float
    ) -> None:
        """Many append at once, some of them with the same expectation, in some trouble."""
        calls = []
        for where, who, expects in places:
            chat, process, event = self.chat(where), self.process(who), self.new_message()
            expected = chat.head if expects else ANY
            work = chat.on(process).append(event, expected_seq=expected)
            calls.append((chat, expects, event, process.task(ending(work))))
        await asyncio.sleep(after)
        await self._make_trouble(trouble)
        answers = [await task for *_, task in calls]
        for chat in self.chats:
            mine = [
                (expects, event, answer)
                for (each, expects, event, _), answer in zip(calls, answers, strict=True)
                if each is chat
            ]
            await self._judge_rivals(chat, mine)

    async def _make_trouble(self, kind: str) -> None:
        if kind == "cut":
            await self.lab.cut_connections()
        elif kind == "flush":
            self.lab.redis.flushall()
        elif kind == "sweep":
            await self.sweep_feeds(self.processes[1])

    async def _judge_rivals(
        self, chat: Conversation, calls: list[tuple[bool, ev.MessageAdded, Any]]
    ) -> None:
        """Of those who expect the same seq at most one is stored; one is, if all expect it."""
        before = chat.head
        stored = [(event, each) for _, event, each in calls if isinstance(each, Appended)]
        await chat.absorb(self.processes[0], [[event] for event, _ in stored])
        for event, each in stored:
            assert chat.history[each.first_seq - 1].event == event
        for expects, _, each in calls:
            assert isinstance(each, (Appended, *REFUSALS)), each
            assert not isinstance(each, WrongExpectedSeq) or (expects and each.actual > before)
            self.lab.seen["rival refused"] += isinstance(each, WrongExpectedSeq)
        winners = [each for expects, _, each in calls if expects and isinstance(each, Appended)]
        assert len(winners) <= 1
        if calls and all(expects for expects, _, _ in calls) and not chat.closed:
            assert winners


class Replying(World):
    """Replies that stream while others append to the same session."""

    @action(where=pick, who=pick, flush_seconds=st.sampled_from((0.0, 0.04)))
    async def begin_reply(self, where: int, who: int, flush_seconds: float) -> None:
        """Begin to stream a message."""
        message_id, chat, process = self.new_message_id(), self.chat(where), self.process(who)

        def begin(session: Any) -> Any:
            reply = session.reply(message_id=message_id, agent="a", flush_seconds=flush_seconds)
            return reply.__aenter__()

        real = await process.run(ending(begin(chat.on(process))))
        twin = await ending(begin(chat.twin))
        if isinstance(twin, Refused):
            assert type(real) is type(twin)
        else:
            chat.replies.append(Open(process, real, twin))

    @action(which=pick, said=pieces, channel=channels, faults=fault_plans)
    async def write(
        self, which: int, said: list[str], channel: Channel, faults: list[Fault]
    ) -> None:
        """Write increments, and wait until they are stored."""
        found = self.reply(which)
        if not found:
            return
        chat, reply = found
        reply.process.store.plan.extend(faults)
        real = await reply.process.run(ending(write_all(reply.real, said, channel)))
        reply.process.store.plan.clear()
        twin = await ending(write_all(reply.twin, said, channel))
        assert type(real) is type(twin), (real, twin)
        if isinstance(real, MessageFenced):
            self.lab.seen["writer fenced"] += 1
            await self._end(chat, reply, fails=False)

    @action(which=pick, who=pick, said=pieces, others=st.integers(1, 3), same=st.booleans())
    async def write_while_others_append(
        self, which: int, who: int, said: list[str], others: int, same: bool
    ) -> None:
        """Others append to the session, perhaps in the same process, while increments leave."""
        found = self.reply(which)
        if not found:
            return
        chat, reply = found
        process = reply.process if same else self.process(who)
        if reply.twin.message_id not in (await chat.twin.replay()).opened:
            return  # fenced: `write` has that case
        events: list[ev.Event] = []
        tasks = []
        written: list[str] = []
        for number in range(others):
            for piece in said[number::others]:
                await reply.process.run(reply.real.write(piece))
                written.append(piece)
            message = self.new_message()
            events.append(message)
            tasks.append(process.task(chat.on(process).append(message)))
        await asyncio.gather(*tasks)
        await reply.process.run(reply.real.drain())
        await chat.absorb(process, [increments(reply, written), events])

    @action(which=pick, fails=st.booleans())
    async def end_reply(self, which: int, fails: bool) -> None:
        """Complete a reply, or let its generator fail."""
        if found := self.reply(which):
            await self._end(*found, fails=fails)

    async def _end(self, chat: Conversation, reply: Open, *, fails: bool) -> None:
        chat.replies.remove(reply)
        error = ConnectionResetError("the provider hung up") if fails else None
        kind = type(error) if fails else None
        real = await reply.process.run(ending(reply.real.__aexit__(kind, error, None)))
        twin = await ending(reply.twin.__aexit__(kind, error, None))
        assert type(real) is type(twin), (real, twin)
        assert reply.real.status == reply.twin.status

    @action(where=pick, who=pick)
    async def take_over(self, where: int, who: int) -> None:
        """Close the replies of others; what they write from then on is refused."""
        await self.chat(where).both(self.process(who), lambda session: session.interrupt())


class Revising(World):
    """New conversations, and changes of what was said."""

    @precondition(lambda self: len(self.chats) < CONVERSATIONS_MAX)
    @action()
    async def create(self) -> None:
        """Begin another conversation."""
        await self.new_chat()

    @precondition(lambda self: len(self.chats) < CONVERSATIONS_MAX)
    @action(where=pick, who=pick, back=pick)
    async def fork(self, where: int, who: int, back: int) -> None:
        """Continue a conversation elsewhere, from now or from before."""
        chat, key = self.chat(where), str(self.new_id())
        at = max(1, chat.head - back)
        fork = await chat.both(self.process(who), lambda session: session.fork(at=at, key=key))
        if chat.erased:
            assert isinstance(fork, SessionErasedError)
        else:
            self.know(fork.id, await self.twin.session(key)).erased_ids |= chat.erased_ids

    @action(where=pick, who=pick, back=pick)
    async def rewind(self, where: int, who: int, back: int) -> None:
        """Go back to an earlier seq."""
        chat = self.chat(where)
        to = max(0, chat.head - back)
        await chat.both(self.process(who), lambda session: session.rewind(to=to))

    @action(where=pick, who=pick, count=st.integers(1, 3))
    async def undo(self, where: int, who: int, count: int) -> None:
        """Take back the newest messages."""
        await self.chat(where).both(self.process(who), lambda session: session.undo(count))

    @action(where=pick, who=pick)
    async def clear(self, where: int, who: int) -> None:
        """Start over."""
        await self.chat(where).both(self.process(who), lambda session: session.clear())

    @precondition(lambda self: len(self.chats) > 1)
    @action(who=pick)
    async def close(self, who: int) -> None:
        """Close the newest conversation: nothing may be appended to it any more."""
        await self.chats[-1].both(self.process(who), lambda session: session.close())


async def write_all(
    reply: Any, said: list[str], channel: Channel = "text", *, drain: bool = True
) -> None:
    """Write some increments; with `drain` wait for them."""
    tool_call_id = "c1" if channel == "tool-arguments" else None
    for piece in said:
        await reply.write(piece, channel=channel, tool_call_id=tool_call_id)
    if drain:
        await reply.drain()


def increments(reply: Open, said: list[str]) -> list[ev.Event]:
    """The events that some increments become."""
    message_id = reply.real.message_id
    return [ev.TokenAppended(message_id=message_id, text=piece) for piece in said]
