"""Whether a session is to be compacted now: asked for, or over its threshold and worth it.

A failure holds the next try up, longer each time, and after `ATTEMPTS_MAX` of them until the
context has grown. So does undoing a compaction: whoever undoes one doesn't want it back at once.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from eventlog.compaction.measure import ContextTokens
from eventlog.compaction.policy import GAIN_SHARE, CompactionPolicy
from eventlog.compaction.tokens import count_message
from eventlog.state import CompactionMissed, SessionState

PAUSE_SECONDS_MIN: Final = 30.0
"""How long after the first failure the next attempt comes; twice as long after each further one."""
PAUSE_SECONDS_MAX: Final = 3_600.0
ATTEMPTS_MAX: Final = 8
"""Attempts in a row, after which the context must have grown before there is another."""
FALLBACK_ATTEMPTS: Final = 2
"""Failed attempts on a full context after which no model is asked any more."""

Why = Literal[
    "asked",  # by an event
    "over_threshold",
    "under_threshold",
    "off",  # the policy says never
    "ended",  # closed, deleted, erased
    "backing_off",  # after a failure, until `at`
    "reverted",  # undone, and not grown since
    "gave_up",  # failed too often, and not grown since
]


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done about a session now."""

    due: bool
    why: Why
    threshold: int
    full: bool = False
    """The next request may be refused: better a poor summary than none."""
    fallback: bool = False
    """No model is to be asked any more."""
    at: datetime | None = None
    """When it will be due, if nothing happens before; None: that depends on what happens."""


def is_due(
    state: SessionState, policy: CompactionPolicy, size: ContextTokens, *, now: datetime
) -> Due:
    """Whether to compact now. `size`: of the state's context; `now` aware."""
    threshold = policy.threshold(size.window)
    full = size.tokens >= policy.full_at(size.window)
    missed = state.compaction_missed
    fallback = full and missed is not None and missed.attempts >= FALLBACK_ATTEMPTS

    def answer(why: Why, *, due: bool = False, at: datetime | None = None) -> Due:
        return Due(due=due, why=why, threshold=threshold, full=full, fallback=fallback, at=at)

    if state.status != "open":
        return answer("ended")
    if state.compaction_asked is not None:
        return answer("asked", due=True)
    if not policy.enabled:
        return answer("off")
    if size.tokens < threshold:
        return answer("under_threshold")
    growth = threshold * GAIN_SHARE
    # The first fallback comes at once. If that fails, too, waiting is all that is left.
    if missed is not None and not (fallback and missed.attempts == FALLBACK_ATTEMPTS):
        if missed.attempts >= ATTEMPTS_MAX and _tokens_since(state, missed.seq, size) < growth:
            return answer("gave_up")
        at = next_attempt(missed)
        if now < at:
            return answer("backing_off", at=at)
    reverted = max((each.reverted_seq for each in state.compactions), default=0)
    compacted = max((each.seq for each in state.compactions if not each.reverted_seq), default=0)
    if reverted > compacted and not full and _tokens_since(state, reverted, size) < growth:
        return answer("reverted")
    return answer("over_threshold", due=True)


def next_attempt(missed: CompactionMissed) -> datetime:
    """When the next attempt after a failure comes at the earliest."""
    pause = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN * 2 ** min(missed.attempts - 1, 20))
    asked = (missed.retry_after_ms or 0) / 1000
    return missed.recorded_at + timedelta(seconds=max(pause, min(asked, PAUSE_SECONDS_MAX)))


def _tokens_since(state: SessionState, seq: int, size: ContextTokens) -> int:
    newer = (each for each in state.context_messages() if each.seq > seq)
    return sum(count_message(each, size.model).tokens for each in newer)
