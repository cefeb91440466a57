"""Views made anew from the log are the ones the projectors keep, byte for byte.

`whole_rows` is the checker: every row of every table as text, and beside them what the tables are
called, their indexes, constraints, settings and privileges. The control is a view whose code writes
something else: the same comparison must then find it.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eventlog import Custom, EventLog, InvalidRequest, MessageAdded, Unavailable, folding
from eventlog import events as ev
from eventlog.envelope import RecordedEvent
from eventlog.queries import VIEW_TABLES
from eventlog.testing import message, refused, rich_history, until
from projections import rebuild as rebuilding
from projections.checkpoint import PROJECTION, Fenced, checkpoints, postgres_of
from projections.folding import Change
from projections.parking import parked_sessions, retry_parked
from projections.projection import VIEWS, View
from projections.rebuild import (
    Rebuild,
    RebuildRefused,
    abandon_rebuild,
    begin_rebuild,
    choose_views,
    due,
    find_rebuild,
    progress_of,
)
from projections.rebuild_folding import GreenProjection, ShardFolding
from projections.rebuild_switch import switch
from projections.sessions import SessionViews
from projections.tables import SUFFIX, Tables
from tests.projections.checks import (
    append_raw,
    commands_of,
    commit,
    differences,
    project_all,
    session_in_shard,
)
from tests.strategies import histories
from workers.projector import run_projector
from workers.rebuilder import RebuildWorker, run_rebuild

SHARD = 5
NAMES = [each.name for each in VIEWS]


async def whole_rows(log: EventLog) -> dict[str, list[str]]:
    """Every row of the views, of what is parked, and of the checkpoints, as text."""
    found: dict[str, list[str]] = {}
    async with postgres_of(log).connection() as connection:
        for table in VIEW_TABLES:
            records = await connection.fetch(f"select t::text from eventlog.{table} t order by 1")
            found[table] = [record[0] for record in records]
        for table, columns in (
            ("checkpoints", "shard, position"),
            ("parked_sessions", "session_id, position, seq, error"),
        ):
            records = await connection.fetch(
                f"select ({columns})::text from eventlog.{table}"
                f" where projection = '{PROJECTION}' order by 1"
            )
            found[table] = [record[0] for record in records]
    return found


CATALOGUE = """
    select 'column', c.relname::text, a.attnum::text, a.attname::text,
           format_type(a.atttypid, a.atttypmod),
           concat(a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attstorage)
    from pg_class c join pg_attribute a on a.attrelid = c.oid
    left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
    where c.relnamespace = 'eventlog'::regnamespace and c.relkind = 'r' and a.attnum > 0
      and not a.attisdropped
    union all
    select 'table', relname::text, relkind::text, relacl::text, reloptions::text,
           pg_get_userbyid(relowner)::text
    from pg_class
    where relnamespace = 'eventlog'::regnamespace and relkind in ('r', 'S', 'v')
    union all
    select 'index', indexname::text, tablename::text, indexdef, '', ''
    from pg_indexes where schemaname = 'eventlog'
    union all
    select 'constraint', c.relname::text, conname::text, pg_get_constraintdef(k.oid), '', ''
    from pg_constraint k join pg_class c on c.oid = k.conrelid
    where c.relnamespace = 'eventlog'::regnamespace
    union all
    select 'type', typname::text, '', '', '', ''
    from pg_type where typnamespace = 'eventlog'::regnamespace
    order by 1, 2, 3, 4
