"""What a session answers from its views equals the fold, at the seq that the views are at."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, get_args
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eventlog import (
    AgentActivated,
    AgentHandedOff,
    AgentsView,
    EventLog,
    InvalidRequest,
    Message,
    MessageView,
    RecordedEvent,
    RunFailed,
    RunFinished,
    RunStarted,
    Session,
    SessionNotFound,
    SessionState,
    ToolCall,
    Usage,
    UsageRow,
)
from eventlog.envelope import new_id
from eventlog.events import Role
from eventlog.memory import MemoryStore
from eventlog.reading import session_queries
from eventlog.replay import Replayer
from eventlog.runs import Run, fold_runs
from eventlog.search.query import parse_query
from eventlog.search.text import searchable_text
from eventlog.testing import message, refused, rich_history
from projections.checkpoint import PROJECTION, Leases, postgres_of
from projections.projection import Projection
from tests.conftest import OpenLog
from tests.projections.checks import commands_of, commit, project_all, step, take_shards
from tests.projections.test_lists import refresh
from tests.strategies import histories

SHARD = 5
ROLES = get_args(Role)
TEXTS = ("hello", "wör -hello", "a b", '"b c"', "worl")


# --- the oracle ----------------------------------------------------------------------------------


async def folded(log: EventLog, session_id: UUID, seq: int | None = None) -> SessionState:
    """The state, by a fold that owes nothing to anybody's memory."""
    replayer = Replayer(log.store, save_snapshots=False)
    head = await replayer.head(session_id)
    assert head is not None
    return await replayer.structure(session_id, head.seq if seq is None else seq)


def expected_page(state: SessionState, asked: dict[str, Any]) -> list[MessageView]:
    """The page, said as plainly as can be."""
    visible = list(state.messages)
    roles = asked["role"]
    chosen = [
        each
        for each in visible
        if (roles is None or each.role in ([roles] if isinstance(roles, str) else roles))
        and (asked["agent"] is None or each.agent == asked["agent"])
        and (asked["before"] is None or each.seq < asked["before"])
        and (asked["after"] is None or each.seq > asked["after"])
    ]
    limit = asked["limit"] or 100
    chosen = chosen[-limit:] if asked["after"] is None else chosen[:limit]
    return [expected_view(visible, each) for each in chosen]


def expected_view(visible: list[Message], shown: Message) -> MessageView:
    """A message with its links, each looked for on its own."""
    fields = {name: getattr(shown, name) for name in Message.__struct_fields__}
    outputs = {}
    for call in shown.tool_calls:
        answers = [
            each.seq
            for each in visible
            if each.tool_call_id == call.id and caller_of(visible, each) == shown.seq
        ]
        if answers:
            outputs[call.id] = answers[0]
    return MessageView(**fields, outputs=outputs, call_seq=caller_of(visible, shown))


def caller_of(visible: list[Message], output: Message) -> int | None:
    """Who asked for a tool's output: the last one before it."""
    if output.role != "tool" or output.tool_call_id is None:
        return None
    asked = [
        each.seq
        for each in visible
        if each.seq < output.seq and any(c.id == output.tool_call_id for c in each.tool_calls)
    ]
    return asked[-1] if asked else None


def expected_usage(state: SessionState) -> list[UsageRow]:
    """What a state says was spent."""
    rows = [
        UsageRow(
            day=date(1970, 1, 1) + timedelta(days=day),
            user_id=state.user_id,
            agent=agent,
            model=model,
            session_id=state.session_id,
            generations=spent.generations,
            input_tokens=spent.input_tokens,
            output_tokens=spent.output_tokens,
            cached_tokens=spent.cached_tokens,
            reasoning_tokens=spent.reasoning_tokens,
        )
        for (day, agent, model), spent in state.usage.items()
    ]
    return sorted(rows, key=lambda row: (row.day, row.agent or "", row.model or ""))


