"""Compaction as a session offers it: in memory and on Postgres and Redis alike."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventlog import (
    CompactionCompleted,
    CompactionFailed,
    CompactionPending,
    CompactionPolicy,
    CompactionRequested,
    EventLog,
    InvalidEvent,
    InvalidRequest,
    InvalidSetting,
    Material,
    Session,
    SessionNotFound,
    Summary,
    SummaryFailed,
    Usage,
)
from eventlog import events as ev
from eventlog.compaction.compaction import Outcome, compact
from eventlog.compaction.due import ATTEMPTS_MAX, PAUSE_SECONDS_MIN, is_due
from eventlog.compaction.policy import MODULE_9, OFF
from eventlog.compaction.selection import NothingToDo
from eventlog.compaction.summarizer import FailureKind
from eventlog.rendering import FACTS_PREFIX, SUMMARY_PREFIX
from eventlog.testing import assert_replays, message, read_all, refused, until
from tests.compaction.conftest import KEEP_TWO
from tests.compaction.summaries import Brief, planned, talk
from tests.conftest import OpenLog

SUMMARY = SUMMARY_PREFIX + "brief 1: 10"


@pytest.fixture
async def session(open_log: OpenLog, any_log: EventLog) -> Session:
    """Twelve messages, q0 a0 to q5 a5, of which the newest two are to stay."""
    log = await open_log(compaction=KEEP_TWO)
    made = await log.create_session(user_id="ada")
    await talk(made, 6)
    return made


async def texts(session: Session) -> list[str]:
    """What a model reads, in short."""
    return [str(each["content"]).split(":")[0] for each in await session.context()]


class Failing(Brief):
    """Fails as it is told."""

    def __init__(self, failure: Exception | None = None, text: str = "") -> None:
        super().__init__()
        self.failure = failure
        self.text = text

    async def summarize(self, material: Material) -> Summary:
        """No good summary."""
        await super().summarize(material)
        if self.failure is not None:
            raise self.failure
        return Summary(text=self.text, usage=Usage(input_tokens=7))


# --- compacting and undoing it -------------------------------------------------------------------


async def test_context_when_compacted_is_the_summary_and_the_newest(session: Session) -> None:
    """The answer says what was done; every earlier seq has the context that it had."""
    at = [await session.context(at=seq) for seq in range(await session.head() + 1)]
    before = await read_all(session)
    plan = await planned(session)

    made = await session.compact(summarizer=Brief())

    assert made is not None
    assert await session.context() == [
        {"role": "user", "content": SUMMARY},
        *({"role": each["role"], "content": each["content"]} for each in at[-1][-2:]),
    ]
    assert (made.from_seq, made.to_seq, made.kept) == (1, 11, [])
    assert (made.seq, made.summary, made.method) == (14, "brief 1: 10", "custom")
    assert (made.tokens_before, made.estimated) == (plan.tokens.tokens, not plan.tokens.exact)
    assert made.context_tokens == plan.context.tokens
    assert made.recorded_at is not None
    assert await session.compactions() == [made]
    assert (await read_all(session))[:-1] == before
    assert [await session.context(at=seq) for seq in range(len(at))] == at
    await assert_replays(session)


async def test_material_when_given_to_a_summariser_is_what_it_replaces(session: Session) -> None:
    """Messages in order, facts, instructions; the second time the first summary."""
    brief = Brief()
    await session.pin_fact("budget", "300")
    await session.compact(summarizer=brief, instructions="keep the numbers")
    await talk(session, 3, begin=6)
    await session.compact(summarizer=brief)

    first, second = brief.materials

    assert [each.message_id for each in first.messages] == [
        f"{kind}{number}" for number in range(5) for kind in "qa"
    ]
    assert (first.previous_summary, first.instructions) == (None, "keep the numbers")
    assert (first.facts, first.session_id) == ({"budget": "300"}, session.id)
    assert (second.previous_summary, second.instructions) == ("brief 1: 10", None)
    assert (first.from_seq, first.to_seq + 1) == (1, second.from_seq)
    assert [each.message_id for each in second.messages] == ["q5", "a5", "q6", "a6", "q7", "a7"]
    assert 0 < second.tokens_max < second.tokens
    check = await session.replay()
    assert [each.summary for each in check.compactions] == ["brief 1: 10", "brief 2: 6"]


async def test_context_when_uncompacted_is_whole_again(session: Session) -> None:
    """With what came since; and the compaction says when it was undone."""
    whole = await session.context()
    made = await session.compact(summarizer=Brief())
    await session.append(message("since"))

    undone = await session.uncompact()

    assert made is not None
    assert await session.context() == [*whole, {"role": "user", "content": "since"}]
    assert (undone.seq, undone.reverted_seq) == (made.seq, await session.head())
    assert undone.summary == made.summary
    assert await session.compactions() == [undone]
    again = await session.compact(summarizer=Brief("again"))
    assert again is not None
    assert (again.from_seq, again.to_seq > made.to_seq) == (1, True)
    await assert_replays(session)


async def test_uncompact_when_one_is_named_undoes_that_one(session: Session) -> None:
    """The newest that stands is in the context; who undoes all has the whole conversation."""
    whole = await session.context()
    first = await session.compact(summarizer=Brief("first"))
    await talk(session, 3, begin=6)
    rest = (await session.context())[3:]
    second = await session.compact(summarizer=Brief("second"))
    assert first is not None
    assert second is not None

    await session.uncompact(first.seq)
    assert (await texts(session))[0] == SUMMARY_PREFIX.split(":")[0]
    assert (await session.context())[0]["content"].endswith("second 1: 6")
    await session.uncompact(second.seq)

    assert await session.context() == [*whole, *rest]
    assert [each.reverted_seq > 0 for each in await session.compactions()] == [True, True]


async def test_uncompact_when_none_stands_is_refused(session: Session) -> None:
    """None at all, none at that seq, or undone already: nothing is appended."""
    with refused(InvalidRequest):
        await session.uncompact()
    made = await session.compact(summarizer=Brief())
    assert made is not None
    for seq in (made.seq - 1, made.seq + 1, 0):
        with refused(InvalidRequest):
            await session.uncompact(seq)
    await session.uncompact(made.seq)
    head = await session.head()

    with refused(InvalidRequest) as caught:
        await session.uncompact(made.seq)

    assert "compactions()" in str(caught.error)
    assert await session.head() == head


async def test_plan_when_asked_for_says_what_compacting_does_and_does_nothing(
    session: Session,
) -> None:
    """By the session's policy, or by another one."""
    events = await read_all(session)

    plan = await planned(session)
    other = await session.plan_compaction("module-9")

    assert [each.message_id for each in plan.newest] == ["q5", "a5"]
    assert len(plan.material) == 10
    assert not isinstance(other, NothingToDo)
    assert len(other.newest) == MODULE_9.keep_messages
    with refused(InvalidRequest):
        await session.plan_compaction("no such policy")
    assert await read_all(session) == events
    await session.compact(summarizer=Brief())
    assert (await session.compactions())[0].to_seq == plan.to_seq