"""
"""All that the schema consists of; the numbers of columns change where one was dropped before."""


async def catalogue(log: EventLog) -> list[tuple[str, ...]]:
    """What the schema consists of: names, types, defaults, indexes, constraints, privileges."""
    async with postgres_of(log).connection() as connection:
        records = await connection.fetch(CATALOGUE)
    return [tuple(each or "" for each in record) for record in records]


async def rebuild(log: EventLog, *names: str, workers: int = 1) -> None:
    """Rebuild these views to the end."""
    begun = await begin_rebuild(postgres_of(log), choose_views(names))
    assert await run_rebuild(log, begun, asyncio.Event(), workers=workers)


async def fold_all(log: EventLog, begun: Rebuild) -> None:
    """The first phase of a rebuild."""
    stop = asyncio.Event()
    worker = RebuildWorker(log, begun)
    working = asyncio.create_task(worker.run(stop))

    async def is_folded() -> bool:
        found = await find_rebuild(postgres_of(log))
        return found is not None and found.phase != "fold"

    await until(is_folded, seconds=30)
    stop.set()
    await working


# --- the same rows -------------------------------------------------------------------------------


@settings(
    max_examples=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(
    pasts=st.lists(histories(actions_max=15, forks=True), min_size=1, max_size=3),
    names=st.just(["all"]) | st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    data=st.data(),
)
async def test_rebuild_when_done_gives_the_rows_that_were_projected(
    log: EventLog, pasts: list[list[RecordedEvent]], names: list[str], data: st.DataObject
) -> None:
    """Any histories, any views, projected up to anywhere: equal in every byte."""
    waiting = [commands_of(log, past, SHARD) for past in pasts]
    projected = data.draw(st.integers(0, sum(map(len, waiting))), "projected before")
    count = 0
    while any(waiting):
        turn = data.draw(st.sampled_from([each for each in waiting if each]), "whose event")
        await commit(log, turn.pop(0))
        count += 1
        if count == projected:
            await project_all(log)
    before = await whole_rows(log)

    await rebuild(log, *names)

    if names == ["all"]:
        await project_all(log)  # which it has made unnecessary
        assert await differences(log) == []
        after = await whole_rows(log)
        await rebuild(log, "all")
        assert await whole_rows(log) == after
    else:
        assert await whole_rows(log) == before


@settings(
    max_examples=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(
    pasts=st.lists(histories(actions_max=15, forks=True), min_size=1, max_size=3),
    names=st.just(["all"]) | st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    data=st.data(),
)
async def test_rebuild_when_sessions_go_on_meanwhile_gives_the_rows_that_were_projected(
    log: EventLog, pasts: list[list[RecordedEvent]], names: list[str], data: st.DataObject
) -> None:
    """What was appended since it began is followed, from wherever each session was folded to."""
    left = await find_rebuild(postgres_of(log))
    if left is not None:  # by an example that failed
        await abandon_rebuild(postgres_of(log), left)
    waiting = [commands_of(log, past, SHARD) for past in pasts]
    begun_at = data.draw(st.integers(0, sum(map(len, waiting))), "begun at")
    begun: Rebuild | None = None
    for count in range(sum(map(len, waiting)) + 1):
        if count == begun_at:
            await project_all(log)
            begun = await begin_rebuild(postgres_of(log), choose_views(names))
            await fold_all(log, begun)
        if any(waiting):
            turn = data.draw(st.sampled_from([each for each in waiting if each]), "whose event")
            await commit(log, turn.pop(0))
    await project_all(log)
    before = await whole_rows(log)
    assert begun is not None

    assert await run_rebuild(log, begun, asyncio.Event())

    assert await whole_rows(log) == before
    assert await differences(log) == []


async def rich_log(log: EventLog) -> None:
    """Everything that happens in sessions, projected in several steps."""
    session = await rich_history(log)
    await project_all(log)
    frames = [
        each
        async for each in session.read(frames=True)
        if isinstance(each.event, ev.TokensAppended)
    ]
    fork = await session.fork(at=frames[0].seq - 1)
    await fork.append(message("elsewhere"))
    again = await fork.fork(at=frames[0].seq - 1)
    await project_all(log)
    await again.clear()
    await again.append([message("anew"), ev.SessionUpdated(title="␛\u0000")])
    await again.rewind(to=frames[0].seq + 2)
    gone = await log.create_session(user_id="ada", title="gone")
    await gone.append(message("words"))
    await project_all(log)
    await gone.delete()
    streaming = await log.create_session(user_id="ada", key="k")
    await streaming.append(ev.MessageStarted(message_id="m", role="assistant"))
    await streaming.append(
        [
            MessageAdded(
                role="assistant",
                content="x" * 40_000,
                agent="a",
                model="m",
                usage=ev.Usage(input_tokens=7),
                tool_calls=[ev.ToolCall(id="c", name="look", arguments="{}")],
            ),
            MessageAdded(role="tool", tool_call_id="c", content='{"found": "it"}'),
            ev.AgentHandedOff(to_agent="b", context={"why": [1.0, None]}),
            ev.RunStarted(run_id="r", agent="a"),
            ev.ScratchpadWritten(name="note", value={"n": 1}),
        ]
    )
    await project_all(log)
    await streaming.append([ev.RunFinished(run_id="r"), ev.ScratchpadWritten(name="x", value=2)])
    await streaming.append(ev.SessionExpirySet(ttl_seconds=60))
    await project_all(log)


@pytest.mark.parametrize("names", [["all"], *([each] for each in NAMES), ["messages", "usage"]])
async def test_rebuild_of_a_view_when_everything_happened_gives_the_same_rows(
    log: EventLog, names: list[str]
) -> None:
    """Forks, rewinds, clearings, compactions, open and interrupted replies, deleted sessions."""
    await rich_log(log)
    before = await whole_rows(log)
    assert all(before[table] for table in VIEW_TABLES)

    await rebuild(log, *names, workers=2)

    assert await whole_rows(log) == before
    assert await differences(log) == []
    assert await find_rebuild(postgres_of(log)) is None


async def test_rebuild_when_views_were_lost_brings_them_back(log: EventLog) -> None:
    """From nothing but the log: whatever became of the tables."""
    await rich_log(log)
    before = await whole_rows(log)
    async with postgres_of(log).connection() as connection:
        for table in VIEW_TABLES:
            await connection.execute(f"delete from eventlog.{table}")

    await rebuild(log, "all")

    assert await whole_rows(log) == before


class Louder(SessionViews):
    """The control: code that makes other rows."""

    async def write(self, tables: Tables, changes: list[Change]) -> None:
        await super().write(tables, changes)
        await tables.connection.execute(
            f"update eventlog.session_views{SUFFIX} set title = upper(title)"
        )


async def test_comparison_when_a_view_writes_something_else_finds_it(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that can't fail proves nothing."""
    await log.create_session(title="quiet")
    await project_all(log)
    before = await whole_rows(log)
    views: list[View] = [Louder(), *VIEWS[1:]]
    monkeypatch.setattr(rebuilding, "VIEWS", views)

    await rebuild(log, "sessions")

    after = await whole_rows(log)
    assert after.pop("session_views") != before.pop("session_views")
    assert after == before


