-- Erasure: the one way in which stored bytes go away; and what finds sessions that expire.
--
-- A session that ends with a tombstone can be erased: the content of its events is removed from the
-- log, from the views and from the snapshots. Its rows stay, with their seqs and positions, types and
-- times, and say that their content was erased (flag 16). A row of eventlog.erasures says that it
-- happened.
--
-- eventlog.erase() is called until it answers that nothing is left to do. Each call is a transaction:
--
--   begin    the record. From now on no snapshot is saved that holds something of the session, and
--            those that do are gone, its forks' among them
--   rows     some thousands of rows a call, in order; the record says how far
--   end      the last row, which is the tombstone, and all rows of views, in step with the projectors
--
-- Whoever dies in between leaves a record that says what is left to do. No shard is locked meanwhile:
-- nobody can append to a session behind its tombstone, and nothing is numbered here.
--
-- Readers know by the flag of the tombstone that what they remember of the session is void. It is set
-- last: whoever sees it, reads erased rows only.

create table eventlog.erasures (
  rows bigint not null default 0,
  events bigint not null default 0,
  bytes bigint not null default 0,      -- of content
  done_seq bigint not null default 0,   -- rows up to here are erased
  begun_at timestamptz not null,
  erased_at timestamptz,                -- null: it is under way
  redis_at timestamptz,                 -- when copies in Redis were dropped; null: not yet
  forks_at timestamptz,                 -- when views of its forks were made anew; null: not yet
  session_id uuid not null,
  tenant_id int not null,
  shard smallint not null,
  reason text,
  requested_by text not null,
  constraint erasures_pkey primary key (shard, session_id)
);
create index erasures_newest on eventlog.erasures (erased_at);
create index erasures_of_tenant on eventlog.erasures (tenant_id, begun_at, session_id);
-- What is left to do.
create index erasures_unfinished on eventlog.erasures (tenant_id, begun_at)
  where erased_at is null or redis_at is null or forks_at is null;

-- So that what is to go is found. All snapshots there are were made by an older fold, and are of no
-- use: those that are saved from now on say whose messages are in them.
truncate eventlog.snapshots, eventlog.snapshot_chunks;
alter table eventlog.snapshots add column lineage uuid[] not null default '{}';  -- what a fork continues
-- squawk-ignore require-concurrent-index-creation
create index snapshots_of_lineage on eventlog.snapshots using gin (lineage);
-- squawk-ignore require-concurrent-index-creation
create index snapshot_chunks_of_session on eventlog.snapshot_chunks (session_id);
-- squawk-ignore require-concurrent-index-creation
create index session_owners_of_session on eventlog.session_owners (session_id);
-- squawk-ignore require-concurrent-index-creation
create index session_views_deleted on eventlog.session_views (tenant_id, updated_at, session_id)
  where status = 'deleted';

-- For people with psql.
create or replace view eventlog.readable with (security_invoker = true) as
select e.shard, e.session_id, e.seq - e.span + 1 as first_seq, e.seq, e.recorded_at, e.event_id,
       e.tenant_id, e.position,
       case when e.flags & 16 <> 0 then 'erased'
            else substring(convert_from(e.data, 'UTF8') from '"type":"([^"]*)"') end as type,
       case when e.data <> '' then convert_from(e.data, 'UTF8')::json end as event
from eventlog.events e;

-- The session that a session.created continues, by its bytes: the link stands behind everything that
-- a caller said.
create function eventlog.parent_in(p_created bytea)
returns uuid
language sql immutable
set search_path = eventlog, pg_catalog, pg_temp
as $$
  select substring(encode(p_created, 'escape') from '.*"parent_session_id":"([0-9a-f-]{36})"')::uuid;
$$;

-- Writes a session's row into session_views, or into the table that is being built beside it: what
-- the fold makes of erased events up to a position.
create function eventlog.write_erased_view(p_table text, p_shard smallint, p_session uuid, p_position bigint)
returns void
language plpgsql volatile
set search_path = eventlog, pg_catalog, pg_temp
as $$
declare
  v_first record;
  v_last record;
