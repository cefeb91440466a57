"""What a compaction would do, message by message.

    plan (eventlog.compaction.selection) ──> one line for each message of the context, with why
    due  (eventlog.compaction.due)       ──> whether a compact-worker would do it by itself

Nothing here asks a model or changes a log. How it is told people is in `compaction_text`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from eventlog import Message, SessionState
from eventlog.compaction.due import Due, is_due
from eventlog.compaction.measure import ContextTokens
from eventlog.compaction.policy import CompactionPolicy
from eventlog.compaction.selection import NothingToDo, Plan, plan
from eventlog.compaction.tokens import TokenCount, count_messages, count_text
from eventlog.rendering import INSTRUCTING, SUMMARY_PREFIX, facts_dict, outputs_of
from workers.commands import look

WORDS_CHARS_MAX: Final = 200
"""So much of a message's text is looked at for its first words."""

Why = Literal[
    "newest",  # among as many of the newest as the policy keeps
    "instructions",  # system and developer messages
    "pinned",
    "user_budget",  # what the user said, as far as the policy's budget goes
    "waiting_call",  # its tool may still answer
    "with_its_call",  # a call that stays with its output, or the other way round
    "nothing_to_do",  # no compaction would happen
]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the context, and what becomes of it."""

    seq: int
    message_id: str
    role: str
    agent: str | None
    tokens: int
    exact: bool
    text: str
    """Its first words."""
    fate: Literal["summarised", "stays"]
    why: Why | None
    """Why it stays."""
    closes_calls: list[str]
    """Its tool calls that will be closed: nobody waits for them any more."""


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """A compaction before it happens, or why there is none."""

    session_id: str
    seq: int
    """Of the session's newest event."""
    policy: CompactionPolicy
    context: ContextTokens
    due: Due
    plan: Plan | None
    nothing_to_do: str | None
    facts: TokenCount
    summary_seq: int | None
    """Of the compaction whose summary stands now."""
    summary_to_seq: int
    """The last seq that it stands for; 0: there is none."""
    summary: TokenCount
    lines: list[Line]


def preview(state: SessionState, policy: CompactionPolicy, *, now: datetime) -> Preview:
    """What a compaction of this state would do. Reads the messages of its context only."""
    chosen = plan(state, policy, now=now)
    model = chosen.context.model
    messages = state.context_messages()
    counts = count_messages(messages, model)
    facts = [str(facts_dict(state.facts)["content"])] if state.facts else []
    standing = state.compaction
    summaries = [] if standing is None else [SUMMARY_PREFIX + standing.summary]
    reasons = _Reasons(state, chosen, messages)
    return Preview(
        session_id=str(state.session_id),
        seq=state.seq,
        policy=policy,
        context=chosen.context,
        due=is_due(state, policy, chosen.context, now=now),
        plan=chosen if isinstance(chosen, Plan) else None,
        nothing_to_do=chosen.reason if isinstance(chosen, NothingToDo) else None,
        facts=sum((count_text(each, model) for each in facts), TokenCount(0)),
        summary_seq=None if standing is None else standing.seq,
        summary_to_seq=0 if standing is None else standing.to_seq,
        summary=sum((count_text(each, model) for each in summaries), TokenCount(0)),
        lines=[_line(each, reasons, count) for each, count in zip(messages, counts, strict=True)],
    )


class _Reasons:
    """Why each message stays: what `selection` decided, told for people."""

    def __init__(
        self, state: SessionState, chosen: Plan | NothingToDo, messages: list[Message]
    ) -> None:
        self._chosen = chosen
        self._pinned = set(state.pinned)
        outputs = outputs_of(messages)
        self._with_outputs = {seq for seq, _ in outputs}
        self._outputs = {each.seq for each in outputs.values()}
        closing = set(chosen.closing) if isinstance(chosen, Plan) else set()
        self._closing: dict[int, list[str]] = {}
        self._waiting: set[int] = set()
        for each in messages:
            open_calls = [call.id for call in each.tool_calls if (each.seq, call.id) not in outputs]
            self._closing[each.seq] = [call for call in open_calls if call in closing]
            if any(
                call not in closing and state.closed_calls.get(call, 0) <= each.seq
                for call in open_calls
            ):
                self._waiting.add(each.seq)

    def closing(self, message: Message) -> list[str]:
        return self._closing[message.seq]

    def why(self, message: Message) -> Why | None:
        """None: it doesn't stay."""
        match self._chosen:
            case NothingToDo():
                return "nothing_to_do"
            case Plan(to_seq=to_seq) if message.seq > to_seq:
                return "newest"
            case Plan(kept=kept) if message.seq not in kept:
                return None
        if message.role in INSTRUCTING:
            return "instructions"
        if message.message_id in self._pinned:
            return "pinned"
        if message.seq in self._waiting:
            return "waiting_call"
        if message.seq in self._outputs or message.seq in self._with_outputs:
            return "with_its_call"
        return "user_budget"


def _line(message: Message, reasons: _Reasons, count: TokenCount) -> Line:
    why = reasons.why(message)
    text = look.plain_text(message.content)
    if not text and message.tool_calls:
        text = ", ".join(f"→ {call.name}" for call in message.tool_calls)
    return Line(
        seq=message.seq,
        message_id=message.message_id,
        role=message.role,
        agent=message.agent,
        tokens=count.tokens,
        exact=count.exact,
        text=text[:WORDS_CHARS_MAX],
        fate="summarised" if why is None else "stays",
        why=why,
        closes_calls=reasons.closing(message),
    )


# --- as JSON -------------------------------------------------------------------------------------


def preview_as_dict(found: Preview) -> dict[str, Any]:
    """The facts for programs."""
    chosen = found.plan
    return {
        "session_id": found.session_id,
        "seq": found.seq,
        "policy": msgspec.structs.asdict(found.policy),
        "context": context_as_dict(found.context),
        "due": found.due,
        "nothing_to_do": found.nothing_to_do,
        "plan": None
        if chosen is None
        else {
            "from_seq": chosen.from_seq,
            "to_seq": chosen.to_seq,
            "kept": chosen.kept,
            "summarised": [each.seq for each in chosen.material],
            "newest": [each.seq for each in chosen.newest],
            "closing": chosen.closing,
            "tokens": chosen.tokens.tokens,
            "exact": chosen.tokens.exact,
            "summary_tokens_max": chosen.tokens_max,
        },
        "facts": {"tokens": found.facts.tokens},
        "summary": {"seq": found.summary_seq, "tokens": found.summary.tokens},
        "messages": found.lines,
    }


def context_as_dict(size: ContextTokens) -> dict[str, Any]:
    """The size of a context for programs, its share of the window included."""
    return {**msgspec.structs.asdict(size), "share": size.share}