# --- the tables ----------------------------------------------------------------------------------


async def test_tables_when_switched_are_called_and_made_as_before(log: EventLog) -> None:
    """Names, types, indexes, constraints, settings, privileges: after one rebuild and another."""
    await rich_log(log)
    async with postgres_of(log).connection() as connection:
        before = without_numbers(await catalogue(log))
        oid = await connection.fetchval("select 'eventlog.message_views'::regclass::oid")

    for names in (["all"], ["messages"], ["all"]):
        await rebuild(log, *names)
        assert without_numbers(await catalogue(log)) == before

    async with postgres_of(log).connection() as connection:
        assert oid != await connection.fetchval("select 'eventlog.message_views'::regclass::oid")


def without_numbers(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The catalogue without the places of columns, which dropped ones leave holes in."""
    return sorted((*row[:2], *row[3:]) if row[0] == "column" else row for row in rows)


async def test_catalogue_when_an_index_is_missing_shows_it(
    log: EventLog, postgres_url: str
) -> None:
    """The control of the comparison above."""
    before = await catalogue(log)
    await as_owner(postgres_url, "drop index eventlog.message_views_search")
    assert await catalogue(log) != before


async def as_owner(url: str, statement: str) -> None:
    """A statement of whoever operates the database."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("statement", "undone", "why"),
    [
        (
            "create view eventlog.mine as select title from eventlog.session_views",
            "drop view eventlog.mine",
            "depend on it",
        ),
        (
            "alter table eventlog.session_views enable row level security",
            "alter table eventlog.session_views disable row level security",
            "row-level security",
        ),
    ],
)
async def test_begin_when_a_table_has_more_than_its_migrations_gave_it_is_refused(
    log: EventLog, postgres_url: str, statement: str, undone: str, why: str
) -> None:
    """What a new table would not get isn't lost silently."""
    await as_owner(postgres_url, statement)
    with pytest.raises(RebuildRefused, match=why):
        await begin_rebuild(postgres_of(log), VIEWS)
    assert await find_rebuild(postgres_of(log)) is None

    await as_owner(postgres_url, undone)
    await abandon_rebuild(postgres_of(log), await begin_rebuild(postgres_of(log), VIEWS))


