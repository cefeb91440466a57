"""Compacting one session: plan, summarise, check, append.

    context ──> plan ──> summariser ──> check ──> compaction.completed
       │ nothing to do     │ failed       │ failed
       └───────────────────┴──────────────┴──> compaction.failed, which holds the next try up

The summariser is called outside of any transaction and lock: appends and reads go on meanwhile, and
who reads the context has the old one or the new one.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from eventlog.compaction.committing import Superseded, append_failure, append_summary
from eventlog.compaction.policy import GAIN_SHARE, CompactionPolicy
from eventlog.compaction.selection import NothingToDo, Plan, basis_of, plan
from eventlog.compaction.summarizer import Summarizer, Summary, SummaryFailed
from eventlog.state import SessionState

if TYPE_CHECKING:
    from eventlog.session import Session

SUPERSEDED_MAX: Final = 3
"""Summaries that come too late before it counts as a failure."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one try."""

    status: Literal["compacted", "nothing_to_do", "superseded", "failed"]
    seq: int = 0
    """Of the `compaction.completed`."""
    plan: Plan | None = None
    summary: Summary | None = None
    failure: SummaryFailed | None = None
    reason: str = ""


async def compact(
    session: Session,
    summarizer: Summarizer,
    policy: CompactionPolicy,
    *,
    fallback: Summarizer | None = None,
    instructions: str | None = None,
    worth_it: bool = False,
) -> Outcome:
    """Try once to compact a session, and append what came of it.

    `fallback`: asked when the summariser fails. `worth_it`: only if a tenth of the threshold can be
    replaced. Raises `Unavailable`, `OutcomeUnknown`, `SessionNotFound`, and nothing for failures.
    """
    state = await session.context_state()
    if state.status != "open":  # nothing could be appended
        return Outcome(status="nothing_to_do", reason=f"the session is {state.status}")
    if instructions is None and state.compaction_asked is not None:
        instructions = state.compaction_asked.instructions
    chosen = plan(state, policy, now=datetime.now(UTC))
    if isinstance(chosen, Plan) and worth_it:
        least = int(policy.threshold(chosen.context.window) * GAIN_SHARE)
        if chosen.tokens.tokens < least:
            reason = f"a summary would replace {chosen.tokens.tokens:,} tokens, under {least:,}"
            chosen = NothingToDo(reason=reason, context=chosen.context)
    if isinstance(chosen, NothingToDo):
        await _answer_request(session, state, chosen.reason)
        return Outcome(status="nothing_to_do", reason=chosen.reason)
    begin = time.monotonic()
    try:
        summary = await _summarize(summarizer, fallback, chosen, state, instructions)
        duration_ms = round((time.monotonic() - begin) * 1000)
        seq = await append_summary(session, chosen, summary, duration_ms=duration_ms)
    except Superseded as error:
        return Outcome(status="superseded", plan=chosen, reason=str(error))
    except SummaryFailed as failure:
        range_ = {"from_seq": chosen.from_seq, "to_seq": chosen.to_seq}
        await append_failure(session, chosen.basis, failure, **range_)
        return Outcome(status="failed", plan=chosen, failure=failure, reason=str(failure))
    return Outcome(status="compacted", seq=seq, plan=chosen, summary=summary)


async def compact_or_raise(
    session: Session,
    summarizer: Summarizer,
    policy: CompactionPolicy,
    *,
    fallback: Summarizer | None = None,
    instructions: str | None = None,
) -> int | None:
    """Compact a session now; the seq of the event, or None when there is nothing to summarise.

    Raises `SummaryFailed`.
    """
    for _ in range(SUPERSEDED_MAX):
        outcome = await compact(
            session, summarizer, policy, fallback=fallback, instructions=instructions
        )
        match outcome.status:
            case "compacted":
                return outcome.seq
            case "nothing_to_do":
                return None
            case "failed":
                assert outcome.failure is not None
                raise outcome.failure
            case "superseded":
                continue
    raise SummaryFailed("superseded", "the context was changed while it was summarised")


async def _summarize(
    summarizer: Summarizer,
    fallback: Summarizer | None,
    chosen: Plan,
    state: SessionState,
    instructions: str | None,
) -> Summary:
    material = chosen.for_summarizer(state, instructions)
    try:
        return await summarizer.summarize(material)
    except SummaryFailed:
        if fallback is None:
            raise
    return await fallback.summarize(material)


async def _answer_request(session: Session, state: SessionState, reason: str) -> None:
    """Let whoever asked for a compaction know that there is nothing to do."""
    if state.compaction_asked is not None:
        failure = SummaryFailed("nothing_to_do", reason)
        await append_failure(session, basis_of(state), failure)