begin
  select e.recorded_at, e.seq - e.span as before_seq, parent_in(e.data) as parent_session_id into v_first
  from events e where e.shard = p_shard and e.session_id = p_session order by e.seq limit 1;
  select e.recorded_at, e.seq, e.position, e.flags, e.tenant_id into v_last
  from events e where e.shard = p_shard and e.session_id = p_session and e.position <= p_position
  order by e.seq desc limit 1;
  if v_last.seq is null then
    return;
  end if;
  execute format(
    'insert into eventlog.%I (session_id, parent_session_id, parent_seq, created_at, updated_at, seq,
       position, tenant_id, shard, status, message_count, token_count, context_token_count, input_tokens,
       output_tokens, cached_tokens, reasoning_tokens, compaction_count, run_count, agents, metadata)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0, 0, 0, 0, 0, 0, 0, 0, 0, ''{}'', ''{}'')', p_table)
  using p_session, v_first.parent_session_id,
        case when v_first.parent_session_id is null then 0 else v_first.before_seq end,
        v_first.recorded_at, v_last.recorded_at, v_last.seq, v_last.position, v_last.tenant_id, p_shard,
        case when v_last.flags & 8 <> 0 then 'erased' else 'open' end;
end
$$;

-- Brings the views to what erased events add up to. A projector's batch begins by moving its
-- checkpoint: those that are under way are waited for, and those that come later find the record.
create function eventlog.erase_views(p_shard smallint, p_session uuid)
returns void
language plpgsql volatile
set search_path = eventlog, pg_catalog, pg_temp
as $$
declare
  v_rebuild text;
  v_each record;
  v_parked text[];
  v_count bigint;
begin
  perform from checkpoints c where c.shard = p_shard order by c.projection for update;
  perform from rebuild_shards r where r.shard = p_shard for update;
  select r.name into v_rebuild from rebuilds r;

  -- A projector passes over what was parked when it began: let it begin again.
  with unparked as (
    delete from parked_sessions p where p.shard = p_shard and p.session_id = p_session
    returning p.projection
  )
  select coalesce(array_agg(projection), '{}') into v_parked from unparked;
  update leases l set owner = '', epoch = l.epoch + 1, expires_at = '-infinity'
  where l.shard = p_shard and l.name = any(v_parked);
  update checkpoints c set epoch = l.epoch from leases l
  where c.shard = p_shard and c.projection = any(v_parked) and l.shard = c.shard and l.name = c.projection;

  -- All tables of views there are, and those that are being built beside them.
  for v_each in
    select c.relname as name, c.relname like 'session\_views%' as is_sessions,
           case when c.relname like '%\_next' then v_rebuild else 'views' end as projection
    from pg_class c
    where c.relnamespace = 'eventlog'::regnamespace and c.relkind in ('r', 'p')
      and c.relname ~ '_views(_next)?$'
      and 2 = (select count(*) from pg_attribute a where a.attrelid = c.oid and not a.attisdropped
               and a.attname in ('shard', 'session_id'))
  loop
    execute format('delete from eventlog.%I where shard = $1 and session_id = $2', v_each.name)
    using p_shard, p_session;
    get diagnostics v_count = row_count;
    -- A rebuild comes to what it hasn't written yet.
    if v_each.is_sessions
       and (v_count > 0 or v_each.projection = 'views' or v_each.projection = any(v_parked)) then
      perform write_erased_view(v_each.name, p_shard, p_session, (
        select c.position from checkpoints c where c.projection = v_each.projection and c.shard = p_shard));
    end if;
  end loop;

  -- What forks have inherited. The rest of their rows is their own; whoever makes them anew then says so
  -- in forks_at.
  for v_each in
    with recursive fork as (
      select v.shard, v.session_id, v.parent_seq from session_views v where v.parent_session_id = p_session
      union
      select v.shard, v.session_id, v.parent_seq from session_views v join fork f on v.parent_session_id = f.session_id
    )
    select * from fork order by shard, session_id
  loop
    update session_views v set agents = '{}', current_agent = null, handoff = null
    where v.shard = v_each.shard and v.session_id = v_each.session_id;
    delete from agent_views v where v.shard = v_each.shard and v.session_id = v_each.session_id;
    delete from handoff_views v
    where v.shard = v_each.shard and v.session_id = v_each.session_id and v.seq <= v_each.parent_seq;
    delete from scratchpad_views v where v.shard = v_each.shard and v.session_id = v_each.session_id;
  end loop;
end
$$;

-- Erases a session, up to p_rows_max rows of it in a call. Statuses:
--   0 done     1 under way, call again     2 absent: no such session of this tenant
--   3 alive: it doesn't end with a tombstone
create function eventlog.erase(
  p_shard smallint, p_session uuid, p_tenant int, p_rows_max int, p_reason text, p_requested_by text
)
returns smallint
language plpgsql volatile security definer
set search_path = eventlog, pg_catalog, pg_temp
set enable_bitmapscan = on  -- by lineage
set enable_seqscan = off
as $$
declare
  c_bytes_max constant bigint := 64 * 1024 * 1024;  -- content that one call removes, about
  v_head record;
  v_record erasures;
  v_portion record;
