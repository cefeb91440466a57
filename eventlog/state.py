"""The state of a session at one seq: what its events add up to, and what can be asked of it.

A state is a header and the messages. `folding` makes states, `snapshots` saves them; here is what
they consist of, the list of visible messages, and the context that a model sees next.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from heapq import merge
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from eventlog.compaction.policy import CompactionPolicy
from eventlog.entries import Chunk, Entries, Message, NotLoaded
from eventlog.event_values import ToolCall, Usage
from eventlog.rendering import provider_dicts

FOLD_VERSION: Final = 3
"""Raise this when `evolve` gives another result for old events: older snapshots are dropped."""


class SummaryMissing(NotLoaded):
    """A summary stands again that a snapshot left in the log. Internal."""

    def __init__(self, seq: int) -> None:
        super().__init__(f"the summary of seq {seq} is not loaded")
        self.seq = seq


class Compaction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A summary that stands, or stood, in the context for a range of events.

    The fields of `CompactionCompleted`, where it stands in the log, and what undid it.
    """

    seq: int
    from_seq: int
    to_seq: int
    kept: list[int] = []
    summary: str = ""
    model: str | None = None
    prompt_version: str | None = None
    method: str = ""
    tokens_before: int | None = None
    tokens_after: int | None = None
    context_tokens: int | None = None
    estimated: bool = False
    usage: Usage | None = None
    calls: int = 0
    duration_ms: int | None = None
    recorded_at: datetime | None = None
    reverted_seq: int = 0


class CompactionAsked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody asked for a compaction, and nobody has answered yet."""

    seq: int
    instructions: str | None = None


class CompactionMissed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last attempt to compact, which failed: the fields of `CompactionFailed`, and when."""

    seq: int
    reason: str
    kind: str = ""
    attempts: int = 1
    to_seq: int = 0
    retry_after_ms: int | None = None
    recorded_at: datetime


