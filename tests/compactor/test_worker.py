"""The compact-worker on real servers: what is due is compacted, once, and by whoever is there."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from uuid import UUID

import pytest

from eventlog import EventLog, Session
from eventlog.compaction import committing, compaction, due
from eventlog.compaction.measure import context_tokens
from eventlog.compaction.policy import CompactionPolicy
from eventlog.compaction.summarizer import SummaryFailed
from eventlog.errors import Unavailable
from eventlog.events import CompactionPolicySet
from eventlog.telemetry import metrics, tallies
from eventlog.testing import message, until
from projections import contexts
from projections.checkpoint import lag, postgres_of
from projections.parking import parked_sessions
from projections.watching import look_at_postgres
from tests.compactor.conftest import (
    POLICY,
    Hands,
    Start,
    failures,
    grow,
    long_session,
    row_of,
    settled,
    summaries,
)
from tests.conftest import OpenLog
from workers.compactor import run_compactor

TENDS: Final = 5
"""Rounds of sweeping in which something that must not happen could happen."""


async def test_session_when_over_its_threshold_is_compacted_once(
    log: EventLog, start: Start, hands: Hands
) -> None:
    """By itself, with one call, and the row says that nothing is due any more."""
    worker = start(log)
    session = await long_session(log)

    await until(lambda: summaries(session))
    await until(lambda: settled(log, session))
    for _ in range(TENDS):
        await worker.compactor.tend()

    assert len(await summaries(session)) == 1
    assert len(hands.asked) == 1


async def test_session_when_it_stays_small_has_no_row(log: EventLog, start: Start) -> None:
    """Most sessions have nothing in the table."""
    worker = start(log)
    small = await log.create_session()
    await grow(small, 4)
    long = await long_session(log)

    await until(lambda: summaries(long))

    assert await row_of(log, small.id) is None
    assert worker.hands.asked[0].session_id == long.id


async def test_compact_when_asked_by_another_process_is_answered(
    log: EventLog, open_log: OpenLog, start: Start, hands: Hands
) -> None:
    """With the summary, with None when there is nothing to do, or with what went wrong."""
    start(log)
    elsewhere = await open_log()
    session = await elsewhere.create_session("small")
    await session.set_compaction_policy(POLICY)
    await grow(session, 6)

    made = await session.compact(instructions="keep the numbers")
    assert made is not None
    assert made.summary == hands.text
    assert hands.asked[0].instructions == "keep the numbers"

    empty = await elsewhere.create_session("empty")
    assert await empty.compact() is None

    hands.failure = SummaryFailed("no_budget", "the hour is spent")
    await grow(session, 6)
    with pytest.raises(SummaryFailed) as caught:
        await session.compact()
    assert caught.value.kind == "no_budget"


async def test_sessions_when_two_workers_share_them_are_compacted_once_each(
    log: EventLog, open_log: OpenLog, start: Start, hands: Hands
) -> None:
    """One summary each, and one call each."""
    sessions = [await long_session(log) for _ in range(12)]
    start(log)
    start(await open_log())

    for session in sessions:
        await until(lambda session=session: summaries(session))  # type: ignore[misc]

    assert [len(await summaries(each)) for each in sessions] == [1] * 12
    assert len(hands.asked) == 12


async def test_session_when_its_policy_changes_is_due_with_its_next_event(
    log: EventLog, start: Start
) -> None:
    """Be it the session's own policy, its user's or the log's."""
    start(log)
    session = await log.create_session(user_id="ada")
    await grow(session)

    await log.compaction.set(POLICY, user_id="ada")
    await session.append(message("and now?"))

    await until(lambda: summaries(session))


async def test_session_when_uncompacted_is_not_compacted_again_at_once(
    log: EventLog, start: Start, hands: Hands
) -> None:
    """Only when it has grown: whoever undoes a summary doesn't want it back."""
    worker = start(log)
    session = await long_session(log)
    await until(lambda: summaries(session))

    await session.uncompact()
    await session.append(message("go on"))
    await until(lambda: projected(log, session.shard))
    assert await says(log, session.id, "reverted")
    for _ in range(TENDS):
        await worker.compactor.tend()
    assert len(hands.asked) == 1

    await grow(session, 6)
    await until(lambda: is_count(session, 2))


