"""What a misbehaving endpoint leaves in a log: a typed failure and a later date, never a summary.

The whole way: a session over its threshold, the openai package, a real HTTP server, the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

import pytest

from eventlog import CompactionPolicy, EventLog, MessageAdded, Session
from eventlog.compaction import committing
from eventlog.compaction.compaction import compact
from eventlog.compaction.counts import TokenCount
from eventlog.compaction.due import PAUSE_SECONDS_MIN, is_due
from eventlog.compaction.measure import context_tokens
from eventlog.compaction.selection import Plan
from eventlog.compaction.summarizer import Material, Summary
from eventlog.events import CompactionCompleted, CompactionFailed
from eventlog.testing import read_all
from tests.summariser.conftest import Ask
from tests.summariser.materials import KEY, SECRET
from tests.summariser.test_misbehaviour import KINDS, SHORT_SECONDS
from tests.support.model_server import MISBEHAVIOURS, ModelServer

POLICY: Final = CompactionPolicy(threshold_tokens=400, keep_messages=2, keep_user_tokens=0)


@pytest.fixture
async def session() -> AsyncIterator[Session]:
    """A session over its threshold."""
    async with EventLog.in_memory() as log:
        made = await log.create_session()
        for number in range(40):
            said = f"{number}: {SECRET}, and what else is to be said of it today"
            role = "assistant" if number % 2 else "user"
            await made.append(MessageAdded(role=role, content=said))  # type: ignore[arg-type]
        yield made


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("behaviour", MISBEHAVIOURS)
async def test_log_when_the_endpoint_misbehaves_has_a_typed_failure_and_no_summary(
    ask: Ask, server: ModelServer, session: Session, api: str, behaviour: str
) -> None:
    """The context is as it was, the next try waits, longer each time; then a good answer counts."""
    before = await session.context()
    short = behaviour in ("hang", "drip")
    summarizer = ask(api=api, timeout_seconds=SHORT_SECONDS if short else 20.0)
    server.behaviour = behaviour

    outcomes = [await compact(session, summarizer, POLICY) for _ in range(2)]

    assert [each.status for each in outcomes] == ["failed", "failed"]
    events = [each.event for each in await read_all(session)]
    failures = [each for each in events if isinstance(each, CompactionFailed)]
    assert [(each.kind, each.attempts) for each in failures] == [
        (KINDS[behaviour], 1),
        (KINDS[behaviour], 2),
    ]
    assert not any(isinstance(each, CompactionCompleted) for each in events)
    assert all(SECRET not in each.reason and KEY not in each.reason for each in failures)
    assert await session.context() == before

    state = await session.replay()
    missed = state.compaction_missed
    assert missed is not None
    size = context_tokens(state)
    now = missed.recorded_at + timedelta(seconds=1)
    waiting = is_due(state, POLICY, size, now=now)
    assert (waiting.due, waiting.why) == (False, "backing_off")
    assert waiting.at is not None
    pause = (waiting.at - missed.recorded_at).total_seconds()
    assert pause >= 2 * PAUSE_SECONDS_MIN
    assert is_due(state, POLICY, size, now=waiting.at).due

    server.behaviour = "good"
    good = await compact(session, ask(api=api), POLICY)
    assert good.status == "compacted"
    assert (await session.replay()).compaction_missed is None
    await server.idle()


class Unchecked:
    """Whoever believes whatever comes: an answer that nobody looked at."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def summarize(self, material: Material) -> Summary:
        """The text, whatever was asked."""
        del material
        return Summary(text=self.text)


@pytest.mark.parametrize("text", ["", " \n\t", "as long as all of it " * 2_000])
async def test_log_when_the_last_check_is_taken_away_has_a_false_summary(
    session: Session, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Control: what a summarizer lets through is stopped before it is appended, and only there."""
    outcome = await compact(session, Unchecked(text), POLICY)
    assert outcome.status == "failed"

    def believe(summary: Summary, plan: Plan) -> TokenCount:
        del summary, plan
        return TokenCount(1)

    monkeypatch.setattr(committing, "check_summary", believe)
    outcome = await compact(session, Unchecked(text), POLICY)
    assert outcome.status == "compacted"
    assert any(isinstance(each.event, CompactionCompleted) for each in await read_all(session))
