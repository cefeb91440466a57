-- Every query the library sends, by name. eventlog/queries.py loads this file; a test prepares each
-- of them against the real schema. Columns of rows are always those of envelope.Row, in its order.

-- name: append
-- Commits a batch of commands; see migrations/0001_log.sql.
select status, head_seq, before_seq, first_position, recorded_at
from eventlog.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25);

-- name: lock_shard
-- Keeps everybody else from appending to a shard until the transaction ends.
select pg_advisory_xact_lock('eventlog.events'::regclass::oid::int, $1);

-- name: end_backend
-- Ends a process of this login that may still execute a call which will be sent again. True: it is gone.
select coalesce(bool_and(pg_terminate_backend(pid, $2)), true) from pg_stat_activity
where pid = $1 and usename = session_user and application_name = 'eventlog';

-- name: read_session
-- A session's rows after a seq. The row that holds $4 is included, whatever its last seq.
select position, seq, recorded_at, session_id, event_id, span, type, flags, data
from eventlog.events
where shard = $1 and session_id = $2 and seq > $3 and seq - span < $4
  and seq < $4 + 256  -- no frame is longer: here the scan can stop
order by seq
limit $5;

-- name: read_structure
-- The same without token increments.
select position, seq, recorded_at, session_id, event_id, span, type, flags, data
from eventlog.events
where shard = $1 and session_id = $2 and seq > $3 and seq <= $4 and flags & 1 = 0
order by seq
limit $5;

-- name: read_seqs
-- Rows that end with one of these seqs: a probe for each, where `= any` would read the whole session.
select e.position, e.seq, e.recorded_at, e.session_id, e.event_id, e.span, e.type, e.flags, e.data
from unnest($3::bigint[]) as s (seq)
cross join lateral (
  select * from eventlog.events e where e.shard = $1 and e.session_id = $2 and e.seq = s.seq limit 1
) e;

-- name: read_by_id
-- Rows whose ids callers chose.
select position, seq, recorded_at, session_id, event_id, span, type, flags, data
from eventlog.events
where shard = $1 and session_id = $2 and event_id = any($3::uuid[]) and flags & 2 <> 0
order by seq;

-- name: read_retried
-- Rows with one of these ids behind a seq: what an append whose answer was lost may have stored.
select position, seq, recorded_at, session_id, event_id, span, type, flags, data
from eventlog.events
where shard = $1 and session_id = $2 and seq > $3 and event_id = any($4::uuid[])
order by seq;

-- name: heads
-- Last row of each session.
select s.session_id, h.seq, h.recorded_at, h.flags
from unnest($1::smallint[], $2::uuid[]) as s (shard, session_id)
cross join lateral (
  select e.seq, e.recorded_at, e.flags from eventlog.events e
  where e.shard = s.shard and e.session_id = s.session_id
  order by e.seq desc limit 1
) h;

-- name: seq_at
-- Seq of the last event recorded at or before a time.
select eventlog.seq_at($1, $2, $3);

-- name: read_feed
-- Rows of a shard after a position. Positions become visible in order, so none is ever skipped.
select position, seq, recorded_at, session_id, event_id, span, type, flags, data
from eventlog.events
where shard = $1 and position > $2
order by position
limit $3;

-- name: feed_heads
-- Last position of every shard.
select s.shard, coalesce((
  select e.position from eventlog.events e where e.shard = s.shard order by e.position desc limit 1
), 0)
from generate_series(0, $1::int - 1) as g (n)
cross join lateral (select g.n::smallint as shard) s
order by s.shard;

-- name: sessions_of
-- Sessions created for a user.
select session_id from eventlog.session_owners where tenant_id = $1 and owner_id = $2;

-- name: owned
-- Which of these sessions were created for a user.
select session_id from eventlog.session_owners
where tenant_id = $1 and owner_id = $2 and session_id = any($3::uuid[]);

-- name: tenant_of
-- The tenant that a session belongs to.
select tenant_id from eventlog.events where shard = $1 and session_id = $2 order by seq limit 1;

-- name: identity
-- Which log this is, now.
select log_id, epoch, shards from eventlog.identity();

-- name: raise_epoch
-- Leaves every copy in Redis behind.
select eventlog.raise_epoch($1);

-- name: load_snapshot
-- The newest snapshot at or before a seq.
select seq, fold_version, chunks, first_seqs, header, tail, checksum from eventlog.snapshots
where session_id = $1 and seq <= $2 and fold_version = $3
order by seq desc limit 1;

-- name: load_chunks
-- Chunks of messages that snapshots refer to.
select key, checksum, messages from eventlog.snapshot_chunks
where key = any($1::bigint[]);

-- name: save_chunk
-- Keeps a chunk of messages.
insert into eventlog.snapshot_chunks (session_id, key, checksum, messages) values ($1, $2, $3, $4)
on conflict (key) do update
set checksum = excluded.checksum, messages = excluded.messages;

-- name: save_snapshot
-- Keeps a snapshot.
insert into eventlog.snapshots
  (session_id, seq, fold_version, chunks, first_seqs, header, tail, checksum, lineage)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (session_id, seq) do update
set fold_version = excluded.fold_version, chunks = excluded.chunks,
    first_seqs = excluded.first_seqs, header = excluded.header, tail = excluded.tail,
    checksum = excluded.checksum, lineage = excluded.lineage;

-- ================================================================================================
-- Views, and the projectors that keep them; see migrations/0003_views.sql. Columns of session views
-- are always those of views.SessionView, in its order.
-- ================================================================================================

-- name: session_view
-- What the projector last wrote of a session.
select session_id, seq, status, user_id, key, title, metadata,
       message_count, token_count, context_token_count,
       input_tokens, output_tokens, cached_tokens, reasoning_tokens,
       compaction_count, run_count, current_agent, agents, handoff,
       parent_session_id, parent_seq, created_at, updated_at, ttl_seconds, expires_at
from eventlog.session_views
where shard = $1 and session_id = $2;

-- name: session_views_by_id
-- The same of several sessions of a shard.
select v.session_id, v.seq, v.status, v.user_id, v.key, v.title, v.metadata,
       v.message_count, v.token_count, v.context_token_count,
       v.input_tokens, v.output_tokens, v.cached_tokens, v.reasoning_tokens,
       v.compaction_count, v.run_count, v.current_agent, v.agents, v.handoff,
       v.parent_session_id, v.parent_seq, v.created_at, v.updated_at, v.ttl_seconds, v.expires_at
from unnest($1::smallint[], $2::uuid[]) as s (shard, session_id)
join eventlog.session_views v on v.shard = s.shard and v.session_id = s.session_id;

-- name: list_sessions
-- A tenant's sessions before a place in the list, newest activity first. With $8 only those at the top:
-- those whose parent isn't listed itself, by its row or by what is known better of some of them ($9
-- are listed, $10 are not).
select v.session_id, v.seq, v.status, v.user_id, v.key, v.title, v.metadata,
       v.message_count, v.token_count, v.context_token_count,
       v.input_tokens, v.output_tokens, v.cached_tokens, v.reasoning_tokens,
       v.compaction_count, v.run_count, v.current_agent, v.agents, v.handoff,
       v.parent_session_id, v.parent_seq, v.created_at, v.updated_at, v.ttl_seconds, v.expires_at