async def test_session_when_erased_while_it_is_due_leaves_nothing(
    log: EventLog, start: Start, hands: Hands
) -> None:
    """No row, no summary, and the worker goes on with others."""
    hands.let.clear()
    worker = start(log)
    session = await long_session(log)
    await until(lambda: hands.asked)

    await session.delete()
    await session.erase()
    hands.let.set()
    other = await long_session(log)
    await until(lambda: summaries(other))
    for _ in range(TENDS):
        await worker.compactor.tend()

    assert await row_of(log, session.id) is None
    assert [each.session_id for each in hands.asked] == [session.id, other.id]


async def test_fork_when_too_long_is_compacted_and_its_parent_is_not_touched(
    log: EventLog, start: Start
) -> None:
    """A fork's context begins as its parent's."""
    session = await log.create_session()
    await grow(session)
    head = await session.head()
    fork = await session.fork()
    await fork.set_compaction_policy(POLICY)
    start(log)

    await until(lambda: summaries(fork))

    assert await session.head() == head


async def test_worker_when_stopped_gives_its_sessions_to_others_at_once(
    log: EventLog, open_log: OpenLog, start: Start, hands: Hands
) -> None:
    """What was under way is not appended, and nobody waits for a claim to run out."""
    hands.let.clear()
    first = start(log, claim_seconds=600)
    session = await long_session(log)
    await until(lambda: hands.asked)
    head = await session.head()
    second = start(await open_log(), claim_seconds=600)

    async with asyncio.timeout(5):
        await first.end()
    assert await session.head() == head
    await until(lambda: len(hands.asked) == 2)
    hands.let.set()

    await until(lambda: summaries(session))
    await until(lambda: settled(log, session))
    assert len(await summaries(session)) == 1
    assert second.compactor.claims is not None


