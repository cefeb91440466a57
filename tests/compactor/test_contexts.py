"""The projection of contexts: it notices what is due when it is, and counts no more than needed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from random import Random
from uuid import UUID

import pytest

from eventlog import EventLog, Session
from eventlog import events as ev
from eventlog.compaction.due import is_due
from eventlog.compaction.measure import context_tokens
from eventlog.envelope import Row
from eventlog.errors import Unavailable
from eventlog.events import Usage
from eventlog.queries import query
from eventlog.testing import message, refused, rich_history
from projections import contexts
from projections.checkpoint import Lease, Leases, postgres_of
from projections.contexts import CONTEXTS, ContextViews, contexts_projection
from projections.parking import parked_sessions, retry_parked
from projections.projection import Progress
from tests.compactor.conftest import POLICY, grow, long_session, row_of
from tests.conftest import OpenLog
from tests.support.servers import connected

STEPS = 60
WORD = "several words that stand for a longer story "


class Follower:
    """Projects one shard by hand, as many rows at a time as a test wants."""

    def __init__(self, log: EventLog, shard: int) -> None:
        self.log = log
        self.shard = shard
        self.views = ContextViews(log)
        self.projection = contexts_projection(log, self.views)
        self.progress: Progress | None = None

    async def begin(self) -> None:
        """Take the shard over."""
        leases = Leases(postgres_of(self.log), CONTEXTS, f"test:{id(self)}", seconds=60)
        await leases.join()
        held = await leases.take(postgres_of(self.log).shards)
        lease = next((each for each in held if each.shard == self.shard), None)
        self.progress = await self.projection.begin(lease or Lease(CONTEXTS, self.shard, 10**6))

    async def follow(self, rows_max: int = 1_000) -> None:
        """Project all that is there."""
        if self.progress is None:
            await self.begin()
        assert self.progress is not None
        while True:
            rows: list[Row] = await self.log.store.read_feed(
                self.shard, after=self.progress.position, limit=rows_max
            )
            if not rows:
                return
            await self.projection.apply(self.progress, rows)


async def random_step(session: Session, chance: Random, calls: list[str]) -> None:
    """Something that changes a context, by much or little."""
    text = WORD * chance.randrange(8)
    match chance.randrange(12):
        case 0:
            await session.append(
                message(text, "assistant", model="gpt-4o", usage=Usage(input_tokens=300))
            )
        case 1:
            await session.append(message(text, "assistant", model=chance.choice(["o3", "claude"])))
        case 2:
            async with session.reply(agent="a", flush_seconds=0) as reply:
                for piece in text.split():
                    await reply.write(piece)
        case 3:
            await session.pin_fact("name", text or None)
        case 4 if calls:
            await session.append(message(text, "tool", tool_call_id=calls.pop()))
        case 5:
            calls.append(f"call-{chance.random()}")
            call = ev.ToolCall(id=calls[-1], name="search", arguments='{"q": "x"}')
            await session.append(message("", "assistant", tool_calls=[call]))
        case 6 if chance.random() < 0.3:
            await session.clear()
        case 7 if chance.random() < 0.3:
            await session.append(ev.CompactionRequested())
        case 8 if chance.random() < 0.5:
            await session.append(ev.CompactionFailed(reason="it broke", kind="server_error"))
        case 9:
            parts = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
            await session.append(ev.MessageAdded(role="user", content=parts))
        case 10:
            await session.append(message("short", token_count=chance.randrange(200)))
        case _:
            await session.append(message(text))


@pytest.mark.parametrize("seed", range(4))
async def test_row_when_a_session_grows_in_any_way_says_what_a_whole_count_says(
    log: EventLog, seed: int
) -> None:
    """Whether it is due, and why, at every step: nothing that was passed over mattered."""
    chance = Random(seed)
    session = await log.create_session()
    await session.set_compaction_policy(POLICY)
    follower = Follower(log, session.shard)
    calls: list[str] = []
    dues = 0
    for _ in range(STEPS):
        await random_step(session, chance, calls)
        await follower.follow(chance.choice([1, 1_000]))

        state = await session.context_state()
        size = context_tokens(state)
        expected = is_due(state, POLICY, size, now=datetime.now(UTC))
        row = await row_of(log, session.id)
        dues += expected.due
        if row is None:
            assert not expected.due
            assert expected.at is None
            assert size.tokens < 0.5 * expected.threshold
        elif not (expected.why == "under_threshold" and row.why == "under_threshold"):
            assert (row.due, row.why) == (expected.due, expected.why)
            assert abs(row.tokens - size.tokens) < expected.threshold / 20 or row.due
    assert 0 < dues < STEPS


async def test_contexts_when_followed_are_counted_a_few_times_only(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once for each message. The control: where no growth is believed, that is what happens."""
    counted: list[int] = []
    measured = context_tokens

    def count(state, model=None):  # type: ignore[no-untyped-def]
        counted.append(state.seq)
        return measured(state, model)

    monkeypatch.setattr(contexts, "context_tokens", count)
    policy = POLICY.__class__(threshold_tokens=20_000)
    await log.compaction.set(policy)
    counts = []
    for believe in (True, False):
        if not believe:
            monkeypatch.setattr(contexts, "_is_small", lambda *_: False)
        session = await log.create_session()
        follower = Follower(log, session.shard)
        await follower.follow()
        counted.clear()
        for _ in range(200):
            await session.append(message(WORD * 10))
            await follower.follow()
        counts.append(len(counted))

    assert counts[0] <= 40
    assert counts[1] == 200