async def test_session_when_there_is_nothing_to_summarise_is_left_alone(session: Session) -> None:
    """None, no event, and no call of the summariser."""
    await session.compact(summarizer=Brief())
    head, brief = await session.head(), Brief()

    assert await session.compact(summarizer=brief) is None

    assert brief.materials == []
    assert await session.head() == head
    found = await session.plan_compaction()
    assert isinstance(found, NothingToDo)
    assert found.reason


async def test_session_when_there_is_none_cannot_be_compacted(any_log: EventLog) -> None:
    """It has a name of its own, as everywhere."""
    with refused(SessionNotFound):
        await any_log.handle(any_log.session_id("none")).compact(summarizer=Brief())


# --- what stays ----------------------------------------------------------------------------------


async def test_message_when_pinned_stays_through_every_compaction(session: Session) -> None:
    """In its place before the summary, until it is unpinned."""
    await session.pin("q1")
    await session.pin("a3")
    await session.pin("a3", pinned=False)
    for begin in (6, 9):
        await session.compact(summarizer=Brief())
        assert (await texts(session))[0] == "question 1"
        assert "answer 3" not in await texts(session)
        await talk(session, 3, begin=begin)

    await session.pin("q1", pinned=False)
    made = await session.compact(summarizer=Brief())

    assert made is not None
    assert "question 1" not in await texts(session)
    assert made.kept == []


