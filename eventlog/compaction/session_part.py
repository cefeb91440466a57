"""The part of a session's handle that is about its context: its size, what stays, compactions."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from eventlog import events as ev
from eventlog import revisions
from eventlog.compaction.compaction import compact_or_raise
from eventlog.compaction.measure import ContextTokens, context_tokens
from eventlog.compaction.policy import CompactionPolicy, policy_of
from eventlog.compaction.selection import NothingToDo, Plan, plan
from eventlog.compaction.summarizer import Summarizer, SummaryFailed, failure_kind
from eventlog.drafts import check_seq
from eventlog.envelope import Appended, Draft
from eventlog.errors import CompactionPending, InvalidRequest
from eventlog.state import Compaction, SessionState

if TYPE_CHECKING:
    from eventlog.log import EventLog
    from eventlog.session import Session

WAIT_SECONDS: Final = 300.0
"""How long `compact` waits for a compact-worker, unless said otherwise."""
FACT_CHARS_MAX: Final = 4_000
"""Longest pinned fact, in characters: it is read with every request from then on."""


class SessionCompaction:
    """What `Session` offers for the context of the model."""

    id: UUID
    _log: EventLog

    # --- compacting ---

    async def compact(
        self,
        *,
        summarizer: Summarizer | None = None,
        instructions: str | None = None,
        wait_seconds: float = WAIT_SECONDS,
    ) -> Compaction | None:
        """Have the older part of the context summarised now; None: there is nothing to summarise.

        A compact-worker does it (`eventlog compact-worker`, or `up`), and this waits for it; with a
        `summarizer` of your own it is done here. What stays word for word is for the policy to say,
        its threshold doesn't matter. Appends go on meanwhile. Raises `SummaryFailed`, and
        `CompactionPending` when no worker answered in time: it may still happen.
        """
        session = self._handle()
        if summarizer is not None:
            policy = await self.compaction_policy()
            seq = await compact_or_raise(session, summarizer, policy, instructions=instructions)
        else:
            event = ev.CompactionRequested(instructions=instructions)
            asked = (await session.append(event)).last_seq
            seq = await self._answer(asked, wait_seconds)
        return None if seq is None else await self._compaction(seq)

    async def _answer(self, asked: int, seconds: float) -> int | None:
        """Wait for the end of a compaction that was asked for; its seq."""
        subscription = self._handle().subscribe(after=asked)
        try:
            async with asyncio.timeout(seconds):
                async for recorded in subscription:
                    match recorded.event:
                        case ev.CompactionCompleted():
                            return recorded.seq
                        case ev.CompactionFailed(kind="nothing_to_do"):
                            return None
                        case ev.CompactionFailed(kind=kind, reason=reason):
                            raise SummaryFailed(failure_kind(kind), reason)
        except TimeoutError:
            pass
        finally:
            await subscription.aclose()
        raise CompactionPending(self.id, seconds)

    async def uncompact(self, seq: int | None = None) -> Compaction:
        """Undo the newest compaction, or the one at `seq`; returns it.

        The context is again made of what it stood for. It is not compacted again by itself before
        it has grown. Raises `InvalidRequest` when there is none that stands.
        """
        if seq is not None:
            check_seq(seq, "seq")
        session = self._handle()
        undone: list[Compaction] = []

        def choose(state: SessionState) -> list[Draft]:
            standing = [each for each in state.compactions if not each.reverted_seq]
            found = [each for each in standing if seq in (None, each.seq)]
            if not found:
                which = "no compaction that stands" if seq is None else f"none at seq {seq}"
                raise InvalidRequest(f"session {self.id} has {which}; compactions() lists them")
            undone[:] = found[-1:]
            return [session.draft(ev.CompactionReverted(compaction_seq=found[-1].seq))]

        await revisions.decide(session, choose, read=self.context_state)
        return await self._compaction(undone[0].seq)

    async def compactions(self) -> list[Compaction]:
        """All compactions, oldest first, with their summaries; undone ones say `reverted_seq`."""
        state = await self.context_state()
        state = await self._log.replayer.recall(self.id, state, state.left_out)
        return list(state.compactions)

    async def _compaction(self, seq: int) -> Compaction:
        """The one that was appended at a seq; of others nothing is read."""
        state = await self.context_state()
        state = await self._log.replayer.recall(self.id, state, state.left_out & {seq})
        return next(each for each in state.compactions if each.seq == seq)

    async def plan_compaction(
        self, policy: CompactionPolicy | str | None = None
    ) -> Plan | NothingToDo:
        """What a compaction would summarise now, and what it would keep. Changes nothing."""
        state = await self.context_state()
        chosen = await self._log.compaction.of(state) if policy is None else policy_of(policy)
        return plan(state, chosen, now=datetime.now(UTC))

    async def context_tokens(self, model: str | None = None) -> ContextTokens:
        """How many tokens the context has, for a model (None: the one that spoke last)."""
        return context_tokens(await self.context_state(), model)

    async def context_state(self) -> SessionState:
        """The state now, good for its context only: of older messages just those in it are read."""
        return await self._log.replayer.context_state(self.id, None)

    # --- policies ---

    async def compaction_policy(self) -> CompactionPolicy:
        """The policy that counts for this session: its own, its user's, or the log's."""
        return await self._log.compaction.of(await self.context_state())

    async def set_compaction_policy(self, policy: CompactionPolicy | str | None) -> Appended:
        """Say when this session is compacted: a policy, a preset's name, or JSON.

        None: by its user's policy, or the log's. See `EventLog.compaction` for those.
        """
        chosen = None if policy is None else policy_of(policy)
        return await self._handle().append(ev.CompactionPolicySet(policy=chosen))

    # --- what stays ---

    async def pin(self, message_id: str, *, pinned: bool = True) -> Appended:
        """Keep a message in the context word for word, whatever is summarised; or no longer."""
        return await self._handle().append(ev.MessagePinned(message_id=message_id, pinned=pinned))

    async def pin_fact(self, name: str, text: str | None) -> Appended:
        """Let a sentence stand in every context from now on, under a name; None removes it."""
        if not name or (text is not None and not 0 < len(text) <= FACT_CHARS_MAX):
            raise InvalidRequest(
                f"a fact has a name and 1 to {FACT_CHARS_MAX:,} characters; every request has it"
            )
        return await self._handle().append(ev.FactPinned(name=name, text=text))

    def _handle(self) -> Session:
        return self._log.handle(self.id)
