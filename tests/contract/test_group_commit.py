"""Group commit: many callers in one call, and each of them for itself."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from eventlog import (
    Appended,
    EventIdReused,
    EventLog,
    OutcomeUnknown,
    Unavailable,
    WrongExpectedSeq,
)
from eventlog.envelope import Draft
from eventlog.errors import Refused
from eventlog.lane import BATCH_BYTES_MAX, BATCH_ROWS_MAX
from eventlog.session import Session
from eventlog.store import Command, ConnectionLost
from eventlog.testing import message, read_all, refused
from tests.conftest import OpenLog
from tests.support.gates import held


def command(session: Session, text: str = "x", **changes: Any) -> Command:
    """A command as the session makes them, with something changed."""
    draft = session.draft(message(text))
    fields = {name: getattr(draft, name) for name in Draft.__struct_fields__} | changes
    return Command(session.id, session.shard, [Draft(**fields)])


async def test_commit_when_one_is_under_way_takes_all_that_waits_in_one_call(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Whatever queues during a commit goes in the next, in the order of the calls."""
    log = await open_log(lanes=1)
    sessions = [await any_log.create_session() for _ in range(8)]
    handles = [await log.session(each.id) for each in sessions]

    with held(log) as gate:
        first = asyncio.ensure_future(handles[0].append(message("first")))
        await gate.reached.wait()
        rest = [asyncio.ensure_future(handles[n % 8].append(message(f"{n}"))) for n in range(800)]
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(first, *rest)

    assert [len(each) for each in gate.calls] == [1, 800]
    for handle in handles:
        seqs = [each.result().first_seq for each in rest if each.result().session_id == handle.id]
        assert seqs == sorted(seqs)


async def test_commit_when_too_much_waits_makes_several_calls(open_log: OpenLog) -> None:
    """Calls are bounded in rows and bytes, and a larger event goes alone."""
    log = await open_log(lanes=1)
    session = await log.create_session()

    with held(log) as gate:
        flying = [asyncio.ensure_future(session.append(message("first")))]
        await gate.reached.wait()
        for _ in range(5):
            flying.append(asyncio.ensure_future(session.append([message()] * 900)))
        for size in (3, 3, 3, 9):
            flying.append(asyncio.ensure_future(session.append(message("x" * size * 2**20))))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(*flying)

    for call in gate.calls:
        rows = sum(len(each.drafts) for each in call)
        byte_count = sum(each.byte_count for each in call)
        assert rows < BATCH_ROWS_MAX + 900
        assert byte_count <= BATCH_BYTES_MAX or len(call) == 1
    assert await session.head() == 1 + 1 + 5 * 900 + 4


async def test_commit_when_one_command_breaks_it_stores_all_others(
    log: EventLog, open_log: OpenLog
) -> None:
    """What Postgres refuses hits the command it is in, wherever in the batch, and nobody else."""
    one_lane = await open_log(lanes=1)
    sessions = [await one_lane.create_session() for _ in range(3)]

    for bad_places in ((0,), (9,), (4,), (0, 9), (3, 4, 5), tuple(range(10))):
        commands = [
            command(sessions[n % 3], f"{n}", **({"span": 40_000} if n in bad_places else {}))
            for n in range(10)
        ]
        before = [await each.head() for each in sessions]
        with held(one_lane) as gate:
            flying = [one_lane.batcher.submit(each) for each in commands]
            await gate.reached.wait()
            gate.open.set()
            done = await asyncio.gather(*flying, return_exceptions=True)

        assert len(gate.calls[0]) == 10
        for place, result in enumerate(done):
            assert isinstance(result, Refused) is (place in bad_places), (place, result)
        added = sum([await each.head() for each in sessions]) - sum(before)
        assert added == 10 - len(bad_places)

    for each in sessions:
        assert (await each.append(message("goes on"))).last_seq == await each.head()


async def test_commit_when_commands_of_one_session_are_parted_numbers_them_right(
    any_log: EventLog,
) -> None:
    """A batch that falls apart in the middle of a session's commands leaves no gap in it."""
    session = await any_log.create_session()
    event_id = uuid.uuid4()
    taken = uuid.uuid5(event_id, "1")
    await session.append(message("taken"), event_id=taken)

    for _ in range(5):
        done = await asyncio.gather(
            *(session.append(message(f"{n}")) for n in range(6)),
            session.append([message("x"), message("y")], event_id=event_id),
            *(session.append(message(f"{n}")) for n in range(6)),
            return_exceptions=True,
        )
        assert [type(each) for each in done] == [Appended] * 6 + [EventIdReused] + [Appended] * 6

    assert [each.seq for each in await read_all(session)] == list(range(1, 63))