async def test_facts_when_pinned_stand_in_every_context(session: Session) -> None:
    """Behind the instructions, whatever is compacted; a fork has them, and a clear leaves them."""
    session = await session.fork(at=1)
    await session.append(message("be brief", "system"))
    await talk(session, 6)
    await session.pin_fact("budget", "at most 300")
    await session.pin_fact("name", "Ada")
    await session.pin_fact("budget", "at most 400")
    await session.pin_fact("gone", "x")
    await session.pin_fact("gone", None)
    facts = FACTS_PREFIX + "- name: Ada\n- budget: at most 400"

    await session.compact(summarizer=Brief())
    assert [each["content"] for each in (await session.context())[:2]] == ["be brief", facts]
    fork = await session.fork()
    assert [each["content"] for each in (await fork.context())[:2]] == ["be brief", facts]
    await session.clear()
    assert [each["content"] for each in await session.context()] == [facts]


@pytest.mark.parametrize(("name", "text"), [("", "x"), ("n", ""), ("n", "x" * 4_001)])
async def test_fact_when_it_is_no_sentence_is_refused(
    session: Session, name: str, text: str
) -> None:
    """Every request carries it from then on: so it is not empty, and not long."""
    with refused(InvalidRequest):
        await session.pin_fact(name, text)


async def test_calls_when_given_up_are_closed_once(session: Session) -> None:
    """Also when ids come again; and those that may still be answered are kept."""
    calls = [ev.ToolCall(id="again", name="look", arguments="{}")]
    session = await session.fork(at=1)
    for number in range(3):
        await session.append(message("look", "assistant", tool_calls=calls))
        await talk(session, 2, begin=2 * number)
    waiting = await planned(session)
    await session.set_compaction_policy(KEEP_TWO.replace("{", '{"orphan_seconds": 0, '))

    made = await session.compact(summarizer=Brief())

    assert len(waiting.kept) == 3
    assert made is not None
    assert made.kept == []
    closed = [e.event for e in await read_all(session) if isinstance(e.event, ev.ToolCallClosed)]
    assert [each.tool_call_id for each in closed] == ["again"]
    assert (await session.replay()).closed_calls == {"again": made.seq - 1}


# --- policies ------------------------------------------------------------------------------------


async def test_policy_when_set_at_several_places_is_the_nearest(open_log: OpenLog) -> None:
    """The session's own, its user's, the log's, the settings'; each as a whole."""
    log = await open_log(compaction="off")
    ada, bob = [await log.create_session(user_id=name) for name in ("ada", "bob")]
    nobody = await log.create_session()
    mine = CompactionPolicy(threshold_tokens=50, keep_messages=3)

    async def names() -> list[str]:
        return [(await each.compaction_policy()).name for each in (ada, bob, nobody)]

    assert await names() == ["off", "off", "off"]
    await log.compaction.set("codex")
    assert await names() == ["codex", "codex", "codex"]
    await log.compaction.set("module-9", user_id="ada")
    assert await names() == ["module-9", "codex", "codex"]
    await ada.set_compaction_policy(mine)
    assert await ada.compaction_policy() == mine
    await ada.set_compaction_policy(None)
    assert await names() == ["module-9", "codex", "codex"]
    await log.compaction.set(None, user_id="ada")
    await log.compaction.set(None)
    assert await names() == ["off", "off", "off"]
    assert await log.compaction.get() is None


async def test_policy_when_set_by_one_process_counts_in_another(open_log: OpenLog) -> None:
    """It is in the log: who comes later reads it, and so does a fork."""
    one = await open_log()
    session = await one.create_session(user_id="ada")
    await one.compaction.set('{"threshold_tokens": 5}', user_id="ada")
    fork = await session.fork()
    await fork.set_compaction_policy("codex")
    fork_of_fork = await fork.fork()

    other = await open_log()

    assert (await other.handle(session.id).compaction_policy()).threshold_tokens == 5
    assert (await other.handle(fork_of_fork.id).compaction_policy()).name == "codex"
    assert (await other.compaction.get(user_id="bob")) is None


