"""What happened often costs nothing later: snapshots leave it in the log, and replay has it all.

Any history, folded by a reader who starts from snapshots at every seq, is what a fold from scratch
says. To meet many snapshots in short histories, they are made every few rows here, of chunks of a
few messages.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlog import (
    AgentActivated,
    AgentHandedOff,
    CompactionCompleted,
    CompactionReverted,
    EventLog,
    RecordedEvent,
    Session,
    entries,
    fold,
    initial,
    replay,
    snapshots,
)
from eventlog import events as ev
from eventlog.codec import encode_event, encode_frame
from eventlog.envelope import FRAME, Row
from eventlog.events import type_code
from eventlog.memory import MemoryStore
from eventlog.replay import Replayer
from eventlog.snapshots import without_earlier
from eventlog.telemetry import metrics
from eventlog.testing import message, read_all, shown
from tests.conftest import OpenLog
from tests.strategies import histories

COMPACTIONS = 60
SUMMARY = "They spoke of many things. " * 150
UNKNOWN_TYPE = 999


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot every 3 rows, chunks of 4 messages."""
    monkeypatch.setattr(replay, "SNAPSHOT_ROWS", 3)
    monkeypatch.setattr(entries, "CHUNK_LENGTH", 4)
    monkeypatch.setattr(snapshots, "CHUNK_LENGTH", 4)


# --- any history ---------------------------------------------------------------------------------


def stored(history: list[RecordedEvent]) -> MemoryStore:
    """A store that holds the history: that of a fork in the sessions it came from."""
    store = MemoryStore()
    for position, each in enumerate(history, 1):
        event, flags = each.event, 0
        if isinstance(event, ev.TokenAppended):
            event = ev.TokensAppended(
                message_id=event.message_id,
                texts=[event.text],
                ms=[0],
                channel=event.channel,
                tool_call_id=event.tool_call_id,
            )
            flags = FRAME
        store._sessions[each.session_id].append(
            Row(
                position,
                each.seq,
                round(each.recorded_at.timestamp() * 1_000_000),
                each.session_id,
                each.event_id,
                1,
                _type_of(event),
                flags,
                _data(event),
            )
        )
    return store


def linked(history: list[RecordedEvent]) -> list[RecordedEvent]:
    """The history with forks from where it comes from: a fork of which nothing is left is no one's
    parent."""
    events = list(history)
    for place, each in enumerate(events):
        if place and isinstance(each.event, ev.SessionCreated):
            parent_id = events[place - 1].session_id
            created = msgspec.structs.replace(each.event, parent_session_id=parent_id)
            events[place] = msgspec.structs.replace(each, event=created)
    return events


def _type_of(event: Any) -> int:
    return UNKNOWN_TYPE if isinstance(event, ev.Unrecognized) else type_code(event)


def _data(event: Any) -> bytes:
    match event:
        case ev.Unrecognized():
            return event.data
        case ev.TokensAppended():
            return encode_frame(event)
        case _:
            return encode_event(event, bytes_max=1_000_000)


async def travel(history: list[RecordedEvent], seqs: list[int]) -> None:
    """Read at each of these seqs, once to leave snapshots behind and once to start from them."""
    store = stored(history)
    session_id = history[-1].session_id
    expected = {seq: fold(initial(session_id), history[:seq]) for seq in range(len(history) + 1)}
    for reader in (Replayer(store), Replayer(store), Replayer(store, save_snapshots=False)):
        for seq in seqs:
            context = (await reader.context_state(session_id, seq)).context()
            assert context == expected[seq].context(), f"context at {seq}"
            assert shown(await reader.replay(session_id, seq)) == shown(expected[seq]), seq
        now = await reader.context_state(session_id, None)
        assert now.context() == expected[len(history)].context()
        assert shown(await reader.replay(session_id, None)) == shown(expected[len(history)])
        await reader.aclose()


@pytest.mark.usefixtures("small")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(histories(forks=True), st.randoms(use_true_random=False))
def test_replay_when_it_starts_from_snapshots_of_any_history_is_the_fold(
    history: list[RecordedEvent], chance: Any
) -> None:
    """At every seq, asked for in any order: compactions, reverts, rewinds, hand-offs, forks."""
    seqs = list(range(len(history) + 1))
    chance.shuffle(seqs)

    asyncio.run(travel(linked(history), seqs))