from eventlog.session_views v
where v.tenant_id = $1 and v.status in ('open', 'closed') and (v.updated_at, v.session_id) < ($2, $3)
  and v.updated_at > $7 and ($4::text is null or v.status = $4) and ($5::text is null or $5 = any(v.agents))
  and v.session_id <> all($13::uuid[])
  and (not $8 or v.parent_session_id is null or v.parent_session_id = any($10)
       or v.parent_session_id <> all($9) and not exists (
         select from eventlog.session_views p
         where p.shard = (get_byte(uuid_send(v.parent_session_id), 14) * 256
                          + get_byte(uuid_send(v.parent_session_id), 15)) % $11
           and p.session_id = v.parent_session_id and p.tenant_id = $1
           and p.status in ('open', 'closed') and ($12::uuid is null or p.owner_id = $12)))
order by v.updated_at desc, v.session_id desc
limit $6;

-- name: list_sessions_of_user
-- The same for one user.
select v.session_id, v.seq, v.status, v.user_id, v.key, v.title, v.metadata,
       v.message_count, v.token_count, v.context_token_count,
       v.input_tokens, v.output_tokens, v.cached_tokens, v.reasoning_tokens,
       v.compaction_count, v.run_count, v.current_agent, v.agents, v.handoff,
       v.parent_session_id, v.parent_seq, v.created_at, v.updated_at, v.ttl_seconds, v.expires_at
from eventlog.session_views v
where v.tenant_id = $1 and v.status in ('open', 'closed') and (v.updated_at, v.session_id) < ($2, $3)
  and v.updated_at > $7 and ($4::text is null or v.status = $4) and ($5::text is null or $5 = any(v.agents))
  and v.session_id <> all($13::uuid[])
  and v.owner_id = $12
  and (not $8 or v.parent_session_id is null or v.parent_session_id = any($10)
       or v.parent_session_id <> all($9) and not exists (
         select from eventlog.session_views p
         where p.shard = (get_byte(uuid_send(v.parent_session_id), 14) * 256
                          + get_byte(uuid_send(v.parent_session_id), 15)) % $11
           and p.session_id = v.parent_session_id and p.tenant_id = $1
           and p.status in ('open', 'closed') and ($12::uuid is null or p.owner_id = $12)))
order by v.updated_at desc, v.session_id desc
limit $6;

-- name: find_sessions
-- The same of those whose title or key has the words of $14.
select v.session_id, v.seq, v.status, v.user_id, v.key, v.title, v.metadata,
       v.message_count, v.token_count, v.context_token_count,
       v.input_tokens, v.output_tokens, v.cached_tokens, v.reasoning_tokens,
       v.compaction_count, v.run_count, v.current_agent, v.agents, v.handoff,
       v.parent_session_id, v.parent_seq, v.created_at, v.updated_at, v.ttl_seconds, v.expires_at
from eventlog.find_sessions($14::text::tsquery, $1, $12, $4, $5, $7, $2, $3, case when $8 then 2147483647 else $6 end, $13) f
join eventlog.session_views v on v.shard = f.shard and v.session_id = f.session_id
where (not $8 or v.parent_session_id is null or v.parent_session_id = any($10)
       or v.parent_session_id <> all($9) and not exists (
         select from eventlog.session_views p
         where p.shard = (get_byte(uuid_send(v.parent_session_id), 14) * 256
                          + get_byte(uuid_send(v.parent_session_id), 15)) % $11
           and p.session_id = v.parent_session_id and p.tenant_id = $1
           and p.status in ('open', 'closed') and ($12::uuid is null or p.owner_id = $12)))
order by v.updated_at desc, v.session_id desc
limit $6;

