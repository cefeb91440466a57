"""What the events of compaction do to a state; see `eventlog.transitions`."""

from __future__ import annotations

from typing import assert_never

import msgspec

from eventlog import events as ev
from eventlog import transitions as on
from eventlog.envelope import RecordedEvent
from eventlog.state import Compaction, CompactionAsked, CompactionMissed, SessionState

ContextEvent = (
    ev.CompactionRequested
    | ev.CompactionCompleted
    | ev.CompactionFailed
    | ev.CompactionReverted
    | ev.CompactionPolicySet
    | ev.MessagePinned
    | ev.FactPinned
    | ev.ToolCallClosed
)
"""Events about what a model is shown, and not about what was said."""


def apply(state: SessionState, recorded: RecordedEvent, event: ContextEvent) -> None:
    """Change a state, which must be the caller's own, by one event."""
    seq = recorded.seq
    match event:
        case ev.CompactionRequested():
            state.compaction_asked = CompactionAsked(seq=seq, instructions=event.instructions)
        case ev.CompactionCompleted():
            _compact(state, recorded, event)
        case ev.CompactionFailed():
            _miss(state, recorded, event)
        case ev.CompactionReverted():
            _revert(state, seq, event.compaction_seq)
        case ev.CompactionPolicySet():
            state.compaction_policy = event.policy
        case ev.MessagePinned():
            _pin(state, event)
        case ev.FactPinned():
            facts = {name: text for name, text in state.facts.items() if name != event.name}
            state.facts = facts if event.text is None else {**facts, event.name: event.text}
        case ev.ToolCallClosed():
            state.closings = [*state.closings, (seq, event.tool_call_id)]
        case _:
            assert_never(event)


def _compact(state: SessionState, recorded: RecordedEvent, event: ev.CompactionCompleted) -> None:
    seq = recorded.seq
    # Made while someone rewound to before its end: it tells of what is no longer said.
    stale = state.is_rewound(event.to_seq)
    compaction = compaction_of(seq, event)
    state.compactions.append(
        msgspec.structs.replace(
            compaction, recorded_at=recorded.recorded_at, reverted_seq=seq if stale else 0
        )
    )
    state.compaction_asked = state.compaction_missed = None
    on.spend(state, recorded, event.usage, None, event.model)
    on.count_context(state)


def compaction_of(seq: int, event: ev.CompactionCompleted) -> Compaction:
    """A compaction as the state has it, but for when it was recorded, and what undid it."""
    return Compaction(
        seq=seq,
        from_seq=event.from_seq,
        to_seq=event.to_seq,
        kept=event.kept,
        summary=event.summary,
        model=event.model,
        prompt_version=event.prompt_version,
        method=event.method,
        tokens_before=event.tokens_before,
        tokens_after=event.tokens_after,
        context_tokens=event.context_tokens,
        estimated=event.estimated,
        usage=event.usage,
        calls=event.calls,
        duration_ms=event.duration_ms,
    )


def _miss(state: SessionState, recorded: RecordedEvent, event: ev.CompactionFailed) -> None:
    state.compaction_asked = None
    on.spend(state, recorded, event.usage, None, event.model)
    if event.kind == "nothing_to_do":
        return  # an answer, and no attempt
    state.compaction_missed = CompactionMissed(
        seq=recorded.seq,
        reason=event.reason,
        kind=event.kind,
        attempts=event.attempts,
        to_seq=event.to_seq,
        retry_after_ms=event.retry_after_ms,
        recorded_at=recorded.recorded_at,
    )


def _revert(state: SessionState, seq: int, compaction_seq: int) -> None:
    standing = {each.seq for each in state.compactions if not each.reverted_seq}
    if compaction_seq not in standing:
        return
    state.compactions = [
        msgspec.structs.replace(each, reverted_seq=seq) if each.seq == compaction_seq else each
        for each in state.compactions
    ]
    state.compaction_missed = None
    on.count_context(state)


def _pin(state: SessionState, event: ev.MessagePinned) -> None:
    pinned = [each for each in state.pinned if each != event.message_id]
    state.pinned = [*pinned, event.message_id] if event.pinned else pinned
