"""Checking a summary, and appending it: one for each range, whatever races.

Between plan and append others go on: they append, rewind, clear, undo, pin, or compact. So the
newest state is looked at again, and the batch is appended behind exactly that state. Its event id
is made of the session and of what the compaction is based on, so the log itself takes only one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid5

import msgspec

from eventlog import events as ev
from eventlog import revisions
from eventlog.compaction.selection import Plan, basis_of, together
from eventlog.compaction.summarizer import Summary, SummaryFailed
from eventlog.compaction.tokens import TokenCount, count_dicts, count_messages
from eventlog.envelope import Draft
from eventlog.errors import InvalidEvent, SessionClosed, SessionDeleted
from eventlog.rendering import outputs_of, summary_dict
from eventlog.state import SessionState

if TYPE_CHECKING:
    from eventlog.session import Session

SUMMARY_CHARS_MAX: Final = 1_000_000
"""Longest text that counts as a summary at all, in characters."""
REASON_CHARS_MAX: Final = 500
"""Longest reason of a failure that is stored."""


class Superseded(Exception):
    """The context was compacted, rewound, cleared or undone meanwhile: the summary is void.

    That is no failure, and nothing is appended. Internal.
    """


def check_summary(summary: Summary, plan: Plan) -> TokenCount:
    """The tokens of a summary; `SummaryFailed` unless it can stand for what it replaces."""
    text = summary.text
    if not text.strip():
        raise SummaryFailed("empty", "the summary is empty", usage=summary.usage)
    try:
        text.encode()
    except UnicodeEncodeError:
        reason = "the summary has half a surrogate pair, which is no text"
        raise SummaryFailed("bad_answer", reason, usage=summary.usage) from None
    if len(text) > SUMMARY_CHARS_MAX:
        raise SummaryFailed(
            "bad_answer",
            f"the summary has {len(text):,} characters; {SUMMARY_CHARS_MAX:,} are taken",
            usage=summary.usage,
        )
    tokens = count_dicts([summary_dict(text)], plan.model)
    if tokens.tokens >= plan.tokens.tokens:
        raise SummaryFailed(
            "not_smaller",
            f"the summary has {tokens.tokens:,} tokens, what it replaces {plan.tokens.tokens:,}",
            usage=summary.usage,
        )
    return tokens


async def append_summary(
    session: Session, plan: Plan, summary: Summary, *, duration_ms: int
) -> int:
    """Append a summary, and the ends of tool calls that nobody waits for; the summary's seq.

    Raises `SummaryFailed` for one that can't stand there, `Superseded`, and what `append` raises.
    """
    tokens = check_summary(summary, plan)
    closing = [
        session.draft(
            ev.ToolCallClosed(tool_call_id=call, reason="no output was recorded"),
            _id_of(session.id, f"{plan.basis}:close:{call}"),
        )
        for call in plan.closing
    ]

    def choose(state: SessionState) -> list[Draft]:
        check_basis(state, plan)
        inside = _pinned_since(state, plan)
        staying = count_messages([each for each in plan.material if each.seq in inside], plan.model)
        replaced = plan.tokens.tokens - sum(each.tokens for each in staying)
        if tokens.tokens >= replaced:
            raise Superseded("most of what was summarised has been pinned meanwhile")
        event = ev.CompactionCompleted(
            summary=summary.text,
            from_seq=plan.from_seq,
            to_seq=plan.to_seq,
            kept=sorted({*plan.kept, *inside}),
            model=summary.model,
            prompt_version=summary.prompt_version,
            tokens_before=replaced,
            tokens_after=tokens.tokens,
            context_tokens=plan.context.tokens,
            estimated=not (plan.tokens.exact and tokens.exact),
            method=summary.method,
            usage=summary.usage,
            calls=summary.calls,
            duration_ms=duration_ms,
        )
        due = [each for each in closing if not _is_closed(state, each)]
        return [*due, session.draft(event, _id_of(session.id, str(plan.basis)))]

    try:
        _, appended = await revisions.decide(session, choose, read=session.context_state)
    except (SessionClosed, SessionDeleted):
        raise Superseded("the session has ended meanwhile") from None
    except InvalidEvent:  # its words may be the summary's
        raise SummaryFailed("bad_answer", "the summary can't be stored as an event") from None
    assert appended is not None
    return appended.last_seq


async def append_failure(
    session: Session, basis: int, failure: SummaryFailed, *, from_seq: int = 0, to_seq: int = 0
) -> bool:
    """Append that an attempt failed; False: the context is another by now, so it doesn't matter."""

    def choose(state: SessionState) -> list[Draft]:
        if state.status != "open" or basis_of(state) != basis:
            return []
        missed, asked = state.compaction_missed, state.compaction_asked
        seconds = failure.retry_after_seconds
        event = ev.CompactionFailed(
            reason=failure.reason[:REASON_CHARS_MAX],
            kind=failure.kind,
            from_seq=from_seq,
            to_seq=to_seq,
            attempts=1 if missed is None else missed.attempts + 1,
            retry_after_ms=None if seconds is None else max(0, round(seconds * 1000)),
            usage=failure.usage,
        )
        # Two who fail at the same are one failure.
        before = max(each.seq if each is not None else 0 for each in (missed, asked))
        return [session.draft(event, _id_of(session.id, f"{basis}:failed:{before}"))]

    try:
        _, appended = await revisions.decide(session, choose, read=session.context_state)
    except (SessionClosed, SessionDeleted):
        return False
    return appended is not None


def check_basis(state: SessionState, plan: Plan) -> None:
    """Raise `Superseded` unless the state still holds what the plan was made of."""
    if state.status != "open":
        raise Superseded(f"the session is {state.status}")
    if basis_of(state) != plan.basis:
        raise Superseded("the context was compacted, rewound or cleared meanwhile")
    messages = state.context_messages()
    here = {each.seq for each in messages}
    summarised = {each.seq for each in plan.material}
    if not summarised <= here:
        raise Superseded("messages that were summarised have been taken back meanwhile")
    outputs = outputs_of(messages).items()
    if any(seq in summarised and output.seq not in summarised for (seq, _), output in outputs):
        raise Superseded("a tool call that was summarised has been answered meanwhile")


def _pinned_since(state: SessionState, plan: Plan) -> set[int]:
    """Seqs of what was to be summarised and is to stay by now, each call with its outputs."""
    pinned = set(state.pinned)
    return together({e.seq for e in plan.material if e.message_id in pinned}, plan.material)


def _is_closed(state: SessionState, draft: Draft) -> bool:
    """Whether the call was answered or closed since."""
    event = msgspec.json.decode(draft.data, type=ev.ToolCallClosed)
    answered = {each.tool_call_id for each in state.context_messages() if each.role == "tool"}
    return event.tool_call_id in answered or event.tool_call_id in state.closed_calls


def _id_of(session_id: UUID, name: str) -> UUID:
    return uuid5(session_id, f"compaction:{name}")
