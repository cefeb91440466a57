-- The log.
--
-- One table holds every event of every session. It is only ever inserted into, and only by
-- eventlog.append(), which does four things in one round trip:
--
--   1. takes one advisory lock for each shard it writes, in ascending order, so that within a shard
--      appends follow one another and no two calls wait for each other in a circle;
--   2. judges each command (is the session there, is the expected seq right, is the id known, …);
--   3. numbers the rows of the accepted ones: seq within the session, position within the shard,
--      both without a gap, because nobody else can number rows of that shard until we commit;
--   4. inserts them, and answers for each command where it stands or why it was refused.
--
-- Because positions become visible in order, "position > N order by position" never skips a row: that
-- is what the feeds, the projections and the subscriptions rest on.
--
-- Roles: whoever runs this file owns the objects. The service works as eventlog_app, which can read
-- and call functions, but has no INSERT, UPDATE, DELETE or TRUNCATE on events.

create schema if not exists eventlog;

do $$
begin
  if not exists (select from pg_roles where rolname = 'eventlog_app') then
    create role eventlog_app nologin;
  end if;
exception
  when duplicate_object or unique_violation then null;  -- another migration made it meanwhile
  when insufficient_privilege then
    raise warning 'role eventlog_app is missing and this login may not create it: '
      'the log will not be append-only by privilege; create the role and grant it, then migrate again';
end
$$;

-- Who this log is. Restoring or cloning the database keeps log_id; epoch is raised when it is found
-- to have gone back, so that copies in Redis made before are never mixed with those made after.
create table eventlog.log (
  only_one boolean not null default true,
  log_id uuid not null default gen_random_uuid(),
  epoch int not null default 1,
  shards int not null,
  created_at timestamptz not null default now(),
  constraint log_pkey primary key (only_one),
  constraint log_only_one check (only_one),
  constraint log_shards check (shards between 1 and 4096)
);

-- Column order is by size, widest first, so that no byte is lost to alignment.
--   seq    of a row is the seq of its LAST event, span how many events it holds, so the one read
--          "seq > cursor order by seq" also finds a frame that the cursor stands inside of
--   type   number of the event's tag; the tag itself is in data
--   flags  1 frame, 2 unique by event id, 4 seals the session, 8 tombstone
--   data   the event's JSON, byte for byte
create table eventlog.events (
  position bigint not null,
  seq bigint not null,
  recorded_at timestamptz not null,
  session_id uuid not null,
  event_id uuid not null,
  tenant_id int not null,
  shard smallint not null,
  span smallint not null,
  type smallint not null,
  flags smallint not null,
  data bytea not null,
  constraint events_pkey primary key (shard, session_id, seq)
);
-- The feed of a shard.
create unique index events_feed on eventlog.events (shard, position);
-- Ids that callers chose. Every key starts with the session: an id of one tenant says nothing to another.
create unique index events_by_id on eventlog.events (shard, session_id, event_id) where flags & 2 <> 0;
-- Everything but token increments: what a fold needs.
create index events_structure on eventlog.events (shard, session_id, seq) where flags & 1 = 0;

-- Sessions of a user. Written once for each session, when it is created.
create table eventlog.session_owners (
  tenant_id int not null,
  owner_id uuid not null,
  session_id uuid not null,
  shard smallint not null,
  constraint session_owners_pkey primary key (tenant_id, owner_id, session_id)
);

