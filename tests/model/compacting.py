"""Actions about what a model is shown: summaries, what stays, calls that nobody waits for.

The log and its twin plan by themselves, and are given the same summary: they must agree on its
range, on what is kept, and on whether anything is appended at all.
"""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from eventlog import CompactionPolicy, Session, Summary, SummaryFailed
from eventlog import events as ev
from eventlog.compaction.committing import Superseded, append_failure, append_summary
from eventlog.compaction.selection import NothingToDo
from eventlog.testing import message
from tests.model.processes import FAULTS, Fault
from tests.model.world import World, action, pick

POLICIES: Final = tuple(
    CompactionPolicy(
        messages_min=0,
        keep_messages=keep,
        keep_tokens=None,
        keep_user_tokens=said,
        orphan_seconds=orphan,
    )
    for keep, said, orphan in ((0, 0, 0.0), (2, 0, 10.0**9), (1, 40, 0.0))
)
LONG: Final = "a message that is longer than what a summary of it has to say " * 3
Made = tuple[str, int, list[tuple[int, int, int]]]


async def compact(session: Session, policy: CompactionPolicy) -> Made:
    """Compact, as the library does it but for the clock; what came of it, and what stands."""
    ended, seq = await _try(session, policy)
    made = [(each.seq, each.to_seq, each.reverted_seq) for each in await session.compactions()]
    return ended, seq, made


async def _try(session: Session, policy: CompactionPolicy) -> tuple[str, int]:
    plan = await session.plan_compaction(policy)
    if isinstance(plan, NothingToDo):
        return "nothing to do", 0
    summary = Summary(text=f"all of {len(plan.material)}\0", usage=ev.Usage(input_tokens=3))
    try:
        return "compacted", await append_summary(session, plan, summary, duration_ms=0)
    except Superseded:
        return "superseded", 0
    except SummaryFailed as failure:
        await append_failure(session, plan.basis, failure)
        return failure.kind, 0


class Compacting(World):
    """Compactions and what undoes them, pins and facts: in one process, seen by all."""

    @action(where=pick, who=pick, how=pick, faults=st.lists(st.sampled_from(FAULTS), max_size=2))
    async def compact(self, where: int, who: int, how: int, faults: list[Fault]) -> None:
        """Compact a conversation, whatever happens to the connection meanwhile."""
        chat, process, policy = self.chat(where), self.process(who), POLICIES[how % len(POLICIES)]
        if how % 2:
            self._made += 1
            said = [message(LONG, message_id=f"l{self._made}.{number}") for number in range(3)]
            await chat.both(process, lambda session: session.append(said))
        process.store.plan.extend(faults)
        ended = await chat.both(process, lambda session: compact(session, policy))
        process.store.plan.clear()
        assert isinstance(ended, tuple), ended
        self.lab.seen[f"compaction {ended[0]}"] += 1
        await chat.refresh(process)
        for everyone in self.processes:
            context = await everyone.run(chat.on(everyone).context())
            assert context == chat.folded(chat.head).context()

    @action(where=pick, who=pick)
    async def uncompact(self, where: int, who: int) -> None:
        """Undo the newest compaction, if one stands."""

        async def undo(session: Session) -> int:
            return (await session.uncompact()).seq

        await self.chat(where).both(self.process(who), undo)

    @action(where=pick, who=pick, which=pick, pinned=st.booleans())
    async def pin(self, where: int, who: int, which: int, pinned: bool) -> None:
        """Let a message stay, or no longer."""
        chat = self.chat(where)
        messages = list((await chat.twin.replay()).messages)
        if messages:
            chosen = messages[which % len(messages)].message_id
            await chat.both(self.process(who), lambda it: it.pin(chosen, pinned=pinned))

    @action(where=pick, who=pick, what=st.sampled_from(("fact", "no fact", "call", "policy")))
    async def tell(self, where: int, who: int, what: str) -> None:
        """A fact that stays, a call that nobody waits for, a policy."""
        events: dict[str, ev.StoredEvent] = {
            "fact": ev.FactPinned(name="n\0", text="it is so"),
            "no fact": ev.FactPinned(name="n\0"),
            "call": ev.ToolCallClosed(tool_call_id="c1"),
            "policy": ev.CompactionPolicySet(policy=POLICIES[where % len(POLICIES)]),
        }
        chat = self.chat(where)
        await chat.both(self.process(who), lambda session: session.append(events[what]))