async def expected_runs(log: EventLog, session_id: UUID, seq: int) -> list[Run]:
    """The session's own runs, newest first."""
    own = (await log.replayer.lineage(session_id))[-1]
    events = [e async for e in log.replayer.read(session_id, after=own.after, until=seq)]
    return sorted(fold_runs(events).values(), key=lambda run: -run.started_seq)


async def assert_answers(
    session: Session, log: EventLog, seq: int, asked: dict[str, Any], min_seq: int | None
) -> None:
    """Everything the session answers is what the fold at a seq says."""
    state = await folded(log, session.id, seq)
    assert await session.messages(**asked, min_seq=min_seq) == expected_page(state, asked)
    handoffs = [*state.earlier_handoffs, *([state.handoff] if state.handoff else [])]
    assert await session.agents(min_seq) == AgentsView(
        current=state.current_agent, used=state.agents, handoffs=handoffs
    )
    assert await session.runs(min_seq=min_seq) == await expected_runs(log, session.id, seq)
    found = await session.usage(min_seq)
    assert sorted(found, key=lambda row: (row.day, row.agent or "", row.model or "")) == (
        expected_usage(state)
    )
    assert await session.scratchpad(min_seq) == state.scratchpad


async def assert_finds(
    session: Session, log: EventLog, seq: int, text: str, min_seq: int | None
) -> None:
    """A search of the session, if it is a fork of what it inherited too, is one of the fold."""
    demands: dict[Session | UUID | str, int] = {} if min_seq is None else {session: min_seq}
    page = await log.search(text, session=session, limit=200, min_seq=demands)
    state = await folded(log, session.id, seq)
    query = parse_query(text)
    hits = [each.seq for each in state.messages if query.matches(searchable_text(each))]
    if state.status == "deleted":
        hits = []
    assert sorted(each.seq for each in page.items) == hits


async def project_shard(log: EventLog) -> None:
    """Bring the views of the shard up to date, where there are any."""
    if isinstance(log.store, MemoryStore):
        return
    held = await take_shards(log)
    projection = Projection(log)
    progress = await projection.begin(held[SHARD])
    while await step(log, projection, progress):
        pass
    await Leases(postgres_of(log), PROJECTION, "test", seconds=600).release(held)


SEQS = st.none() | st.integers(0, 40)
ASKED = st.fixed_dictionaries(
    {
        "limit": st.none() | st.integers(1, 6),
        "role": st.none() | st.sampled_from(ROLES) | st.sets(st.sampled_from(ROLES), min_size=1),
        "agent": st.none() | st.sampled_from(("planner", "coder", "nobody")),
        "before": SEQS,
        "after": SEQS,
    }
)


