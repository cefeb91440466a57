-- Reading the views: what a plain statement on the library's connections would do badly.
--
-- Those connections keep one plan for every statement, made to never sort, scan whole tables or build
-- bitmaps (eventlog/postgres.py). That is right for everything that walks along an index. What is
-- here needs a bitmap (GIN has nothing else), an aggregate, or a plan made for the values at hand, and
-- says so in its own settings. Nothing here writes.

-- Forks under their parents, newest first. (session_views_forks has the others, deleted ones too.)
-- squawk-ignore require-concurrent-index-creation
create index session_views_forks_newest on eventlog.session_views (parent_session_id, updated_at, session_id)
  where parent_session_id is not null and status in ('open', 'closed');

-- All messages that can be found, newest first: what a word that is everywhere is looked for along.
-- squawk-ignore require-concurrent-index-creation
create index message_views_newest on eventlog.message_views (recorded_at, session_id, seq)
  where search is not null;

-- Sessions whose title or key has these words, newest activity first, before a place in that list. The
-- planner chooses: along the list where many are found, else from the words. The query says whose
-- sessions they are.
create function eventlog.find_sessions(
  p_query tsquery, p_tenant int, p_owner uuid, p_status text, p_agent text, p_updated_after timestamptz,
  p_before_at timestamptz, p_before_session uuid, p_limit int, p_without uuid[])
returns table (shard smallint, session_id uuid)
language plpgsql stable rows 50
set search_path = eventlog, pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set enable_bitmapscan = on
set enable_sort = on
as $$
begin
  return query
  select v.shard, v.session_id from session_views v
  where v.search @@ p_query and v.tenant_id = p_tenant and v.status in ('open', 'closed')
    and (p_owner is null or v.owner_id = p_owner) and (p_status is null or v.status = p_status)
    and (p_agent is null or p_agent = any(v.agents)) and v.updated_at > p_updated_after
    and (v.updated_at, v.session_id) < (p_before_at, p_before_session)
    and v.session_id <> all(p_without)
  order by v.updated_at desc, v.session_id desc
  limit p_limit;
end
$$;

-- Messages that have these words, newest first, before a place in that order. The query says whose
-- they are (scopes); the rest narrows it. Three ways lead there:
--
--   few       the messages of a session, or of a user, one by one, if they are not many
--   walk      the newest messages one by one, until enough were found or too many weren't
--   words     all matches from the index of words, sorted: its cost is the number of matches, and of
--             messages with words that begin like the last one
--
-- Words have it where the planner expects few matches, and where a walk ended without enough. A walk
-- looks at half as many messages as matches are expected, at least c_walk: so it never costs more than
-- the words would have, and what is everywhere is found at once. The expensive case is what used to be
-- everywhere and isn't any more; it ends at the connection's statement_timeout.
create function eventlog.search_messages(
  p_query tsquery, p_tenant int, p_owner uuid, p_shard smallint, p_session uuid, p_roles text[], p_agent text,
  p_since timestamptz, p_until timestamptz,
  p_before_at timestamptz, p_before_session uuid, p_before_seq bigint, p_limit int, p_without uuid[])
returns table (shard smallint, session_id uuid, seq bigint)
language plpgsql volatile rows 50  -- stable functions may not ask the planner
set search_path = eventlog, pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set enable_bitmapscan = on
set enable_sort = on
as $$
declare
  c_few constant int := 2000;       -- messages that are looked at one by one in any case
  c_few_sessions constant int := 200;
  c_matches constant int := 1000;   -- expected matches from which on walking is tried
  c_walk constant int := 5000;      -- messages it looks at at least
  c_wanted constant text :=
    'm.search @@ $1 and not m.hidden and m.recorded_at >= $4 and m.recorded_at < $5'
    ' and (m.recorded_at, m.session_id, m.seq) < ($6, $7, $8) and ($2 is null or m.role = any($2))'
    ' and ($3 is null or m.agent = $3) and m.session_id <> all($10)';
  c_newest constant text := ' order by m.recorded_at desc, m.session_id desc, m.seq desc';
  v_matches float8;
  v_plan json;
  v_way text;
  v_whole boolean := false;  -- there is nothing beside what that way sees
  v_at timestamptz;
