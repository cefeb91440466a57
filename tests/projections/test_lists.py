"""Lists of sessions: newest activity first, page by page, the same in memory and on Postgres."""

from __future__ import annotations

import base64

import pytest

from eventlog import AgentActivated, EventLog, InvalidRequest, SessionPage
from eventlog.memory import MemoryStore
from eventlog.testing import message, refused
from tests.projections.checks import project_all


async def refresh(log: EventLog) -> None:
    """Bring the views up to date, where there are any."""
    if not isinstance(log.store, MemoryStore):
        await project_all(log)


def keys(page: SessionPage) -> list[str | None]:
    """The keys of a page's sessions."""
    return [each.key for each in page.items]


async def test_list_when_paged_shows_every_session_once(any_log: EventLog) -> None:
    """Newest activity first; the last page has no cursor."""
    for place in range(7):
        await any_log.create_session(f"k{place}", user_id="ada")
    oldest = await any_log.session("k0")
    await oldest.append(message("active again"))
    await refresh(any_log)
    found, cursor = [], None
    while True:
        page = await any_log.sessions(user_id="ada", limit=3, cursor=cursor)
        found += keys(page)
        cursor = page.cursor
        if cursor is None:
            break
        assert len(page.items) == 3

    assert found == ["k0", "k6", "k5", "k4", "k3", "k2", "k1"]
    assert keys(await any_log.sessions()) == found
    assert keys(await any_log.sessions(limit=7)) == found
    assert (await any_log.sessions(limit=7)).cursor is None


async def test_list_when_filtered_shows_what_was_asked_for(any_log: EventLog) -> None:
    """By user, status and agent, also together; a deleted session is in no list."""
    ada = await any_log.create_session("a", user_id="ada")
    bob = await any_log.create_session("b", user_id="b\u0000b")
    nobody = await any_log.create_session("n")
    gone = await any_log.create_session("g", user_id="ada")
    await bob.append(AgentActivated(agent="pla\u0000nner"))
    await nobody.append([AgentActivated(agent="pla\u0000nner"), AgentActivated(agent="coder")])
    await ada.close()
    await gone.delete()
    await refresh(any_log)

    assert keys(await any_log.sessions(user_id="ada")) == ["a"]
    assert keys(await any_log.sessions(user_id="b\u0000b")) == ["b"]
    assert keys(await any_log.sessions(user_id="eve")) == []
    assert keys(await any_log.sessions(status="closed")) == ["a"]
    assert sorted(map(str, keys(await any_log.sessions(status="open")))) == ["b", "n"]
    assert keys(await any_log.sessions(agent="pla\u0000nner")) == ["n", "b"]
    assert keys(await any_log.sessions(agent="pla\u0000nner", user_id="b\u0000b")) == ["b"]
    assert (await gone.view()).status == "deleted"


async def test_list_when_sessions_move_repeats_none(any_log: EventLog) -> None:
    """A session that becomes active between two pages isn't shown a second time."""
    for place in range(6):
        await any_log.create_session(f"k{place}")
    await refresh(any_log)
    first = await any_log.sessions(limit=3)
    moved = await any_log.session("k5")
    await moved.append(message())
    await refresh(any_log)

    rest = await any_log.sessions(limit=10, cursor=first.cursor)

    assert keys(first) == ["k5", "k4", "k3"]
    assert keys(rest) == ["k2", "k1", "k0"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": 1_001},
        {"limit": True},
        {"status": "deleted"},
        {"status": "opened"},
        {"cursor": ""},
        {"cursor": "nonsense"},
        {"cursor": "é"},
        {"cursor": base64.urlsafe_b64encode(b"\x92\x01\x02").decode()},
        {"cursor": base64.urlsafe_b64encode(b"\x92\xcf" + b"\xff" * 8 + b"\xc0").decode()},
    ],
)
async def test_list_when_asked_for_nonsense_refuses(
    any_log: EventLog, wrong: dict[str, object]
) -> None:
    """With a message that says what would do."""
    with refused(InvalidRequest):
        await any_log.sessions(**wrong)  # type: ignore[arg-type]


async def test_list_when_no_projector_ran_is_empty(log: EventLog) -> None:
    """Lists come from the views; a single session's view comes from the log then."""
    session = await log.create_session("k", user_id="ada")

    assert (await log.sessions()).items == []
    assert (await session.view()).key == "k"
