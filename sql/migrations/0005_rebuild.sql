-- Rebuilding views: tables of the next generation beside those that are served, made from the log
-- while everybody goes on reading and writing, and switched when they say the same.
--
--   fold     each shard's sessions are folded whole, up to a position that is fixed at the beginning,
--            and written once, in order of their ids; the cursor moves in the same transaction
--   index    the indexes of the served tables are built
--   follow   the rest of the feed is projected, with a checkpoint of its own, as a projector does
--   switch   in one transaction the new tables get exactly to the checkpoint of the served ones and
--            take their names; the old ones are dropped
--
-- There is one rebuild at a time, of one view or several, and it survives whoever works on it. The
-- service may neither create nor drop tables; the functions below do that for it, for the tables in
-- the list of rebuild_tables() and no others. Whoever works on a shard does so under a lease (see
-- 0003), whose epoch goes on from the number of the rebuild: a worker that was left behind by an
-- earlier one is refused, too.

create table eventlog.rebuilds (
  number bigint not null generated always as identity,
  started_at timestamptz not null default now(),
  only_one boolean not null default true,
  name text not null,               -- of its projection, and of its leases
  phase text not null default 'fold',
  views text[] not null,
  versions int[] not null,          -- of the code that makes their rows
  constraint rebuilds_pkey primary key (number),
  constraint rebuilds_one unique (only_one),
  constraint rebuilds_only_one check (only_one),
  constraint rebuilds_phase check (phase in ('fold', 'index', 'follow'))
);

-- How far the first phase has come in each shard.
create table eventlog.rebuild_shards (
  session_id uuid,                  -- the last session that was written; null: none yet
  position bigint not null,         -- up to here sessions are folded
  epoch bigint not null,            -- newest lease under which someone began
  events_due bigint,                -- events up to the position; null: not counted yet
  events bigint not null default 0, -- of them, those in sessions that were written
  sessions bigint not null default 0,
  shard smallint not null,
  done boolean not null,
  constraint rebuild_shards_pkey primary key (shard)
) with (fillfactor = 50);

-- The tables of the rebuild that is under way.
create function eventlog.rebuild_tables()
returns table (served text, green text)
language sql stable
set search_path = eventlog, pg_catalog, pg_temp
as $$
  select t.name, t.name || '_next'
  from rebuilds r
  join (values
    ('sessions', 'session_views'), ('messages', 'message_views'), ('messages', 'tool_call_views'),
    ('agents', 'agent_views'), ('agents', 'handoff_views'), ('runs', 'run_views'),
    ('usage', 'usage_views'), ('scratchpad', 'scratchpad_views')
  ) as t (view, name) on t.view = any(r.views)
  order by t.name;
$$;

-- What a table has that a new one would not get.
create function eventlog.rebuild_obstacle(p_table text)
returns text
language sql stable
set search_path = eventlog, pg_catalog, pg_temp
as $$
  select case
    when c.relkind <> 'r' or c.relispartition then 'it is not a plain table'
    when c.relrowsecurity then 'it has row-level security'
    when exists (select from pg_trigger t where t.tgrelid = c.oid and not t.tgisinternal)
      then 'it has triggers'
    when exists (select from pg_constraint k where k.confrelid = c.oid)
      then 'foreign keys refer to it'
    when exists (select from pg_depend d join pg_rewrite w on w.oid = d.objid
                 where d.classid = 'pg_rewrite'::regclass and d.refobjid = c.oid and w.ev_class <> c.oid)
      then 'views in Postgres depend on it'
  end
  from pg_class c where c.oid = format('eventlog.%I', p_table)::regclass;
$$;

-- Creates one table like the served one: columns, constraints, settings and privileges, without the
-- indexes that can wait until it is full.
create function eventlog.make_rebuild_table(p_served text, p_green text)
returns void
language plpgsql volatile
set search_path = eventlog, pg_catalog, pg_temp
as $$
declare
  v_served oid := format('eventlog.%I', p_served)::regclass::oid;
  v_each record;