async def test_switch_when_something_depends_on_a_table_since_is_refused(
    log: EventLog, postgres_url: str
) -> None:
    """It is found at the very end, which then has not happened."""
    await rich_log(log)
    before = await whole_rows(log)
    begun = await begin_rebuild(postgres_of(log), VIEWS)
    await as_owner(postgres_url, "create view eventlog.mine as table eventlog.run_views")
    with pytest.raises(RebuildRefused, match="view mine depends on"):
        await run_rebuild(log, begun, asyncio.Event())
    assert await whole_rows(log) == before

    await as_owner(postgres_url, "drop view eventlog.mine")
    assert await run_rebuild(log, begun, asyncio.Event())
    assert await whole_rows(log) == before


async def test_privileges_when_granted_to_others_are_kept(log: EventLog, postgres_url: str) -> None:
    """A role that reads the views goes on reading them."""
    await as_owner(postgres_url, "grant select on eventlog.session_views to pg_monitor")
    before = without_numbers(await catalogue(log))
    assert any("pg_monitor" in row[3] for row in before if row[0] == "table")

    await rebuild(log, "all")

    assert without_numbers(await catalogue(log)) == before


# --- what is parked ------------------------------------------------------------------------------


async def test_parked_sessions_when_rebuilt_show_what_they_showed(log: EventLog) -> None:
    """A row that is garbage, a first row that is, a value that Postgres refuses: all as before."""
    bad, first, big = [await session_in_shard(log, SHARD) for _ in range(3)]
    good = await session_in_shard(log, SHARD)
    await bad.append(message("fine"))
    await project_all(log)
    await append_raw(log, bad, b'{"type":"message.added","role":7}')
    await bad.append(message("after"))
    await log.store.fetch("park_session", PROJECTION, SHARD, first.id, 2, 1, "by hand")  # type: ignore[attr-defined]
    most = 2**63 - 1
    await big.append([MessageAdded(role="user", token_count=most) for _ in range(2)])
    await good.append(message("other"))
    await project_all(log)
    before = await whole_rows(log)
    assert {each.session_id for each in await parked_sessions(log)} == {bad.id, first.id, big.id}

    await rebuild(log, "all")

    assert await whole_rows(log) == before
    await bad.append(message("later"))
    await good.append(message("later"))
    await project_all(log)
    assert await differences(log) == []
    assert len(before["parked_sessions"]) == len(await parked_sessions(log))