begin
  if p_session is not null then
    v_way := '(select m.* from message_views m where m.shard = $13 and m.session_id = $14'
      ' order by m.seq desc limit ' || c_few || ')';
    v_whole := not exists (
      select from message_views m where m.shard = p_shard and m.session_id = p_session
      order by m.seq desc offset c_few limit 1);
  elsif p_owner is not null then
    select coalesce(sum(s.message_count), 0) <= c_few and count(*) <= c_few_sessions into v_whole
    from (select v.message_count from session_views v
          where v.tenant_id = p_tenant and v.owner_id = p_owner and v.status in ('open', 'closed')
          limit c_few_sessions + 1) s;
    if v_whole then
      v_way := '(select m.* from session_views s'
        ' join message_views m on m.shard = s.shard and m.session_id = s.session_id'
        ' where s.tenant_id = $11 and s.owner_id = $12 and s.status in (''open'', ''closed'') offset 0)';
    end if;
  end if;
  if v_way is null then
    execute 'explain (format json) select from message_views m where ' || c_wanted into v_plan
    using p_query, p_roles, p_agent, p_since, p_until, p_before_at, p_before_session, p_before_seq,
          p_limit, p_without;
    v_matches := (v_plan -> 0 -> 'Plan' ->> 'Plan Rows')::float8;
    if v_matches > c_matches then
      v_way := '(select m.* from message_views m where m.search is not null'
        ' and m.recorded_at >= $4 and m.recorded_at < $5'
        ' and (m.recorded_at, m.session_id, m.seq) < ($6, $7, $8)'
        || c_newest || ' limit ' || greatest(c_walk, v_matches / 2)::bigint || ')';
    end if;
  end if;

  if v_way is not null then
    for shard, session_id, seq, v_at in execute
      'select m.shard, m.session_id, m.seq, m.recorded_at from ' || v_way || ' m where ' || c_wanted
      || c_newest || ' limit $9'
    using p_query, p_roles, p_agent, p_since, p_until, p_before_at, p_before_session, p_before_seq,
          p_limit, p_without, p_tenant, p_owner, p_shard, p_session
    loop
      return next;
      p_limit := p_limit - 1;
      p_before_at := v_at;
      p_before_session := session_id;
      p_before_seq := seq;
    end loop;
    if v_whole or p_limit = 0 then
      return;
    end if;
  end if;

  return query execute
    'with found as materialized ('
    'select m.recorded_at, m.shard, m.session_id, m.seq from message_views m where ' || c_wanted || ') '
    'select m.shard, m.session_id, m.seq from found m' || c_newest || ' limit $9'
  using p_query, p_roles, p_agent, p_since, p_until, p_before_at, p_before_session, p_before_seq,
        p_limit, p_without;
end
$$;

-- What was spent, summed up by those of day, user, agent, model and session that p_by names.
create function eventlog.usage_totals(
  p_tenant int, p_owner uuid, p_shard smallint, p_session uuid, p_since date, p_until date,
  p_without uuid[], p_by text[])
returns table (
  day date, user_id text, agent text, model text, session_id uuid,
  generations bigint, input_tokens bigint, output_tokens bigint, cached_tokens bigint, reasoning_tokens bigint)
language plpgsql stable
set search_path = eventlog, pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set enable_seqscan = on
set enable_bitmapscan = on
set enable_sort = on
as $$
begin
  return query
  select p.day, p.user_id, p.agent, p.model, p.session_id, sum(p.generations)::bigint,
    sum(p.input_tokens)::bigint, sum(p.output_tokens)::bigint, sum(p.cached_tokens)::bigint,
    sum(p.reasoning_tokens)::bigint
  from (
    select
      case when 'day' = any(p_by) then u.day end as day,
      case when 'user' = any(p_by) then u.user_id end as user_id,
      case when 'agent' = any(p_by) then u.agent end as agent,
      case when 'model' = any(p_by) then u.model end as model,
      case when 'session' = any(p_by) then u.session_id end as session_id,
      u.generations, u.input_tokens, u.output_tokens, u.cached_tokens, u.reasoning_tokens
    from usage_views u
    where u.tenant_id = p_tenant and (p_owner is null or u.owner_id = p_owner)
      and (p_session is null or (u.shard = p_shard and u.session_id = p_session))
      and (p_since is null or u.day >= p_since) and (p_until is null or u.day <= p_until)
      and u.session_id <> all(p_without)
  ) p
  group by 1, 2, 3, 4, 5;
end
$$;