async def test_policy_when_it_makes_no_sense_is_refused(
    session: Session, open_log: OpenLog
) -> None:
    """By name, as JSON, as an event; and as a setting when it is first needed."""
    head = await session.head()
    for policy in ("sometimes", "{", '{"keep": 1}', '{"keep_messages": "x"}', '{"enabled": 5}'):
        with refused(InvalidRequest):
            await session.set_compaction_policy(policy)
    for bad in (
        CompactionPolicy(threshold_tokens=0),
        CompactionPolicy(keep_messages=-1),
        CompactionPolicy(threshold_share=float("nan")),
        CompactionPolicy(orphan_seconds=float("inf")),
    ):
        with refused(InvalidRequest):
            await session.set_compaction_policy(bad)
        with refused(InvalidEvent):
            await session.append(ev.CompactionPolicySet(policy=bad))
    assert await session.head() == head
    log = await open_log(compaction="sometimes")
    with refused(InvalidSetting):
        await (await log.create_session()).compaction_policy()


# --- asking a worker -----------------------------------------------------------------------------


async def answered(session: Session, answer: ev.StoredEvent, **arguments: Any) -> Any:
    """Ask for a compaction, and let somebody answer."""
    asking = asyncio.create_task(session.compact(**arguments))
    await until(lambda: _is_asked(session))
    await session.append([message("by the way"), answer])
    return await asking


async def _is_asked(session: Session) -> bool:
    return (await session.context_state()).compaction_asked is not None


async def test_request_when_a_worker_compacts_returns_the_compaction(session: Session) -> None:
    """Whoever asks needs no model: the answer is in the log."""
    summary = CompactionCompleted(summary="by a worker", from_seq=1, to_seq=5, method="model")

    made = await answered(session, summary, instructions="short")

    assert (made.summary, made.method) == ("by a worker", "model")
    assert (await session.context_state()).compaction_asked is None
    asked = [each.event for each in await read_all(session)][13]
    assert asked == CompactionRequested(instructions="short")


async def test_request_when_there_is_nothing_to_do_returns_none(session: Session) -> None:
    """The worker says so."""
    nothing = CompactionFailed(reason="2 messages", kind="nothing_to_do")

    assert await answered(session, nothing) is None
    assert (await session.context_state()).compaction_asked is None


async def test_request_when_the_worker_fails_raises_its_reason(session: Session) -> None:
    """With the kind, also one that only newer versions know."""
    for kind, shown in (("rate_limited", "rate_limited"), ("of the future", "bad_answer")):
        with refused(SummaryFailed) as caught:
            await answered(session, CompactionFailed(reason="so it is", kind=kind))
        assert (caught.error.kind, caught.error.reason) == (shown, "so it is")


async def test_request_when_nobody_answers_is_pending(session: Session) -> None:
    """It stays asked for, and whoever compacts next answers it, with its instructions."""
    with refused(CompactionPending) as caught:
        await session.compact(wait_seconds=0.01, instructions="names matter")
    assert str(session.id) in str(caught.error)
    brief = Brief()

    await session.compact(summarizer=brief)

    assert brief.materials[0].instructions == "names matter"
    assert (await session.context_state()).compaction_asked is None


async def test_request_when_there_is_nothing_to_do_is_answered_by_an_event(
    session: Session,
) -> None:
    """Only if somebody asked: without, nothing is appended."""
    await session.compact(summarizer=Brief())
    await session.append(CompactionRequested())

    assert await session.compact(summarizer=Brief()) is None

    last = (await read_all(session))[-1].event
    assert isinstance(last, CompactionFailed)
    assert (last.kind, last.attempts) == ("nothing_to_do", 1)
    head = await session.head()
    assert await session.compact(summarizer=Brief()) is None
    assert await session.head() == head


async def test_request_when_cleared_or_rewound_away_is_forgotten(session: Session) -> None:
    """Nobody waits any more for a summary of what is gone."""
    await session.append(CompactionRequested())
    await session.rewind(to=13)
    assert (await session.context_state()).compaction_asked is None
    await session.append(CompactionRequested())
    await session.clear()
    assert (await session.context_state()).compaction_asked is None


# --- failures ------------------------------------------------------------------------------------