async def test_commit_when_expected_seqs_chain_each_gets_its_turn(any_log: EventLog) -> None:
    """Commands that expect a seq are judged one after the other, not all against the first."""
    session = await any_log.create_session()

    done = await asyncio.gather(
        session.append(message("a"), expected_seq=1),
        session.append(message("b")),
        session.append(message("c"), expected_seq=3),
        session.append(message("d"), expected_seq=3),
        session.append([message("e"), message("f")], expected_seq=4),
        session.append(message("g"), expected_seq=6),
        return_exceptions=True,
    )

    assert [each.last_seq if isinstance(each, Appended) else type(each) for each in done] == [
        *(2, 3, 4, WrongExpectedSeq, 6, 7)
    ]


async def test_commit_when_its_answer_is_lost_is_repeated_and_stored_once(
    any_log: EventLog,
) -> None:
    """Every second answer is lost after the commit; whatever the command, it is stored once."""
    session = await any_log.create_session()
    commit, calls = any_log.store.commit, 0

    async def lossy(lane: int, commands: list[Command]) -> Any:
        nonlocal calls
        calls += 1
        answers = await commit(lane, commands)
        if calls % 2:
            raise ConnectionLost("after the commit")
        return answers

    any_log.store.commit = lossy  # type: ignore[method-assign]
    plain = await session.append(message("plain"))
    named = await session.append([message("a"), message("b")], event_id=uuid.uuid4())
    expecting = await session.append(message("expecting"), expected_seq=named.last_seq)
    made = await any_log.create_session("made")
    fork = await session.fork()
    async with session.reply(flush_seconds=0) as reply:
        for piece in "abc":
            await reply.write(piece)
            await reply.drain()
    many = await asyncio.gather(*(session.append(message(f"{n}")) for n in range(20)))
    await session.rewind(to=2)
    await session.close()
    del any_log.store.commit

    assert calls > 10
    assert [plain.first_seq, named.first_seq, expecting.first_seq] == [2, 3, 5]
    assert sorted(each.first_seq for each in many) == list(range(11, 31))
    assert [each.seq for each in await read_all(session)] == list(range(1, 33))
    assert [await made.head(), await fork.head()] == [1, 6]


async def test_commit_when_its_answer_is_lost_and_others_appended_finds_its_own(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Between the lost answer and the retry another process appends: the retry finds its rows."""
    session = await any_log.create_session()
    other = await (await open_log()).session(session.id)
    commit, lost = any_log.store.commit, False

    async def lossy(lane: int, commands: list[Command]) -> Any:
        nonlocal lost
        answers = await commit(lane, commands)
        if not lost:
            lost = True
            await other.append([message("between")] * 3)
            raise ConnectionLost("after the commit")
        return answers

    any_log.store.commit = lossy  # type: ignore[method-assign]
    done = await session.append(message("mine"))
    del any_log.store.commit
    after = await session.append(message("after"))

    assert (done.first_seq, done.duplicate, after.first_seq) == (2, True, 6)


async def test_commit_when_the_log_is_closed_ends_everything_first() -> None:
    """Closing commits what is queued; what comes afterwards is refused."""
    async with EventLog.in_memory() as log:
        session = await log.create_session()
        flying = [asyncio.ensure_future(session.append(message(f"{n}"))) for n in range(100)]
        await asyncio.sleep(0)
    done = await asyncio.gather(*flying, return_exceptions=True)

    assert all(isinstance(each, Appended) for each in done)
    with refused(Unavailable):
        await session.append(message())


async def test_commit_when_its_handler_fails_leaves_nobody_waiting() -> None:
    """Even a bug in the lane itself ends every call by name instead of letting it wait for ever."""
    async with EventLog.in_memory() as log:
        session = await log.create_session()

        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        for lane in log.batcher._lanes:
            lane._on_commit = broken
        flying = [
            asyncio.ensure_future(session.append(message(), expected_seq=n)) for n in range(5)
        ]
        async with asyncio.timeout(10):
            done = await asyncio.gather(*flying, return_exceptions=True)
        lanes, log.batcher._tasks = log.batcher._tasks, []
        for task in lanes:
            task.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)

    assert [type(each) for each in done] == [OutcomeUnknown] + [Unavailable] * 4