async def test_increments_when_they_stream_are_not_looked_at(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context has no open replies: nothing is counted before one ends."""
    session = await long_session(log)
    follower = Follower(log, session.shard)
    await follower.follow()

    def never(*_: object) -> None:
        raise AssertionError("it was counted")

    async with session.reply(agent="a", flush_seconds=0) as reply:
        await follower.follow()
        monkeypatch.setattr(contexts, "context_tokens", never)
        for piece in WORD.split():
            await reply.write(piece)
        await follower.follow()
        monkeypatch.undo()


async def test_row_when_nothing_changed_is_not_written(log: EventLog, postgres_url: str) -> None:
    """A session that waits for its summary goes on, and its row stays as it is."""
    session = await long_session(log)
    follower = Follower(log, session.shard)
    await follower.follow()
    async with connected(postgres_url) as connection:

        async def version() -> object:
            return await connection.fetchval(
                "select (xmin, ctid)::text from eventlog.context_views where session_id = $1",
                session.id,
            )

        before = await version()
        await session.append(message("one more"))
        await follower.follow()
        assert await version() == before
        await grow(session, 2)
        await follower.follow()
        assert await version() != before


async def test_shard_when_taken_over_is_measured_anew(log: EventLog) -> None:
    """What was remembered may be of a batch that came to nothing."""
    session = await log.create_session()
    follower = Follower(log, session.shard)
    await follower.follow()
    assert session.id in follower.views._seen

    await follower.begin()
    assert session.id not in follower.views._seen
    await session.set_compaction_policy(POLICY)
    await grow(session)
    await follower.follow()

    row = await row_of(log, session.id)
    assert row is not None
    assert row.due


async def test_row_when_a_worker_saw_more_is_not_set_back(log: EventLog) -> None:
    """A projection that is behind doesn't make a session due again that was dealt with since."""
    session = await long_session(log)
    follower = Follower(log, session.shard)
    await follower.follow(rows_max=1)
    head = await session.head()
    store = postgres_of(log)
    settled = (session.shard, session.id, head + 10, 5, 400, False, "under_threshold", None)
    await store.fetch("settle_context", *settled)

    await grow(session, 4)
    await follower.follow()
    row = await row_of(log, session.id)
    assert row is not None
    assert (row.due, row.seq) == (False, head + 10)

    await grow(session, 10)
    await follower.follow()
    row = await row_of(log, session.id)
    assert row is not None
    assert row.due


async def test_sessions_of_other_tenants_when_noticed_are_theirs(
    log: EventLog, open_log: OpenLog
) -> None:
    """By their own policies, and to be offered to their own workers."""
    other = await open_log(tenant_id=5)
    await other.compaction.set(POLICY, user_id="ada")
    session = await other.create_session(user_id="ada")
    await grow(session)
    follower = Follower(log, session.shard)
    await follower.follow()

    assert follower.views.take_due([session.id]) == {session.id: 5}
    found = await postgres_of(other).fetch("due_contexts", 5, 0, UUID(int=0), 10)
    assert [each[1] for each in found] == [session.id]
    assert await postgres_of(log).fetch("due_contexts", 0, 0, UUID(int=0), 10) == []


async def test_parked_session_when_retried_is_due_again(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the other views: its row is made from the log, and the projection goes on."""
    session = await long_session(log)
    follower = Follower(log, session.shard)

    def broken(*_: object) -> None:
        raise ArithmeticError("no such number")

    monkeypatch.setattr(contexts, "context_tokens", broken)
    await follower.follow()
    monkeypatch.undo()
    assert [each.session_id for each in await parked_sessions(log, name=CONTEXTS)] == [session.id]

    await retry_parked(log, session.id, name=CONTEXTS, views=(ContextViews(log),))

    row = await row_of(log, session.id)
    assert row is not None
    assert row.due


async def test_batch_when_postgres_fails_while_it_is_written_parks_nobody(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage says nothing of a session: the batch is tried again."""
    session = await long_session(log)
    follower = Follower(log, session.shard)

    async def fail(*_: object) -> None:
        raise Unavailable("Postgres: it is away")

    monkeypatch.setattr(follower.views, "write", fail)
    with refused(Unavailable):
        await follower.follow()
    monkeypatch.undo()
    assert await parked_sessions(log, name=CONTEXTS) == []

    await follower.begin()
    await follower.follow()
    row = await row_of(log, session.id)
    assert row is not None
    assert row.due


async def test_contexts_when_the_history_is_rich_are_followed(log: EventLog) -> None:
    """Every kind of event there is: none of them is poison."""
    session = await rich_history(log)
    follower = Follower(log, session.shard)

    await follower.follow()

    assert await parked_sessions(log, name=CONTEXTS) == []


async def test_due_sessions_when_the_table_is_large_are_found_by_their_index(
    log: EventLog, postgres_url: str
) -> None:
    """A sweep reads what is due and nothing else, by a plan that was made while it was empty."""
    store = postgres_of(log)
    assert await store.fetch("due_contexts", 0, 0, UUID(int=0), 200) == []
    async with connected(postgres_url) as connection:
        await connection.execute(
            """
            insert into eventlog.context_views
              (shard, session_id, tenant_id, seq, tokens, threshold, is_full, why, due_at)
            select n % 16, gen_random_uuid(), n % 3, 1, 1, 1, false, 'x',
              case when n % 1000 = 0 then now() - interval '1 hour'
                   when n % 10 = 0 then now() + interval '1 hour' end
            from generate_series(1, 30000) as n
            """
        )
    async with store.connection() as reader:
        text = query("due_contexts").rstrip().rstrip(";")
        await reader.execute(f"prepare asked (int, timestamptz, uuid, int) as {text}")
        plan = await reader.fetchval(
            "explain (analyze, buffers, format json) execute asked (0, 'epoch',"
            f" '{UUID(int=0)}', 200)"
        )
        await reader.execute("deallocate asked")

    found = json.loads(plan)[0]["Plan"]
    assert len(await store.fetch("due_contexts", 0, 0, UUID(int=0), 200)) == 10
    assert "context_views_due" in plan
    assert "Sort" not in plan
    assert found["Shared Hit Blocks"] + found["Shared Read Blocks"] <= 20
