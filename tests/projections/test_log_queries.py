"""Lists, sums and searches over many sessions: what the fold of each of them says, on both stores.

A small world is made at random, by a seed: users, agents, forks of forks, deletions, usage. The
views are brought up to date halfway, so that with `min_seq` every question meets sessions that the
views know, know too little of, and don't know.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from eventlog import (
    AgentActivated,
    EventLog,
    Hit,
    InvalidRequest,
    Session,
    SessionNotFound,
    SessionState,
    SessionView,
    Usage,
    UsageRow,
)
from eventlog.envelope import new_id
from eventlog.events import Role
from eventlog.reading import listing
from eventlog.reading.spending import By
from eventlog.search.query import parse_query
from eventlog.search.text import searchable_text
from eventlog.testing import message, refused
from eventlog.views import place_of, title_text, view_of
from projections.checkpoint import postgres_of
from tests.projections.test_lists import keys, refresh
from tests.projections.test_session_queries import expected_usage, folded

USERS = ("ada", "b\u0000b", None)
WORDS = ("rate", "limits", "get_user", "中文搜索", "nothing", "\u241b", "plan")
SEEDS = (1, 2, 3)
NAIVE = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
Demands = Mapping[Session | UUID | str, int]


class World:
    """Sessions in which things happen by chance."""

    def __init__(self, log: EventLog, seed: int) -> None:
        self.log = log
        self.chance = random.Random(seed)
        self.sessions: list[Session] = []
        self._gone: set[UUID] = set()

    async def happen(self, times: int) -> None:
        """Let so many things happen."""
        for _ in range(times):
            alive = [each for each in self.sessions if each.id not in self._gone]
            if len(alive) < 3 or self.chance.random() < 0.2:
                await self._begin(alive)
            else:
                await self._go_on(self.chance.choice(alive))

    async def _begin(self, alive: list[Session]) -> None:
        pick = self.chance.choice
        title = f"{pick(WORDS)} {pick(WORDS)}"
        if alive and self.chance.random() < 0.6:
            fork = await pick(alive).fork(user_id=pick((None, "ada", "b\u0000b")), title=title)
            self.sessions.append(fork)
            return
        key = f"k{len(self.sessions)}"
        self.sessions.append(await self.log.create_session(key, user_id=pick(USERS), title=title))

    async def _go_on(self, session: Session) -> None:
        kind = self.chance.randrange(12)
        words = " ".join(self.chance.choices(WORDS, k=3))
        if kind < 6:
            role: Role = self.chance.choice(("user", "assistant", "tool"))
            agent = self.chance.choice(("planner", "co\u0000der")) if role == "assistant" else None
            used = Usage(input_tokens=self.chance.randrange(99), output_tokens=1)
            await session.append(
                message(words, role, agent=agent, usage=used if role == "assistant" else None)
            )
        elif kind == 6:
            await session.undo()
        elif kind == 7:
            await session.clear()
        elif kind == 8:
            head = await session.head()
            try:
                await session.rewind(to=self.chance.randint(1, head))
            except InvalidRequest:
                await session.append(message(words))
        elif kind == 9:
            await session.append(AgentActivated(agent="critic"))
        elif kind == 10:
            await session.update(title=words)
        else:
            await (session.close() if self.chance.random() < 0.5 else session.delete())
            self._gone.add(session.id)

    async def demands(self) -> Demands:
        """Every session, as it is now."""
        return {each: await each.head() for each in self.sessions}

    async def states(self) -> list[SessionState]:
        """Every session's fold."""
        return [await folded(self.log, each.id) for each in self.sessions]


async def make_world(log: EventLog, seed: int, *, behind: bool = True) -> tuple[World, Demands]:
    """A world whose views are behind, or not, and what to demand of it to see it as it is."""
    world = World(log, seed)
    await world.happen(60)
    await refresh(log)
    if behind:
        await world.happen(25)
    return world, await world.demands() if behind else {}


# --- lists ---------------------------------------------------------------------------------------

