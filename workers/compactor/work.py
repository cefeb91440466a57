"""What is done with one session that may be due, by whoever claimed it.

    look at its newest state ──> due? ──> compact ──> look again ──> settle its row
                                   │ no                   │ due again, asked for meanwhile
                                   └──> settle            └──> once more, up to `ROUNDS_MAX`

A row of `context_views` only says where to look. What is appended, and whether anything is, is
decided on the state as it is; so it does no harm to come late, twice, or for nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from eventlog.compaction.committing import append_failure
from eventlog.compaction.compaction import Outcome, compact
from eventlog.compaction.due import Due, is_due
from eventlog.compaction.measure import ContextTokens, context_tokens
from eventlog.compaction.policy import CompactionPolicy
from eventlog.compaction.selection import basis_of
from eventlog.compaction.summarizer import FailureKind, Summarizer, SummaryFailed
from eventlog.errors import (
    OutcomeUnknown,
    SessionClosed,
    SessionDeleted,
    SessionNotFound,
    Unavailable,
)
from eventlog.events import Usage
from eventlog.log import EventLog
from eventlog.session import Session
from eventlog.state import SessionState
from eventlog.telemetry import durations, get_logger, metrics, tallies, tally
from projections.checkpoint import postgres_of
from workers.compactor.asking import SUMMARY_SECONDS_MAX, Asking, Postponed
from workers.runtime import Backoff, report_failure

ROUNDS_MAX: Final = 3
"""Attempts on a session that stays due, before others have their turn. When all come too late, that
counts as a failure."""
POSTPONED_SECONDS_MIN: Final = 10.0
"""How long a session waits at least when no model may be asked."""
POSTPONED_SECONDS_MAX: Final = 3_600.0
BROKEN_SECONDS: Final = 600.0
"""How long a session is left alone that can't even be looked at."""

_log = get_logger()


