"""Erasure: content goes away, numbers and times stay, and every way of reading says so."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from eventlog import (
    EventLog,
    EventLogError,
    SessionDeletedError,
    SessionErasedError,
    SessionNotFound,
    SessionState,
)
from eventlog import events as ev
from eventlog.entries import Message
from eventlog.envelope import owner_id_of
from eventlog.integrations.export import export_jsonl_stream, read_export, read_recorded
from eventlog.replay import Replayer
from eventlog.session import Session
from eventlog.testing import message, read_all, refused, rich_history, take
from tests.conftest import OpenLog

SECRET = "xyzzy-plugh"


async def told(log: EventLog, key: str | None = "k") -> Session:
    """A session that has said the secret in several ways."""
    session = await log.create_session(key, user_id="ada", title=SECRET)
    await session.append(message(SECRET))
    async with session.reply(agent=SECRET) as reply:
        for piece in (SECRET, " ", SECRET):
            await reply.write(piece)
    await session.append(ev.ScratchpadWritten(name="note", value=SECRET))
    return session


def says_nothing(*read: object) -> bool:
    """Whether the secret is nowhere in what was read."""
    whole = [list(each.entries) for each in read if isinstance(each, SessionState)]
    return SECRET not in repr((read, whole))


# --- reading afterwards --------------------------------------------------------------------------


async def test_read_when_erased_yields_an_erased_event_for_each_seq(any_log: EventLog) -> None:
    """Seqs, times and ids are those of before, and the tag says what it was."""
    session = await rich_history(any_log)
    before = await read_all(session)

    record = await session.erase(reason="asked to")

    after = await read_all(session)
    assert [each.seq for each in after] == [*range(1, len(after) + 1)]
    tags = [each.event.tag for each in after if isinstance(each.event, ev.Erased)]
    assert tags[: len(before)] == [ev.tag_of(each.event) for each in before]
    assert tags[-1] == "session.deleted"
    assert len(tags) == len(after) == record.events
    for old, new in zip(before, after, strict=False):
        assert (old.event_id, old.recorded_at) == (new.event_id, new.recorded_at)
    frames = [each.event async for each in session.read(frames=True)]
    assert len(frames) == record.rows
    assert {type(each) for each in frames} == {ev.Erased}
    assert record.bytes > 1_000
    assert record.reason == "asked to"
    assert record.erased_at is not None


async def test_states_when_erased_are_bare_at_every_seq(any_log: EventLog) -> None:
    """Replay at any seq or time, the context and the view hold nothing that was said."""
    session = await told(any_log)
    then = datetime.now(UTC)
    warm = (await session.replay(), await session.context(), await session.view())
    assert not says_nothing(*warm)

    await session.erase()

    for at in (*range(await session.head() + 1), then, None):
        state = await session.replay(at)
        assert says_nothing(state)
        assert list(state.messages) == []
        assert state.metadata == state.scratchpad == {}
    assert (await session.replay()).status == "erased"
    assert await session.context() == []
    assert await session.context(min_seq=1) == []
    view = await session.view()
    assert (view.status, view.title, view.message_count) == ("erased", None, 0)
    assert view.seq == await session.head()
    assert await session.scratchpad() == {}
    assert await session.metadata() == {}


async def test_session_when_erased_is_known_by_its_key_and_says_since_when(
    any_log: EventLog,
) -> None:
    """The error is one of deleted sessions, too; the key is not used again."""
    session = await told(any_log)
    record = await session.erase()

    with refused(SessionErasedError) as caught:
        await any_log.session("k")
    assert isinstance(caught.error, SessionDeletedError)
    assert caught.error.erased_at == record.erased_at
    with refused(SessionErasedError):
        await any_log.create_session("k")
    with refused(SessionDeletedError):
        await session.append(message("more"))
    with refused(SessionErasedError):
        await session.fork()


async def test_sessions_when_one_is_erased_leave_it_out(any_log: EventLog) -> None:
    """No list has it, and its user has one session less."""
    session, other = await told(any_log), await told(any_log, "other")

    await session.erase()

    ada = owner_id_of("ada", any_log.settings.tenant_id)
    assert await any_log.store.sessions_of(ada) == [other.id]
    assert await any_log.store.owned(ada, [session.id, other.id]) == {other.id}


async def test_subscription_when_the_session_is_erased_delivers_erased_events(
    any_log: EventLog,
) -> None:
    """From any seq, contiguous, to the end, which ends it."""
    session = await told(any_log)
    await session.erase()
    head = await session.head()

    for after in (0, 3, head - 1):
        events = [each async for each in session.subscribe(after=after)]
        assert [each.seq for each in events] == [*range(after + 1, head + 1)]
        assert {type(each.event) for each in events} == {ev.Erased}


async def test_subscription_when_it_lags_behind_an_erasure_delivers_erased_events(
    any_log: EventLog,
) -> None:
    """What was at hand for it in memory is not what it gets."""
    session = await told(any_log)
    slow, quick = session.subscribe(), session.subscribe()
    await take(quick, await session.head())
    first = await take(slow, 1)
    assert not says_nothing(first)
    await session.append([message(SECRET) for _ in range(10)])
    await take(quick, 10)

    await session.erase()

    rest = [each async for each in slow]
    page_read_before = [each for each in rest if not isinstance(each.event, ev.Erased)]
    assert rest[-1].seq == await session.head()
    assert [each.seq for each in rest] == [*range(2, rest[-1].seq + 1)]
    assert all(each.seq <= first[0].seq + 7 for each in page_read_before), "only its own page"


async def test_export_when_erased_can_be_read_again(any_log: EventLog, tmp_path: Path) -> None:
    """Each line says that it was erased; an import of it has nothing to say."""
    session = await told(any_log)
    await session.erase()
    path = tmp_path / "export.jsonl"
    path.write_bytes(b"".join([line async for line in export_jsonl_stream(session.read())]))

    assert path.read_bytes().count(b'"event":{"type":"erased","tag":') == await session.head()
    assert list(read_recorded(path)) == await read_all(session)
    assert read_export(path).events == []


# --- what it does --------------------------------------------------------------------------------


async def test_erase_when_called_again_answers_the_same(any_log: EventLog) -> None:
    """It happened once, whoever says it again."""
    session = await told(any_log)
    first = await session.erase(reason="one")

    again = await session.erase(reason="two")

    assert (again.rows, again.erased_at, again.reason) == (first.rows, first.erased_at, "one")
    assert len(await any_log.store.erasures(after=(0, UUID(int=0)), limit=10)) == 1


async def test_erase_when_the_session_was_deleted_adds_no_second_tombstone(
    any_log: EventLog,
) -> None:
    """The seq of the end stays; of a closed session, too."""
    for end in ("delete", "close"):
        session = await told(any_log, f"k-{end}")
        done = await getattr(session, end)()

        record = await session.erase()

        added = 0 if end == "delete" else 1
        assert await session.head() == done.last_seq + added
        assert record.events == done.last_seq + added


async def test_erase_when_a_reply_is_open_ends_it(any_log: EventLog) -> None:
    """Its writer learns that nothing more of it is stored."""
    session = await told(any_log)
    with pytest.raises(EventLogError):
        async with session.reply(agent="a") as reply:
            await reply.write(SECRET)
            await reply.drain()
            await session.erase()
            await reply.write("more")
            await reply.drain()
    assert all(isinstance(each.event, ev.Erased) for each in await read_all(session))


async def test_erase_when_there_is_no_such_session_is_refused(any_log: EventLog) -> None:
    """Nothing is recorded."""
    with refused(SessionNotFound):
        await any_log.handle(any_log.session_id("nobody")).erase()
    assert await any_log.store.erasures(after=(0, UUID(int=0)), limit=10) == []


async def test_append_when_retried_under_an_erased_id_is_refused(any_log: EventLog) -> None:
    """What that event said isn't known any more, so it can't be called the same."""
    session = await told(any_log)
    named = UUID(int=7)
    await session.append(message(SECRET), event_id=named)
    await session.erase()

    with refused(SessionErasedError):
        await session.append(message(SECRET), event_id=named)


async def test_positions_when_a_session_is_erased_stay_contiguous(any_log: EventLog) -> None:
    """The feed has each of its rows where it was; those of others say what they said."""
    session = await told(any_log)
    other = await any_log.create(ev.SessionCreated(), session_id=_neighbour(any_log, session))
    await other.append(message("kept"))
    before = await any_log.store.read_feed(session.shard, after=0, limit=1_000)

    await session.erase()

    after = await any_log.store.read_feed(session.shard, after=0, limit=1_000)
    assert [each.position for each in after] == [*range(1, len(after) + 1)]
    for old, new in zip(before, after, strict=False):
        assert (old.seq, old.event_id) == (new.seq, new.event_id)
        assert new.data == (b"" if old.session_id == session.id else old.data)
    assert [each.content for each in (await other.replay()).messages] == ["kept"]


def _neighbour(log: EventLog, session: Session) -> UUID:
    return UUID(int=session.id.int ^ (1 << 100))


# --- forks ---------------------------------------------------------------------------------------


async def test_fork_when_its_parent_is_erased_keeps_what_is_its_own(any_log: EventLog) -> None:
    """What it inherited reads as erased; its own events, and its key, are there."""
    session = await told(any_log)
    fork = await session.fork(key="fork", title="mine")
    await fork.append(message("own"))
    nested = await fork.fork()
    for each in (fork, nested):
        assert not says_nothing(await each.context())
        assert not says_nothing(await each.view())

    await session.erase()

    for each in (await any_log.session("fork"), nested):
        events = await read_all(each)
        assert [one.seq for one in events] == [*range(1, len(events) + 1)]
        begin = (await fork.replay()).parent_seq
        assert all(isinstance(one.event, ev.Erased) for one in events[:begin])
        assert not any(isinstance(one.event, ev.Erased) for one in events[begin:])
        state = await each.replay()
        assert [one.content for one in state.messages] == ["own"]
        assert state.status == "open"
        assert says_nothing(state, await each.context(), await each.view())
    await fork.append(message("goes on"))
    assert [one["content"] for one in await fork.context()] == ["own", "goes on"]


async def test_fork_when_it_is_erased_leaves_its_parent_alone(any_log: EventLog) -> None:
    """Its own part is erased, its lineage can be read, and a fork of it has the parent's part."""
    session = await told(any_log)
    fork = await session.fork(key="fork")
    await fork.append(message("own"))
    nested = await fork.fork(title="nested")

    await fork.erase()

    assert not says_nothing(await session.context())
    events = await read_all(fork)
    begin = (await nested.replay()).parent_seq - 2
    assert [one.seq for one in events] == [*range(1, len(events) + 1)]
    assert not any(isinstance(one.event, ev.Erased) for one in events[:begin])
    link = events[begin].event
    assert isinstance(link, ev.Erased)
    assert (link.tag, link.parent_session_id) == ("session.created", session.id)
    state = await fork.replay()
    assert (state.status, state.parent_session_id, len(state.messages)) == ("erased", session.id, 0)
    assert says_nothing(state)
    assert [each.content for each in (await nested.replay()).messages] == []
    assert (await nested.replay()).title == "nested"