async def test_session_when_summaries_fail_is_tried_again_later_and_later_up_to_a_bound(
    log: EventLog, start: Start, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts are counted in the log, the row says when the next one is, and in the end none."""
    monkeypatch.setattr(due, "PAUSE_SECONDS_MIN", 0.001)
    hands.failure = SummaryFailed("server_error", "it broke")
    worker = start(log, claim_seconds=0.3)
    session = await long_session(log)

    await until(lambda: says(log, session.id, "gave_up"))
    for _ in range(TENDS):
        await worker.compactor.tend()

    failed = await failures(session)
    assert [each.attempts for each in failed] == list(range(1, due.ATTEMPTS_MAX + 1))
    assert len(hands.asked) == due.ATTEMPTS_MAX

    hands.failure = None
    await grow(session, 6)
    await until(lambda: summaries(session))


async def test_session_when_a_summary_failed_waits_until_a_time(
    log: EventLog, start: Start, hands: Hands
) -> None:
    """That time is in the row, half a minute after the first failure, later when asked for."""
    hands.failure = SummaryFailed("rate_limited", "later", retry_after_seconds=100.0)
    worker = start(log)
    session = await long_session(log)
    await until(lambda: says(log, session.id, "backing_off"))
    for _ in range(TENDS):
        await worker.compactor.tend()

    row = await row_of(log, session.id)
    state = await session.replay()
    assert row is not None
    assert state.compaction_missed is not None
    failed_us = round(state.compaction_missed.recorded_at.timestamp() * 1_000_000)
    assert row.due_at_us == failed_us + 100_000_000
    assert not row.due
    assert len(hands.asked) == 1


@pytest.mark.parametrize("kind", ["no_budget", "circuit_open"])
async def test_session_when_no_model_may_be_asked_waits_without_an_event(
    log: EventLog, start: Start, hands: Hands, kind: str
) -> None:
    """It says nothing of the session. Further messages don't bring it forward either."""
    hands.failure = SummaryFailed(kind, "not now", retry_after_seconds=60.0)  # type: ignore[arg-type]
    worker = start(log)
    session = await long_session(log)
    await until(lambda: says(log, session.id, "postponed"))
    asked = len(hands.asked)

    await grow(session, 4)
    head = await session.head()
    await until(lambda: projected(log, session.shard))
    for _ in range(TENDS):
        await worker.compactor.tend()

    assert await failures(session) == []
    assert len(hands.asked) == asked
    assert await session.head() == head


async def test_session_when_full_and_no_model_may_be_asked_is_summarised_by_the_fallback(
    log: EventLog, start: Start, hands: Hands, fallback: Hands
) -> None:
    """Better a poor summary than a request that is refused."""
    hands.failure = SummaryFailed("circuit_open", "not now")
    start(log)
    session = await log.create_session()
    await session.append(
        CompactionPolicySet(policy=CompactionPolicy(window_tokens=420, keep_messages=2))
    )
    await grow(session)

    await until(lambda: summaries(session))

    assert len(fallback.asked) == 1
    assert await failures(session) == []


async def test_session_when_full_and_the_model_fails_is_summarised_by_the_fallback(
    log: EventLog, start: Start, hands: Hands, fallback: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two failures nobody is asked but the fallback; if that fails, too, it is waited."""
    monkeypatch.setattr(due, "PAUSE_SECONDS_MIN", 0.001)
    hands.failure = fallback.failure = SummaryFailed("server_error", "it broke")
    worker = start(log, claim_seconds=0.3)
    session = await log.create_session()
    policy = CompactionPolicy(window_tokens=420, keep_messages=2)
    await session.append(CompactionPolicySet(policy=policy))
    await grow(session)

    await until(lambda: says(log, session.id, "gave_up"))
    for _ in range(TENDS):
        await worker.compactor.tend()
    assert len(hands.asked) == due.FALLBACK_ATTEMPTS
    assert len(fallback.asked) == due.ATTEMPTS_MAX - due.FALLBACK_ATTEMPTS

    fallback.failure = None
    await grow(session, 6)
    await until(lambda: summaries(session))
    assert len(hands.asked) == due.FALLBACK_ATTEMPTS


async def test_session_when_its_context_changes_meanwhile_is_summarised_anew(
    log: EventLog, start: Start, hands: Hands
) -> None:
    """A summary of what was taken back is void, and appended nowhere."""
    hands.let.clear()
    start(log)
    session = await long_session(log)
    await until(lambda: hands.asked)

    await session.clear()
    await grow(session)
    hands.let.set()
    await until(lambda: summaries(session))

    (summary,) = await summaries(session)
    state = await session.replay()
    assert summary.from_seq > state.clears[-1]


async def test_summarizer_when_it_breaks_is_a_failure_without_content(
    log: EventLog, start: Start, hands: Hands
) -> None:
    """A bug in it stops neither the worker nor is it repeated without pause."""

    async def broken(material: object) -> None:
        hands.asked.append(material)  # type: ignore[arg-type]
        raise KeyError("what was said")

    hands.summarize = broken  # type: ignore[assignment]
    worker = start(log)
    session = await long_session(log)
    await until(lambda: failures(session))
    await until(lambda: says(log, session.id, "backing_off"))
    for _ in range(TENDS):
        await worker.compactor.tend()

    (failed,) = await failures(session)
    assert (failed.kind, "what was said" in failed.reason) == ("bad_answer", False)


async def test_poison_session_when_it_can_not_be_measured_is_parked_and_holds_up_nobody(
    log: EventLog, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its shard, and of its batch, go on; and it does, once it is taken back in."""
    poison = await long_session(log)
    measured = context_tokens

    def break_on_poison(state, model=None):  # type: ignore[no-untyped-def]
        if state.session_id == poison.id:
            raise ArithmeticError("no such number")
        return measured(state, model)

    monkeypatch.setattr(contexts, "context_tokens", break_on_poison)
    others = [await long_session(log) for _ in range(20)]
    start(log)
    for session in others:
        await until(lambda session=session: summaries(session))  # type: ignore[misc]
    await until(lambda: parked(log))
    assert await parked(log) == [poison.id]
    assert await summaries(poison) == []


async def test_contexts_when_policies_can_not_be_read_are_tried_again(
    log: EventLog, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage of Postgres is no fault of a session: none is parked."""
    session = await long_session(log)
    count = 0
    policies = type(log.compaction)
    of = policies.of

    async def fail_at_first(self, state):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count <= 3:
            raise Unavailable("Postgres: it is away")
        return await of(self, state)

    monkeypatch.setattr(policies, "of", fail_at_first)
    start(log)

    await until(lambda: summaries(session))
    assert count > 3
    assert await parked(log) == []


async def test_worker_when_there_is_no_redis_compacts_all_the_same(
    open_log: OpenLog, start: Start, hands: Hands
) -> None:
    """Who holds a session's shard works on it: each once, however many at a time."""
    first, second = await open_log(redis="none"), await open_log(redis="none")
    workers = [start(first), start(second)]
    await until(lambda: all(each.compactor.projector.shards for each in workers))
    sessions = [await long_session(first) for _ in range(12)]

    for session in sessions:
        await until(lambda session=session: summaries(session))  # type: ignore[misc]

    assert [len(await summaries(each)) for each in sessions] == [1] * 12


async def says(log: EventLog, session_id: UUID, why: str) -> bool:
    """Whether the session's row says this."""
    row = await row_of(log, session_id)
    return row is not None and row.why == why


async def projected(log: EventLog, shard: int) -> bool:
    """Whether the projection is at the end of a shard."""
    return (await lag(postgres_of(log), contexts.CONTEXTS))[shard] == 0


async def is_count(session: Session, count: int) -> bool:
    """Whether so many summaries were appended."""
    return len(await summaries(session)) == count


async def parked(log: EventLog) -> list[object]:
    """Sessions that the projection of contexts set aside."""
    return [each.session_id for each in await parked_sessions(log, name=contexts.CONTEXTS)]


async def test_metrics_when_sessions_are_compacted_count_them(
    log: EventLog, start: Start, hands: Hands
) -> None:
    """How many are due, what came of them, and what it cost."""
    hands.let.clear()
    start(log)
    session = await long_session(log)
    await until(lambda: hands.asked)
    look = await look_at_postgres(postgres_of(log))
    before = tallies.compactions.get("custom", 0), metrics.compaction_input_tokens

    hands.let.set()
    await until(lambda: summaries(session))
    await until(lambda: settled(log, session))

    assert look.compactions_due == 1
    assert tallies.compactions["custom"] == before[0] + 1
    assert metrics.compaction_input_tokens == before[1] + 100
    assert (await look_at_postgres(postgres_of(log))).compactions_due == 0


async def test_summary_when_it_can_not_be_appended_at_first_is_not_paid_for_twice(
    log: EventLog, start: Start, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres was away for a moment: what the model wrote is appended then."""
    append = committing.append_summary
    tries = 0

    async def fail_at_first(*arguments: Any, **facts: Any) -> int:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise Unavailable("Postgres: it is away")
        return await append(*arguments, **facts)

    monkeypatch.setattr(compaction, "append_summary", fail_at_first)
    session = await long_session(log)
    start(log)

    await until(lambda: summaries(session))

    assert tries == 3
    assert len(hands.asked) == 1


async def test_summary_when_it_takes_too_long_is_a_failure(log: EventLog, hands: Hands) -> None:
    """With all its calls together; the worker has its place back."""
    hands.let.clear()
    stop = asyncio.Event()
    session = await long_session(log)
    running = asyncio.create_task(
        run_compactor(log, stop, summarizer=hands, summary_seconds_max=0.05)
    )
    await until(lambda: failures(session))
    stop.set()
    await running

    assert [each.kind for each in await failures(session)] == ["timeout"]