-- Statuses of a command:
--   0 ok         1 absent: no such session      2 exists: it was to be created and is there
--   3 conflict: expected_seq is not the last    4 known: its event id is in the log already
--   5 fenced: the id in "unless" is in the log  6 closed        7 deleted
--
-- Whoever appended last to a shard knows the last seqs of the sessions it appended to: nobody else can
-- have added to them while the shard's last position is still its own. So the caller says what it has
-- seen, and where the shard has not moved since, the session isn't looked up again. A caller that says
-- nothing (zeros) gets the same answers. A session that is sealed must not be among what was seen.
--
-- The caller keeps three rules, which let one set-based statement judge all commands: a command with
-- an expected seq is the first of its session in the call; no id occurs twice in a call; no id in
-- "unless" is one that the same call inserts.
create function eventlog.append(
  p_tenant int,
  p_shards smallint[],        -- shards of this call, ascending, each once
  p_seen_position bigint[],   -- the last position of each that the caller knows of; 0 if none
  p_seen_at timestamptz[],    -- when that was recorded
  -- One entry for each command. An array may be shorter, or empty: what is missing is null.
  p_shard smallint[],
  p_session uuid[],
  p_seen_seq bigint[],        -- the session's last seq when its shard was at p_seen_position; 0: unknown
  p_expected bigint[],        -- null: any
  p_base bigint[],            -- null, or for a session to be created the seq before its first event
  p_owner uuid[],             -- null, or whose session it becomes
  p_known uuid[],             -- null, or the id to look for in the index of ids
  p_retry_id uuid[],          -- null, or (a retry) the id to look for among rows after p_retry_after
  p_retry_after bigint[],
  p_unless uuid[],            -- null, or the id whose presence refuses the command
  p_tombstone boolean[],      -- null: false
  p_rows int[],               -- null: 1
  p_span int[],               -- events in all rows of the command; null: 1
  -- One entry for each row, in order.
  p_row_event_id uuid[],
  p_row_type smallint[],
  p_row_data bytea[],
  p_row_flags smallint[],     -- null: 0
  p_row_span smallint[],      -- null: 1
  p_row_command int[],        -- null: every command has one row
  p_row_number int[],         -- 1, 2, … within the command; null: 1
  p_row_end int[]             -- events of the command up to and with this row; null: its span
)
returns table (status smallint, head_seq bigint, before_seq bigint, first_position bigint, recorded_at timestamptz)
language plpgsql
volatile
security definer
set search_path = eventlog, pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz;
begin
  -- A statement of its own: the next statement's snapshot must be taken when we hold the locks.
  perform pg_advisory_xact_lock('eventlog.events'::regclass::oid::int, s.shard)
  from unnest(p_shards) as s (shard);
  v_now := clock_timestamp();

  return query
  with feed as materialized (
    select s.shard, s.seen_position, s.seen_at, coalesce((
      select e.position from events e where e.shard = s.shard and e.position >= s.seen_position
      order by e.position desc limit 1
    ), 0) as head
    from unnest(p_shards, p_seen_position, p_seen_at) as s (shard, seen_position, seen_at)
  ), command as materialized (
    select c.n::int as n, c.shard, c.session_id, c.base, c.owner_id, feed.head as feed_head,
           coalesce(c.rows, 1) as rows, coalesce(c.span, 1) as span,
           coalesce(h.seq, t.seen_seq, c.base) as head,
           greatest(v_now, h.recorded_at, feed.seen_at) as recorded_at,
           case
             when c.known is not null and exists (
               select from events e
               where e.shard = c.shard and e.session_id = c.session_id and e.event_id = c.known
                 and e.flags & 2 <> 0) then 4
             when c.retry_id is not null and exists (
               select from events e
               where e.shard = c.shard and e.session_id = c.session_id
                 and e.seq > c.retry_after and e.event_id = c.retry_id
               order by e.seq) then 4
             when coalesce(h.seq, t.seen_seq) is null and c.base is null then 1
             when coalesce(h.seq, t.seen_seq) is not null and c.base is not null then 2
             when h.flags & 8 <> 0 then 7
             when h.flags & 4 <> 0 and c.tombstone is not true then 6
             when c.expected is not null and c.expected <> coalesce(h.seq, t.seen_seq, c.base) then 3
             when c.unless is not null and exists (
               select from events e
               where e.shard = c.shard and e.session_id = c.session_id and e.event_id = c.unless
                 and e.flags & 2 <> 0) then 5
             else 0
           end::smallint as status
    from unnest(p_shard, p_session, p_seen_seq, p_expected, p_base, p_owner, p_known, p_retry_id,
                p_retry_after, p_unless, p_tombstone, p_rows, p_span)
         with ordinality
         as c (shard, session_id, seen_seq, expected, base, owner_id, known, retry_id,
               retry_after, unless, tombstone, rows, span, n)
    join feed on feed.shard = c.shard
    cross join lateral (
      select case when c.seen_seq > 0 and feed.head = feed.seen_position then c.seen_seq end
    ) t (seen_seq)
    left join lateral (
      select e.seq, e.recorded_at, e.flags from events e
      where e.shard = c.shard and e.session_id = c.session_id and t.seen_seq is null
      order by e.seq desc limit 1
    ) h on true
  ), accepted as materialized (
    select c.n, c.shard, c.session_id, c.owner_id, c.recorded_at,
           c.head + sum(c.span) over session_order - c.span as before_seq,
           c.feed_head + sum(c.rows) over shard_order - c.rows as before_position
    from command c
    where c.status = 0
    window session_order as (partition by c.shard, c.session_id order by c.n rows unbounded preceding),
           shard_order as (partition by c.shard order by c.n rows unbounded preceding)
  ), stored as (
    insert into events (position, seq, recorded_at, session_id, event_id, tenant_id, shard, span, type, flags, data)
    select a.before_position + coalesce(r.number, 1), a.before_seq + coalesce(r.upto, r.span, 1),
           a.recorded_at, a.session_id, r.event_id, p_tenant, a.shard, coalesce(r.span, 1::smallint),
           r.type, coalesce(r.flags, 0::smallint), r.data
    from unnest(p_row_event_id, p_row_type, p_row_data, p_row_flags, p_row_span, p_row_command,
                p_row_number, p_row_end)
         with ordinality
         as r (event_id, type, data, flags, span, command, number, upto, n)
    join accepted a on a.n = coalesce(r.command, r.n)
  ), owned as (
    insert into session_owners (tenant_id, owner_id, session_id, shard)
    select p_tenant, a.owner_id, a.session_id, a.shard from accepted a where a.owner_id is not null
    on conflict do nothing
  )
  select c.status, coalesce(c.head, 0), a.before_seq::bigint, (a.before_position + 1)::bigint, c.recorded_at
  from command c left join accepted a on a.n = c.n
  order by c.n;
