"""The views equal the fold of the log, at every checkpoint, however the way there was cut up."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from eventlog import EventLog, MessageAdded
from eventlog import events as ev
from eventlog.envelope import RecordedEvent
from eventlog.testing import message, rich_history
from eventlog.views import escape_text, unescape_text
from projections.checkpoint import postgres_of
from projections.folding import Folder
from projections.projection import VIEWS, Projection
from tests.projections.checks import (
    Bomb,
    Crash,
    commands_of,
    commit,
    differences,
    project_all,
    session_in_shard,
    step,
    take_over,
    take_shards,
)
from tests.strategies import histories

SHARD = 5
HOW = st.sampled_from(("go on", "go on", "go on", "die writing", "die after", "forget"))


@settings(
    max_examples=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
@given(
    pasts=st.lists(histories(actions_max=15, forks=True), min_size=1, max_size=3),
    data=st.data(),
)
async def test_views_when_projected_in_any_steps_equal_the_fold(
    log: EventLog, pasts: list[list[RecordedEvent]], data: st.DataObject
) -> None:
    """Any batches, with a memory too small, dying in between, taken over: the fold, each time."""
    await release_all(log)  # the example before may have held them
    bomb = Bomb()
    (lease,) = [each for each in await take_shards(log) if each.shard == SHARD]
    projection = new_projection(log, bomb)
    progress = await projection.begin(lease)
    while await step(log, projection, progress):
        pass
    waiting = [commands_of(log, past, SHARD) for past in pasts]
    sessions = {command.session_id for each in waiting for command in each}
    while any(waiting):
        turn = data.draw(st.sampled_from([each for each in waiting if each]), "whose event")
        await commit(log, turn.pop(0))
    (head,) = [h for shard, h in enumerate(await log.store.feed_heads()) if shard == SHARD]

    while progress.position < head:
        how = data.draw(HOW, "how")
        bomb.armed = how == "die writing"
        try:
            await step(log, projection, progress, limit=data.draw(st.integers(1, 7), "rows"))
        except Crash:
            assert how == "die writing"
        if how in ("die writing", "die after"):
            lease = await take_over(log, lease)
            projection = new_projection(log, bomb)
            progress = await projection.begin(lease)
        elif how == "forget":
            projection.folder.forget(SHARD)
        assert await differences(log, only=sessions) == []


def new_projection(log: EventLog, bomb: Bomb) -> Projection:
    """What a new process begins with; it remembers two sessions at most."""
    folder = Folder(postgres_of(log), log.replayer, sessions_max=2)
    return Projection(log, views=(*VIEWS, bomb), folder=folder)


async def release_all(log: EventLog) -> None:
    """Let the next who asks have the shards."""
    async with postgres_of(log).connection() as connection:
        await connection.execute("update eventlog.leases set expires_at = '-infinity'")


async def test_views_when_everything_happened_equal_the_fold(log: EventLog) -> None:
    """A session in which everything happens, a fork of it from inside a frame, a fork of that."""
    session = await rich_history(log)
    frames = [
        each
        async for each in session.read(frames=True)
        if isinstance(each.event, ev.TokensAppended)
    ]
    fork = await session.fork(at=frames[0].seq - 1)
    await fork.append(message("elsewhere"))
    again = await fork.fork(at=frames[0].seq - 1)
    await again.clear()
    await again.append([message("anew"), ev.SessionUpdated(title="\u241b\u0000")])
    await again.rewind(to=frames[0].seq + 2)
    gone = await log.create_session()
    await gone.append(message())
    await gone.delete()

    await project_all(log)

    assert await differences(log) == []


async def test_views_when_a_session_is_long_equal_the_fold(log: EventLog) -> None:
    """Hundreds of messages, cleared, rewound to before the clearing, projected in between."""
    session = await log.create_session()
    for _ in range(3):
        await session.append([message(str(each)) for each in range(200)])
        await project_all(log)
    await session.clear()
    await project_all(log)
    assert await differences(log) == []
    await session.append([message("after") for _ in range(300)])
    await project_all(log)
    assert await differences(log) == []
    await session.rewind(to=400)
    await session.undo(3)
    await session.append([message("again") for _ in range(5)])
    await project_all(log)

    assert await differences(log) == []


@pytest.mark.parametrize("long", ["x" * 50_000, "\u0000\u241b" * 20_000])
async def test_views_when_names_are_long_or_odd_take_them(log: EventLog, long: str) -> None:
    """A user's id, a key, a message id, an agent's name of any length, NUL included."""
    created = ev.SessionCreated(key=long, user_id=long, title=long, metadata={long: long})
    session = await log.create(created)
    await session.append(MessageAdded(role="user", message_id=long, agent=long, name=long))
    await session.append(
        [ev.AgentHandedOff(to_agent=long, context=long), ev.AgentActivated(agent="")]
    )

    await project_all(log)

    assert await differences(log) == []
    (found,) = (await log.sessions(user_id=long, agent=long)).items
    assert (found.key, found.agents) == (long, [long, ""])


async def test_views_when_projected_by_two_tenants_know_whose_they_are(
    log: EventLog, open_log: object
) -> None:
    """One projector serves all tenants; each tenant lists its own sessions."""
    other = await open_log(tenant_id=7)  # type: ignore[operator]
    mine = await log.create_session(user_id="ada")
    theirs = await other.create_session(user_id="ada")

    await project_all(log)

    assert [each.session_id for each in (await log.sessions(user_id="ada")).items] == [mine.id]
    assert [each.session_id for each in (await other.sessions()).items] == [theirs.id]


async def test_checker_when_a_row_is_altered_finds_it(log: EventLog) -> None:
    """A check that can't fail proves nothing: planted faults are found, each of them."""
    session = await session_in_shard(log, SHARD, user_id="ada")
    await session.append([message("one"), message("two")])
    await project_all(log)
    assert await differences(log) == []
    planted = (
        "update eventlog.session_views set title = 'x'",
        "update eventlog.session_views set position = position - 1",
        "update eventlog.session_views set owner_id = null",
        "update eventlog.message_views set hidden = true where ordinal = 1",
        "update eventlog.message_views"
        " set body = overlay(body placing 'T' from position('two' in body)) where ordinal = 1",
        "delete from eventlog.message_views where ordinal = 0",
        "delete from eventlog.session_views",
        "update eventlog.checkpoints set position = position - 1",
    )

    for statement in planted:
        async with postgres_of(log).connection() as connection:
            await connection.execute(statement)
        assert await differences(log), statement
        async with postgres_of(log).connection() as connection:
            await connection.execute("delete from eventlog.session_views")
            await connection.execute("delete from eventlog.message_views")
            await connection.execute("delete from eventlog.checkpoints")
        await project_all(log)
        assert await differences(log) == []


@given(st.text(alphabet=st.sampled_from("a\0\u241b\u2400")) | st.text())
@example("\u241b\u2400")
def test_escaping_when_undone_gives_the_text_back(text: str) -> None:
    """Any text has a form without NUL, of which there is one, and which leads back."""
    escaped = escape_text(text)

    assert "\0" not in escaped
    assert unescape_text(escaped) == text