async def test_erase_when_told_takes_forks_with_it(any_log: EventLog) -> None:
    """Forks of forks as well, and nobody else."""
    session, other = await told(any_log), await told(any_log, "other")
    fork = await session.fork(key="fork")
    nested = await fork.fork(key="nested")
    apart = await other.fork(key="apart")

    await session.erase(forks=True)

    for each in (session, fork, nested):
        assert (await each.replay()).status == "erased"
        assert all(isinstance(one.event, ev.Erased) for one in await read_all(each))
    assert not says_nothing(await apart.context())


# --- what processes remember ---------------------------------------------------------------------


async def test_reads_when_another_process_erased_show_nothing_of_memory(
    any_log: EventLog, open_log: OpenLog
) -> None:
    """Folded states of the session and of its forks are void where they were remembered."""
    session = await told(any_log)
    await session.fork(key="fork", title="mine")
    other = await open_log()
    theirs, forked = await other.session("k"), await other.session("fork")
    for each in (theirs, forked):
        assert not says_nothing(await each.replay(), await each.context())

    await session.erase()

    for each in (theirs, forked):
        assert says_nothing(await each.replay(), await each.replay(3), await each.context())
        assert says_nothing(await each.view(), await each.scratchpad(), await each.metadata())
    assert other.replayer.keeps(forked.id), "what was folded since is remembered again"


