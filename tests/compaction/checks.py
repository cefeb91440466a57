"""What must hold of every context, of every plan, and of every compaction that was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from eventlog import CompactionPolicy, Message, SessionState
from eventlog.codec import encode_event
from eventlog.compaction.measure import context_tokens
from eventlog.compaction.selection import Plan
from eventlog.compaction.tokens import count_message
from eventlog.rendering import SUMMARY_PREFIX
from eventlog.state import Compaction

EVENT_OVERHEAD_BYTES: Final = 600
"""Of a `compaction.completed`, beside its summary and 12 bytes for each seq that it names."""


def check_pairs(context: Sequence[Mapping[str, Any]]) -> None:
    """Each call is followed by its output, once, or by the word that there is none.

    Only those of the last message that calls may be without: their tools are yet to run. And no
    output stands anywhere else, for providers refuse that.
    """
    waiting: list[str] = []
    for each in context:
        if each["role"] == "tool":
            assert each["tool_call_id"] in waiting, f"an output behind no call: {each}"
            waiting.remove(each["tool_call_id"])
            continue
        assert not waiting, f"no output of {waiting} before {each}"
        waiting = list(dict.fromkeys(call["id"] for call in each.get("tool_calls", ())))


def check_summaries(context: Sequence[Mapping[str, Any]], standing: Compaction | None) -> None:
    """The newest summary is in the context once, and no other is."""
    shown = [each for each in context if str(each["content"]).startswith(SUMMARY_PREFIX)]
    expected = [] if standing is None else [SUMMARY_PREFIX + standing.summary]
    assert [each["content"] for each in shown] == expected


def check_ranges(state: SessionState, *, after: int = 0) -> None:
    """What was covered by those that stand follows without a gap, and nothing is covered twice."""
    for place, each in enumerate(state.compactions):
        if each.reverted_seq or each.seq <= after:
            continue
        before = [  # as it stood when this one was made
            one
            for one in state.compactions[:place]
            if not one.reverted_seq or one.reverted_seq > each.seq
        ]
        cleared = max((seq for seq in state.clears if seq < each.seq), default=0)
        covered = max((one.to_seq for one in before if one.seq > cleared), default=0)
        assert each.from_seq == max(covered, cleared) + 1
        assert each.from_seq <= each.to_seq < each.seq
        assert all(seq <= each.to_seq for seq in each.kept)


def check_plan(plan: Plan, state: SessionState, policy: CompactionPolicy) -> None:
    """Each message of the context is kept, or summarised, or behind the cut: exactly one of them.

    And what is to stay by the policy does, and is no more than the policy allows.
    """
    messages = state.context_messages()
    kept = [each for each in messages if each.seq in plan.kept]
    parts = [*kept, *plan.material, *plan.newest]
    assert sorted(each.seq for each in parts) == [each.seq for each in messages]
    assert plan.kept == [each.seq for each in kept]
    assert all(each.seq <= plan.to_seq for each in (*kept, *plan.material))
    assert all(each.seq > plan.to_seq for each in plan.newest)
    assert all(each.closed_seq <= plan.to_seq for each in plan.material)
    for each in plan.material:
        assert each.role not in ("system", "developer")
        assert each.message_id not in state.pinned
    if policy.keep_messages is not None and policy.keep_tokens is None:
        assert len(plan.newest) >= min(policy.keep_messages, len(messages))
    said = [
        each
        for each in kept
        if each.role == "user" and each.message_id not in state.pinned and not each.tool_calls
    ]
    tokens = sum(count_message(each, plan.model).tokens for each in said)
    assert tokens <= policy.keep_user_tokens
    _check_whole_calls(plan, messages)


def _check_whole_calls(plan: Plan, messages: Sequence[Message]) -> None:
    """With unique ids: a call and its output are both summarised, or neither is."""
    callers = {call.id: each.seq for each in messages for call in each.tool_calls}
    ids = [call.id for each in messages for call in each.tool_calls]
    summarised = {each.seq for each in plan.material}
    for each in messages:
        call = each.tool_call_id or ""
        unique = each.role == "tool" and ids.count(call) == 1
        if unique and callers[call] < each.seq:
            assert (callers[call] in summarised) == (each.seq in summarised)


def check_made(plan: Plan, before: SessionState, after: SessionState) -> None:
    """The summary is smaller, so is the context, and the event has no copy of the history."""
    made = after.compactions[-1]
    assert made.tokens_before is not None
    assert made.tokens_after is not None
    assert made.tokens_after < made.tokens_before
    assert context_tokens(after, plan.model).counted < context_tokens(before, plan.model).counted
    assert [each.seq for each in after.context_messages()] == [
        *plan.kept,
        *(each.seq for each in plan.newest),
    ]


def event_bytes_max(event: Any) -> int:
    """How large the event of a compaction may be: its summary, the seqs of what it keeps."""
    summary = len(msgspec.json.encode(event.summary))
    return summary + 12 * len(event.kept) + EVENT_OVERHEAD_BYTES


def size_of(event: Any) -> int:
    """How large an event is, as it is stored."""
    return len(encode_event(event, bytes_max=2**24))
