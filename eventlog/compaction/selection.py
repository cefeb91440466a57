"""What exactly a summary would stand for, and what stays word for word.

    instructions ─ … older messages … ─ newest messages
         stay          │                    stay
                       ├─ pinned, newest of the user's, calls that still wait: stay (`kept`)
                       └─ the rest is the material of the summary

The cut between older and newest never parts a tool call from its output, and never lies between the
beginning and the end of a reply. A tool call that got no output doesn't hold it up for ever: while
it may still be waited for its message stays; after that it is closed, by an event. What an earlier
compaction kept is older than any cut, and stays or goes by itself.

A plan is made from a state and is good for as long as `basis` and the messages are the same: see
`committing`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from datetime import datetime, timedelta
from typing import Final

import msgspec

from eventlog.compaction.measure import ContextTokens, context_tokens
from eventlog.compaction.policy import BUDGET_SHARE, CompactionPolicy
from eventlog.compaction.summarizer import Material
from eventlog.compaction.tokens import TokenCount, count_dicts, count_message, count_messages
from eventlog.entries import Message
from eventlog.rendering import INSTRUCTING, as_shown, outputs_of, summary_dict
from eventlog.state import SessionState

SUMMARY_TOKENS_MIN: Final = 64
"""A summary is asked for in no fewer tokens than this, even of very little."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One compaction, before it happened."""

    basis: int
    """`basis_of` the state that it was made from."""
    from_seq: int
    to_seq: int
    kept: list[int]
    """Seqs of the messages up to `to_seq` that stay."""
    material: list[Message]
    """The messages that the summary will stand for."""
    newest: list[Message]
    """The messages behind `to_seq`, which stay as they are."""
    closing: list[str]
    """Ids of tool calls that nobody waits for any more."""
    unanswered: frozenset[str]
    previous_summary: str | None
    tokens: TokenCount
    """Of all that the summary replaces."""
    tokens_max: int
    context: ContextTokens
    model: str | None

    def for_summarizer(self, state: SessionState, instructions: str | None = None) -> Material:
        """What a summariser is given."""
        return Material(
            session_id=state.session_id,
            from_seq=self.from_seq,
            to_seq=self.to_seq,
            messages=self.material,
            previous_summary=self.previous_summary,
            unanswered=self.unanswered,
            facts=dict(state.facts),
            instructions=instructions,
            tokens=self.tokens.tokens,
            tokens_max=self.tokens_max,
        )


