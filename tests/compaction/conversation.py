"""A session in memory in which anything happens, between compactions: what the properties run on.

Each step is a name and a number that makes the choices. After each the context is checked and
remembered by its seq; `finish` reads the past again.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from hypothesis import strategies as st

from eventlog import CompactionPolicy, EventLog, Session
from eventlog import events as ev
from eventlog.compaction.compaction import compact
from eventlog.compaction.selection import NothingToDo, Plan, plan
from eventlog.envelope import RecordedEvent
from eventlog.errors import MessageFenced
from eventlog.memory import MemoryStore
from eventlog.reply import Reply
from eventlog.testing import FakeClock, message, read_all
from tests.compaction.checks import (
    check_made,
    check_pairs,
    check_plan,
    check_ranges,
    check_summaries,
    event_bytes_max,
    size_of,
)
from tests.compaction.summaries import Brief

POLICIES: Final = [
    CompactionPolicy(
        messages_min=0,
        keep_messages=keep,
        keep_tokens=tokens,
        keep_user_tokens=said,
        orphan_seconds=orphan,
    )
    for keep, tokens, said, orphan in (
        (0, None, 0, 0.0),
        (1, None, 0, 0.0),
        (2, None, 60, 10.0**9),
        (3, 100, 0, 0.0),
        (None, 80, 10_000, 10.0**9),
        (0, None, 40, 10.0**9),
    )
]
STEPS: Final = (
    *("say", "say", "answer", "answer", "call", "call", "call_two", "output", "output", "output"),
    *("begin", "end", "system", "pin", "unpin", "fact", "undo", "retract", "clear", "rewind"),
    *("fork", "compact", "compact", "compact", "compact", "uncompact", "uncompact_any", "silent"),
)
Steps = list[tuple[str, int]]


@st.composite
def steps(draw: st.DrawFn, count_max: int = 60, names: tuple[str, ...] = STEPS) -> Steps:
    """What happens, one after the other."""
    count = draw(st.integers(5, count_max))  # lists() alone would be short nearly always
    one = st.tuples(st.sampled_from(names), st.integers(0, 2**16))
    return draw(st.lists(one, min_size=count, max_size=count))


class Conversation:
    """The session, and what it was like at each seq."""

    def __init__(self, log: EventLog, session: Session) -> None:
        self.log = log
        self.session = session
        self.summarizer = Brief()
        self.contexts: dict[int, list[dict[str, Any]]] = {}
        self.past: list[RecordedEvent] = []
        self.own_seq = 0
        """Compactions up to here were made by others, of any range."""
        self.made = 0
        """Compactions that came about."""
        self._replies = AsyncExitStack()
        self._reply: Reply | None = None
        self._words = 0
        self._calls: list[str] = []

    async def step(self, name: str, choice: int) -> None:
        """Let something happen, and look at what came of it."""
        await getattr(self, name)(choice)
        await self.look()

    async def look(self) -> None:
        """Check the context of now."""
        state = await self.session.context_state()
        context = await self.session.context()
        assert context == state.context() == (await self.session.replay()).context()
        check_pairs(context)
        check_summaries(context, state.compaction)
        check_ranges(state, after=self.own_seq)
        self.contexts[state.seq] = context

    async def finish(self) -> None:
        """Read the past: it is what it was, for whoever has never read it, too."""
        with suppress(MessageFenced):
            await self._replies.aclose()
        events = await read_all(self.session)
        assert events[: len(self.past)] == self.past
        for seq, context in self.contexts.items():
            if seq <= len(events):
                assert await self.session.context(at=seq) == context

    # --- what is said ---

    async def say(self, choice: int) -> None:
        await self.session.append(message(self._text(choice), message_id=self._new_id()))

    async def answer(self, choice: int) -> None:
        text = self._text(choice)
        await self.session.append(message(text, "assistant", message_id=self._new_id()))

    async def silent(self, choice: int) -> None:
        """A reply without a word."""
        await self.session.append(message("", "assistant", message_id=self._new_id()))

    async def system(self, choice: int) -> None:
        await self.session.append(message(self._text(choice), "system"))

    async def call(self, choice: int) -> None:
        await self._call(choice, 1)

    async def call_two(self, choice: int) -> None:
        await self._call(choice, 2)

    async def output(self, choice: int) -> None:
        """Of a call that was made once, perhaps long ago; no call gets two."""
        if self._calls:
            call = self._calls.pop(choice % len(self._calls))
            text = self._text(choice)
            await self.session.append(message(text, "tool", tool_call_id=call))

    async def begin(self, choice: int) -> None:
        if self._reply is None:
            reply = self.session.reply(flush_seconds=0)
            self._reply = await self._replies.enter_async_context(reply)
            await self._reply.write(self._text(choice))
            await self._reply.drain()

    async def end(self, choice: int) -> None:
        self._reply = None
        with suppress(MessageFenced):  # it was cleared, rewound or undone
            await self._replies.aclose()

    async def _call(self, choice: int, count: int) -> None:
        names = [f"call{self._word()}" for _ in range(count)]
        calls = ["again"] if choice % 5 == 0 else names  # some programs use ids twice
        self._calls += calls
        await self.session.append(
            message(
                self._text(choice) if choice % 2 else "",
                "assistant",
                tool_calls=[ev.ToolCall(id=each, name="look", arguments="{}") for each in calls],
                message_id=self._new_id(),
            )
        )

    # --- what is done about it ---

    async def pin(self, choice: int) -> None:
        await self._pin(choice, pinned=True)

    async def unpin(self, choice: int) -> None:
        await self._pin(choice, pinned=False)

    async def _pin(self, choice: int, *, pinned: bool) -> None:
        messages = (await self.session.context_state()).context_messages()
        if messages:
            chosen = messages[choice % len(messages)].message_id
            await self.session.pin(chosen, pinned=pinned)

    async def fact(self, choice: int) -> None:
        await self.session.pin_fact(f"f{choice % 3}", "it is so" if choice % 4 else None)

    async def undo(self, choice: int) -> None:
        await self.session.undo(1 + choice % 3)

    async def retract(self, choice: int) -> None:
        """Any message of the context, a call or an output of a call perhaps."""
        messages = (await self.session.context_state()).context_messages()
        if messages:
            chosen = messages[choice % len(messages)].message_id
            await self.session.append(ev.MessageRetracted(message_id=chosen))

    async def clear(self, choice: int) -> None:
        if choice % 4 == 0:  # or else little would ever be said
            await self.session.clear()

    async def rewind(self, choice: int) -> None:
        state = await self.session.context_state()
        seqs = [seq for seq in range(1, state.seq + 1) if not state.is_rewound(seq)]
        await self.session.rewind(to=seqs[-1 - choice % min(len(seqs), 12)])

    async def fork(self, choice: int) -> None:
        """Go on in a fork; the parent stays what it is."""
        if choice % 3:
            return
        head = await self.session.head()
        await self.finish()
        at = head - choice % min(head, 8)
        parent, self._reply = self.session, None
        before = await read_all(parent)
        self.session = await parent.fork(at=at)
        assert await read_all(parent) == before
        self.past = before[:at]
        self.contexts = {seq: said for seq, said in self.contexts.items() if seq <= at}

    # --- compaction ---

    async def compact(self, choice: int) -> None:
        policy = POLICIES[choice % len(POLICIES)]
        before, events = await self.session.context_state(), await read_all(self.session)
        chosen = self._plan(before, policy)
        outcome = await compact(self.session, self.summarizer, policy)
        after, now = await self.session.context_state(), await read_all(self.session)
        assert now[: len(events)] == events
        self.past = now
        if isinstance(chosen, NothingToDo):
            assert (outcome.status, now) == ("nothing_to_do", events)
        elif outcome.status == "failed":  # so little that no summary is smaller
            assert outcome.failure is not None
            assert outcome.failure.kind == "not_smaller"
            assert after.context() == before.context()
        else:
            assert outcome.status == "compacted"
            self.made += 1
            check_made(chosen, before, after)
            event = now[-1].event
            assert size_of(event) <= event_bytes_max(event)
            material = self.summarizer.materials[-1]
            assert material.messages == chosen.material
            standing = before.compaction
            assert material.previous_summary == (standing.summary if standing else None)

    def _plan(self, state: Any, policy: CompactionPolicy) -> Plan | NothingToDo:
        now = datetime.now(UTC)
        chosen, again = plan(state, policy, now=now), plan(state, policy, now=now)
        assert msgspec.msgpack.encode(chosen) == msgspec.msgpack.encode(again)
        if isinstance(chosen, Plan):
            check_plan(chosen, state, policy)
        return chosen

    async def uncompact(self, choice: int) -> None:
        standing = [e for e in await self.session.compactions() if not e.reverted_seq]
        if standing:
            await self.session.uncompact()

    async def uncompact_any(self, choice: int) -> None:
        """Not the newest, perhaps."""
        standing = [e for e in await self.session.compactions() if not e.reverted_seq]
        if standing:
            await self.session.uncompact(standing[choice % len(standing)].seq)

    # --- words ---

    def _text(self, choice: int) -> str:
        number = self._word()
        return " ".join(f"word{number}" for _ in range(1 + choice % 20))

    def _word(self) -> int:
        self._words += 1
        return self._words

    def _new_id(self) -> str:
        return f"m{self._word()}"


async def open_conversation(stack: AsyncExitStack) -> Conversation:
    """A new session in a log of its own, some time ago."""
    clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
    log = await stack.enter_async_context(EventLog.in_memory(store=MemoryStore(now_us=clock)))
    return Conversation(log, await log.create_session(user_id="ada"))