end
$$;

-- The last seq of a session whose event was recorded at or before a time: binary search, so that its
-- cost grows with the number of digits, not of events. recorded_at never goes back within a session.
create function eventlog.seq_at(p_shard smallint, p_session uuid, p_at timestamptz)
returns bigint
language plpgsql stable
set search_path = eventlog, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_low bigint := 0;      -- everything up to here is in time
  v_high bigint;          -- everything after here is too late
  v_middle bigint;
  v_row record;
begin
  select e.seq into v_high from events e
  where e.shard = p_shard and e.session_id = p_session order by e.seq desc limit 1;
  if v_high is null then
    return 0;
  end if;
  while v_low < v_high loop
    v_middle := (v_low + v_high) / 2;
    select e.seq, e.span, e.recorded_at into v_row from events e
    where e.shard = p_shard and e.session_id = p_session and e.seq > v_middle
    order by e.seq limit 1;
    if v_row.recorded_at <= p_at then
      v_low := v_row.seq;
    else  -- a frame is late as a whole, and so is all that follows the middle
      v_high := least(v_middle, v_row.seq - v_row.span);
    end if;
  end loop;
  return v_low;
end
$$;

-- Who the log is now. The timeline is part of it: a promoted standby may lack the end of the log.
create function eventlog.identity()
returns table (log_id uuid, epoch text, shards int)
language sql stable security definer
set search_path = eventlog, pg_catalog, pg_temp
as $$
  select l.log_id, l.epoch || '-' || ltrim(left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), '0'), l.shards
  from log l;
$$;

-- The database was found to be older than its copies in Redis: leave those copies behind. Of several
-- who notice, one raises the epoch.
create function eventlog.raise_epoch(p_seen text)
returns void
language plpgsql volatile security definer
set search_path = eventlog, pg_catalog, pg_temp
as $$
begin
  update log set epoch = epoch + 1 where p_seen = (select i.epoch from identity() i);
end
$$;

-- For people with psql.
create view eventlog.readable with (security_invoker = true) as
select e.shard, e.session_id, e.seq - e.span + 1 as first_seq, e.seq, e.recorded_at, e.event_id,
       e.tenant_id, e.position,
       substring(convert_from(e.data, 'UTF8') from '"type":"([^"]*)"') as type,
       convert_from(e.data, 'UTF8')::json as event
from eventlog.events e;

do $$
begin
  if exists (select from pg_roles where rolname = 'eventlog_app') then
    grant usage on schema eventlog to eventlog_app;
    grant select on eventlog.log, eventlog.events, eventlog.session_owners, eventlog.readable to eventlog_app;
    -- So that a login which is nothing but a member of this role can see that the schema is right.
    grant select on eventlog.migrations to eventlog_app;
  end if;
end
$$;
revoke all on function eventlog.append from public;
revoke all on function eventlog.raise_epoch from public;
do $$
begin
  if exists (select from pg_roles where rolname = 'eventlog_app') then
    grant execute on function eventlog.append, eventlog.raise_epoch to eventlog_app;
  end if;
end
$$;