def busy_history() -> list[RecordedEvent]:
    """Every kind of thing that a snapshot leaves in the log, several times, and their undoing."""
    from tests.factories import history

    events: list[ev.Event] = [ev.SessionCreated(user_id="ada")]
    for number in range(6):
        who = ("planner", "coder")[number % 2]
        events += [ev.MessageAdded(role="user", content=f"q{number}", token_count=1)] * 3
        events += [ev.AgentHandedOff(to_agent=who, context={"n": number})]
        events += [ev.MessageAdded(role="assistant", content=f"a{number}", agent=who)] * 2
        made = ev.CompactionCompleted(
            summary=f"s{number}", from_seq=1, to_seq=len(events) - 1, kept=[2, 3], tokens_after=2
        )
        events.append(made)
    compactions = [n for n, e in enumerate(events, 1) if isinstance(e, ev.CompactionCompleted)]
    events += [ev.MessageAdded(role="user", content="x")] * 4
    events += [ev.CompactionReverted(compaction_seq=seq) for seq in reversed(compactions[3:])]
    events += [ev.MessageAdded(role="user", content="y")] * 4
    events += [ev.SessionRewound(to_seq=compactions[4])]
    events += [ev.MessageAdded(role="user", content="z")] * 4
    events += [ev.SessionRewound(to_seq=compactions[0] + 1), ev.SessionUpdated(title="t")]
    return history(*events)


@pytest.mark.usefixtures("small")
async def test_replay_when_what_was_left_out_counts_again_has_it() -> None:
    """Summaries after reverts and rewinds, hand-offs after rewinds."""
    history = busy_history()

    await travel(history, list(range(len(history), -1, -1)))


@pytest.mark.usefixtures("small")
async def test_replay_when_nothing_is_recalled_would_be_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: without reading from the log what snapshots left there, it shows."""

    async def forgetful(_self: Replayer, _session_id: UUID, state: Any, seqs: Any) -> Any:
        return msgspec.structs.replace(state, left_out=state.left_out.difference(seqs))

    monkeypatch.setattr(Replayer, "recall", forgetful)
    history = busy_history()

    with pytest.raises(AssertionError):
        await travel(history, list(range(len(history), -1, -1)))


@pytest.mark.usefixtures("small")
async def test_replay_when_the_log_has_another_event_where_something_was_left_folds_it_all() -> (
    None
):
    """A snapshot that speaks of a compaction where there is none is damaged."""
    history = busy_history()
    store = stored(history)
    session_id = history[-1].session_id
    reader = Replayer(store)
    expected = shown(await reader.replay(session_id, None))
    await reader.aclose()
    for saved in store._snapshots[session_id].values():
        header = snapshots._decoder.decode(saved.header)
        moved = [msgspec.structs.replace(each, seq=each.seq - 1) for each in header.compactions]
        left_out = frozenset(each.seq for each in moved)
        header = msgspec.structs.replace(header, compactions=moved, left_out=left_out)
        changed = msgspec.structs.replace(saved, header=snapshots._encoder.encode(header))
        store._snapshots[session_id][saved.seq] = changed

    fresh = Replayer(store, save_snapshots=False)

    assert shown(await fresh.replay(session_id, None)) == expected


# --- long ones -----------------------------------------------------------------------------------


async def compacted(log: EventLog, count: int = COMPACTIONS) -> tuple[Session, list[int]]:
    """A session that was compacted often, with the seqs of that."""
    session = await log.create_session()
    seqs: list[int] = []
    for number in range(count):
        last = (await session.append([message(f"{number}.{n}") for n in range(20)])).last_seq
        done = CompactionCompleted(summary=f"{number} {SUMMARY}", from_seq=1, to_seq=last - 2)
        seqs.append((await session.append(done)).last_seq)
    await session.append([message(f"after {n}") for n in range(5)])
    return session, seqs


async def test_context_when_compactions_are_reverted_has_the_older_summary(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """By processes that know the session from a snapshot in which that summary isn't."""
    session, seqs = await compacted(any_log)
    await session.replay()
    await any_log.replayer.aclose()

    for standing in (COMPACTIONS - 2, COMPACTIONS - 3):
        await session.append(CompactionReverted(compaction_seq=seqs[standing + 1]))
        other = await open_log()
        context = await (await other.session(session.id)).context()
        expected = fold(initial(session.id), await read_all(session))
        assert context[0]["content"].endswith(f"{standing} {SUMMARY}")
        assert context == expected.context()
        assert shown(await (await other.session(session.id)).replay()) == shown(expected)
    await session.rewind(to=seqs[7] + 2)
    other = await open_log()
    context = await (await other.session(session.id)).context()
    assert context[0]["content"].endswith(f"7 {SUMMARY}")
    assert context == (await session.replay()).context()


