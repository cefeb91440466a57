"""A large log with its views, written as sets: what the read side is measured and planned on.

Everything is made inside Postgres from numbers, so that a million messages take seconds, not
minutes. The rows are of the shape that projectors write, but of no fold: nothing here may be
replayed. Words are as uneven as in life:

    the       in every message          rate      in one of ten
    limit     in one of a hundred       w<n>      in 20 messages each, all of them old or new
    gone      in every one of the older half, and in none since

One user has nearly all sessions, the others a hundred each; every fiftieth session is a fork.
"""

from __future__ import annotations

from hashlib import md5
from typing import Any, Final
from uuid import UUID

import asyncpg

from eventlog.envelope import owner_id_of

SHARDS: Final = 16
HEAVY_USER: Final = "ada"
LIGHT_USERS: Final = tuple(f"user{number}" for number in range(100))
SESSIONS_PER_LIGHT_USER: Final = 100
INDEXES: Final = ("message_views_search", "message_views_newest", "session_views_search")
"""Built after the rows: that takes half the time."""

_SESSIONS: Final = """
create temp table made as
select i, id, at, name, owner, replace(owner::text, '-', '') as owner_hex,
  ((get_byte(uuid_send(id), 14) * 256 + get_byte(uuid_send(id), 15)) % 16)::smallint as shard
from (
  select i, md5('s' || i)::uuid as id,
    timestamptz '2026-01-01' + i * interval '1 minute' as at,
    case when i > $2 then $3::text[] else $4::text[] end as names,
    case when i > $2 then $5::uuid[] else $6::uuid[] end as owners
  from generate_series(1, $1::int) as t (i)
) t
cross join lateral (
  select names[1 + i % cardinality(names)] as name, owners[1 + i % cardinality(owners)] as owner
) o
"""
_SESSION_VIEWS: Final = """
insert into eventlog.session_views (
  session_id, owner_id, parent_session_id, created_at, updated_at, seq, position, parent_seq,
  message_count, token_count, context_token_count, input_tokens, output_tokens, cached_tokens,
  reasoning_tokens, compaction_count, run_count, tenant_id, shard, status, user_id, key, title,
  current_agent, agents, metadata, search)
select id, owner, case when i % 50 = 0 then md5('s' || (i - 1))::uuid end,
  at, at, $1 + 1, i, 0, $1, 50 * $1, 50 * $1, 0, 0, 0, 0, 0, 0, 0, shard,
  case when i % 10 = 3 then 'closed' else 'open' end, name, 'chat-' || i, 'about t' || i % 1000,
  'planner', '{planner}', '{"a":1}',
  ('about:1 t' || i % 1000 || ':2 chat:4 ' || i || ':5 =t0 =u' || owner_hex)::tsvector
from made
"""
_MESSAGE_VIEWS: Final = """
insert into eventlog.message_views (
  session_id, recorded_at, seq, closed_seq, retracted_seq, token_count, ordinal, shard, hidden,
  status, role, message_id, agent, tool_call_key, body, search)
select id, at + n * interval '1 second', n + 2, n + 2, 0, 50, n, shard, (i + n) % 97 = 0,
  'complete', case n % 3 when 0 then 'user' when 1 then 'assistant' else 'tool' end, 'm' || n,
  case n % 3 when 1 then 'planner' end,
  case n % 3 when 2 then md5(i || ' ' || n / 3)::uuid end,
  convert_to('{"message_id":"m' || n || '","seq":' || n + 2 || ',"role":"user","content":"'
    || repeat('the log keeps what was said ', 7) || '","recorded_at":"2026-01-01T00:00:00Z"}',
    'UTF8'),
  ('the:1 log:2 keeps:3 w' || (i - 1) / 20 || 'x' || n || ':4 v' || (i * 7 + n) % 5000 || ':5'
   || case when (i * $1 + n) % 100 = 0 then ' limit:6' else '' end
   || case when (i * $1 + n) % 10 = 0 then ' rate:7' else '' end
   || case when i < $2 / 2 then ' gone:8' else '' end
   || ' =t0 =s' || replace(id::text, '-', '') || ' =u' || owner_hex)::tsvector
from made cross join generate_series(0, $1::int - 1) as g (n)
order by i, n
"""
_TOOL_CALLS: Final = """
insert into eventlog.tool_call_views (session_id, call_key, seq, number, shard, call_id, name)
select id, md5(i || ' ' || n / 3)::uuid, n + 2, 0, shard, 'c' || n / 3, 'look'
from made cross join generate_series(1, $1::int - 1, 3) as g (n)
"""
_EVENTS: Final = """
insert into eventlog.events
select row_number() over (partition by shard order by i, n), n, at + n * interval '1 second', id,
       gen_random_uuid(), 0, shard, 1, 10, 0, '{}'::bytea
from made cross join generate_series(1, $1::int) as g (n)
"""
_USAGE: Final = """
insert into eventlog.usage_views (
  session_id, part_key, owner_id, generations, input_tokens, output_tokens, cached_tokens,
  reasoning_tokens, tenant_id, day, shard, user_id, agent, model)
select id, md5(i || ' ' || n)::uuid, owner, 3, 900, 90, 500, 10, 0, at::date + n, shard, name,
       'planner', 'model-' || n
from made cross join generate_series(0, 1) as g (n)
"""


async def fill(
    connection: asyncpg.Connection[Any],
    *,
    sessions: int,
    messages_per_session: int,
    events_per_session: int = 0,
) -> None:
    """Write sessions with their views, build what indexes words, and let the planner know."""
    definitions = [
        await connection.fetchval(
            "select indexdef from pg_indexes where schemaname = 'eventlog' and indexname = $1", name
        )
        for name in INDEXES
    ]
    for name in INDEXES:
        await connection.execute(f"drop index eventlog.{name}")
    light = len(LIGHT_USERS) * SESSIONS_PER_LIGHT_USER
    await connection.execute("set work_mem = '256MB'; set maintenance_work_mem = '1GB'")
    await connection.execute("set jit = off; set synchronous_commit = off")
    await connection.execute(
        _SESSIONS,
        sessions,
        max(0, sessions - light),
        list(LIGHT_USERS),
        [HEAVY_USER],
        [owner_id_of(name, 0) for name in LIGHT_USERS],
        [owner_id_of(HEAVY_USER, 0)],
    )
    await connection.execute(_SESSION_VIEWS, messages_per_session)
    await connection.execute(_MESSAGE_VIEWS, messages_per_session, sessions)
    await connection.execute(_TOOL_CALLS, messages_per_session)
    await connection.execute(_USAGE)
    if events_per_session:
        await connection.execute(_EVENTS, events_per_session)
    for definition in definitions:
        await connection.execute(definition)
    await connection.execute("drop table made")
    tables = ("session_views", "message_views", "tool_call_views", "usage_views", "events")
    for table in tables:
        await connection.execute(f"vacuum analyze eventlog.{table}")


def id_of(number: int) -> UUID:
    """The id of a session by its number, from 1."""
    return UUID(md5(f"s{number}".encode(), usedforsecurity=False).hexdigest())
