"""Plans of the read side on a large log: a million events, 110,000 sessions, 330,000 messages.

Each question is asked once as the library asks it, by a connection with the library's settings and
a plan made while the tables were empty; `explain` says which indexes it took and how many pages it
touched. What runs inside functions shows no plan, but its pages count all the same.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from benchmarks.read_side import HEAVY_USER, LIGHT_USERS, fill, id_of
from eventlog.envelope import owner_id_of, shard_of
from eventlog.postgres import prepare_connection
from eventlog.queries import query
from eventlog.search.query import parse_query
from eventlog.search.scopes import owner_scope, session_scope, tenant_scope
from eventlog.views import BEFORE_ALL
from tests.sql.test_queries import connect
from tests.support.servers import TestServers, postgres_names

SESSIONS = 110_000
MESSAGES_PER_SESSION = 3
EVENTS_PER_SESSION = 10
ADA = owner_id_of(HEAVY_USER, 0)
LIGHT = owner_id_of(LIGHT_USERS[7], 0)
ONE = id_of(60_001)
PLACE = (shard_of(ONE, 16), ONE)
FOR_EVER = 2**62
LATEST = (2**53, BEFORE_ALL[1], FOR_EVER)


def listing(owner: Any, *, limit: int = 50, top: bool = False) -> tuple[Any, ...]:
    """Parameters of a list."""
    return (0, *BEFORE_ALL, None, None, limit, 0, top, [], [], 16, owner, [])


def searching(text: str, *scopes: str, session: bool = False, owner: Any = None) -> tuple[Any, ...]:
    """Parameters of a search."""
    place = PLACE if session else (None, None)
    asked = parse_query(text).tsquery(scopes)
    return (asked, *place, None, None, 0, 2**53, *LATEST, 21, [], 0, owner)


HOT: dict[str, tuple[str, tuple[Any, ...], set[str], int]] = {
    "list of a user": ("list_sessions_of_user", listing(ADA), {"session_views_of_user"}, 80),
    "list of a small user": (
        "list_sessions_of_user",
        listing(LIGHT),
        {"session_views_of_user"},
        80,
    ),
    "list of a tenant": ("list_sessions", listing(None), {"session_views_newest"}, 80),
    "nested list": (
        "list_sessions_of_user",
        listing(ADA, top=True),
        {"session_views_of_user", "session_views_pkey"},
        120,
    ),
    "forks": (
        "forks_of",
        ([id_of(number) for number in range(1_999, 2_049)], 0, 21, None, []),
        {"session_views_forks_newest"},
        250,
    ),
    "places": ("view_seqs", ([PLACE[0]], [PLACE[1]], 0), {"session_views_pkey"}, 8),
    "page of messages": (
        "session_messages",
        (*PLACE, 0, FOR_EVER, None, None, 100, False),
        {"message_views_pkey", "tool_call_views_pkey", "message_views_outputs"},
        40,
    ),
    "page of a role": (
        "session_messages",
        (*PLACE, 0, FOR_EVER, ["tool"], None, 100, False),
        {"message_views_of_role", "session_views_pkey"},
        30,
    ),
    "agents": ("session_agents", PLACE, {"session_views_pkey", "handoff_views_pkey"}, 12),
    "runs": ("session_runs", (*PLACE, None, 100), {"session_views_pkey", "run_views_newest"}, 12),
    "usage of a session": ("session_usage", PLACE, {"usage_views_pkey"}, 16),
    "scratchpad": ("session_scratchpad", PLACE, {"scratchpad_views_pkey"}, 16),
    # Inside functions:
    "sessions by a word": (
        "find_sessions",
        (*listing(None), parse_query("60001").tsquery([tenant_scope(0)])),
        set(),
        400,
    ),
    "sessions by a common word": (
        "find_sessions",
        (*listing(ADA), parse_query("chat").tsquery([owner_scope(ADA)])),
        set(),
        1_000,
    ),
    "usage of a user": (
        "usage_totals",
        (0, LIGHT, None, None, None, None, [], ["day", "model"]),
        set(),
        600,
    ),
    "search for a rare word": (
        "search_messages",
        searching('"w3000x1"', tenant_scope(0)),
        set(),
        800,
    ),
    "search for a common word": (
        "search_messages",
        searching("the", tenant_scope(0)),
        set(),
        3_000,
    ),
    "search of a user": (
        "search_messages",
        searching("the", owner_scope(LIGHT), owner=LIGHT),
        set(),
        3_500,
    ),
    "search of a session": (
        "search_messages",
        searching("the", tenant_scope(0), session_scope(ONE), session=True),
        set(),
        400,
    ),
}
"""Each question: its query, parameters, the indexes it must use, the pages it may touch."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=postgres_names()[:1])
async def large(
    request: pytest.FixtureRequest, servers: TestServers
) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection as the library has them, whose plans were made before the tables were filled."""
    async with servers.postgres(request.param).new_database(empty=False) as url:
        reader = await connect(url, role="eventlog_app")
        admin = await asyncpg.connect(url)
        await prepare_connection(reader)
        try:
            for name, arguments, _, _ in HOT.values():
                await reader.fetch(query(name), *arguments)
            await fill(
                admin,
                sessions=SESSIONS,
                messages_per_session=MESSAGES_PER_SESSION,
                events_per_session=EVENTS_PER_SESSION,
            )
            yield reader
        finally:
            await admin.close()
            await reader.close()
        await servers.forget(url)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", sorted(HOT))
async def test_question_when_the_log_is_large_touches_few_pages(
    large: asyncpg.Connection[Any], name: str
) -> None:
    """On its indexes, without reading what it doesn't show."""
    await assert_plan(large, name)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["list of a user", "page of a role", "search for a common word"])