begin
  execute format('drop table if exists eventlog.%I', p_green);
  execute format('create table eventlog.%I (like eventlog.%I including all excluding indexes excluding statistics)',
                 p_green, p_served);
  for v_each in select array_to_string(reloptions, ', ') as options from pg_class
                where oid = v_served and reloptions is not null loop
    execute format('alter table eventlog.%I set (%s)', p_green, v_each.options);
  end loop;
  for v_each in select conname, pg_get_constraintdef(oid) as definition from pg_constraint
                where conrelid = v_served and contype in ('p', 'u') order by conname loop
    execute format('alter table eventlog.%I add constraint %I %s',
                   p_green, v_each.conname || '_next', v_each.definition);
  end loop;
  for v_each in
    select case a.grantee when 0 then 'public' else quote_ident(r.rolname) end as grantee,
           a.privilege_type, a.is_grantable
    from pg_class c cross join aclexplode(c.relacl) a left join pg_roles r on r.oid = a.grantee
    where c.oid = v_served and a.grantee <> c.relowner loop
    execute format('grant %s on eventlog.%I to %s%s', v_each.privilege_type, p_green, v_each.grantee,
                   case when v_each.is_grantable then ' with grant option' else '' end);
  end loop;
end
$$;

-- Begins a rebuild. Refused (EL001) while there is another. A rebuild of all views may get ahead of
-- the projectors, and so begins at the end of the feeds; one of some views must end where the others
-- are, and begins there.
create function eventlog.begin_rebuild(p_name text, p_views text[], p_versions int[], p_whole boolean)
returns bigint
language plpgsql volatile security definer
set search_path = eventlog, pg_catalog, pg_temp
as $$
declare
  v_number bigint;
  v_each record;
begin
  lock table rebuilds in share row exclusive mode;
  if exists (select from rebuilds) then
    raise exception sqlstate 'EL001' using message = 'there is a rebuild already';
  end if;
  insert into rebuilds (name, views, versions) values (p_name, p_views, p_versions)
  returning number into v_number;
  for v_each in select t.*, rebuild_obstacle(t.served) as obstacle from rebuild_tables() t loop
    if v_each.obstacle is not null then
      raise exception sqlstate 'EL002' using
        message = format('eventlog.%s can''t be rebuilt: %s', v_each.served, v_each.obstacle);
    end if;
    perform make_rebuild_table(v_each.served, v_each.green);
  end loop;

  insert into rebuild_shards (shard, position, epoch, done)
  select s.shard, p.position, v_number << 32, p.position = 0
  from (select g.n::smallint as shard from generate_series(0, (select l.shards from log l) - 1) as g (n)) s
  cross join lateral (select coalesce(case when p_whole
    then (select e.position from events e where e.shard = s.shard order by e.position desc limit 1)
    else (select c.position from checkpoints c where c.projection = 'views' and c.shard = s.shard)
  end, 0) as position) p;
  insert into checkpoints (projection, shard, position, epoch)
  select p_name, s.shard, s.position, s.epoch from rebuild_shards s
  on conflict (projection, shard) do update set position = excluded.position, epoch = excluded.epoch;
  insert into leases (name, shard, owner, epoch, expires_at)
  select p_name, s.shard, '', s.epoch, '-infinity' from rebuild_shards s
  on conflict (name, shard) do update
  set owner = '', epoch = excluded.epoch, expires_at = excluded.expires_at;
  delete from parked_sessions where projection = p_name;
  return v_number;
end
$$;

-- Builds one of the indexes that are missing and that nobody else builds just now; its name. Null:
-- others build the last ones. Empty: all are there, the statistics too, and the rebuild goes on.
-- Several may call it at the same time, and build indexes of the same table side by side.
create function eventlog.build_rebuild_index(p_number bigint)
returns text
language plpgsql volatile security definer
set search_path = eventlog, pg_catalog, pg_temp
set maintenance_work_mem = '128MB'
as $$
declare
  v_each record;
  v_begin text;
  v_missing boolean := false;
begin
  if not exists (select from rebuilds where number = p_number and phase = 'index') then
    return '';
  end if;
  for v_each in
    select t.served, t.green, c.oid, c.relname, i.indisunique, pg_get_indexdef(c.oid) as definition
    from rebuild_tables() t
    join pg_index i on i.indrelid = format('eventlog.%I', t.served)::regclass
    join pg_class c on c.oid = i.indexrelid
    where not exists (select from pg_constraint k where k.conindid = c.oid)
    order by pg_relation_size(c.oid) desc, c.relname loop
    if to_regclass(format('eventlog.%I', v_each.relname || '_next')) is not null then
      continue;
    end if;
    v_missing := true;
    -- Until the transaction ends. Whoever had it before may have built the index meanwhile.
    if not pg_try_advisory_xact_lock('eventlog.rebuilds'::regclass::oid::int, v_each.oid::int) then
      continue;
    end if;
    if to_regclass(format('eventlog.%I', v_each.relname || '_next')) is not null then
      continue;
    end if;
    v_begin := format('CREATE %sINDEX %I ON eventlog.%I ',
                      case when v_each.indisunique then 'UNIQUE ' else '' end, v_each.relname, v_each.served);
    if not starts_with(v_each.definition, v_begin) then
      raise exception 'index % is defined in an unexpected way: %', v_each.relname, v_each.definition;
    end if;
    execute format('create %sindex %I on eventlog.%I ',
                   case when v_each.indisunique then 'unique ' else '' end,
                   v_each.relname || '_next', v_each.green)
            || substr(v_each.definition, length(v_begin) + 1);
    return v_each.relname;
  end loop;
  if v_missing then
    return null;
  end if;
  -- No plan shall be made without statistics, by nobody's first query after the switch.
  for v_each in select t.green from rebuild_tables() t loop
    execute format('analyze eventlog.%I', v_each.green);
  end loop;
  update rebuilds set phase = 'follow' where number = p_number and phase = 'index';
  return '';
