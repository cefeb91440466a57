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
  (session_id, seq, fold_version, chunks, first_seqs, header, tail, checksum)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (session_id, seq) do update
set fold_version = excluded.fold_version, chunks = excluded.chunks,
    first_seqs = excluded.first_seqs, header = excluded.header, tail = excluded.tail, checksum = excluded.checksum;

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
       parent_session_id, parent_seq, created_at, updated_at
from eventlog.session_views
where shard = $1 and session_id = $2;

-- name: session_views_by_id
-- The same of several sessions of a shard.
select v.session_id, v.seq, v.status, v.user_id, v.key, v.title, v.metadata,
       v.message_count, v.token_count, v.context_token_count,
       v.input_tokens, v.output_tokens, v.cached_tokens, v.reasoning_tokens,
       v.compaction_count, v.run_count, v.current_agent, v.agents, v.handoff,
       v.parent_session_id, v.parent_seq, v.created_at, v.updated_at
from unnest($1::smallint[], $2::uuid[]) as s (shard, session_id)
join eventlog.session_views v on v.shard = s.shard and v.session_id = s.session_id;

-- name: list_sessions
-- A tenant's sessions before a place in the list, newest activity first.
select session_id, seq, status, user_id, key, title, metadata,
       message_count, token_count, context_token_count,
       input_tokens, output_tokens, cached_tokens, reasoning_tokens,
       compaction_count, run_count, current_agent, agents, handoff,
       parent_session_id, parent_seq, created_at, updated_at
from eventlog.session_views
where tenant_id = $1 and status <> 'deleted' and (updated_at, session_id) < ($2, $3)
  and ($4::text is null or status = $4) and ($5::text is null or $5 = any(agents))
order by updated_at desc, session_id desc
limit $6;

-- name: list_sessions_of_user
-- The same for one user.
select session_id, seq, status, user_id, key, title, metadata,
       message_count, token_count, context_token_count,
       input_tokens, output_tokens, cached_tokens, reasoning_tokens,
       compaction_count, run_count, current_agent, agents, handoff,
       parent_session_id, parent_seq, created_at, updated_at
from eventlog.session_views
where tenant_id = $1 and status <> 'deleted' and (updated_at, session_id) < ($2, $3)
  and ($4::text is null or status = $4) and ($5::text is null or $5 = any(agents))
  and owner_id = $7
order by updated_at desc, session_id desc
limit $6;

-- name: write_session_views
-- Brings the rows of sessions up to date.
insert into eventlog.session_views as s (
  session_id, seq, status, user_id, key, title, metadata,
  message_count, token_count, context_token_count,
  input_tokens, output_tokens, cached_tokens, reasoning_tokens,
  compaction_count, run_count, current_agent, agents, handoff,
  parent_session_id, parent_seq, created_at, updated_at,
  position, shard, tenant_id, owner_id)
select
  v.session_id, v.seq, v.status, v.user_id, v.key, v.title, v.metadata,
  v.message_count, v.token_count, v.context_token_count,
  v.input_tokens, v.output_tokens, v.cached_tokens, v.reasoning_tokens,
  v.compaction_count, v.run_count, v.current_agent,
  array(select json_array_elements_text(v.agents)), v.handoff,
  v.parent_session_id, v.parent_seq, v.created_at, v.updated_at,
  v.position, v.shard, v.tenant_id, v.owner_id
from unnest(
  $1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[],
  $8::bigint[], $9::bigint[], $10::bigint[],
  $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[],
  $15::bigint[], $16::bigint[], $17::text[], $18::json[], $19::bytea[],
  $20::uuid[], $21::bigint[], $22::timestamptz[], $23::timestamptz[],
  $24::bigint[], $25::smallint[], $26::int[], $27::uuid[]
) as v (
  session_id, seq, status, user_id, key, title, metadata,
  message_count, token_count, context_token_count,
  input_tokens, output_tokens, cached_tokens, reasoning_tokens,
  compaction_count, run_count, current_agent, agents, handoff,
  parent_session_id, parent_seq, created_at, updated_at,
  position, shard, tenant_id, owner_id)
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
  position = excluded.position, tenant_id = excluded.tenant_id, owner_id = excluded.owner_id;

-- name: touch_session_views
-- The same for sessions that only got token increments.
update eventlog.session_views s
set seq = t.seq, position = t.position, updated_at = t.updated_at
from unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bigint[], $5::timestamptz[])
  as t (shard, session_id, seq, position, updated_at)
where s.shard = t.shard and s.session_id = t.session_id;

-- name: cut_message_views
-- Drops messages that a rewind took out of the fold.
delete from eventlog.message_views m
using unnest($1::smallint[], $2::uuid[], $3::int[]) as c (shard, session_id, length)
where m.shard = c.shard and m.session_id = c.session_id and m.ordinal >= c.length;

-- name: hide_message_views
-- Hides what was cleared away, or shows it again after a rewind, between two places.
update eventlog.message_views m
set hidden = m.ordinal < c.first_shown or m.retracted_seq <> 0
from unnest($1::smallint[], $2::uuid[], $3::int[], $4::int[], $5::int[])
  as c (shard, session_id, low, high, first_shown)
where m.shard = c.shard and m.session_id = c.session_id and m.ordinal >= c.low and m.ordinal < c.high;

-- name: write_message_views
-- Brings messages up to date.
insert into eventlog.message_views (
  shard, session_id, ordinal, seq, closed_seq, retracted_seq, recorded_at, token_count, hidden,
  status, role, message_id, agent, name, body)
select * from unnest(
  $1::smallint[], $2::uuid[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[],
  $7::timestamptz[], $8::bigint[], $9::boolean[],
  $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::bytea[])
on conflict (shard, session_id, ordinal) do update set
  seq = excluded.seq, closed_seq = excluded.closed_seq, retracted_seq = excluded.retracted_seq,
  recorded_at = excluded.recorded_at, token_count = excluded.token_count, hidden = excluded.hidden,
  status = excluded.status, role = excluded.role, message_id = excluded.message_id,
  agent = excluded.agent, name = excluded.name, body = excluded.body;

-- name: open_messages
-- Replies that began before a silence of $1 seconds and still are open, after a place in that list.
-- Nothing can be appended to sessions that are closed or deleted: theirs stay open for ever.
select m.session_id, m.message_id, m.recorded_at, m.ordinal
from eventlog.message_views m
join eventlog.session_views s on s.shard = m.shard and s.session_id = m.session_id
where m.status = 'open' and not m.hidden and s.status = 'open' and s.tenant_id = $6
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

-- name: remove_session_view
-- Removes a session's row, before it is made again from the log.
delete from eventlog.session_views where shard = $1 and session_id = $2;