async def test_failures_when_they_follow_one_another_are_counted(session: Session) -> None:
    """Kind, reason, range, what was spent, until when to wait; and the context is as it was."""
    before = await session.context()
    kinds: list[FailureKind] = ["rate_limited", "timeout", "server_error"]
    for kind in kinds:
        failure = SummaryFailed(
            kind, "it was so", retry_after_seconds=2.5, usage=Usage(input_tokens=9)
        )
        with refused(SummaryFailed) as caught:
            await session.compact(summarizer=Failing(failure))
        assert caught.error.kind == kind

    failed = [e.event for e in await read_all(session) if isinstance(e.event, CompactionFailed)]
    assert [(each.kind, each.attempts) for each in failed] == [
        *(("rate_limited", 1), ("timeout", 2), ("server_error", 3))
    ]
    assert {(e.reason, e.from_seq, e.to_seq, e.retry_after_ms) for e in failed} == {
        ("it was so", 1, 11, 2500)
    }
    state = await session.replay()
    assert state.input_tokens == 27
    assert state.compaction_missed is not None
    assert state.compaction_missed.attempts == 3
    assert await session.context() == before
    await session.compact(summarizer=Brief())
    assert (await session.replay()).compaction_missed is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("long " * 500, "not_smaller"),
        ("x" * 1_000_001, "bad_answer"),
        ("half of an emoji \ud83d", "bad_answer"),
    ],
    ids=["nothing", "blanks", "longer", "huge", "surrogate"],
)
async def test_summary_when_it_cannot_stand_there_is_a_failure(
    session: Session, text: str, kind: str
) -> None:
    """Whatever a summariser says: nothing false is in the log, and the reason quotes nothing."""
    before = await session.context()

    with refused(SummaryFailed) as caught:
        await session.compact(summarizer=Failing(text=text))

    last = (await read_all(session))[-1].event
    assert isinstance(last, CompactionFailed)
    assert (last.kind, caught.error.kind) == (kind, kind)
    assert "emoji" not in last.reason
    assert await session.context() == before
    assert await session.compactions() == []


async def test_summary_when_it_has_odd_characters_is_kept_as_it_is(session: Session) -> None:
    """NUL, direction marks, joiners: it is text like any other."""
    text = "nul \0, rtl \u202e, family 👩‍👩‍👧, line \u2028"

    made = await session.compact(summarizer=Failing(text=text))

    assert made is not None
    assert made.summary == text
    assert (await session.context())[0]["content"] == SUMMARY_PREFIX + text


async def test_fallback_when_the_summariser_fails_is_asked(session: Session) -> None:
    """And when it fails, too, that is the failure."""
    policy = await session.compaction_policy()
    failing, brief = Failing(SummaryFailed("refused", "no")), Brief()

    outcome = await compact(session, failing, policy, fallback=brief)

    assert (outcome.status, len(brief.materials)) == ("compacted", 1)
    await session.uncompact()
    other = Failing(SummaryFailed("timeout", "too slow"))
    outcome = await compact(session, failing, policy, fallback=other)
    assert (outcome.status, outcome.failure) == ("failed", other.failure)


async def test_summariser_when_it_breaks_is_no_failure_of_the_conversation(
    session: Session,
) -> None:
    """An error in the program is raised as it is, and nothing is appended."""
    head = await session.head()

    with pytest.raises(ZeroDivisionError):
        await session.compact(summarizer=Failing(ZeroDivisionError()))

    assert await session.head() == head


async def test_compaction_when_it_gains_too_little_is_left(session: Session) -> None:
    """A worker doesn't ask a model for a few tokens; who asks gets what is asked for."""
    policy = CompactionPolicy(
        threshold_tokens=100_000, messages_min=0, keep_messages=2, keep_tokens=None
    )

    outcome: Outcome = await compact(session, Brief(), policy, worth_it=True)

    assert outcome.status == "nothing_to_do"
    assert "under 10,000" in outcome.reason


# --- when it is due ------------------------------------------------------------------------------

SMALL = CompactionPolicy(threshold_tokens=100, threshold_share=None, keep_messages=2)


def failure(attempts: int = 1, retry_after_ms: int | None = None) -> CompactionFailed:
    """The last of so many failures in a row."""
    return CompactionFailed(reason="x", attempts=attempts, retry_after_ms=retry_after_ms)