@settings(
    max_examples=80,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(past=histories(actions_max=20, forks=True), data=st.data())
async def test_answers_when_the_projector_stops_anywhere_equal_the_fold(
    any_log: EventLog, past: list[RecordedEvent], data: st.DataObject
) -> None:
    """At the seq of the view; with `min_seq` at the head, however far the view is behind."""
    commands = commands_of(any_log, past, SHARD)
    projected = data.draw(st.integers(0, len(commands)), "projected")
    for place, command in enumerate(commands):
        if place == projected:
            await project_shard(any_log)
        await commit(any_log, command)
    if projected == len(commands):
        await project_shard(any_log)

    for session_id in dict.fromkeys(command.session_id for command in commands):
        session = any_log.handle(session_id)
        head = await session.head()
        view = await any_log.store.session_view(session_id)
        seq = head if view is None else view.seq
        asked, text = data.draw(ASKED, "asked"), data.draw(st.sampled_from(TEXTS), "text")
        await assert_answers(session, any_log, seq, asked, None)
        await assert_answers(session, any_log, head, asked, head)
        await assert_finds(session, any_log, head, text, head)
        if view is not None or isinstance(any_log.store, MemoryStore):
            await assert_finds(session, any_log, seq, text, None)


# --- one by one ----------------------------------------------------------------------------------


async def test_messages_when_asked_for_pages_gives_all_of_them_once(any_log: EventLog) -> None:
    """Backwards with `before`, forwards with `after`; both ways every message, once."""
    session = await any_log.create_session()
    await session.append([message(str(number)) for number in range(25)])
    await refresh(any_log)

    back: list[MessageView] = []
    before: int | None = None
    while page := await session.messages(limit=10, before=before):
        back = page + back
        before = page[0].seq
    forth: list[MessageView] = []
    after = 0
    while page := await session.messages(limit=10, after=after):
        forth += page
        after = page[-1].seq

    assert [each.content for each in back] == [str(number) for number in range(25)]
    assert forth == back == await session.messages()
    assert len(await session.messages(after=3, before=10)) == 6


async def test_messages_when_tools_answered_are_linked(any_log: EventLog) -> None:
    """Each call with its output and back, also when the id of a call is used again."""
    session = await any_log.create_session()
    for _ in range(2):
        calls = [ToolCall(id="c1", name="look"), ToolCall(id="c\u0000", name="find")]
        await session.append(message("", "assistant", tool_calls=calls))
        await session.append(message("found", "tool", tool_call_id="c\u0000"))
        await session.append(message("seen", "tool", tool_call_id="c1"))
    await session.append(message("late", "tool", tool_call_id="c1"))
    await session.append(message("whose?", "tool", tool_call_id="c3"))
    await refresh(any_log)

    found = await session.messages()

    assert found[0].outputs == {"c\u0000": 3, "c1": 4}
    assert found[3].outputs == {"c\u0000": 6, "c1": 7}
    assert [each.call_seq for each in found] == [None, 2, 2, None, 5, 5, 5, None]
    assert [each.seq for each in await session.messages(role="assistant")] == [2, 5]
    assert (await session.messages(role="assistant"))[1].outputs == {"c\u0000": 6, "c1": 7}


async def test_messages_when_a_reply_streams_show_it_open_and_empty(any_log: EventLog) -> None:
    """The message is there from its beginning; its text comes with its end."""
    session = await any_log.create_session()
    async with session.reply(agent="planner", flush_seconds=0) as reply:
        await reply.write("Hello")
        await reply.drain()
        await refresh(any_log)
        (streaming,) = await session.messages(agent="planner")
        assert (streaming.status, streaming.content) == ("open", "")
    await refresh(any_log)

    assert [each.content for each in await session.messages()] == ["Hello"]


async def test_messages_when_a_fork_inherited_them_are_its_own_fold(any_log: EventLog) -> None:
    """What the parent hid or dropped later is still the fork's, and the other way round."""
    parent = await any_log.create_session()
    calls = [ToolCall(id="c1", name="look")]
    await parent.append([message("one"), message("", "assistant", tool_calls=calls)])
    fork = await parent.fork()
    await fork.append(message("seen", "tool", tool_call_id="c1"))
    await parent.clear()
    await refresh(any_log)

    found = await fork.messages()

    assert [each.seq for each in found] == [2, 3, 5]
    assert found[1].outputs == {"c1": 5}
    assert [each.call_seq for each in await fork.messages(role="tool")] == [3]
    assert await parent.messages() == []
    assert [each.seq for each in await fork.messages(limit=1, before=3)] == [2]
    assert [each.seq for each in await fork.messages(after=4)] == [5]


async def test_session_when_never_projected_answers_from_the_log(log: EventLog) -> None:
    """Without any projector nothing is missing; an unknown session is said to be unknown."""
    session = await rich_history(log)
    state = await session.replay()

    assert [each.seq for each in await session.messages()] == [each.seq for each in state.messages]
    assert (await session.agents()).used == state.agents
    assert [run.run_id for run in await session.runs()] == ["r1"]
    assert await session.usage() == expected_usage(state)
    assert await session.scratchpad() == state.scratchpad
    with refused(SessionNotFound):
        await log.handle(new_id()).messages()


async def test_session_when_its_view_was_never_made_whole_answers_from_the_log(
    log: EventLog,
) -> None:
    """A log that is older than a table: what the table has of a session may be its newest part."""
    session = await rich_history(log)
    expected = await session.messages(), await session.runs(), await session.usage()
    await project_all(log)
    store: Any = log.store
    async with store.connection() as connection:
        for table in ("message_views", "run_views", "usage_views", "scratchpad_views"):
            await connection.execute(f"delete from eventlog.{table}")
        assert await session.messages() == []
        await connection.execute("update eventlog.view_versions set version = 0")

    assert (await session.messages(), await session.runs(), await session.usage()) == expected


async def test_runs_when_filtered_are_newest_first(any_log: EventLog) -> None:
    """By status, at most so many, with what each of them came to."""
    session = await any_log.create_session()
    await session.append([RunStarted(run_id=f"r{number}", agent="a") for number in range(4)])
    used = Usage(input_tokens=3)
    await session.append([RunFinished(run_id="r1", usage=used), RunFailed(run_id="r2", error="no")])
    await refresh(any_log)

    assert [each.run_id for each in await session.runs(limit=3)] == ["r3", "r2", "r1"]
    assert [each.run_id for each in await session.runs(status="running")] == ["r3", "r0"]
    (finished,) = await session.runs(status="finished")
    assert (finished.usage, finished.started_seq, finished.ended_seq) == (used, 3, 6)
    (failed,) = await session.runs(status="failed")
    assert failed.error == "no"


async def test_agents_when_handed_on_are_all_there(any_log: EventLog) -> None:
    """Who answers, who took part, and every hand-off with its context."""
    session = await any_log.create_session()
    await session.append(AgentActivated(agent="planner"))
    await session.append(AgentHandedOff(to_agent="co\u0000der", context={"why": [None, 1]}))
    await session.append(AgentHandedOff(to_agent="planner"))
    await refresh(any_log)

    found = await session.agents()

    assert (found.current, found.used) == ("planner", ["planner", "co\u0000der"])
    assert [(each.from_agent, each.to_agent, each.context) for each in found.handoffs] == [
        ("planner", "co\u0000der", {"why": [None, 1]}),
        ("co\u0000der", "planner", None),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": 1_001},
        {"limit": True},
        {"role": "model"},
        {"role": []},
        {"role": ["user", "model"]},
        {"before": -1},
        {"after": 1.5},
        {"min_seq": 99},
    ],
)
async def test_messages_when_asked_for_nonsense_refuses(
    any_log: EventLog, wrong: dict[str, Any]
) -> None:
    """With a message that says what would do."""
    session = await any_log.create_session()

    with refused(InvalidRequest):
        await session.messages(**wrong)
    with refused(InvalidRequest):
        await session.runs(status="done")  # type: ignore[arg-type]


