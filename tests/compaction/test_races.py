"""Others go on while a summary is written: nothing is lost, nothing comes back, nothing is doubled.

A summariser stops at a gate between plan and commit, and what races happens there. Each protection
has a control without it, which must show the damage.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from eventlog import CompactionCompleted, EventIdReused, EventLog, InvalidRequest, Session
from eventlog import events as ev
from eventlog.compaction import committing, selection
from eventlog.compaction.compaction import Outcome, compact
from eventlog.rendering import LATE_OUTPUT
from eventlog.testing import message, read_all, refused, until
from tests.compaction.checks import check_pairs, check_summaries
from tests.compaction.conftest import KEEP_TWO
from tests.compaction.summaries import Brief, Gated, planned, talk
from tests.conftest import OpenLog
from tests.support.gates import held

Act = Callable[[Session], Awaitable[Any]]
TURNS = 6


async def compact_once(session: Session, summarizer: Brief) -> Outcome:
    """One try, by the session's policy."""
    return await compact(session, summarizer, await session.compaction_policy())


async def while_summarising(session: Session, act: Act) -> tuple[Gated, Outcome]:
    """Let something happen between the plan and the commit of a compaction."""
    gated = Gated()
    task = asyncio.create_task(compact_once(session, gated))
    await gated.reached.wait()
    await act(session)
    gated.open.set()
    return gated, await task


async def completed(session: Session) -> list[CompactionCompleted]:
    """The compactions in a log, whether they stand or not."""
    events = [each.event for each in await read_all(session)]
    return [each for each in events if isinstance(each, CompactionCompleted)]


async def contents(session: Session) -> list[str]:
    """What a model reads, as text."""
    return [str(each["content"]) for each in await session.context()]


# --- appends -------------------------------------------------------------------------------------


async def test_appends_when_a_summary_is_written_are_all_in_the_context(
    short_log: EventLog, open_log: OpenLog
) -> None:
    """Of two processes, with a reply that streams all the time: behind the summary, in order."""
    session = await short_log.create_session()
    other = (await open_log(compaction=KEEP_TWO)).handle(session.id)
    await talk(session, TURNS)

    async def go_on(_: Session) -> None:
        async with other.reply(flush_seconds=0) as reply:
            for number in range(20):
                await asyncio.gather(
                    session.append(message(f"here {number}")),
                    other.append(message(f"there {number}")),
                    reply.write(f"{number} "),
                )

    _, outcome = await while_summarising(session, go_on)

    assert outcome.status == "compacted"
    shown = await contents(session)
    assert shown[0].endswith("gated 1: 10")
    assert shown[1].startswith("question 5")
    assert shown[2].startswith("answer 5")
    assert shown[3] == " ".join(map(str, range(20))) + " "
    for place in ("here", "there"):
        assert [e for e in shown if e.startswith(place)] == [f"{place} {n}" for n in range(20)]
    assert len(shown) == 3 + 1 + 40
    assert await contents(other) == shown


async def test_readers_when_a_session_is_compacted_again_and_again_see_no_half(
    short_log: EventLog, open_log: OpenLog
) -> None:
    """Fifty compactions: each context that anyone read is that of some seq, and none is older."""
    session = await short_log.create_session()
    await talk(session, 2)
    readers = [session, (await open_log(compaction=KEEP_TWO)).handle(session.id)]
    done, seen = asyncio.Event(), []

    async def read(reader: Session) -> None:
        own = []
        while not done.is_set():
            own.append(await reader.context())
            await asyncio.sleep(0)
        seen.append(own)

    async with asyncio.TaskGroup() as group:
        for reader in readers:
            group.create_task(read(reader))
        for number in range(50):
            await talk(session, 2, begin=2 * number + 2)
            assert await session.compact(summarizer=Brief(f"round {number}")) is not None
        done.set()

    at = [await session.context(at=seq) for seq in range(await session.head() + 1)]
    assert len(await completed(session)) == 50
    for own in seen:
        assert len(own) > 10
        seq = 0
        for context in own:
            assert context in at[seq:], "a context that never was, or an older one than before"
            seq += at[seq:].index(context)


# --- two compactors ------------------------------------------------------------------------------