async def test_session_when_only_the_rebuild_fails_on_it_is_parked_for_all(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New code that can't fold an event: visible, and it comes back as any parked session does."""
    session, other = await session_in_shard(log, SHARD), await session_in_shard(log, SHARD)
    await session.append([message("one"), Custom(name="trap"), message("two")])
    await other.append(message("fine"))
    await project_all(log)
    before = await whole_rows(log)
    real = folding.apply

    def apply(to: Any, recorded: Any) -> None:
        if isinstance(recorded.event, Custom):
            raise ZeroDivisionError("a bug")
        real(to, recorded)

    with monkeypatch.context() as patch:
        patch.setattr(folding, "apply", apply)
        await rebuild(log, "all")
    (parked,) = await parked_sessions(log)
    assert (parked.session_id, parked.seq) == (session.id, 3)
    shown = await log.store.session_view(session.id)
    assert shown is not None
    assert (shown.seq, shown.message_count) == (2, 1)

    await retry_parked(log, session.id)

    assert await whole_rows(log) == before


async def test_session_when_taken_back_in_during_a_rebuild_is_whole_afterwards(
    log: EventLog,
) -> None:
    """It was parked when the rebuild folded it, and isn't when the tables are switched."""
    session = await session_in_shard(log, SHARD)
    await session.append(message("one"))
    await project_all(log)
    await session.append([message("two"), message("three")])
    await log.store.fetch("park_session", PROJECTION, SHARD, session.id, 3, 3, "by hand")  # type: ignore[attr-defined]
    await project_all(log)
    begun = await begin_rebuild(postgres_of(log), VIEWS)
    await fold_all(log, begun)
    assert await retry_parked(log, session.id) == 4
    before = await whole_rows(log)

    assert await run_rebuild(log, begun, asyncio.Event())

    assert await whole_rows(log) == before
    assert await parked_sessions(log) == []


async def test_session_when_parked_during_a_rebuild_shows_what_it_showed(log: EventLog) -> None:
    """The rebuild had folded more of it than the projectors show."""
    session = await session_in_shard(log, SHARD)
    await session.append([message("one"), message("two")])
    begun = await begin_rebuild(postgres_of(log), VIEWS)
    await fold_all(log, begun)
    await log.store.fetch("park_session", PROJECTION, SHARD, session.id, 1, 1, "by hand")  # type: ignore[attr-defined]
    await project_all(log)
    before = await whole_rows(log)
    assert not before["message_views"]

    assert await run_rebuild(log, begun, asyncio.Event())

    assert await whole_rows(log) == before


# --- beginning and giving up ---------------------------------------------------------------------


async def test_rebuild_of_all_when_nothing_was_ever_projected_stands_for_the_projectors(
    log: EventLog,
) -> None:
    """Their checkpoints are moved to where it is, and they go on from there."""
    session = await rich_history(log)
    heads = await log.store.feed_heads()

    await rebuild(log, "all")

    assert await checkpoints(postgres_of(log)) == heads
    assert await differences(log) == []
    await session.append(message("later"))
    await project_all(log)
    assert await differences(log) == []


async def test_rebuild_of_one_view_when_nothing_was_projected_leaves_all_to_the_projectors(
    log: EventLog,
) -> None:
    """It can't get ahead of the other views."""
    await rich_history(log)

    await rebuild(log, "usage")

    assert await checkpoints(postgres_of(log)) == [0] * log.store.shards
    await project_all(log)
    assert await differences(log) == []


async def test_views_when_made_by_older_code_are_due(log: EventLog) -> None:
    """Until they are rebuilt; a projector says so when it starts."""
    assert await due(log) == []
    async with postgres_of(log).connection() as connection:
        await connection.execute(
            "update eventlog.view_versions set version = 0 where view in ('usage', 'runs')"
        )
    assert await due(log) == ["runs", "usage"]
    stop = asyncio.Event()
    with structlog.testing.capture_logs() as lines:
        projecting = asyncio.create_task(run_projector(log, stop))
        await until(lambda: any(each["event"] == "projector.views_are_old" for each in lines))
        stop.set()
        await projecting
    (warned,) = [each for each in lines if each["event"] == "projector.views_are_old"]
    assert (warned["log_level"], warned["views"]) == ("warning", ["runs", "usage"])

    await rebuild(log, "usage")
    assert await due(log) == ["runs"]
    await rebuild(log, "all")
    assert await due(log) == []


async def test_rebuild_when_another_is_unfinished_is_refused(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other views, or by other code; the same one is gone on with; one given up is gone."""
    await rich_history(log)
    store = postgres_of(log)
    before = without_numbers(await catalogue(log))
    begun = await begin_rebuild(store, choose_views(["usage", "messages"]))

    with refused(RebuildRefused) as caught:
        await begin_rebuild(store, VIEWS)
    assert "eventlog rebuild messages usage" in str(caught.error)
    assert await begin_rebuild(store, choose_views(["messages", "usage"])) == begun
    with monkeypatch.context() as patch:
        patch.setattr(type(choose_views(["usage"])[0]), "version", 9)
        with refused(RebuildRefused) as caught:
            await begin_rebuild(store, choose_views(["messages", "usage"]))
        assert "--start-over" in str(caught.error)

    await abandon_rebuild(store, begun)
    await abandon_rebuild(store, begun)
    assert await find_rebuild(store) is None
    assert without_numbers(await catalogue(log)) == before
    with refused(RebuildRefused):
        await run_rebuild(log, begun, asyncio.Event())
    with refused(InvalidRequest):
        choose_views(["massages"])


# --- while others go on --------------------------------------------------------------------------


async def test_rebuild_when_others_append_project_and_read_loses_nothing(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rebuilds in a row; no list is empty, no read fails, and the views are the fold."""
    sessions = [await log.create_session(user_id="ada") for _ in range(20)]
    for each in sessions:
        await each.append([message("before"), MessageAdded(role="user", content="words " * 20)])
    await project_all(log)
    stop = asyncio.Event()
    listed: list[int] = []

    async def append() -> None:
        while not stop.is_set():
            await asyncio.gather(*(each.append(message("during")) for each in sessions))

    async def read() -> None:
        while not stop.is_set():
            listed.append(len((await log.sessions(user_id="ada")).items))
            assert await log.store.session_view(sessions[0].id) is not None

    async with asyncio.TaskGroup() as group:
        others = [group.create_task(each) for each in (append(), read(), read())]
        others.append(group.create_task(run_projector(log, stop)))
        try:
            for names in (["all"], ["messages", "sessions"]):
                await rebuild(log, *names, workers=2)
        finally:
            stop.set()

    assert set(listed) == {len(sessions)}
    await project_all(log)
    assert await differences(log) == []


async def test_switch_when_a_reader_takes_long_gives_up_and_leaves_all_as_it_was(
    log: EventLog, postgres_url: str
) -> None:
    """Whoever waits behind it waits no longer than it does; then it is tried again, and works."""
    await rich_log(log)
    before = await whole_rows(log)
    store = postgres_of(log)
    begun = await begin_rebuild(store, VIEWS)
    await fold_all(log, begun)
    stop = asyncio.Event()
    working = asyncio.create_task(RebuildWorker(log, begun).run(stop))

    async def is_ready() -> bool:
        found = await find_rebuild(store)
        return found is not None and found.phase == "follow"

    await until(is_ready, seconds=30)
    reader = await asyncpg.connect(postgres_url)
    transaction = reader.transaction()
    await transaction.start()
    await reader.execute("select count(*) from eventlog.usage_views")
    with refused(Unavailable):
        await switch(log, begun, lock_ms=100)
    assert await whole_rows(log) == before
    assert (await progress_of(store, begun)).rows_behind == 0
    await transaction.rollback()
    await reader.close()

    assert await switch(log, begun, lock_ms=1_000)
    assert not await switch(log, begun, lock_ms=1_000)
    await working
    stop.set()
    assert await whole_rows(log) == before


# --- who was left behind -------------------------------------------------------------------------


async def test_worker_when_its_shard_was_taken_over_writes_nothing(log: EventLog) -> None:
    """Each batch of the first phase is refused under an old epoch, as later ones are."""
    zombie, begun, lease = await left_behind(log)
    with refused(Fenced):
        await zombie.run(asyncio.Event())
    assert await green_sessions(log) == set()

    # A rebuild that is begun anew has the same name, and newer epochs.
    await abandon_rebuild(postgres_of(log), begun)
    anew = await begin_rebuild(postgres_of(log), VIEWS)
    assert anew.name == begun.name
    with refused(Fenced):
        await ShardFolding(GreenProjection(log, anew), lease).run(asyncio.Event())
    with refused(Fenced):
        await GreenProjection(log, anew).begin(lease)
    assert await green_sessions(log) == set()


class Unfenced(ShardFolding):
    """The control: it goes on under whatever epoch is the newest."""

    async def run(self, stop: asyncio.Event) -> None:
        records = await self._store.fetch("rebuild_epoch_of_test", self._shard)
        self._lease = type(self._lease)(self._lease.name, self._shard, records[0][0])
        await super().run(stop)


async def test_worker_when_nothing_fences_it_writes(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with the epoch of its successor the same worker writes the shard's sessions."""
    _, begun, lease = await left_behind(log)
    from eventlog import queries

    text = "select epoch from eventlog.rebuild_shards where shard = $1"
    known = {**queries.load_queries(), "rebuild_epoch_of_test": text}
    monkeypatch.setattr(queries, "load_queries", lambda: known)

    await Unfenced(GreenProjection(log, begun), lease).run(asyncio.Event())

    assert await green_sessions(log) != set()


async def left_behind(log: EventLog) -> tuple[ShardFolding, Rebuild, Any]:
    """A worker whose lease of the only shard with sessions was taken by another."""
    session = await session_in_shard(log, SHARD)
    await session.append(message("one"))
    store = postgres_of(log)
    begun = await begin_rebuild(store, VIEWS)
    first, second = RebuildWorker(log, begun), RebuildWorker(log, begun)
    counting = await first._take("take_rebuild_shard")
    assert counting is not None
    async with first._holding(counting):
        await ShardFolding(GreenProjection(log, begun), counting).run(asyncio.Event())
    lease = await first._take("take_rebuild_shard")
    assert lease is not None
    assert lease.shard == SHARD
    async with store.connection() as connection:
        await connection.execute("update eventlog.leases set expires_at = '-infinity'")
    newer = await second._take("take_rebuild_shard")
    assert newer is not None
    assert await store.fetch("begin_rebuild_shard", SHARD, newer.epoch)
    return ShardFolding(GreenProjection(log, begun), lease), begun, lease


async def green_sessions(log: EventLog) -> set[UUID]:
    """Sessions in the table that is being built."""
    async with postgres_of(log).connection() as connection:
        records = await connection.fetch(f"select session_id from eventlog.session_views{SUFFIX}")
    return {record[0] for record in records}


async def test_session_when_erased_during_a_rebuild_is_gone_from_it(log: EventLog) -> None:
    """What was folded before is not put into service: neither its own rows nor what a fork got."""
    session = await session_in_shard(log, SHARD, user_id="ada")
    said = ev.AgentHandedOff(to_agent="b", context="secret context")
    await session.append([message("secret words"), said])
    fork = await session.fork(at=3)
    await fork.append(message("its own"))
    await project_all(log)
    begun = await begin_rebuild(postgres_of(log), VIEWS)
    await fold_all(log, begun)
    await session.delete()
    await project_all(log)
    asked = (SHARD, session.id, postgres_of(log).tenant_id, 1_000, None, "test")
    while (await postgres_of(log).fetch("erase", *asked))[0][0] == 1:
        pass
    async with postgres_of(log).connection() as connection:
        folded = await connection.fetch("select context from eventlog.handoff_views_next")
    assert [b"secret" in record[0] for record in folded] == [True], "of the fork"

    assert await run_rebuild(log, begun, asyncio.Event())

    text = repr(await whole_rows(log))
    assert "secret" not in text
    assert b"secret".hex() not in text
    assert b"its own".hex() in text