async def test_reads_when_memory_is_believed_show_what_was_erased(
    any_log: EventLog, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the look at the last rows, memory answers."""

    async def nothing_erased(self: Replayer, session_id: UUID, head: object = None) -> object:
        heads = await any_log.store.heads([session_id])
        return heads[session_id], frozenset()

    session = await told(any_log)
    other = await open_log()
    theirs = await other.session("k")
    await theirs.replay()
    monkeypatch.setattr(Replayer, "_observe", nothing_erased)
    end = await session.head()

    await session.erase()

    kept = other.replayer._states[session.id]
    assert isinstance(kept.entries[0], Message)
    assert kept.seq == end
    assert not says_nothing(list((await theirs.replay(end)).messages))


# --- expiry --------------------------------------------------------------------------------------


async def test_expire_when_said_is_in_the_view(any_log: EventLog) -> None:
    """After some silence, at a time, or never; the newest word counts."""
    session = await any_log.create_session("k")
    at = datetime(2100, 1, 1, tzinfo=UTC)

    await session.expire(after_seconds=60)
    view = await session.view()
    assert view.ttl_seconds == 60
    assert view.expires_at is not None
    assert (view.expires_at - view.updated_at).total_seconds() == 60
    await session.append(message("later"))
    assert (await session.view(min_seq=3)).expires_at != view.expires_at

    await session.expire(at=at)
    view = await session.view(min_seq=4)
    assert (view.ttl_seconds, view.expires_at) == (None, at)
    await session.expire()
    view = await session.view(min_seq=5)
    assert (view.ttl_seconds, view.expires_at) == (None, None)


async def test_expire_when_it_makes_no_sense_is_refused(any_log: EventLog) -> None:
    """No time at all, a time without a zone, or two words at once."""
    session = await any_log.create_session("k")
    for wrong in (
        {"after_seconds": 0},
        {"after_seconds": -5},
        {"at": datetime(2100, 1, 1)},  # noqa: DTZ001
        {"after_seconds": 5, "at": datetime(2100, 1, 1, tzinfo=UTC)},
    ):
        with pytest.raises(EventLogError):
            await session.expire(**wrong)
    assert await session.head() == 1