end
$$;

-- Forgets a rebuild: what is left are its tables, if they were not switched.
create function eventlog.forget_rebuild(p_number bigint)
returns void
language plpgsql volatile
set search_path = eventlog, pg_catalog, pg_temp
as $$
declare
  v_name text;
begin
  delete from rebuilds where number = p_number returning name into v_name;
  delete from rebuild_shards;
  delete from checkpoints where projection = v_name;
  delete from leases where name = v_name;
  delete from parked_sessions where projection = v_name;
end
$$;

-- Takes the new tables into service. They have to be complete, and at the position where the served
-- ones are: the caller sees to that, earlier in its transaction. Whoever reads waits at most
-- p_lock_ms for this one to get all locks, and as long as it takes to rename; if it can't get them it
-- fails, and has changed nothing.
create function eventlog.switch_rebuild(p_number bigint, p_lock_ms int)
returns void
language plpgsql volatile security definer
set search_path = eventlog, pg_catalog, pg_temp
as $$
declare
  v_table record;
  v_index record;
  v_until timestamptz := clock_timestamp() + p_lock_ms * interval '1 millisecond';
begin
  if not exists (select from rebuilds where number = p_number and phase = 'follow') then
    raise exception sqlstate 'EL003' using message = 'there is no rebuild that could be switched';
  end if;
  for v_table in select * from rebuild_tables() loop
    perform set_config('lock_timeout', greatest(1, ceil(
      extract(epoch from v_until - clock_timestamp()) * 1000))::int || 'ms', true);
    execute format('lock table eventlog.%I in access exclusive mode', v_table.served);
  end loop;
  for v_table in select * from rebuild_tables() loop
    execute format('drop table eventlog.%I', v_table.served);
    execute format('alter table eventlog.%I rename to %I', v_table.green, v_table.served);
    for v_index in
      select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid
      where i.indrelid = format('eventlog.%I', v_table.served)::regclass
        and c.relname like '%\_next' loop
      execute format('alter index eventlog.%I rename to %I',
                     v_index.relname, left(v_index.relname, -length('_next')));
    end loop;
  end loop;
  insert into view_versions (view, version)
  select v.view, v.version from rebuilds r, unnest(r.views, r.versions) as v (view, version)
  where r.number = p_number
  on conflict (view) do update set version = excluded.version, built_at = now();
  perform forget_rebuild(p_number);
end
$$;

-- Gives a rebuild up: the tables that are served stay as they are.
create function eventlog.abandon_rebuild(p_number bigint)
returns void
language plpgsql volatile security definer
set search_path = eventlog, pg_catalog, pg_temp
as $$
declare
  v_each record;
begin
  perform from rebuilds where number = p_number for update;
  if not found then
    return;
  end if;
  for v_each in select t.green from rebuild_tables() t loop
    execute format('drop table if exists eventlog.%I', v_each.green);
  end loop;
  perform forget_rebuild(p_number);
end
$$;

revoke all on function
  eventlog.rebuild_tables, eventlog.rebuild_obstacle, eventlog.make_rebuild_table,
  eventlog.forget_rebuild, eventlog.begin_rebuild, eventlog.build_rebuild_index,
  eventlog.switch_rebuild, eventlog.abandon_rebuild
  from public;
do $$
begin
  if exists (select from pg_roles where rolname = 'eventlog_app') then
    grant select on eventlog.rebuilds, eventlog.rebuild_shards to eventlog_app;
    grant update (phase) on eventlog.rebuilds to eventlog_app;
    grant update (session_id, epoch, events_due, events, sessions, done)
      on eventlog.rebuild_shards to eventlog_app;
    grant execute on function
      eventlog.begin_rebuild, eventlog.build_rebuild_index, eventlog.switch_rebuild,
      eventlog.abandon_rebuild
      to eventlog_app;
  end if;
end
$$;