-- name: forks_of
-- The newest forks of some sessions, at most $3 of each, those listed for a user (or everybody's).
select v.session_id, v.seq, v.status, v.user_id, v.key, v.title, v.metadata,
       v.message_count, v.token_count, v.context_token_count,
       v.input_tokens, v.output_tokens, v.cached_tokens, v.reasoning_tokens,
       v.compaction_count, v.run_count, v.current_agent, v.agents, v.handoff,
       v.parent_session_id, v.parent_seq, v.created_at, v.updated_at, v.ttl_seconds, v.expires_at
from unnest($1::uuid[]) as s (session_id)
cross join lateral (
  select f.* from eventlog.session_views f
  where f.parent_session_id = s.session_id and f.tenant_id = $2 and f.status in ('open', 'closed')
    and ($4::uuid is null or f.owner_id = $4) and f.session_id <> all($5::uuid[])
  order by f.updated_at desc, f.session_id desc
  limit $3
) v;

-- name: view_seqs
-- How far a tenant's sessions are in the views; whether they are listed, and whose they are.
select v.session_id, v.seq, v.status in ('open', 'closed'), v.owner_id
from unnest($1::smallint[], $2::uuid[]) as s (shard, session_id)
join eventlog.session_views v
  on v.shard = s.shard and v.session_id = s.session_id and v.tenant_id = $3;

-- name: session_messages
-- A page of a session's visible messages, in any order, and the seq that the view is at: a row even if
-- there is no message. None, like for the questions below, when the view has nothing of the session, or
-- was never made whole (view_versions in migrations/0004_read_side.sql): then the log is asked. $3 < seq < $4; of these the newest $7, or ($8) the oldest, with one of
-- the roles $5, of the agent $6. With each message come the calls of tools it made that were answered,
-- and by which message, and for a tool's output the message that asked for it. Only visible messages
-- ask and answer, and an answer is that of the last call of its name before it.
with page as materialized (
  (select m.seq, m.tool_call_key, m.body from eventlog.message_views m
   where m.shard = $1 and m.session_id = $2 and m.seq > $3 and m.seq < $4 and not m.hidden
     and ($6::text is null or m.agent = $6) and $5::text[] is null and not $8
   order by m.seq desc limit $7)
  union all
  (select m.seq, m.tool_call_key, m.body from eventlog.message_views m
   where m.shard = $1 and m.session_id = $2 and m.seq > $3 and m.seq < $4 and not m.hidden
     and ($6::text is null or m.agent = $6) and $5::text[] is null and $8
   order by m.seq limit $7)
  union all
  (select m.seq, m.tool_call_key, m.body
   from unnest($5::text[]) as r (role) cross join lateral (
     select m.seq, m.tool_call_key, m.body from eventlog.message_views m
     where m.shard = $1 and m.session_id = $2 and m.role = r.role and m.seq > $3 and m.seq < $4
       and not m.hidden and ($6::text is null or m.agent = $6) and not $8
     order by m.seq desc limit $7) m
   order by m.seq desc limit $7)
  union all
  (select m.seq, m.tool_call_key, m.body
   from unnest($5::text[]) as r (role) cross join lateral (
     select m.seq, m.tool_call_key, m.body from eventlog.message_views m
     where m.shard = $1 and m.session_id = $2 and m.role = r.role and m.seq > $3 and m.seq < $4
       and not m.hidden and ($6::text is null or m.agent = $6) and $8
     order by m.seq limit $7) m
   order by m.seq limit $7)
)
select v.seq, v.parent_seq, p.body, o.call_ids, o.seqs, (
    select c.seq from eventlog.tool_call_views c
    join eventlog.message_views a
      on a.shard = c.shard and a.session_id = c.session_id and a.seq = c.seq and not a.hidden
    where c.shard = $1 and c.session_id = $2 and c.call_key = p.tool_call_key and c.seq < p.seq
    order by c.seq desc limit 1)
from eventlog.session_views v
left join page p on true
left join lateral (
  select array_agg(c.call_id) as call_ids, array_agg(answer.seq) as seqs
  from (  -- ordered: else a plan made for an empty table may look through all calls of the session
    select c.call_id, c.call_key from eventlog.tool_call_views c
    where c.shard = $1 and c.session_id = $2 and c.seq = p.seq
    order by c.number limit 10000
  ) c
  cross join lateral (
    select t.seq from eventlog.message_views t
    where t.shard = $1 and t.session_id = $2 and t.tool_call_key = c.call_key and t.seq > p.seq
      and not t.hidden
    order by t.seq limit 1
  ) answer
  where not exists (
    select from eventlog.tool_call_views later
    join eventlog.message_views a
      on a.shard = later.shard and a.session_id = later.session_id and a.seq = later.seq and not a.hidden
    where later.shard = $1 and later.session_id = $2 and later.call_key = c.call_key
      and later.seq > p.seq and later.seq < answer.seq)
) o on true
where v.shard = $1 and v.session_id = $2
  and exists (select from eventlog.view_versions w where w.view = 'messages' and w.version > 0);

-- name: session_agents
-- Who took part in a session, and its hand-offs, oldest first.
select v.seq, v.current_agent, v.agents, h.seq, h.from_agent, h.to_agent, h.context
from eventlog.session_views v
left join eventlog.handoff_views h on h.shard = v.shard and h.session_id = v.session_id
where v.shard = $1 and v.session_id = $2
  and exists (select from eventlog.view_versions w where w.view = 'agents' and w.version > 0)
order by h.seq;

-- name: session_runs
-- The newest runs of a session, of any status or one.
select v.seq, r.body
from eventlog.session_views v
left join lateral (
  select r.body from eventlog.run_views r
  where r.shard = $1 and r.session_id = $2 and ($3::text is null or r.status = $3)
  order by r.started_seq desc limit $4
) r on true
where v.shard = $1 and v.session_id = $2
  and exists (select from eventlog.view_versions w where w.view = 'runs' and w.version > 0);

-- name: session_usage
-- What a session spent.
select v.seq, u.day, u.user_id, u.agent, u.model, u.session_id,
       u.generations, u.input_tokens, u.output_tokens, u.cached_tokens, u.reasoning_tokens
from eventlog.session_views v
left join eventlog.usage_views u on u.shard = v.shard and u.session_id = v.session_id
where v.shard = $1 and v.session_id = $2
  and exists (select from eventlog.view_versions w where w.view = 'usage' and w.version > 0);

-- name: session_scratchpad
-- A session's view and its scratchpad, as of the same seq.
select v.session_id, v.seq, v.status, v.user_id, v.key, v.title, v.metadata,
       v.message_count, v.token_count, v.context_token_count,
       v.input_tokens, v.output_tokens, v.cached_tokens, v.reasoning_tokens,
       v.compaction_count, v.run_count, v.current_agent, v.agents, v.handoff,
       v.parent_session_id, v.parent_seq, v.created_at, v.updated_at, v.ttl_seconds, v.expires_at,
       array(select s.name from eventlog.scratchpad_views s
             where s.shard = $1 and s.session_id = $2 order by s.name_key),
       array(select s.value from eventlog.scratchpad_views s
             where s.shard = $1 and s.session_id = $2 order by s.name_key)
from eventlog.session_views v
where v.shard = $1 and v.session_id = $2
  and exists (select from eventlog.view_versions w where w.view = 'scratchpad' and w.version > 0);

-- name: usage_totals
-- What was spent, summed up.
select day, user_id, agent, model, session_id,
       generations, input_tokens, output_tokens, cached_tokens, reasoning_tokens
from eventlog.usage_totals($1, $2, $3, $4, $5, $6, $7, $8);

-- name: search_messages
-- Messages with the words of a query, newest first, and the sessions they are in.
select m.session_id, m.seq, m.recorded_at, m.body, v.title, v.key
from eventlog.search_messages($1::text::tsquery, $13, $14, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) f
join eventlog.message_views m on m.shard = f.shard and m.session_id = f.session_id and m.seq = f.seq
join eventlog.session_views v on v.shard = f.shard and v.session_id = f.session_id
where v.status in ('open', 'closed') and v.tenant_id = $13;

-- name: write_session_views
-- Brings the rows of sessions up to date.
insert into eventlog.session_views as s (
  session_id, seq, status, user_id, key, title, metadata,
  message_count, token_count, context_token_count,
  input_tokens, output_tokens, cached_tokens, reasoning_tokens,
  compaction_count, run_count, current_agent, agents, handoff,
  parent_session_id, parent_seq, created_at, updated_at, ttl_seconds, expires_at,
  position, shard, tenant_id, owner_id, expiry_set, search)
select
  v.session_id, v.seq, v.status, v.user_id, v.key, v.title, v.metadata,
  v.message_count, v.token_count, v.context_token_count,
  v.input_tokens, v.output_tokens, v.cached_tokens, v.reasoning_tokens,
  v.compaction_count, v.run_count, v.current_agent,
  array(select json_array_elements_text(v.agents)), v.handoff,
  v.parent_session_id, v.parent_seq, v.created_at, v.updated_at, v.ttl_seconds, v.expires_at,
  v.position, v.shard, v.tenant_id, v.owner_id, v.expiry_set, v.search::tsvector
from unnest(
  $1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[],
  $8::bigint[], $9::bigint[], $10::bigint[],
  $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[],
  $15::bigint[], $16::bigint[], $17::text[], $18::json[], $19::bytea[],
  $20::uuid[], $21::bigint[], $22::timestamptz[], $23::timestamptz[], $24::bigint[], $25::timestamptz[],
  $26::bigint[], $27::smallint[], $28::int[], $29::uuid[], $30::boolean[], $31::text[]
) as v (
  session_id, seq, status, user_id, key, title, metadata,
  message_count, token_count, context_token_count,
  input_tokens, output_tokens, cached_tokens, reasoning_tokens,
  compaction_count, run_count, current_agent, agents, handoff,
  parent_session_id, parent_seq, created_at, updated_at, ttl_seconds, expires_at,
  position, shard, tenant_id, owner_id, expiry_set, search)
on conflict (shard, session_id) do update set
  seq = excluded.seq, status = excluded.status, user_id = excluded.user_id, key = excluded.key,
  title = excluded.title, metadata = excluded.metadata,
  message_count = excluded.message_count, token_count = excluded.token_count,
  context_token_count = excluded.context_token_count,
  input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
  cached_tokens = excluded.cached_tokens, reasoning_tokens = excluded.reasoning_tokens,
  compaction_count = excluded.compaction_count, run_count = excluded.run_count,
  current_agent = excluded.current_agent, agents = excluded.agents, handoff = excluded.handoff,
  parent_session_id = excluded.parent_session_id, parent_seq = excluded.parent_seq,
  created_at = excluded.created_at, updated_at = excluded.updated_at,
  ttl_seconds = excluded.ttl_seconds, expires_at = excluded.expires_at,
  position = excluded.position, tenant_id = excluded.tenant_id, owner_id = excluded.owner_id,
  expiry_set = excluded.expiry_set, search = excluded.search;

-- name: touch_session_views
-- The same for sessions that only got token increments.
update eventlog.session_views s
set seq = t.seq, position = t.position, updated_at = t.updated_at,
    expires_at = case when s.ttl_seconds is null then s.expires_at
                      else t.updated_at + s.ttl_seconds * interval '1 second' end
from unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bigint[], $5::timestamptz[])
  as t (shard, session_id, seq, position, updated_at)