async def both(first: Session, second: Session) -> list[str]:
    """Two compact at once, and both have their summary before either commits."""
    gates = [Gated("first"), Gated("second")]
    tasks = [
        asyncio.create_task(compact_once(session, gate))
        for session, gate in zip((first, second), gates, strict=True)
    ]
    for gate in gates:
        await gate.reached.wait()
    for gate in gates:
        gate.open.set()
    return sorted([(await task).status for task in tasks])


@pytest.mark.parametrize("in_one_process", [True, False])
async def test_compactors_when_two_are_at_it_make_one_summary(
    short_log: EventLog, open_log: OpenLog, in_one_process: bool
) -> None:
    """The other one's is void, and leaves no trace in the log."""
    session = await short_log.create_session()
    await talk(session, TURNS)
    log = short_log if in_one_process else await open_log(compaction=KEEP_TWO)
    head = await session.head()

    for turn in range(5):
        assert await both(session, log.handle(session.id)) == ["compacted", "superseded"]
        assert len(await completed(session)) == turn + 1
        assert await session.head() == head + 1
        await talk(session, TURNS, begin=TURNS * (turn + 1))
        head = await session.head()


async def test_compactors_when_only_the_basis_is_checked_make_one_summary(
    short_log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each protection is enough: without the deterministic id, the basis tells."""
    monkeypatch.setattr(committing, "_id_of", lambda *_: uuid.uuid4())
    session = await short_log.create_session()
    await talk(session, TURNS)

    statuses = await both(session, (await open_log(compaction=KEEP_TWO)).handle(session.id))

    assert statuses == ["compacted", "superseded"]
    assert len(await completed(session)) == 1


async def test_compactors_when_only_the_id_protects_make_one_summary(
    short_log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without a look at the basis the log refuses the id."""
    monkeypatch.setattr(committing, "check_basis", lambda *_: None)
    session = await short_log.create_session()
    await talk(session, TURNS)

    with suppress(EventIdReused):
        await both(session, (await open_log(compaction=KEEP_TWO)).handle(session.id))

    assert len(await completed(session)) == 1


async def test_compactors_when_neither_protects_make_two_summaries(
    short_log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the tests above can fail."""
    monkeypatch.setattr(committing, "_id_of", lambda *_: uuid.uuid4())
    monkeypatch.setattr(committing, "check_basis", lambda *_: None)
    session = await short_log.create_session()
    await talk(session, TURNS)

    statuses = await both(session, (await open_log(compaction=KEEP_TWO)).handle(session.id))

    assert statuses == ["compacted", "compacted"]
    assert len(await completed(session)) == 2


# --- the context changes -------------------------------------------------------------------------


async def rewind_all(session: Session) -> None:
    await session.rewind(to=3)


async def rewind_behind(session: Session) -> None:
    """To behind the covered range: it is another conversation all the same."""
    await session.rewind(to=(await planned(session)).to_seq)


async def undo_covered(session: Session) -> None:
    await session.append(ev.MessageRetracted(message_id="q1"))


async def clear(session: Session) -> None:
    await session.clear()


async def compact_meanwhile(session: Session) -> None:
    assert (await compact_once(session, Brief("meanwhile"))).status == "compacted"


async def uncompact_meanwhile(session: Session) -> None:
    await compact_meanwhile(session)
    await session.uncompact()


async def close(session: Session) -> None:
    await session.close()


async def delete(session: Session) -> None:
    await session.delete()


async def erase(session: Session) -> None:
    await session.erase()


@pytest.mark.parametrize(
    "act",
    [
        *(rewind_all, rewind_behind, undo_covered, clear, compact_meanwhile, uncompact_meanwhile),
        *(close, delete, erase),
    ],
)
async def test_summary_when_the_context_is_changed_meanwhile_is_void(
    short_log: EventLog, open_log: OpenLog, act: Act
) -> None:
    """By another process: nothing is appended, no failure either, and the context is theirs."""
    session = await short_log.create_session()
    other = (await open_log(compaction=KEEP_TWO)).handle(session.id)
    await talk(session, TURNS)
    there: list[Any] = []

    async def change(_: Session) -> None:
        await act(other)
        there.append((await read_all(other), (await other.replay()).context()))

    _, outcome = await while_summarising(session, change)

    assert outcome.status == "superseded"
    assert outcome.reason
    assert [(await read_all(other), (await other.replay()).context())] == there
    assert not any(isinstance(e.event, ev.CompactionFailed) for e in there[0][0])


@pytest.mark.parametrize("act", [close, delete, erase])
async def test_summary_when_the_session_ends_in_the_last_moment_is_void(
    short_log: EventLog, open_log: OpenLog, act: Act
) -> None:
    """Between the last look at the state and the append: the log refuses, and that is no error."""
    session = await short_log.create_session()
    other = (await open_log(compaction=KEEP_TWO)).handle(session.id)
    await talk(session, TURNS)
    head = await session.head()

    with held(short_log) as gate:
        task = asyncio.create_task(compact_once(session, Brief()))
        await gate.reached.wait()
        await act(other)
        gate.open.set()
        outcome = await task

    assert outcome.status == "superseded"
    assert await session.head() > head
    assert not [e for e in await read_all(session) if isinstance(e.event, CompactionCompleted)]


async def test_message_when_undone_while_it_is_summarised_does_not_come_back(
    short_log: EventLog,
) -> None:
    """`compact` starts over, with what is left."""
    session = await short_log.create_session()
    await talk(session, TURNS)
    gated = Gated()

    task = asyncio.create_task(session.compact(summarizer=gated))
    await gated.reached.wait()
    await undo_covered(session)
    gated.open.set()

    assert await task is not None
    first, second = gated.materials
    assert {e.message_id for e in first.messages} - {e.message_id for e in second.messages} == {
        "q1"
    }
    assert len(await completed(session)) == 1


async def test_message_when_the_basis_is_not_checked_comes_back(
    short_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the check a summary tells what was undone, or rewound."""
    monkeypatch.setattr(committing, "check_basis", lambda *_: None)
    session = await short_log.create_session()
    await talk(session, TURNS)

    gated, outcome = await while_summarising(session, undo_covered)

    assert outcome.status == "compacted"
    assert "q1" in {each.message_id for each in gated.materials[0].messages}
    assert any("gated 1" in each for each in await contents(session))


# --- what stays, and calls -----------------------------------------------------------------------


async def test_message_when_pinned_while_it_is_summarised_stays(short_log: EventLog) -> None:
    """It was to be summarised, and is kept."""
    session = await short_log.create_session()
    await talk(session, TURNS)

    gated, outcome = await while_summarising(session, lambda it: it.pin("a2"))

    assert outcome.status == "compacted"
    assert "a2" in {each.message_id for each in gated.materials[0].messages}
    assert any(each.startswith("answer 2") for each in await contents(session))


async def test_message_when_pins_are_not_looked_at_again_is_gone(
    short_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the one above."""
    monkeypatch.setattr(committing, "_pinned_since", lambda *_: set())
    session = await short_log.create_session()
    await talk(session, TURNS)

    await while_summarising(session, lambda it: it.pin("a2"))

    assert not any(each.startswith("answer 2") for each in await contents(session))


async def test_output_when_pinned_while_it_is_summarised_stays_behind_its_call(
    short_log: EventLog,
) -> None:
    """And the other way round: neither is of use without the other."""
    session = await short_log.create_session()
    await calling(session, "one", "two")
    await talk(session, TURNS)

    _, outcome = await while_summarising(session, lambda it: it.pin("output of two"))

    assert outcome.status == "compacted"
    context = await session.context()
    check_pairs(context)
    assert [each["role"] for each in context[:3]] == ["assistant", "tool", "tool"]
    assert context[2]["content"] == "found two"


async def test_messages_when_nearly_all_are_pinned_meanwhile_are_left_alone(
    short_log: EventLog,
) -> None:
    """The summary would be longer than the little that it may still replace."""
    session = await short_log.create_session()
    await talk(session, TURNS)

    async def pin_all(it: Session) -> None:
        for each in (await planned(it)).material:
            await it.pin(each.message_id)

    _, outcome = await while_summarising(session, pin_all)

    assert outcome.status == "superseded"
    assert await completed(session) == []


async def test_output_when_it_comes_while_its_call_is_summarised_is_not_parted_from_it(
    short_log: EventLog,
) -> None:
    """The call had been given up, and was to be closed: it is summarised again, with its output."""
    session = await forsaken(short_log)

    _, outcome = await while_summarising(session, answer_late)

    assert outcome.status == "superseded"
    assert await session.compact(summarizer=Brief()) is not None
    check_pairs(await session.context())
    assert not [e for e in await read_all(session) if isinstance(e.event, ev.ToolCallClosed)]


async def test_output_when_its_call_is_summarised_already_is_told_by_the_user(
    short_log: EventLog,
) -> None:
    """Nothing refuses such a context, and what the tool found is not lost."""
    session = await forsaken(short_log)

    assert await session.compact(summarizer=Brief()) is not None
    await answer_late(session)

    context = await session.context()
    check_pairs(context)
    assert context[-1]["role"] == "user"
    assert "found late" in context[-1]["content"]


async def test_call_when_the_cut_is_between_its_outputs_is_behind_it(short_log: EventLog) -> None:
    """One turn stays in one piece."""
    session = await in_the_middle_of_calls(short_log)

    chosen = await planned(session)

    assert [each.role for each in chosen.newest] == [*["assistant"], *["tool"] * 3, *SAID]
    assert await session.compact(summarizer=Brief()) is not None
    check_pairs(await session.context())
    assert not any(LATE_OUTPUT in each for each in await contents(session))


async def test_call_when_nobody_knows_what_belongs_together_is_parted(
    short_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the call is summarised, and outputs are left over without it."""
    session = await in_the_middle_of_calls(short_log)

    for module in (selection, committing):
        monkeypatch.setattr(module, "outputs_of", lambda _: {})
    chosen = await planned(session)

    assert [each.role for each in chosen.newest] == [*["tool"] * 2, *SAID]
    assert chosen.material[-2].tool_calls
    assert await session.compact(summarizer=Brief()) is not None
    assert len([each for each in await contents(session) if LATE_OUTPUT in each]) == 2


SAID = ("user", "assistant")


async def in_the_middle_of_calls(log: EventLog) -> Session:
    """A session in which the newest four messages begin with the second of three outputs."""
    session = await log.create_session()
    policy = KEEP_TWO.replace("{", '{"orphan_seconds": 0, ').replace(": 2,", ": 4,")
    await session.set_compaction_policy(policy)
    await talk(session, 3)
    await calling(session, "one", "two", "three")
    await talk(session, 1, begin=3)
    return session


async def calling(session: Session, *names: str) -> None:
    """An answer that calls tools at once, and their outputs."""
    calls = [ev.ToolCall(id=each, name="look", arguments="{}") for each in names]
    found = [
        message(f"found {each}", "tool", tool_call_id=each, message_id=f"output of {each}")
        for each in names
    ]
    await session.append([message("let me look", "assistant", tool_calls=calls), *found])


async def forsaken(log: EventLog) -> Session:
    """A session that went on without the output of a call, and doesn't wait for it."""
    session = await log.create_session()
    policy = KEEP_TWO.replace("{", '{"orphan_seconds": 0, ')
    await session.set_compaction_policy(policy)
    calls = [ev.ToolCall(id="late", name="look", arguments="{}")]
    await session.append(message("let me look", "assistant", tool_calls=calls))
    await talk(session, TURNS)
    return session


async def answer_late(session: Session) -> None:
    await session.append(message("found late", "tool", tool_call_id="late"))


# --- forks ---------------------------------------------------------------------------------------


async def test_fork_when_compacted_leaves_its_parent_alone(
    short_log: EventLog, open_log: OpenLog
) -> None:
    """Both compact what they share, at the same time: each has a summary of its own."""
    parent = await short_log.create_session()
    await talk(parent, TURNS)
    fork = await parent.fork()
    before = await parent.context()

    assert (await compact_once(fork, Brief("fork's"))).status == "compacted"
    assert await parent.context() == before
    await talk(parent, 1, begin=TURNS)
    theirs = (await open_log(compaction=KEEP_TWO)).handle(parent.id)
    newer = await parent.fork()
    assert await both(theirs, newer) == ["compacted", "compacted"]

    for session in (parent, fork, newer):
        state = await session.replay()
        assert len(state.compactions) == 1
        check_summaries(await session.context(), state.compaction)
    assert len(await completed(parent)) == 1


async def test_fork_when_made_inside_a_covered_range_has_the_originals(
    short_log: EventLog,
) -> None:
    """The summary came later than that, so the fork knows nothing of it; and compacts by itself."""
    session = await short_log.create_session()
    await talk(session, TURNS)
    whole = await session.context()
    made = await session.compact(summarizer=Brief())
    assert made is not None

    for at in (made.from_seq + 2, made.to_seq, made.seq - 1):
        fork = await session.fork(at=at)
        assert await fork.context() == whole[: at - 1]
        assert await fork.compactions() == []
    after = await session.fork(at=made.seq)
    assert await after.context() == await session.context()
    await after.uncompact()
    assert await after.context() == whole
    assert (await session.compactions())[0].reverted_seq == 0


async def test_fork_when_its_parent_was_asked_to_compact_is_not_asked(short_log: EventLog) -> None:
    """Somebody waits for the parent's answer; nobody asked the fork."""
    session = await short_log.create_session()
    await talk(session, TURNS)
    await session.append(ev.CompactionRequested())

    fork = await session.fork()

    assert (await session.replay()).compaction_asked is not None
    assert (await fork.replay()).compaction_asked is None


# --- whoever compacts is stopped -----------------------------------------------------------------


async def test_compaction_when_cancelled_while_it_summarises_leaves_nothing(
    short_log: EventLog,
) -> None:
    """No event, nothing held: the next one does it."""
    session = await short_log.create_session()
    await talk(session, TURNS)
    before = await read_all(session)
    gated = Gated()
    task = asyncio.create_task(compact_once(session, gated))
    await gated.reached.wait()

    task.cancel()

    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert await read_all(session) == before
    assert (await compact_once(session, Brief())).status == "compacted"


async def test_compaction_when_cancelled_while_it_commits_is_there_once(
    short_log: EventLog,
) -> None:
    """What was sent is waited for; and who tries again finds it."""
    session = await short_log.create_session()
    await talk(session, TURNS)

    with held(short_log) as gate:
        task = asyncio.create_task(compact_once(session, Brief()))
        await gate.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        with suppress(asyncio.CancelledError):
            await task

    await until(lambda: _is_compacted(session))
    assert (await compact_once(session, Brief())).status == "nothing_to_do"
    assert len(await completed(session)) == 1


async def _is_compacted(session: Session) -> bool:
    return len(await completed(session)) == 1


async def test_compaction_when_others_append_all_the_time_gets_its_turn(
    short_log: EventLog, open_log: OpenLog
) -> None:
    """Rivals who append between its look and its append don't keep it from it for ever."""
    session = await short_log.create_session()
    other = (await open_log(compaction=KEEP_TWO)).handle(session.id)
    await talk(session, TURNS)
    done = asyncio.Event()

    async def chatter() -> int:
        count = 0
        while not done.is_set():
            await other.append(message(f"more {count}"))
            count += 1
        return count

    task = asyncio.create_task(chatter())
    await until(lambda: _has_more(session))
    outcome = await compact_once(session, Brief())
    done.set()
    count = await task

    assert outcome.status == "compacted"
    said = [each for each in await contents(session) if each.startswith("more")]
    kept = {f"more {number}" for number in range(count)}
    assert outcome.plan is not None
    summarised = {each.content for each in outcome.plan.material} & kept
    assert set(said) == kept - summarised
    assert len(said) == count - len(summarised)


async def _has_more(session: Session) -> bool:
    return any(each.startswith("more") for each in await contents(session))


async def test_uncompact_when_there_is_nothing_to_undo_says_so(short_log: EventLog) -> None:
    """Two who undo the same: one did, the other is told."""

    session = await short_log.create_session()
    await talk(session, TURNS)
    made = await session.compact(summarizer=Brief())
    assert made is not None

    done = await asyncio.gather(
        *(session.uncompact(made.seq) for _ in range(2)), return_exceptions=True
    )

    assert sorted(type(each).__name__ for each in done) == ["Compaction", "InvalidRequest"]
    with refused(InvalidRequest):
        await session.uncompact()