async def test_session_when_of_another_tenant_is_not_found_by_any_question(
    log: EventLog, open_log: OpenLog
) -> None:
    """Not by its UUID either: by which everything could be asked for that takes a session."""
    theirs = await (await open_log(tenant_id=7)).create_session(user_id="ada")
    await theirs.append(message("secret"))
    await project_all(log)

    with refused(SessionNotFound):
        await log.session(theirs.id)
    with refused(SessionNotFound):
        await log.create_session(theirs.id)
    with refused(SessionNotFound):
        await log.search("secret", session=theirs.id)
    with refused(SessionNotFound):
        await log.usage(session=theirs.id)
    for demand in (1, 2):
        with refused(SessionNotFound):
            await log.sessions(min_seq={theirs.id: demand})
        with refused(SessionNotFound):
            await log.search("secret", min_seq={theirs.id: demand})
    assert (await log.search("secret")).items == []
    assert (await log.search("secret", user_id="ada")).items == []
    assert (await log.sessions(user_id="ada")).items == []
    assert await log.usage(by="session") == []


async def test_messages_when_inherited_ones_are_not_folded_are_lost(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the folding of forks is for: the control of the tests above."""
    parent = await log.create_session()
    await parent.append(message("one"))
    fork = await parent.fork()
    await fork.append(message("two"))
    await project_all(log)
    assert len(await fork.messages()) == 2

    monkeypatch.setattr(session_queries, "_reaches_parent", lambda page, wanted: False)

    assert len(await fork.messages()) == 1