begin
  select e.seq, e.flags, e.tenant_id into v_head from events e
  where e.shard = p_shard and e.session_id = p_session order by e.seq desc limit 1;
  if v_head.seq is null or v_head.tenant_id <> p_tenant then
    return 2;
  elsif v_head.flags & 8 = 0 then
    return 3;
  end if;

  -- Those who save snapshots hold this lock in common while they look for a record, and write.
  perform pg_advisory_xact_lock('eventlog.erasures'::regclass::oid::int, hashtext(p_session::text));
  select * into v_record from erasures r where r.shard = p_shard and r.session_id = p_session;
  if v_record.erased_at is not null then
    return 0;
  elsif v_record.session_id is null then
    insert into erasures (shard, session_id, tenant_id, begun_at, reason, requested_by)
    values (p_shard, p_session, p_tenant, clock_timestamp(), p_reason, coalesce(p_requested_by, session_user))
    returning * into v_record;
    delete from session_owners o where o.session_id = p_session;
    with heir as (
      delete from snapshots s where s.lineage @> array[p_session] returning s.session_id
    )
    delete from snapshot_chunks c where c.session_id in (select h.session_id from heir h);
    delete from snapshots s where s.session_id = p_session;
    delete from snapshot_chunks c where c.session_id = p_session;
  end if;

  select max(seq) as upto, count(*) as rows, sum(span) as events, sum(size) as bytes into v_portion
  from (
    select r.seq, r.span, r.size, sum(r.size) over (order by r.seq) - r.size as before from (
      select e.seq, e.span, octet_length(e.data)::bigint as size from events e
      where e.shard = p_shard and e.session_id = p_session and e.seq > v_record.done_seq and e.seq < v_head.seq
      order by e.seq limit p_rows_max
    ) r
  ) p
  where p.before <= c_bytes_max;

  if v_portion.rows > 0 then
    -- Of a fork its place in the family stays; nothing else that anyone said.
    update events e
    set flags = e.flags | 16,
        data = coalesce(case when e.type = 1 and e.seq > e.span then convert_to(
          '{"type":"session.created","parent_session_id":"' || parent_in(e.data)
          || '","parent_seq":' || (e.seq - e.span) || '}', 'UTF8') end, '')
    where e.shard = p_shard and e.session_id = p_session
      and e.seq > v_record.done_seq and e.seq <= v_portion.upto;
    update erasures r
    set done_seq = v_portion.upto, rows = r.rows + v_portion.rows,
        events = r.events + v_portion.events, bytes = r.bytes + v_portion.bytes
    where r.shard = p_shard and r.session_id = p_session;
    if v_portion.rows >= p_rows_max or exists (
      select from events e where e.shard = p_shard and e.session_id = p_session
        and e.seq > v_portion.upto and e.seq < v_head.seq) then
      return 1;
    end if;
  end if;

  perform erase_views(p_shard, p_session);
  update erasures r
  set done_seq = v_head.seq, rows = r.rows + 1, events = r.events + 1,
      bytes = r.bytes + octet_length(e.data), erased_at = clock_timestamp()
  from events e
  where r.shard = p_shard and r.session_id = p_session
    and e.shard = p_shard and e.session_id = p_session and e.seq = v_head.seq;
  update events e set flags = e.flags | 16, data = ''
  where e.shard = p_shard and e.session_id = p_session and e.seq = v_head.seq;
  return 0;
end
$$;

-- Takes note that what an erasure left to others was done: 'redis', 'forks'.
create function eventlog.note_erasure(p_shard smallint, p_session uuid, p_what text)
returns void
language sql volatile security definer
set search_path = eventlog, pg_catalog, pg_temp
as $$
  update erasures r
  set redis_at = case p_what when 'redis' then coalesce(r.redis_at, clock_timestamp()) else r.redis_at end,
      forks_at = case p_what when 'forks' then coalesce(r.forks_at, clock_timestamp()) else r.forks_at end
  where r.shard = p_shard and r.session_id = p_session and r.erased_at is not null;
$$;

revoke all on function
  eventlog.erase, eventlog.note_erasure, eventlog.erase_views, eventlog.write_erased_view, eventlog.parent_in
  from public;
do $$
begin
  if exists (select from pg_roles where rolname = 'eventlog_app') then
    grant select on eventlog.erasures to eventlog_app;
    grant execute on function eventlog.erase, eventlog.note_erasure to eventlog_app;
  end if;
end
$$;