SHOWS: dict[str, tuple[dict[str, Any], Callable[[SessionView], bool]]] = {
    "all": ({}, lambda view: True),
    "user": ({"user_id": "b\u0000b"}, lambda view: view.user_id == "b\u0000b"),
    "status": ({"status": "closed"}, lambda view: view.status == "closed"),
    "agent": ({"agent": "co\u0000der"}, lambda view: "co\u0000der" in view.agents),
    "text": ({"text": "limit"}, lambda view: parse_query("limit").matches(title_text(view))),
    "key": ({"text": "k1"}, lambda view: parse_query("k1").matches(title_text(view))),
    "together": (
        {"text": "-rate 中文", "user_id": "ada", "status": "open"},
        lambda view: (
            view.user_id == "ada"
            and view.status == "open"
            and parse_query("-rate 中文").matches(title_text(view))
        ),
    ),
}


@pytest.mark.parametrize("behind", [True, False], ids=["behind", "caught up"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_list_when_filtered_in_any_way_shows_what_the_folds_say(
    any_log: EventLog, seed: int, behind: bool
) -> None:
    """Every filter, page by page, flat and nested; forks under their parents."""
    world, demands = await make_world(any_log, seed, behind=behind)
    views = [view_of(state) for state in await world.states()]
    listed = sorted(
        (view for view in views if view.status in ("open", "closed")), key=place_of, reverse=True
    )
    middle = listed[len(listed) // 2].updated_at
    questions = {**SHOWS, "since": ({"updated_after": middle}, lambda v: v.updated_at > middle)}
    for name, (asked, shows) in questions.items():
        user = asked.get("user_id")
        mine = [view for view in listed if user is None or view.user_id == user]
        mine_ids = {view.session_id for view in mine}
        flat = [view for view in mine if shows(view)]
        assert await all_pages(any_log, asked, demands) == flat, name
        top = [view for view in flat if view.parent_session_id not in mine_ids]
        assert await all_pages(any_log, {**asked, "forks": "nested"}, demands) == top, name
        page = await any_log.sessions(**asked, forks="nested", limit=1_000, min_seq=demands)
        assert page.more_forks == []
        assert page.forks == families(page.items, mine), name


def families(top: list[SessionView], mine: list[SessionView]) -> dict[UUID, list[SessionView]]:
    """The forks below some sessions."""
    found: dict[UUID, list[SessionView]] = {}
    level = [view.session_id for view in top]
    while level:
        parent = level.pop()
        forks = [view for view in mine if view.parent_session_id == parent]
        if forks:
            found[parent] = forks
            level += [view.session_id for view in forks]
    return found


async def all_pages(log: EventLog, asked: dict[str, Any], demands: Demands) -> list[SessionView]:
    """The whole list, three at a time."""
    found: list[SessionView] = []
    cursor = None
    while True:
        page = await log.sessions(**asked, limit=3, cursor=cursor, min_seq=demands)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


async def test_list_when_nested_shows_forks_under_their_parents(any_log: EventLog) -> None:
    """A fork is at the top when its parent isn't there for the asker: deleted, or another's."""
    root = await any_log.create_session("root", user_id="ada")
    first = await root.fork(key="first")
    await first.fork(key="deep")
    await root.fork(key="bobs", user_id="bob")
    gone = await any_log.create_session("gone", user_id="ada")
    await gone.fork(key="orphan")
    await gone.delete()
    await refresh(any_log)

    everything = await any_log.sessions(forks="nested")
    adas = await any_log.sessions(forks="nested", user_id="ada")
    bobs = await any_log.sessions(forks="nested", user_id="bob")

    assert keys(everything) == keys(adas) == ["orphan", "root"]
    assert [v.key for v in everything.forks[root.id]] == ["bobs", "first"]
    assert [v.key for v in adas.forks[root.id]] == ["first"]
    assert [v.key for v in adas.forks[first.id]] == ["deep"]
    assert (keys(bobs), bobs.forks) == (["bobs"], {})
    assert set(keys(await any_log.sessions())) == {"root", "first", "deep", "bobs", "orphan"}


async def test_list_when_there_are_too_many_forks_says_where(
    any_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In breadth, in depth and altogether."""
    root = await any_log.create_session("root")
    forks = [await root.fork(key=f"f{number}") for number in range(4)]
    below = await forks[3].fork(key="below")
    await below.fork(key="bottom")
    await refresh(any_log)
    monkeypatch.setattr(listing, "FORKS_PER_SESSION_MAX", 3)
    monkeypatch.setattr(listing, "FORK_LEVELS_MAX", 2)

    page = await any_log.sessions(forks="nested")

    assert [view.key for view in page.forks[root.id]] == ["f3", "f2", "f1"]
    assert [view.key for view in page.forks[forks[3].id]] == ["below"]
    assert set(page.more_forks) == {root.id, below.id}
    monkeypatch.setattr(listing, "FORKS_PER_PAGE_MAX", 2)
    page = await any_log.sessions(forks="nested")
    assert [view.key for view in page.forks[root.id]] == ["f3", "f2"]
    assert set(page.more_forks) == {root.id, forks[3].id}


async def test_list_when_its_sessions_must_be_new_moves_them_in_and_out(log: EventLog) -> None:
    """With the projector stopped: new, renamed, closed, deleted ones; without `min_seq` as ever."""
    for key in ("stays", "renamed", "closed", "deleted"):
        await log.create_session(key, user_id="ada", title="plan")
    await refresh(log)
    demands: dict[Session | UUID | str, int] = {}
    made = await log.create_session("made", user_id="ada", title="plan")
    demands[made] = 1
    demands["renamed"] = (await (await log.session("renamed")).update(title="x")).last_seq
    closed = await log.session("closed")
    demands[closed.id] = (await closed.close()).last_seq
    demands["deleted"] = (await (await log.session("deleted")).delete()).last_seq

    old = await log.sessions(text="plan", status="open")
    new = await log.sessions(text="plan", status="open", min_seq=demands)

    assert sorted(map(str, keys(old))) == ["closed", "deleted", "renamed", "stays"]
    assert keys(new) == ["made", "stays"]


async def test_pages_when_sessions_move_repeat_none(any_log: EventLog) -> None:
    """Cursors hold places, also in nested and searched lists, and while rows are demanded."""
    sessions = [await any_log.create_session(f"k{n}", title="plan") for n in range(6)]
    await refresh(any_log)
    for asked in ({}, {"forks": "nested"}, {"text": "plan"}):
        first = await any_log.sessions(**asked, limit=3)  # type: ignore[arg-type]
        moved = next(s for s in sessions if s.id not in {v.session_id for v in first.items})
        done = await moved.append(message())
        rest = await any_log.sessions(
            **asked,  # type: ignore[arg-type]
            limit=10,
            cursor=first.cursor,
            min_seq={moved: done.last_seq},
        )
        await refresh(any_log)
        assert moved.id not in {view.session_id for view in rest.items}
        assert len(rest.items) == 2


# --- usage ---------------------------------------------------------------------------------------

BYS: tuple[By | tuple[By, ...], ...] = (
    "day",
    "user",
    "agent",
    "model",
    "session",
    ("day", "model"),
    ("user", "agent"),
    (),
)
NAMES = {"day": "day", "user": "user_id", "agent": "agent", "model": "model"}


def added_up(rows: list[UsageRow], by: str | tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Sums, as plainly as can be; what is asked by first, then the numbers."""
    names = [NAMES.get(each, "session_id") for each in ([by] if isinstance(by, str) else by)]
    sums: defaultdict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 5)
    for row in rows:
        numbers = (
            row.generations,
            row.input_tokens,
            row.output_tokens,
            row.cached_tokens,
            row.reasoning_tokens,
        )
        key = tuple(getattr(row, name) for name in names)
        sums[key] = [a + b for a, b in zip(sums[key], numbers, strict=True)]
    return sorted([(*key, *numbers) for key, numbers in sums.items()], key=str)


@pytest.mark.parametrize("behind", [True, False], ids=["behind", "caught up"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_usage_when_summed_in_any_way_is_what_the_folds_spent(
    any_log: EventLog, seed: int, behind: bool
) -> None:
    """By everything and nothing, of users, sessions and days; deleted sessions count."""
    world, demands = await make_world(any_log, seed, behind=behind)
    rows = [row for state in await world.states() for row in expected_usage(state)]
    assert rows
    one = world.sessions[0]
    today = datetime.now(UTC).date()
    later = today + timedelta(days=2)
    questions: list[tuple[dict[str, Any], list[UsageRow]]] = [
        ({}, rows),
        ({"user_id": "ada"}, [row for row in rows if row.user_id == "ada"]),
        ({"session": one}, [row for row in rows if row.session_id == one.id]),
        ({"since": later}, []),
        ({"until": later, "since": date(2020, 1, 1)}, rows),
    ]
    for by in BYS:
        for asked, expected in questions:
            found = await any_log.usage(by=by, **asked, min_seq=demands)
            assert added_up(found, by) == added_up(expected, by), (by, asked)
    in_order = await any_log.usage(by=("user", "agent"), min_seq=demands)
    named = [(row.user_id or "", row.agent or "") for row in in_order]
    assert named == sorted(named)


async def test_usage_when_behind_is_exact_for_what_is_demanded(log: EventLog) -> None:
    """With the projector stopped: what was spent since counts with `min_seq`, and only then."""
    used = Usage(input_tokens=10, output_tokens=1)
    session = await log.create_session("k")
    await session.append(message("a", "assistant", usage=used))
    await refresh(log)
    done = await session.append(message("b", "assistant", usage=used))

    (old,) = await log.usage(by="session")
    (new,) = await log.usage(by="session", min_seq={"k": done.last_seq})

    assert (old.generations, old.input_tokens) == (1, 10)
    assert (new.generations, new.input_tokens, new.session_id) == (2, 20, session.id)


# --- search --------------------------------------------------------------------------------------


def expected_hits(states: list[SessionState], asked: dict[str, Any], text: str) -> list[UUID]:
    """Which messages must be found, newest first, as ids made of session and seq."""
    query = parse_query(text)
    found = []
    for state in states:
        if state.status == "deleted" or asked.get("user_id") not in (None, state.user_id):
            continue
        for each in state.messages:
            roles = asked.get("role")
            if (
                (asked.get("session") is None or asked["session"].id == state.session_id)
                and (each.seq > state.parent_seq or asked.get("session") is not None)
                and (roles is None or each.role in roles)
                and (asked.get("agent") is None or each.agent == asked["agent"])
                and (asked.get("since") is None or each.recorded_at >= asked["since"])
                and (asked.get("until") is None or each.recorded_at < asked["until"])
                and query.matches(searchable_text(each))
            ):
                found.append((each.recorded_at, state.session_id, each.seq))
    return [UUID(int=place[1].int ^ place[2]) for place in sorted(found, reverse=True)]


async def all_hits(
    log: EventLog, text: str, asked: dict[str, Any], demands: Demands, limit: int
) -> list[Hit]:
    """All hits, page by page."""
    hits: list[Hit] = []
    cursor = None
    while True:
        page = await log.search(text, **asked, limit=limit, cursor=cursor, min_seq=demands)
        hits += page.items
        cursor = page.cursor
        if cursor is None:
            return hits
        assert len(page.items) == limit


@pytest.mark.parametrize("behind", [True, False], ids=["behind", "caught up"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_search_when_narrowed_in_any_way_finds_what_the_folds_say(
    any_log: EventLog, seed: int, behind: bool
) -> None:
    """Newest first, page by page; nothing hidden, deleted, or of someone else's."""
    world, demands = await make_world(any_log, seed, behind=behind)
    states = await world.states()
    times = sorted(each.recorded_at for state in states for each in state.messages)
    since, until = times[len(times) // 4], times[3 * len(times) // 4]
    alive = [s for s, state in zip(world.sessions, states, strict=True) if state.messages]
    questions: list[dict[str, Any]] = [
        {},
        {"user_id": "ada"},
        {"role": ("user", "tool")},
        {"agent": "co\u0000der"},
        {"since": since, "until": until},
        {"user_id": "ada", "role": ("assistant",), "agent": "planner"},
        *({"session": session} for session in alive[:3]),
    ]
    for text in ("limit", "中文 -rate", '"get_user"', "nosuchword"):
        for asked in questions:
            hits = await all_hits(any_log, text, asked, demands, 4)
            ids = [UUID(int=hit.session_id.int ^ hit.seq) for hit in hits]
            assert ids == expected_hits(states, asked, text), (text, asked)


async def test_search_when_it_finds_shows_why(any_log: EventLog) -> None:
    """Who said it, where, when, and the words highlighted."""
    session = await any_log.create_session("chat", user_id="ada", title="Weather")
    told = message("It will rain in Kyōto tomorrow", "assistant", agent="planner", message_id="m1")
    done = await session.append(told)
    await refresh(any_log)

    (hit,) = (await any_log.search("rains kyoto", user_id="ada")).items

    assert (hit.session_id, hit.seq, hit.message_id) == (session.id, done.last_seq, "m1")
    assert (hit.role, hit.agent, hit.recorded_at) == ("assistant", "planner", done.recorded_at)
    assert (hit.session_key, hit.session_title) == ("chat", "Weather")
    assert [hit.snippet.text[a:b] for a, b in hit.snippet.highlights] == ["rain", "Kyōto"]


async def test_search_when_a_page_was_read_goes_on_behind_it(any_log: EventLog) -> None:
    """Messages that come meanwhile are before it, and change nothing behind it."""
    session = await any_log.create_session()
    for number in range(5):
        await session.append(message(f"word {number}"))
    await refresh(any_log)
    first = await any_log.search("word", limit=2)
    await session.append(message("word new"))
    await refresh(any_log)

    rest = await any_log.search("word", limit=10, cursor=first.cursor)

    assert [hit.snippet.text for hit in first.items] == ["word 4", "word 3"]
    assert [hit.snippet.text for hit in rest.items] == ["word 2", "word 1", "word 0"]


@pytest.mark.parametrize("newest", ["few", "walk", "words"])
async def test_search_when_it_takes_any_way_finds_the_same(
    log: EventLog, postgres_url: str, newest: str
) -> None:
    """A session of more messages than are looked at one by one; words that are old, new, rare."""
    session = await log.create_session("long", user_id="ada")
    count = {"few": 50, "walk": 1_500, "words": 2_500}[newest]
    for start in range(0, count, 500):
        upto = min(start + 500, count)
        texts = [f"every {'old' if n < count // 4 else 'new'} n{n}" for n in range(start, upto)]
        await session.append([message(text) for text in texts])
    await refresh(log)
    async with postgres_of(log).connection() as connection:
        await connection.execute("reset role")
        await connection.execute("analyze eventlog.message_views")
        await connection.execute("set role eventlog_app")

    for asked in ({}, {"user_id": "ada"}, {"session": session}):
        for text, numbers in {
            "every": range(count - 1, count - 31, -1),
            "old": range(count // 4 - 1, max(-1, count // 4 - 31), -1),
            "n7": [n for n in range(count - 1, -1, -1) if str(n).startswith("7")][:30],
        }.items():
            page = await log.search(text, limit=30, **asked)
            found = [int(hit.snippet.text.split("n")[-1]) for hit in page.items]
            assert found == list(numbers), (asked, text)


# --- refusing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "wrong"),
    [
        ("sessions", {"forks": "tree"}),
        ("sessions", {"text": "-only"}),
        ("sessions", {"updated_after": NAIVE}),
        ("sessions", {"min_seq": {"k": 99}}),
        ("sessions", {"min_seq": {"k": -1}}),
        ("sessions", {"min_seq": {f"k{n}": 1 for n in range(101)}}),
        ("usage", {"by": "week"}),
        ("usage", {"by": ("day", "week")}),
        ("usage", {"since": datetime(2026, 1, 1, tzinfo=UTC)}),
        ("search", {"text": ""}),
        ("search", {"text": "x" * 501}),
        ("search", {"text": "a", "limit": 201}),
        ("search", {"text": "a", "role": "model"}),
        ("search", {"text": "a", "since": NAIVE}),
        ("search", {"text": "a", "cursor": "nonsense"}),
        ("search", {"text": "a", "cursor": "x" * 10_000}),
    ],
)
async def test_question_when_it_makes_no_sense_is_refused(
    any_log: EventLog, question: str, wrong: dict[str, Any]
) -> None:
    """With a message that says what would do."""
    await any_log.create_session("k")

    with refused(InvalidRequest):
        await getattr(any_log, question)(**wrong)


async def test_question_when_of_an_unknown_session_says_so(any_log: EventLog) -> None:
    """By key or id, asked about or demanded."""
    for unknown in ("never made", new_id()):
        with refused(SessionNotFound):
            await any_log.search("a", session=unknown)
        with refused(SessionNotFound):
            await any_log.usage(session=unknown)
        with refused(SessionNotFound):
            await any_log.sessions(min_seq={unknown: 1})