where s.shard = t.shard and s.session_id = t.session_id;

-- name: cut_message_views
-- Drops messages, and the calls they made, that a rewind took out of the fold: all behind a seq.
with calls as (
  delete from eventlog.tool_call_views t
  using unnest($1::smallint[], $2::uuid[], $3::bigint[]) as c (shard, session_id, last_seq)
  where t.shard = c.shard and t.session_id = c.session_id and t.seq > c.last_seq
)
delete from eventlog.message_views m
using unnest($1::smallint[], $2::uuid[], $3::bigint[]) as c (shard, session_id, last_seq)
where m.shard = c.shard and m.session_id = c.session_id and m.seq > c.last_seq;

-- name: hide_message_views
-- Hides what was cleared away, or shows it again after a rewind: messages of seqs $3 < seq <= $4 are
-- cleared away up to $5.
update eventlog.message_views m
set hidden = m.seq <= c.cleared_seq or m.retracted_seq <> 0
from unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[])
  as c (shard, session_id, low, high, cleared_seq)
where m.shard = c.shard and m.session_id = c.session_id and m.seq > c.low and m.seq <= c.high;

-- name: write_message_views
-- Brings messages up to date.
insert into eventlog.message_views (
  shard, session_id, ordinal, seq, closed_seq, retracted_seq, recorded_at, token_count, hidden,
  status, role, message_id, agent, name, tool_call_key, search, body)
select v.shard, v.session_id, v.ordinal, v.seq, v.closed_seq, v.retracted_seq, v.recorded_at,
  v.token_count, v.hidden, v.status, v.role, v.message_id, v.agent, v.name, v.tool_call_key,
  v.search::tsvector, v.body
from unnest(
  $1::smallint[], $2::uuid[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[],
  $7::timestamptz[], $8::bigint[], $9::boolean[],
  $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::uuid[], $16::text[], $17::bytea[]
) as v (
  shard, session_id, ordinal, seq, closed_seq, retracted_seq, recorded_at, token_count, hidden,
  status, role, message_id, agent, name, tool_call_key, search, body)
on conflict (shard, session_id, seq) do update set
  ordinal = excluded.ordinal, closed_seq = excluded.closed_seq, retracted_seq = excluded.retracted_seq,
  recorded_at = excluded.recorded_at, token_count = excluded.token_count, hidden = excluded.hidden,
  status = excluded.status, role = excluded.role, message_id = excluded.message_id,
  agent = excluded.agent, name = excluded.name, tool_call_key = excluded.tool_call_key,
  search = excluded.search, body = excluded.body;

-- name: unsearch_messages
-- Messages of deleted sessions are not found any more.
update eventlog.message_views m set search = null
from unnest($1::smallint[], $2::uuid[]) as s (shard, session_id)
where m.shard = s.shard and m.session_id = s.session_id and m.search is not null;

-- name: drop_tool_call_views
-- Drops the calls of messages that are written anew.
delete from eventlog.tool_call_views t
using unnest($1::smallint[], $2::uuid[], $3::bigint[]) as m (shard, session_id, seq)
where t.shard = m.shard and t.session_id = m.session_id and t.seq = m.seq;

-- name: write_tool_call_views
-- Adds calls of tools.
insert into eventlog.tool_call_views (shard, session_id, seq, number, call_key, call_id, name)
select * from unnest(
  $1::smallint[], $2::uuid[], $3::bigint[], $4::int[], $5::uuid[], $6::text[], $7::text[]);

-- name: write_agent_views
-- Brings agents of sessions up to date.
insert into eventlog.agent_views (shard, session_id, ordinal, agent, is_current)
select * from unnest($1::smallint[], $2::uuid[], $3::int[], $4::text[], $5::boolean[])
on conflict (shard, session_id, ordinal) do update
set agent = excluded.agent, is_current = excluded.is_current;

-- name: write_handoff_views
-- Adds hand-offs.
insert into eventlog.handoff_views (shard, session_id, seq, from_agent, to_agent, context)
select * from unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::bytea[])
on conflict (shard, session_id, seq) do update
set from_agent = excluded.from_agent, to_agent = excluded.to_agent, context = excluded.context;

-- name: cut_handoff_views
-- Drops hand-offs that a rewind took out of the fold: all behind a seq.
delete from eventlog.handoff_views h
using unnest($1::smallint[], $2::uuid[], $3::bigint[]) as c (shard, session_id, last_seq)
where h.shard = c.shard and h.session_id = c.session_id and h.seq > c.last_seq;

-- name: runs_by_key
-- Runs as they are, of those that are about to change.
select r.session_id, r.run_key, r.body
from unnest($1::smallint[], $2::uuid[], $3::uuid[]) as k (shard, session_id, run_key)
join eventlog.run_views r
  on r.shard = k.shard and r.session_id = k.session_id and r.run_key = k.run_key;

-- name: write_run_views
-- Brings runs up to date.
insert into eventlog.run_views (
  shard, session_id, run_key, run_id, agent, status, started_seq, started_at, ended_seq, ended_at, body)