async def test_context_when_a_compaction_is_behind_the_snapshot_loads_what_it_keeps(
    any_log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten chunks the first, with a message that it keeps; not all that there are."""
    session = await any_log.create_session()
    for _ in range(6):
        last = (await session.append([message(f"{n}") for n in range(430)])).last_seq
    await session.replay()
    await session.append(CompactionCompleted(summary="s", from_seq=1, to_seq=last - 3, kept=[2]))
    await any_log.replayer.aclose()
    other = await open_log()
    loaded: list[int] = []
    load_chunks = other.store.load_chunks

    async def count(keys: list[int]) -> dict[int, bytes]:
        loaded.extend(keys)
        return await load_chunks(keys)

    monkeypatch.setattr(other.store, "load_chunks", count)

    state = await other.replayer.context_state(session.id, None)

    assert state.context() == fold(initial(session.id), await read_all(session)).context()
    assert len(state.entries.chunks) > 9
    assert 1 <= len(loaded) <= 2


async def test_replay_when_there_were_many_compactions_has_all_summaries(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Also after a context was read by the same process, which needs one of them only."""
    session, seqs = await compacted(any_log)
    await session.replay()
    await any_log.replayer.aclose()
    mine = await (await open_log()).session(session.id)

    await mine.context()
    state = await mine.replay()

    assert [each.seq for each in state.compactions] == seqs
    assert all(each.summary == f"{n} {SUMMARY}" for n, each in enumerate(state.compactions))
    assert not state.left_out


async def test_header_when_much_happened_stays_small(any_log: EventLog) -> None:
    """Summaries, hand-offs and changes of speaker add little or nothing to it."""
    session, _ = await compacted(any_log, count=30)
    told = {"what": "x" * 2_000}
    for number in range(50):
        who = ("planner", "coder")[number % 2]
        await session.append([AgentHandedOff(to_agent=who, context=told), message(agent=who)])
    for _ in range(5):
        both = [message("m", "assistant", agent=("planner", "coder")[n % 2]) for n in range(100)]
        await session.append(both)
    await session.append(AgentActivated(agent="critic"))
    state = await session.replay()

    header = snapshots._encoder.encode(without_earlier(state))

    assert len(state.agent_history) > 500
    assert len(snapshots._encoder.encode(state.compactions)) > 30 * len(SUMMARY)
    assert len(header) < 3 * len(SUMMARY)


async def test_snapshots_when_a_session_is_read_along_are_left_behind(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Who reads a few rows at a time leaves them too: the next process starts near the end."""
    session = await any_log.create_session()
    for _ in range(60):
        await session.append([message() for _ in range(20)])
        await session.context()
    await any_log.replayer.aclose()
    used = metrics.snapshots_used

    other = await open_log()
    state = await (await other.session(session.id)).replay()

    assert metrics.snapshots_used == used + 1
    assert state.entries.unsaved_rows < replay.SNAPSHOT_ROWS


# --- memory --------------------------------------------------------------------------------------


async def test_states_when_they_are_large_are_kept_up_to_a_bound(any_log: EventLog) -> None:
    """Few messages, much text: what counts are bytes."""
    reader = Replayer(any_log.store, cached_bytes_max=300_000)
    for _ in range(10):
        session = await any_log.create_session()
        await session.append([message("x" * 20_000) for _ in range(3)])
        await reader.replay(session.id, None)
        assert reader.cached_bytes <= 300_000

    assert 1 < len(reader._states) < 6
    assert reader.cached_bytes == sum(replay.bytes_of(each) for each in reader._states.values())


@pytest.mark.usefixtures("small")
async def test_chunks_when_they_are_large_are_kept_up_to_a_bound(any_log: EventLog) -> None:
    """Loaded ones are dropped, the oldest first, and loaded again when they are needed."""
    session = await any_log.create_session()
    await session.append([message(f"{n}" + "x" * 5_000) for n in range(60)])
    first = shown(await session.replay())
    await any_log.replayer.aclose()
    reader = Replayer(any_log.store)
    reader.snapshots = snapshots.Snapshots(any_log.store, cached_bytes_max=100_000)

    for seq in (61, 30, 61):
        state = await reader.replay(session.id, seq)
        assert 0 < reader.snapshots.cached_bytes <= 100_000

    assert shown(state) == first