async def test_plan_when_indexes_are_not_used_is_noticed(
    large: asyncpg.Connection[Any], name: str
) -> None:
    """The control: without walking along an index each of them costs more than it may."""
    await large.execute("set enable_indexscan = off; set enable_indexonlyscan = off")
    await large.execute("set enable_seqscan = on; set plan_cache_mode = force_custom_plan")
    try:
        with pytest.raises(AssertionError):
            await assert_plan(large, name)
    finally:
        for name_of in ("enable_indexscan", "enable_indexonlyscan", "enable_seqscan"):
            await large.execute(f"reset {name_of}")
        await large.execute("reset plan_cache_mode")


async def assert_plan(large: asyncpg.Connection[Any], name: str) -> None:
    """Ask once, and look at what it took."""
    named, arguments, indexes, pages_max = HOT[name]
    await large.fetch(query(named), *arguments)  # what a session looks up once isn't counted
    types = await _types(large, named)
    text = query(named).rstrip().rstrip(";")
    await large.execute(f"prepare asked ({types}) as {text}")
    try:
        literals = await _literals(large, named, arguments)
        found = await large.fetchval(
            f"explain (analyze, buffers, format json) execute asked ({literals})"
        )
    finally:
        await large.execute("deallocate asked")
    plan = json.loads(found)[0]["Plan"]

    used = set(_values(plan, "Index Name"))
    pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert used >= indexes, (used, plan)
    assert not set(_values(plan, "Node Type")) & {"Seq Scan", "Hash Join"}, plan
    assert pages <= pages_max, (pages, plan)


@pytest.mark.asyncio(loop_scope="module")
async def test_large_log_when_counted_is_large(large: asyncpg.Connection[Any]) -> None:
    """The size that the plans are held against."""
    events = await large.fetchval("select count(*) from eventlog.events")
    sessions = await large.fetchval("select count(*) from eventlog.session_views")

    assert events >= 1_000_000
    assert sessions >= 100_000


async def _types(connection: asyncpg.Connection[Any], name: str) -> str:
    """The parameters' types, as `prepare` wants them."""
    statement = await connection.prepare(query(name))
    types = [
        f"{each.name[:-2]}[]" if each.name.endswith("[]") else each.name
        for each in statement.get_parameters()
    ]
    return ", ".join(types)


async def _literals(
    connection: asyncpg.Connection[Any], name: str, arguments: tuple[Any, ...]
) -> str:
    """The values as SQL, written by Postgres itself."""
    statement = await connection.prepare(query(name))
    numbers = range(1, len(arguments) + 1)
    kinds = [each.name for each in statement.get_parameters()]
    casts = ", ".join(
        f"quote_nullable(${number}::{kind}::text)"
        for number, kind in zip(numbers, kinds, strict=True)
    )
    record = await connection.fetchrow(f"select {casts}", *arguments)
    assert record is not None
    return ", ".join(f"{value}::{kind}" for value, kind in zip(record.values(), kinds, strict=True))


def _values(node: dict[str, Any], key: str) -> list[str]:
    """What all nodes of a plan that ran have under a key."""
    found = [str(node[key])] if key in node else []
    for below in node.get("Plans", ()):
        found += _values(below, key)
    return found