select * from unnest(
  $1::smallint[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[],
  $7::bigint[], $8::timestamptz[], $9::bigint[], $10::timestamptz[], $11::bytea[])
on conflict (shard, session_id, run_key) do update set
  agent = excluded.agent, status = excluded.status,
  started_seq = excluded.started_seq, started_at = excluded.started_at,
  ended_seq = excluded.ended_seq, ended_at = excluded.ended_at, body = excluded.body;

-- name: write_usage_views
-- Brings what sessions spent up to date.
insert into eventlog.usage_views (
  shard, session_id, part_key, tenant_id, owner_id, user_id, day, agent, model,
  generations, input_tokens, output_tokens, cached_tokens, reasoning_tokens)
select v.shard, v.session_id, v.part_key, v.tenant_id, v.owner_id, v.user_id, date '1970-01-01' + v.day,
  v.agent, v.model, v.generations, v.input_tokens, v.output_tokens, v.cached_tokens, v.reasoning_tokens
from unnest(
  $1::smallint[], $2::uuid[], $3::uuid[], $4::int[], $5::uuid[], $6::text[], $7::int[], $8::text[],
  $9::text[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[]
) as v (
  shard, session_id, part_key, tenant_id, owner_id, user_id, day, agent, model,
  generations, input_tokens, output_tokens, cached_tokens, reasoning_tokens)
on conflict (shard, session_id, part_key) do update set
  generations = excluded.generations, input_tokens = excluded.input_tokens,
  output_tokens = excluded.output_tokens, cached_tokens = excluded.cached_tokens,
  reasoning_tokens = excluded.reasoning_tokens;

-- name: write_scratchpad_views
-- Brings entries of scratchpads up to date.
insert into eventlog.scratchpad_views (shard, session_id, name_key, name, value)
select * from unnest($1::smallint[], $2::uuid[], $3::uuid[], $4::text[], $5::bytea[])
on conflict (shard, session_id, name_key) do update set value = excluded.value;

-- name: drop_scratchpad_views
-- Drops entries of scratchpads that were removed.
delete from eventlog.scratchpad_views s
using unnest($1::smallint[], $2::uuid[], $3::uuid[]) as d (shard, session_id, name_key)
where s.shard = d.shard and s.session_id = d.session_id and s.name_key = d.name_key;

-- name: remove_session_view
-- Removes a session's row, before it is made again from the log.
delete from eventlog.session_views where shard = $1 and session_id = $2;

-- name: remove_message_views
-- The same of its messages.
with calls as (
  delete from eventlog.tool_call_views where shard = $1 and session_id = $2
)
delete from eventlog.message_views where shard = $1 and session_id = $2;

-- name: remove_agent_views
-- The same of its agents.
with handoffs as (
  delete from eventlog.handoff_views where shard = $1 and session_id = $2
)
delete from eventlog.agent_views where shard = $1 and session_id = $2;

-- name: remove_run_views
-- The same of its runs.
delete from eventlog.run_views where shard = $1 and session_id = $2;

-- name: remove_usage_views
-- The same of what it spent.
delete from eventlog.usage_views where shard = $1 and session_id = $2;

-- name: remove_scratchpad_views
-- The same of its scratchpad.
delete from eventlog.scratchpad_views where shard = $1 and session_id = $2;

-- name: open_messages
-- Replies that began before a silence of $1 seconds and still are open, after a place in that list.
-- Nothing can be appended to sessions that are closed or deleted: theirs stay open for ever. A subselect
-- for each, as a join that was planned while the tables were empty may begin with all sessions.
select m.session_id, m.message_id, m.recorded_at, m.ordinal
from eventlog.message_views m
where m.status = 'open' and not m.hidden
  and (select s.status = 'open' and s.tenant_id = $6 from eventlog.session_views s
       where s.shard = m.shard and s.session_id = m.session_id)
  and m.recorded_at < now() - $1::float8 * interval '1 second'
  and (m.recorded_at, m.session_id, m.ordinal) > ($2, $3, $4)
order by m.recorded_at, m.session_id, m.ordinal
limit $5;

-- name: tenants_of
-- The tenants that sessions belong to: those of their first events.
select s.session_id, (
  select e.tenant_id from eventlog.events e
  where e.shard = s.shard and e.session_id = s.session_id order by e.seq limit 1)
from unnest($1::smallint[], $2::uuid[]) as s (shard, session_id);

-- name: begin_checkpoint
-- Where a projection goes on in a shard, for the holder of lease epoch $3. No row: someone with a
-- newer lease has begun already. It waits for a batch of the holder before, if one is being written;
-- after it no batch of an older epoch can be.
insert into eventlog.checkpoints as c (projection, shard, position, epoch) values ($1, $2, 0, $3)
on conflict (projection, shard) do update set epoch = excluded.epoch
where c.epoch <= excluded.epoch
returning c.position;

-- name: move_checkpoint
-- First statement of a batch. No row: someone else has begun or gone on, so this batch must not be.
-- Or its last row isn't in the log: it was read from a Redis that knows of a future which Postgres
-- lost. (If the last row is the log's, those before it are.) The row lock makes batches, and whoever
-- begins, wait for one another. The setting ends the transaction of a worker that was stopped in the
-- middle, so that its lock doesn't stay.
update eventlog.checkpoints set position = $4
where projection = $1 and shard = $2 and position = $3 and epoch = $5
  and exists (select from eventlog.events e
              where e.shard = $2 and e.position = $4 and e.event_id = $6)
returning set_config('idle_in_transaction_session_timeout', '5s', true);

-- name: holds_checkpoint
-- Whether a batch may still be written from here.
select exists (select from eventlog.checkpoints
               where projection = $1 and shard = $2 and position = $3 and epoch = $4);

-- name: checkpoints
-- Last position done in every shard; 0: nothing yet.
select g.shard, coalesce(c.position, 0)
from generate_series(0, $2::int - 1) as g (shard)
left join eventlog.checkpoints c on c.projection = $1 and c.shard = g.shard
order by g.shard;

-- name: recently_projected
-- Sessions with rows in a range of a shard's feed.
select distinct session_id from eventlog.events
where shard = $1 and position > $2 and position <= $3;

-- name: join_work
-- Makes sure that a work has a lease for each of its shards.
insert into eventlog.leases (name, shard, owner, epoch, expires_at)
select $1, g.shard, '', coalesce(c.epoch, 0), '-infinity'
from generate_series(0, $2::int - 1) as g (shard)
left join eventlog.checkpoints c on c.projection = $1 and c.shard = g.shard
on conflict do nothing;

-- name: renew_leases
-- Proves that a worker lives and keeps its leases; answers how many share the work, and what it kept.
with seen as (
  insert into eventlog.workers (name, owner, expires_at)
  values ($1, $2, now() + $3::float8 * interval '1 second')
  on conflict (name, owner) do update set expires_at = excluded.expires_at
), dead as materialized (
  select name, owner from eventlog.workers
  where name = $1 and expires_at < now() - interval '1 minute'
  for update skip locked
), buried as (
  delete from eventlog.workers w using dead
  where w.name = dead.name and w.owner = dead.owner and w.owner <> $2
), kept as (
  update eventlog.leases l set expires_at = now() + $3::float8 * interval '1 second'
  from unnest($4::smallint[], $5::bigint[]) as h (shard, epoch)
  where l.name = $1 and l.owner = $2 and l.shard = h.shard and l.epoch = h.epoch
  returning l.shard
)
select 1 + (select count(*) from eventlog.workers w
            where w.name = $1 and w.owner <> $2 and w.expires_at >= now()),
       array(select shard from kept);

-- name: take_leases
-- Takes up to $4 leases that nobody holds. Rows that someone else is just taking are passed over.
with free as materialized (
  select name, shard from eventlog.leases
  where name = $1 and expires_at < now()
  order by random() limit $4
  for update skip locked
)
update eventlog.leases l
set owner = $2, epoch = l.epoch + 1, expires_at = now() + $3::float8 * interval '1 second'
from free where l.name = free.name and l.shard = free.shard
returning l.shard, l.epoch;

-- name: release_leases
-- Gives leases back before they expire.
update eventlog.leases l set owner = '', expires_at = '-infinity'
from unnest($3::smallint[], $4::bigint[]) as h (shard, epoch)
where l.name = $1 and l.owner = $2 and l.shard = h.shard and l.epoch = h.epoch;

-- name: leave_work
-- A worker ends: the others need not wait until it counts as dead.
delete from eventlog.workers where name = $1 and owner = $2;

-- name: take_away_lease
-- Fences whoever holds a lease; anybody may take it afterwards.
insert into eventlog.leases as l (name, shard, owner, epoch, expires_at)
select $1, $2, '', coalesce(max(c.epoch), 0) + 1, '-infinity'
from eventlog.checkpoints c where c.projection = $1 and c.shard = $2
on conflict (name, shard) do update set owner = '', epoch = l.epoch + 1, expires_at = '-infinity'
returning l.epoch;

-- name: leases
-- Who works on what.
select shard, owner, epoch, expires_at > now() from eventlog.leases where name = $1 order by shard;

-- name: park_session
-- Sets a session aside for a projection.
insert into eventlog.parked_sessions (projection, shard, session_id, position, seq, error)
values ($1, $2, $3, $4, $5, $6)
on conflict (projection, shard, session_id) do nothing;

-- name: parked_in_shard
-- Sessions of a shard that a projection passes over.
select session_id from eventlog.parked_sessions where projection = $1 and shard = $2;

-- name: parked_sessions
-- Everything that a projection passes over.
select session_id, shard, position, seq, error, parked_at
from eventlog.parked_sessions where projection = $1 order by parked_at, session_id;

-- name: unpark_session
-- Takes a session back in.
delete from eventlog.parked_sessions where projection = $1 and shard = $2 and session_id = $3
returning seq;

-- name: row_at_position
-- A session's last row at or before a position of its shard's feed.
select seq, position from eventlog.events
where shard = $1 and session_id = $2 and position <= $3
order by seq desc limit 1;

-- name: projection_lag
-- How far a projection is behind in every shard, and who holds the shard. Two index look-ups a shard;
-- the row after the checkpoint says since when there was something to do.
select s.shard, coalesce(head.position, 0), coalesce(c.position, 0),
       coalesce(greatest(0, extract(epoch from clock_timestamp() - next.recorded_at)), 0)::float8,
       l.owner
from generate_series(0, $2::int - 1) as g (n)
cross join lateral (select g.n::smallint as shard) s
left join eventlog.checkpoints c on c.projection = $1 and c.shard = s.shard
left join eventlog.leases l
  on l.name = $1 and l.shard = s.shard and l.owner <> '' and l.expires_at >= now()
left join lateral (
  select e.position from eventlog.events e where e.shard = s.shard order by e.position desc limit 1
) head on true
left join lateral (
  select e.recorded_at from eventlog.events e
  where e.shard = s.shard and e.position > coalesce(c.position, 0) order by e.position limit 1
) next on true
order by s.shard;

-- name: projection_names
-- Projections that have begun somewhere, or are about to.
select projection from eventlog.checkpoints union select name from eventlog.leases order by 1;

-- name: parked_counts
-- How many sessions each projection passes over.
select projection, count(*) from eventlog.parked_sessions group by projection order by projection;

-- name: parked_everywhere
-- Sessions that projections pass over, by their keys where the views know them.
select p.projection, p.session_id, v.key, p.shard, p.position, p.seq, p.error, p.parked_at
from eventlog.parked_sessions p
left join eventlog.session_views v on v.shard = p.shard and v.session_id = p.session_id
order by p.parked_at, p.session_id, p.projection;

-- name: activity
-- Open sessions of a tenant that were active in the last $2 and $3 seconds, replies that are open, and
-- since when the server runs. Nothing is counted beyond $4. The orders make each a short walk through
-- the right index, also by a plan that was made while the tables were empty.
select
  (select count(*) from (
    select from eventlog.session_views
    where tenant_id = $1 and status in ('open', 'closed') and status = 'open'
      and updated_at > now() - $2::float8 * interval '1 second'
    order by updated_at limit $4) as recent),
  (select count(*) from (
    select from eventlog.session_views
    where tenant_id = $1 and status in ('open', 'closed') and status = 'open'
      and updated_at > now() - $3::float8 * interval '1 second'
    order by updated_at limit $4) as earlier),
  (select count(*) from (
    select from eventlog.message_views m
    where m.status = 'open' and not m.hidden and (
      select s.status = 'open' and s.tenant_id = $1 from eventlog.session_views s
      where s.shard = m.shard and s.session_id = m.session_id)
    order by m.recorded_at, m.session_id, m.ordinal limit $4) as replies),
  extract(epoch from now() - pg_postmaster_start_time())::float8;

-- name: newest_sessions
-- A tenant's sessions that were active last.
select session_id, key, user_id, title, current_agent, seq, updated_at
from eventlog.session_views
where tenant_id = $1 and status in ('open', 'closed')
order by updated_at desc, session_id desc
limit $2;

-- name: newest_spans
-- Of the newest rows of some shards, those after a position: how many there are, and their events.
select count(*), coalesce(sum(e.span), 0)::bigint
from unnest($1::smallint[], $2::bigint[]) as s (shard, position)
cross join lateral (
  select e.span from eventlog.events e
  where e.shard = s.shard and e.position > s.position
  order by e.position desc limit $3
) e;

-- ================================================================================================
-- Rebuilding views; see migrations/0005_rebuild.sql.
-- ================================================================================================

-- name: view_versions
-- Which version of its code made each view.
select view, version, built_at from eventlog.view_versions;

-- name: rebuild
-- The rebuild that is under way.
select number, name, views, versions, phase, started_at from eventlog.rebuilds;

-- name: begin_rebuild
-- Begins one: name, views, versions, whether they are all there are.
select eventlog.begin_rebuild($1, $2, $3, $4);

-- name: abandon_rebuild
-- Gives it up.
select eventlog.abandon_rebuild($1);

-- name: rebuild_progress
-- How far its first phase is in each shard.
select shard, position, events_due, events, sessions, done
from eventlog.rebuild_shards order by shard;

-- name: take_rebuild_shard
-- A lease on the largest shard that is to be folded and that nobody holds. First all are counted.
with free as materialized (
  select l.name, l.shard from eventlog.leases l
  join eventlog.rebuild_shards s on s.shard = l.shard
  where l.name = $1 and l.expires_at < now() and not s.done
  order by (s.events_due is not null), s.position desc limit 1
  for update of l skip locked
)
update eventlog.leases l
set owner = $2, epoch = l.epoch + 1, expires_at = now() + $3::float8 * interval '1 second'
from free where l.name = free.name and l.shard = free.shard
returning l.shard, l.epoch;

-- name: take_rebuild_rest
-- A lease on the shard that is farthest behind what another projection has done, and that nobody holds.
with free as materialized (
  select l.name, l.shard from eventlog.leases l
  join eventlog.checkpoints green on green.projection = l.name and green.shard = l.shard
  join eventlog.checkpoints blue on blue.projection = $4 and blue.shard = l.shard
  where l.name = $1 and l.expires_at < now() and green.position < blue.position
  order by blue.position - green.position desc limit 1
  for update of l skip locked
)
update eventlog.leases l
set owner = $2, epoch = l.epoch + 1, expires_at = now() + $3::float8 * interval '1 second'
from free where l.name = free.name and l.shard = free.shard
returning l.shard, l.epoch;

-- name: renew_lease
-- Keeps one lease. No row: it is somebody else's.
update eventlog.leases set expires_at = now() + $5::float8 * interval '1 second'
where name = $1 and owner = $2 and shard = $3 and epoch = $4
returning true;

-- name: begin_rebuild_shard
-- Where folding goes on in a shard, for the holder of lease epoch $2. No row: someone with a newer lease
-- has begun. It waits for a batch that is being written; after it there is none of an older epoch.
update eventlog.rebuild_shards set epoch = $2
where shard = $1 and epoch <= $2
returning position, session_id, events_due, events, sessions, done;

-- name: move_rebuild_shard
-- First statement of a batch of folded sessions. No row: someone else has begun, so this batch must not
-- be. The commit need not wait for the disk: should the server lose it, it loses the cursor as well, and
-- what came after. The other setting ends the transaction of a worker that was stopped in its middle.
update eventlog.rebuild_shards
set session_id = coalesce($4, session_id), events = events + $5, sessions = sessions + $6, done = $7
where shard = $1 and epoch = $2 and session_id is not distinct from $3 and not done
returning set_config('idle_in_transaction_session_timeout', '5s', true),
  set_config('synchronous_commit', 'off', true);

-- name: count_rebuild_shard
-- Notes how many events are to be folded.
update eventlog.rebuild_shards set events_due = $3 where shard = $1 and epoch = $2;

-- name: session_spans
-- Sessions of a shard behind a place, at most $5: how many, how many events of them are at or before a
-- position, and the last of them. Each is found by an index look-up, whatever its length.
with recursive session as (
  (select e.session_id, 1 as n, e.seq - e.span as before from eventlog.events e
   where e.shard = $1 and (e.session_id, e.seq) > ($2, $3) order by e.session_id, e.seq limit 1)
  union all
  select f.session_id, s.n + 1, f.before from session s
  cross join lateral (
    select e.session_id, e.seq - e.span as before from eventlog.events e
    where e.shard = $1 and e.session_id > s.session_id order by e.session_id, e.seq limit 1
  ) f
  where s.n < $5
)
select count(*), coalesce(sum(greatest(0, l.seq - s.before)), 0)::bigint,
       (array_agg(s.session_id order by s.n desc))[1]
from session s
left join lateral (
  select e.seq from eventlog.events e
  where e.shard = $1 and e.session_id = s.session_id and e.position <= $4
  order by e.seq desc limit 1
) l on true;

-- name: read_sessions
-- Rows of a shard's sessions at or before a position, without token increments: session by session, each
-- in order, behind a place.
select position, seq, recorded_at, session_id, event_id, span, type, flags, data
from eventlog.events
where shard = $1 and (session_id, seq) > ($2, $3) and flags & 1 = 0 and position <= $4
order by session_id, seq
limit $5;

-- name: last_rows
-- Of sessions of a shard the last row at or before a position each, increments included, and the tenant.
select s.session_id, l.seq, l.position, l.recorded_at, (
  select e.tenant_id from eventlog.events e
  where e.shard = $1 and e.session_id = s.session_id order by e.seq limit 1)
from unnest($2::uuid[], $3::bigint[]) as s (session_id, position)
cross join lateral (
  select e.seq, e.position, e.recorded_at from eventlog.events e
  where e.shard = $1 and e.session_id = s.session_id and e.position <= s.position
  order by e.seq desc limit 1
) l;

-- name: parked_as_shown
-- Sessions that a projection passes over, and which row of theirs the view of sessions shows (0: none).
select p.shard, p.session_id, p.position, coalesce(v.position, 0)
from eventlog.parked_sessions p
left join eventlog.session_views v on v.shard = p.shard and v.session_id = p.session_id
where p.projection = $1
order by p.shard, p.session_id;

-- name: park_as_shown
-- Sets sessions aside that another projection set aside, in its words.
insert into eventlog.parked_sessions (projection, shard, session_id, position, seq, error, parked_at)
select $2, shard, session_id, position, seq, error, parked_at
from eventlog.parked_sessions
where projection = $1 and shard = $3 and session_id = any($4::uuid[])
on conflict (projection, shard, session_id) do update
set position = excluded.position, seq = excluded.seq, error = excluded.error;

-- name: end_folding
-- All shards are folded: what follows are the indexes.
update eventlog.rebuilds set phase = 'index'
where number = $1 and phase = 'fold' and not exists (select from eventlog.rebuild_shards where not done)
returning true;

-- name: build_rebuild_index
-- Builds one of the missing indexes; its name. Null: others build the last ones; empty: all are there.
select eventlog.build_rebuild_index($1);

-- name: no_statement_timeout
-- Lets the statements of this transaction take as long as they need.
select set_config('statement_timeout', '0', true);

-- name: rebuild_rest
-- Rows that a rebuild lacks of what the projectors have done, shard by shard.
select green.shard, greatest(0, coalesce(blue.position, 0) - green.position)
from eventlog.checkpoints green
left join eventlog.checkpoints blue on blue.projection = $2 and blue.shard = green.shard
where green.projection = $1 order by green.shard;

-- name: erased_of_rebuild
-- Of sessions whose rows are about to be written, those that were erased meanwhile.
select session_id from eventlog.erasures
where shard = $1 and session_id = any($2::uuid[]) and erased_at is not null;

-- name: erased_since_rebuild
-- Sessions that were erased since a rebuild began, or while it did, and their forks, which have inherited
-- from them.
with recursive family as (
  select e.shard, e.session_id from eventlog.rebuilds r
  join eventlog.erasures e on e.erased_at > r.started_at - interval '1 hour'
  where r.number = $1
  union
  select v.shard, v.session_id from family f
  join eventlog.session_views v on v.parent_session_id = f.session_id
)
select shard, session_id from family order by shard, session_id;

-- name: lock_rebuild
-- Nobody else switches it or gives it up; no row: somebody has. The setting ends the transaction of a
-- process that was stopped in its middle.
select number, set_config('idle_in_transaction_session_timeout', '5s', true)
from eventlog.rebuilds where number = $1 and phase = 'follow' for no key update;

-- name: take_away_leases
-- Fences whoever works on any shard; anybody may take the leases afterwards.
insert into eventlog.leases as l (name, shard, owner, epoch, expires_at)
select $1, g.shard, '', coalesce(c.epoch, 0) + 1, '-infinity'
from generate_series(0, $2::int - 1) as g (shard)
left join eventlog.checkpoints c on c.projection = $1 and c.shard = g.shard
order by g.shard
on conflict (name, shard) do update set owner = '', epoch = l.epoch + 1, expires_at = '-infinity'
returning l.shard, l.epoch;

-- name: begin_checkpoints
-- Where a projection is in each shard, locked: batches that are being written are waited for, and no
-- other begins before the end of this transaction.
insert into eventlog.checkpoints as c (projection, shard, position, epoch)
select $1, l.shard, 0, l.epoch from unnest($2::smallint[], $3::bigint[]) as l (shard, epoch)
order by l.shard
on conflict (projection, shard) do update set epoch = greatest(c.epoch, excluded.epoch)
returning c.shard, c.position, c.epoch;

-- name: advance_checkpoint
-- Moves a checkpoint over rows whose changes the new tables hold already.
update eventlog.checkpoints set position = $3
where projection = $1 and shard = $2 and position < $3;

-- name: switch_rebuild
-- Takes the new tables into service; waits for their readers and writers no longer than $2 milliseconds.
select eventlog.switch_rebuild($1, $2);

-- ================================================================================================
-- Expiry and erasure; see migrations/0006_erasure.sql. Columns of erasures are always those of
-- store.Erasure, in its order.
-- ================================================================================================

-- name: erase
-- Erases some more of a session that ends with a tombstone.
select eventlog.erase($1, $2, $3, $4, $5, $6);

-- name: erasures_of
-- The records of those of these sessions that were erased, or are being erased.
select r.session_id, r.begun_at, r.erased_at, r.rows, r.events, r.bytes, r.redis_at, r.forks_at,
       r.reason, r.requested_by
from unnest($1::smallint[], $2::uuid[]) as s (shard, session_id)
join eventlog.erasures r on r.shard = s.shard and r.session_id = s.session_id;

-- name: erasures
-- A tenant's records, oldest first, after a place in that list.
select session_id, begun_at, erased_at, rows, events, bytes, redis_at, forks_at, reason, requested_by
from eventlog.erasures
where tenant_id = $1 and (begun_at, session_id) > ($2, $3)
order by begun_at, session_id
limit $4;

-- name: unfinished_erasures
-- Records that say of something left to do; of copies in Redis only if $3.
select session_id, begun_at, erased_at, rows, events, bytes, redis_at, forks_at, reason, requested_by
from eventlog.erasures
where tenant_id = $1 and (erased_at is null or redis_at is null or forks_at is null)
  and (erased_at is null or forks_at is null or $3::boolean)
order by begun_at
limit $2;

-- name: erased_since
-- Sessions whose erasure ended after a time.
select session_id, erased_at from eventlog.erasures where erased_at > $1 order by erased_at limit $2;

-- name: note_erasure
-- Takes note that what an erasure left to others was done.
select eventlog.note_erasure($1, $2, $3);

-- name: lock_lineage
-- Keeps erasures of these sessions from beginning until the transaction ends. Locks are taken in the
-- order of the array.
select pg_advisory_xact_lock_shared('eventlog.erasures'::regclass::oid::int, hashtext(s.id::text))
from unnest($1::uuid[]) as s (id);

-- name: lock_copies
-- Lets one process at a time replace a shard's feed, until the transaction ends.
select pg_advisory_xact_lock('eventlog.erasures'::regclass::oid::int, -1 - $1::int);

-- name: newest_rows
-- The newest rows of a shard, newest first.
select position, seq, recorded_at, session_id, event_id, span, type, flags, data
from eventlog.events where shard = $1 order by position desc limit $2;

-- name: forks_in_views
-- Forks of these sessions that the views know.
select v.shard, v.session_id from eventlog.session_views v where v.parent_session_id = any($1::uuid[]);

-- name: forks_in_feed
-- Sessions whose first rows are in a range of a shard's feed, and that may be forks of these.
select e.session_id
from eventlog.events e
where e.shard = $1 and e.position > $2 and e.position <= $3 and e.type = 1 and e.seq > e.span
  and substring(encode(e.data, 'escape') from '.*"parent_session_id":"([0-9a-f-]{36})"') = any($4::text[]);

-- name: first_rows
-- First row of each of these sessions.
select f.*
from unnest($1::smallint[], $2::uuid[]) as s (shard, session_id)
cross join lateral (
  select e.position, e.seq, e.recorded_at, e.session_id, e.event_id, e.span, e.type, e.flags, e.data
  from eventlog.events e where e.shard = s.shard and e.session_id = s.session_id
  order by e.seq limit 1
) f;

-- name: wait_for_batches
-- Waits for batches of a projection that are being written in a shard.
select c.position from eventlog.checkpoints c where c.projection = $1 and c.shard = $2 for update;

-- name: last_shown_row
-- A session's last row at or before a position of its shard's feed, unless it is parked.
select position, seq, recorded_at, session_id, event_id, span, type, flags, data
from eventlog.events e
where shard = $2 and session_id = $3 and position <= $4 and not exists (
  select from eventlog.parked_sessions p
  where p.projection = $1 and p.shard = e.shard and p.session_id = e.session_id)
order by seq desc limit 1;

-- name: expired_sessions
-- Sessions whose own time is over, after a place in that list.
select session_id, seq, expires_at
from eventlog.session_views
where expires_at is not null and status in ('open', 'closed') and expires_at <= now() and tenant_id = $1
  and (expires_at, session_id) > ($2, $3)
order by expires_at, session_id
limit $4;

-- name: expired_by_policy
-- Sessions that say nothing of their end and were silent for $4 seconds, after a place in that list.
select session_id, seq, updated_at
from eventlog.session_views
where tenant_id = $1 and status in ('open', 'closed') and not expiry_set
  and (updated_at, session_id) > ($2, $3) and updated_at <= now() - $4::float8 * interval '1 second'
order by updated_at, session_id
limit $5;

-- name: deleted_sessions
-- Sessions that were deleted $4 seconds ago or earlier, after a place in that list.
select session_id, seq, updated_at
from eventlog.session_views
where tenant_id = $1 and status = 'deleted'
  and (updated_at, session_id) > ($2, $3) and updated_at <= now() - $4::float8 * interval '1 second'
order by updated_at, session_id
limit $5;

-- name: write_context_views
-- Brings sizes of contexts up to date, and answers for which sessions work is due now. A session that was
-- due stays due since then, and one that a worker has put off stays so: a further message changes neither.
-- What a worker has found at a later seq counts more.
insert into eventlog.context_views as v (
  shard, session_id, tenant_id, seq, tokens, threshold, is_full, why, due_at)
select * from unnest(
  $1::smallint[], $2::uuid[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::boolean[], $8::text[],
  $9::timestamptz[])
on conflict (shard, session_id) do update set
  seq = excluded.seq, tokens = excluded.tokens, threshold = excluded.threshold, is_full = excluded.is_full,
  why = case when v.why = 'postponed' and excluded.why = 'over_threshold' then v.why else excluded.why end,
  due_at = case
    when excluded.why = 'over_threshold' and v.why in ('over_threshold', 'postponed')
      or excluded.why = 'asked' and v.why = 'asked' then coalesce(v.due_at, excluded.due_at)
    else excluded.due_at end
where v.seq <= excluded.seq and (
  v.threshold <> excluded.threshold or v.is_full <> excluded.is_full
  or abs(v.tokens - excluded.tokens) * 20 >= excluded.threshold
  or (v.due_at is null) <> (excluded.due_at is null)
  or v.why <> excluded.why and not (v.why = 'postponed' and excluded.why = 'over_threshold')
  or excluded.why = 'backing_off' and v.due_at <> excluded.due_at)
returning v.session_id, v.tenant_id, coalesce(v.due_at <= now(), false);

-- name: drop_context_views
-- Drops rows of contexts that are small by now.
delete from eventlog.context_views v
using unnest($1::smallint[], $2::uuid[], $3::bigint[]) as d (shard, session_id, seq)
where v.shard = d.shard and v.session_id = d.session_id and v.seq <= d.seq;

-- name: remove_context_view
-- Removes a session's row, before it is made again from the log.
delete from eventlog.context_views where shard = $1 and session_id = $2;

-- name: due_contexts
-- Sessions that are due now, those that wait longest first, after a place in that list.
select shard, session_id, due_at
from eventlog.context_views
where tenant_id = $1 and due_at is not null and due_at <= now() and (due_at, session_id) > ($2, $3)
order by due_at, session_id
limit $4;

-- name: settle_context
-- What a worker found at a seq. Nothing, where the projection has seen more meanwhile.
update eventlog.context_views
set seq = $3, tokens = $4, threshold = $5, is_full = $6, why = $7, due_at = $8
where shard = $1 and session_id = $2 and seq <= $3;

-- name: put_context_off
-- Lets a session be for $3 seconds, whatever is wrong with it.
update eventlog.context_views
set why = 'postponed', due_at = now() + $3::float8 * interval '1 second'
where shard = $1 and session_id = $2;

-- name: count_due_contexts
-- How many sessions of a tenant are due now. Nothing is counted beyond $2.
select count(*) from (
  select from eventlog.context_views
  where tenant_id = $1 and due_at is not null and due_at <= now() limit $2
) as due;