class SessionWork:
    """Compacts sessions of one log. Any number may be under way at once."""

    def __init__(
        self,
        log: EventLog,
        summarizer: Summarizer,
        *,
        fallback: Summarizer,
        seconds_max: float = SUMMARY_SECONDS_MAX,
    ) -> None:
        self._log = log
        self._store = postgres_of(log)
        self._summarizer = summarizer
        self._fallback = fallback
        self._seconds_max = seconds_max

    async def compact_if_due(self, session_id: UUID) -> None:
        """Do what is to be done about a session, however long Postgres is away meanwhile."""
        session = self._log.handle(session_id)
        asking = Asking(self._summarizer, self._fallback, seconds_max=self._seconds_max)
        backoff = Backoff()
        while True:
            try:
                await self._rounds(session, asking)
                return
            except (SessionNotFound, SessionClosed, SessionDeleted):
                return  # it ended meanwhile; the projection sees that, too
            except (Unavailable, OutcomeUnknown) as error:
                report_failure("compactor", error, session_id=str(session_id))
                await asyncio.sleep(backoff.next_seconds())

    async def _rounds(self, session: Session, asking: Asking) -> None:
        superseded = 0
        for _ in range(ROUNDS_MAX):
            reason = ""
            look = await self._look(session)
            if not look.due.due:
                await self._settle(session, look, why=look.due.why, at=look.due.at)
                return
            try:
                outcome = await self._attempt(session, asking, look)
            except Postponed as postponed:
                await self._postpone(session, look, postponed.failure)
                return
            if outcome.status == "nothing_to_do" and look.due.why != "asked":
                await self._settle(session, look, why="nothing_to_do", at=None)
                return
            superseded += outcome.status == "superseded"
            reason = outcome.reason
        if superseded == ROUNDS_MAX:
            await self._give_up(session, "superseded", reason)
        look = await self._look(session)
        at = datetime.now(UTC) if look.due.due else look.due.at
        await self._settle(session, look, why=look.due.why, at=at)

    async def report_death(self, session_id: UUID, deliveries: int) -> None:
        """Append that workers died of a session, so that it isn't tried again at once."""
        reason = f"{deliveries - 1} workers that worked on it fell silent"
        await self._give_up(self._log.handle(session_id), "worker_died", reason)

    async def put_off(self, session_id: UUID, seconds: float = BROKEN_SECONDS) -> None:
        """Let a session be for a while, without so much as looking at it."""
        session = self._log.handle(session_id)
        await self._store.fetch("put_context_off", session.shard, session_id, seconds)

    async def _look(self, session: Session) -> _Look:
        state = await session.context_state()
        policy = await self._log.compaction.of(state)
        size = context_tokens(state)
        due = is_due(state, policy, size, now=datetime.now(UTC))
        return _Look(state, size, due, policy)

    async def _attempt(self, session: Session, asking: Asking, look: _Look) -> Outcome:
        """One try, counted and logged."""
        due = look.due
        asked = due.why == "asked"
        asking.asks_model = not due.fallback
        asking.when_barred = "fail" if asked else "fall back" if due.full else "wait"
        begin = time.monotonic()
        outcome = await compact(session, asking, look.policy, worth_it=not asked)
        seconds = time.monotonic() - begin
        durations.compaction.observe(seconds)
        _report(session.id, outcome, seconds)
        return outcome

    async def _settle(
        self, session: Session, look: _Look, *, why: str, at: datetime | None
    ) -> None:
        """Write what was found into the session's row, if it has one."""
        row = (look.size.tokens, look.due.threshold, look.due.full, why)
        at_us = None if at is None else round(at.timestamp() * 1_000_000)
        place = (session.shard, session.id, look.state.seq)
        await self._store.fetch("settle_context", *place, *row, at_us)

    async def _postpone(self, session: Session, look: _Look, failure: SummaryFailed) -> None:
        asked_seconds = failure.retry_after_seconds or 0.0
        seconds = min(POSTPONED_SECONDS_MAX, max(POSTPONED_SECONDS_MIN, asked_seconds))
        seconds *= 1 + random.random() / 4  # so that not all come back at once
        metrics.compactions_postponed += 1
        facts = {"session_id": str(session.id), "kind": failure.kind, "seconds": round(seconds)}
        _log.info("compaction.postponed", **facts)
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        await self._settle(session, look, why="postponed", at=at)

    async def _give_up(self, session: Session, kind: FailureKind, reason: str) -> None:
        """Append a failure that no summarizer reported."""
        state = await session.context_state()
        if await append_failure(session, basis_of(state), SummaryFailed(kind, reason)):
            tally(tallies.compaction_failures, kind)
            facts = {"session_id": str(session.id), "kind": kind, "reason": reason}
            _log.warning("compaction.failed", **facts)


class _Look(msgspec.Struct, frozen=True):
    """A session as it was at one moment."""

    state: SessionState
    size: ContextTokens
    due: Due
    policy: CompactionPolicy


def _report(session_id: UUID, outcome: Outcome, seconds: float) -> None:
    """Count and log what came of an attempt. Never says anything that was said."""
    facts: dict[str, object] = {"session_id": str(session_id), "seconds": round(seconds, 3)}
    if outcome.plan is not None:
        facts["tokens_before"] = outcome.plan.tokens.tokens
    match outcome.status:
        case "compacted":
            assert outcome.summary is not None
            summary = outcome.summary
            tally(tallies.compactions, summary.method)
            facts |= {"seq": outcome.seq, "method": summary.method, "model": summary.model}
            facts |= {"calls": summary.calls, **_spent(summary.usage)}
            _log.info("compaction.completed", **facts)
        case "failed":
            assert outcome.failure is not None
            failure = outcome.failure
            tally(tallies.compaction_failures, failure.kind)
            facts |= {"kind": failure.kind, "reason": failure.reason, **_spent(failure.usage)}
            _log.warning("compaction.failed", **facts)
        case "superseded":
            metrics.compactions_superseded += 1
            _log.info("compaction.superseded", **facts, reason=outcome.reason)
        case "nothing_to_do":
            _log.debug("compaction.nothing_to_do", **facts, reason=outcome.reason)


def _spent(usage: Usage | None) -> dict[str, int]:
    if usage is None:
        return {}
    metrics.compaction_input_tokens += usage.input_tokens
    metrics.compaction_output_tokens += usage.output_tokens
    return {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