class Handoff(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The newest hand-off from one agent to another."""

    seq: int
    from_agent: str | None
    to_agent: str
    context: Any = None


class Expiry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a session expires by an event of its own; with neither field it never does."""

    ttl_seconds: int | None = None
    expires_at: datetime | None = None


UsageKey = tuple[int, str | None, str | None]
"""Day (since 1970, UTC), agent and model that tokens were spent on."""


class Spent(msgspec.Struct, frozen=True, array_like=True):
    """Tokens that providers reported for some generations, added up."""

    generations: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class OpenMessage(msgspec.Struct, kw_only=True):
    """What was received so far of a message that still streams."""

    index: int
    since: int = 0
    """Increments up to this seq are none of it: a rewind opened it again, empty."""
    texts: list[str] = []
    reasoning: list[str] = []
    arguments: dict[str, str] = {}


class SessionHeader(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything of a state but its messages; stored whole in every snapshot."""

    session_id: UUID
    seq: int = 0
    key: str | None = None
    user_id: str | None = None
    title: str | None = None
    metadata: dict[str, Any] = {}
    status: Literal["open", "closed", "deleted", "erased"] = "open"
    expiry: Expiry | None = None
    """What the session's own events say of its end; None: the log's policy counts."""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    parent_session_id: UUID | None = None
    parent_seq: int = 0
    message_count: int = 0
    token_count: int = 0
    """Tokens of all visible messages that state a count."""
    context_token_count: int = 0
    """The same for those in the context; a summary counts as its `tokens_after`."""
    usage: dict[UsageKey, Spent] = {}
    """What this session spent. A fork begins with nothing: its parent's share is the parent's."""
    agents: list[str] = []
    """Agents that spoke or were active, in order of their first appearance."""
    current_agent: str | None = None
    """The agent who answers now: the one activated, handed to, or heard last."""
    activations: list[tuple[int, str]] = []
    """Seqs at which an agent was activated or handed to. Who only spoke is in the messages."""
    handoff: Handoff | None = None
    earlier_handoffs: list[Handoff] = []
    """Hand-offs before the newest, oldest first: one of them is the newest after a rewind."""
    runs: dict[str, str] = {}
    """Runs that are under way, with their status `running` or `stopping`."""
    run_count: int = 0
    """Runs that began in this session itself, not in a parent."""
    scratchpad: dict[str, Any] = {}
    clears: list[int] = []
    compactions: list[Compaction] = []
    compaction_policy: CompactionPolicy | None = None
    """What the session's own events say; None: its user's counts, or the log's."""
    compaction_asked: CompactionAsked | None = None
    compaction_missed: CompactionMissed | None = None
    """The newest failure since the context was compacted last, or changed otherwise."""
    pinned: list[str] = []
    """Ids of messages that stay in the context word for word."""
    facts: dict[str, str] = {}
    """Pinned facts by name: they stand in every context."""
    closings: list[tuple[int, str]] = []
    """Seqs that say of a tool call that nobody waits for it any more, with the call's id."""
    retractions: list[tuple[int, int]] = []
    rewinds: list[tuple[int, int]] = []
    """Seq and target of the rewinds, without those that a later one took back with the rest."""
    opened: dict[str, OpenMessage] = {}
    left_out: frozenset[int] = frozenset()
    """Seqs of compactions and hand-offs whose contents a snapshot left in the log; see `snapshots`.
    What `replay` returns has all of them."""


class SessionState(SessionHeader, kw_only=True):
    """A session at one seq. Treat it as read-only; `evolve` and `fold` make new ones."""

    entries: Entries = msgspec.field(default_factory=Entries)
    """All messages, also those that were retracted or cleared away since."""

    @property
    def spent(self) -> Spent:
        """All tokens that this session spent."""
        each = self.usage.values()
        return Spent(*(sum(getattr(one, name) for one in each) for name in Spent.__struct_fields__))

    @property
    def input_tokens(self) -> int:
        """Tokens that models read for this session."""
        return self.spent.input_tokens

    @property
    def output_tokens(self) -> int:
        """Tokens that models generated for this session."""
        return self.spent.output_tokens

    @property
    def cached_tokens(self) -> int:
        """Those of `input_tokens` that were read from a provider's cache."""
        return self.spent.cached_tokens

    @property
    def reasoning_tokens(self) -> int:
        """Those of `output_tokens` that were spent on reasoning."""
        return self.spent.reasoning_tokens

    @property
    def expires_at(self) -> datetime | None:
        """When the session expires by its own events; None: never, or when the policy says."""
        expiry = self.expiry
        if expiry is None:
            return None
        if expiry.ttl_seconds is None or self.updated_at is None:
            return expiry.expires_at
        return self.updated_at + timedelta(seconds=expiry.ttl_seconds)

    @property
    def messages(self) -> Sequence[Message]:
        """Messages of the conversation in order, open and interrupted ones included."""
        settle(self)
        if not self.clears and not self.retractions:
            return self.entries
        start = self.entries.index_after(self.clears[-1]) if self.clears else 0
        return [each for each in self.entries.iterate_from(start) if not each.retracted_seq]

    @property
    def agent_history(self) -> list[tuple[int, str]]:
        """Every change of the current agent: its seq and who it was from there on."""
        spoke = ((each.seq, each.agent, True) for each in self.entries if each.agent)
        explicit = ((seq, agent, False) for seq, agent in self.activations)
        history: list[tuple[int, str]] = []
        for seq, agent, speaks in merge(explicit, spoke):
            if not (speaks and history and history[-1][1] == agent):
                history.append((seq, agent))
        return history

    @property
    def compaction(self) -> Compaction | None:
        """The compaction whose summary is in the context now."""
        cleared = self.clears[-1] if self.clears else 0
        for each in reversed(self.compactions):
            if each.seq <= cleared:
                return None
            # One that was made while someone cleared stands for nothing that is still there.
            if not each.reverted_seq and not (cleared and each.to_seq <= cleared):
                if each.seq in self.left_out:
                    raise SummaryMissing(each.seq)
                return each
        return None

    @property
    def compaction_count(self) -> int:
        """Compactions that stand (reverted ones don't count)."""
        return sum(1 for each in self.compactions if not each.reverted_seq)

    @property
    def closed_calls(self) -> dict[str, int]:
        """Tool calls that nobody waits for any more, each with the newest seq that says so."""
        return {call_id: seq for seq, call_id in self.closings}

    @property
    def open_messages(self) -> list[Message]:
        """Messages that still stream."""
        settle(self)
        return [self.entries[each.index] for each in self.opened.values()]

    def is_rewound(self, seq: int) -> bool:
        """Whether a rewind left the event at `seq` behind.

        The fold can't go back to there, by no rewind; a fork at that seq can.
        """
        return any(to_seq < seq < at for at, to_seq in self.rewinds)

    def context_messages(self) -> list[Message]:
        """Messages that a model sees next, in order, without the summary."""
        settle(self)
        cleared = self.clears[-1] if self.clears else 0
        standing = self.compaction
        chosen: list[Message] = []
        if standing is not None:
            inside = sorted({seq for seq in standing.kept if cleared < seq <= standing.to_seq})
            kept = (self.entries.at_seq(seq) for seq in inside)
            chosen.extend(each for each in kept if each is not None)
        start = self.entries.index_after(standing.to_seq if standing else cleared)
        chosen.extend(self.entries.iterate_from(start))
        return [each for each in chosen if not each.retracted_seq and each.status != "open"]

    def missing_for_context(self) -> list[Chunk]:
        """Chunks of messages that `context()` needs and that are not loaded yet."""
        standing = self.compaction
        cleared = self.clears[-1] if self.clears else 0
        kept = standing.kept if standing is not None else []
        return self.entries.missing(kept, standing.to_seq if standing is not None else cleared)

    def context(self) -> list[dict[str, Any]]:
        """What a model sees next, as dicts in the form of the chat completions API.

        Instructions, pinned facts, what a standing compaction kept, its summary, then all that
        came after. Replies that still stream are left out; interrupted ones are in, with the text
        that was seen. Every tool call is followed by its output, or by a word that there is none.
        """
        return provider_dicts(
            self.context_messages(),
            compaction=self.compaction,
            facts=self.facts,
            closed_calls=self.closed_calls,
        )


def settle(state: SessionState) -> None:
    """Write what open messages received so far into their entries."""
    for opened in state.opened.values():
        if not (opened.texts or opened.reasoning or opened.arguments):
            continue
        message = state.entries[opened.index]
        text, reasoning = "".join(opened.texts), "".join(opened.reasoning)
        calls = [ToolCall(id=key, name="", arguments=v) for key, v in opened.arguments.items()]
        if (text, reasoning, calls) == (message.content, message.reasoning, message.tool_calls):
            continue
        opened.texts, opened.reasoning = [text], [reasoning]
        state.entries.replace(
            opened.index,
            msgspec.structs.replace(message, content=text, reasoning=reasoning, tool_calls=calls),
        )