async def due_after(
    session: Session,
    *events: ev.StoredEvent,
    policy: CompactionPolicy = SMALL,
    after_seconds: float = 0.0,
) -> tuple[str, bool]:
    """Whether the session is due, some time after these events."""
    if events:
        await session.append(events)
    state, size = await session.context_state(), await session.context_tokens()
    assert state.updated_at is not None
    now = state.updated_at + timedelta(seconds=after_seconds)
    due = is_due(state, policy, size, now=now)
    return due.why, due.due


async def test_due_when_over_or_under_the_threshold(session: Session) -> None:
    """Twelve messages are some 300 tokens."""
    large = CompactionPolicy(threshold_tokens=10_000)

    assert await due_after(session) == ("over_threshold", True)
    assert await due_after(session, policy=large) == ("under_threshold", False)
    assert await due_after(session, policy=OFF) == ("off", False)


async def test_due_when_asked_for_whatever_the_policy_says(session: Session) -> None:
    """Until it is answered, and not when the session has ended."""
    assert await due_after(session, CompactionRequested(), policy=OFF) == ("asked", True)
    assert await due_after(session, failure(), policy=OFF) == ("off", False)
    await session.append(CompactionRequested())
    await session.close()
    assert await due_after(session) == ("ended", False)


async def test_due_when_it_failed_waits_longer_each_time(session: Session) -> None:
    """Twice as long after each failure, and never shorter than the endpoint asked for."""
    pause = PAUSE_SECONDS_MIN

    assert await due_after(session, failure(1)) == ("backing_off", False)
    assert await due_after(session, after_seconds=pause) == ("over_threshold", True)
    assert await due_after(session, failure(3), after_seconds=4 * pause - 1) == (
        *("backing_off", False),
    )
    assert await due_after(session, after_seconds=4 * pause) == ("over_threshold", True)
    asked = failure(1, retry_after_ms=90_000)
    assert await due_after(session, asked, after_seconds=89) == ("backing_off", False)
    assert await due_after(session, after_seconds=90) == ("over_threshold", True)


async def test_due_when_it_failed_too_often_waits_until_the_context_has_grown(
    session: Session,
) -> None:
    """However long that takes; a request is heard all the same."""
    year = 365 * 86_400.0
    policy = CompactionPolicy(threshold_tokens=250, threshold_share=None, window_tokens=100_000)
    gave_up = failure(ATTEMPTS_MAX)

    assert await due_after(session, gave_up, policy=policy, after_seconds=year) == (
        *("gave_up", False),
    )
    await talk(session, 1, begin=6)
    assert await due_after(session, policy=policy, after_seconds=year) == ("over_threshold", True)
    assert await due_after(session, gave_up, policy=policy) == ("gave_up", False)
    assert await due_after(session, CompactionRequested(), policy=policy) == ("asked", True)


async def test_due_when_undone_waits_until_the_context_has_grown(session: Session) -> None:
    """Whoever undoes a compaction doesn't want it back at once, unless the context is full."""
    policy = CompactionPolicy(threshold_tokens=250, threshold_share=None, window_tokens=100_000)
    await session.compact(summarizer=Brief())
    await session.uncompact()

    assert await due_after(session, policy=policy) == ("reverted", False)
    full = CompactionPolicy(threshold_tokens=250, threshold_share=None, window_tokens=260)
    assert await due_after(session, policy=full) == ("over_threshold", True)
    await talk(session, 1, begin=6)
    assert await due_after(session, policy=policy) == ("over_threshold", True)


async def test_due_when_full_and_failed_twice_asks_no_model_any_more(session: Session) -> None:
    """Better a poor summary at once than a request that is refused."""
    await session.append(failure(1))
    full = CompactionPolicy(threshold_tokens=100, threshold_share=None, window_tokens=110)
    size = await session.context_tokens()
    now = datetime.now(UTC)

    once = is_due(await session.context_state(), full, size, now=now)
    await session.append(failure(2))
    twice = is_due(await session.context_state(), full, size, now=now)

    assert (once.why, once.full, once.fallback) == ("backing_off", True, False)
    assert once.at is not None
    assert (twice.why, twice.due, twice.fallback) == ("over_threshold", True, True)