class NothingToDo(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is nothing that a summary could stand for."""

    reason: str
    context: ContextTokens


def basis_of(state: SessionState) -> int:
    """Seq of the newest event that changed what compactions stand for; 0: none did.

    One compaction can follow each: it is part of the new one's event id.
    """
    compacted = (max(each.seq, each.reverted_seq) for each in state.compactions)
    rewound = (at for at, _ in state.rewinds)
    return max((0, *state.clears[-1:], *compacted, *rewound))


def plan(
    state: SessionState,
    policy: CompactionPolicy,
    *,
    now: datetime,
    size: ContextTokens | None = None,
) -> Plan | NothingToDo:
    """What would be summarised now, and what kept. Reads the messages of the context only.

    `now`: when tool calls count as given up is reckoned from it (aware).
    """
    context = size or context_tokens(state)
    messages = state.context_messages()
    if len(messages) < max(1, policy.messages_min):
        return NothingToDo(
            reason=f"{len(messages)} message{'' if len(messages) == 1 else 's'} in the context; "
            f"the policy demands {policy.messages_min}",
            context=context,
        )
    now = max(now, state.updated_at or now)  # the database's clock may be ahead
    calls = _Calls(messages, state, now - timedelta(seconds=policy.orphan_seconds))
    standing = state.compaction
    covered_seq = 0 if standing is None else standing.to_seq
    newest_count = max(_newest_count(messages, policy, context), _unfinished_count(messages, calls))
    count = _cut(messages, state, calls, newest_count, covered_seq)
    to_seq = _last_seq(messages, state, count)
    kept = _kept(messages[:count], state, policy, context, calls)
    material = [each for each in messages[:count] if each.seq not in kept]
    if not material or to_seq <= covered_seq:
        return NothingToDo(reason="all of the context is to be kept", context=context)
    tokens = sum(count_messages(as_shown(material), context.model), TokenCount(0))
    if standing is not None:
        tokens += count_dicts([summary_dict(standing.summary)], context.model)
    asked = {call.id for each in material for call in each.tool_calls}
    cleared = state.clears[-1] if state.clears else 0
    return Plan(
        basis=basis_of(state),
        from_seq=max(cleared, covered_seq) + 1,
        to_seq=to_seq,
        kept=sorted(kept),
        material=material,
        newest=list(messages[count:]),
        # Ids may come again, and one event closes all that were called by that name before.
        closing=[call for call in dict.fromkeys(calls.dead) if call not in state.closed_calls],
        unanswered=frozenset(asked & calls.unanswered),
        previous_summary=None if standing is None else standing.summary,
        tokens=tokens,
        tokens_max=max(SUMMARY_TOKENS_MIN, min(policy.summary_tokens_max, tokens.tokens // 2)),
        context=context,
        model=context.model,
    )


class _Calls:
    """The tool calls of a context: what belongs together, and what still waits."""

    def __init__(self, messages: Sequence[Message], state: SessionState, dead_at: datetime) -> None:
        outputs = outputs_of(messages)
        self.caller: dict[int, int] = {out.seq: seq for (seq, _), out in outputs.items()}
        """Seq of each output, and of the message that called."""
        self.unanswered: set[str] = set()
        self.waiting: set[int] = set()
        """Seqs of messages with a call that may still be answered."""
        self.dead: list[str] = []
        spoken = [each for each in messages if each.role in ("user", "assistant")]
        last = spoken[-1] if spoken else None
        for each in messages:
            if each.status == "interrupted":  # the context shows its answered calls only
                continue
            for call in each.tool_calls:
                if (each.seq, call.id) in outputs:
                    continue
                self.unanswered.add(call.id)
                went_on = last is not None and last.seq > each.seq
                if state.closed_calls.get(call.id, 0) > each.seq:
                    continue
                if went_on and each.recorded_at <= dead_at:
                    self.dead.append(call.id)
                else:
                    self.waiting.add(each.seq)


def _newest_count(
    messages: Sequence[Message], policy: CompactionPolicy, context: ContextTokens
) -> int:
    """How many of the newest messages stay, by the policy alone."""
    threshold = policy.threshold(context.window)
    tokens_max = None
    if policy.keep_tokens is not None:
        tokens_max = min(policy.keep_tokens, int(threshold * BUDGET_SHARE))
    if policy.keep_messages is None and tokens_max is None:
        tokens_max = 0
    count = tokens = 0
    for each in reversed(messages):
        tokens += count_message(each, context.model).tokens
        too_many = policy.keep_messages is not None and count >= policy.keep_messages
        too_long = tokens_max is not None and tokens > tokens_max
        if too_many or too_long:
            break
        count += 1
    return count


def _unfinished_count(messages: Sequence[Message], calls: _Calls) -> int:
    """How many messages at the end aren't the past yet: a question, or calls under way."""
    if messages[-1].role == "user":
        return 1
    outputs = itertools.takewhile(lambda each: each.role == "tool", reversed(messages))
    count = min(len(messages), 1 + len(list(outputs)))
    return count if messages[-count].seq in calls.waiting else 0


def _cut(
    messages: Sequence[Message],
    state: SessionState,
    calls: _Calls,
    newest_count: int,
    covered_seq: int,
) -> int:
    """How many of the messages lie before the cut: at most all but the newest.

    A call whose outputs the cut would be between is behind it as well. One that was made long
    before its output, or is in what was covered already, stays for itself instead.
    """
    count = len(messages) - newest_count
    while count > 0:
        last_seq = _last_seq(messages, state, count)
        tangled = [
            index
            for index, each in enumerate(messages[:count])
            if each.seq > last_seq or each.closed_seq > last_seq
        ]
        outputs = itertools.takewhile(lambda each: each.role == "tool", messages[:count][::-1])
        turn = max(0, count - len(list(outputs)) - 1)
        callers = {calls.caller.get(each.seq, 0) for each in messages[count:]}
        parted = [
            index
            for index in range(turn, count)
            if messages[index].seq in callers and messages[index].seq > covered_seq
        ]
        first = min((*tangled, *parted), default=count)
        if first == count:
            return count
        count = first
    return 0


def _last_seq(messages: Sequence[Message], state: SessionState, count: int) -> int:
    """The last seq before the cut behind so many messages."""
    begun = [each.seq for each in state.open_messages]
    if count < len(messages):
        begun.append(messages[count].seq)
    return min(begun, default=state.seq + 1) - 1


def _kept(
    older: Sequence[Message],
    state: SessionState,
    policy: CompactionPolicy,
    context: ContextTokens,
    calls: _Calls,
) -> set[int]:
    """Seqs of the messages before the cut that stay."""
    pinned = set(state.pinned)
    kept = {each.seq for each in older if each.role in INSTRUCTING or each.message_id in pinned}
    kept |= {each.seq for each in older if each.seq in calls.waiting}
    inside = {each.seq for each in older}
    kept |= {seq for output, seq in calls.caller.items() if seq in inside and output not in inside}
    left = min(policy.keep_user_tokens, int(policy.threshold(context.window) * BUDGET_SHARE))
    for each in reversed(older):
        if each.role == "user" and each.seq not in kept:
            left -= count_message(each, context.model).tokens
            if left < 0:
                break
            kept.add(each.seq)
    return together(kept, older)


def together(seqs: Set[int], messages: Sequence[Message]) -> set[int]:
    """The seqs, and those that belong to them: the outputs of a call, the call of an output."""
    pairs = [(caller, output.seq) for (caller, _), output in outputs_of(messages).items()]
    callers = {caller for caller, output in pairs if caller in seqs or output in seqs}
    return {*seqs, *callers, *(output for caller, output in pairs if caller in callers)}
