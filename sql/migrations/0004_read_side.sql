-- The rest of what people ask of sessions: agents and hand-offs, runs, usage, scratchpad, tool calls,
-- text search, and when a session expires.
--
-- All of it is kept by the same projectors, in the same transaction as the views of 0003, so every row
-- here equals the fold of the log at the checkpoint. A fork's views hold what happened in the fork:
-- its parent's messages, runs and spending are its parent's, and readers follow the lineage.
--
-- On a log that has events already, the new tables begin with what is projected from now on;
-- `eventlog rebuild all` makes them whole, and eventlog.view_versions says which need it.

-- --- sessions ----------------------------------------------------------------------------------------

alter table eventlog.session_views
  add column ttl_seconds bigint,             -- by an event of the session
  add column expires_at timestamptz,         -- when it expires by its own events; null: never, or by policy
  add column expiry_set boolean not null default false,  -- its own events say something of its end
  add column search tsvector;                -- title and key (eventlog/search/terms.py)

-- Erased sessions are in no list either.
-- squawk-ignore require-concurrent-index-deletion
drop index eventlog.session_views_of_user;
-- squawk-ignore require-concurrent-index-deletion
drop index eventlog.session_views_newest;
-- squawk-ignore require-concurrent-index-creation
create index session_views_of_user on eventlog.session_views (tenant_id, owner_id, updated_at, session_id)
  where status in ('open', 'closed');
-- squawk-ignore require-concurrent-index-creation
create index session_views_newest on eventlog.session_views (tenant_id, updated_at, session_id)
  where status in ('open', 'closed');
-- squawk-ignore require-concurrent-index-creation
create index session_views_forks on eventlog.session_views (parent_session_id, session_id)
  where parent_session_id is not null;
-- squawk-ignore require-concurrent-index-creation
create index session_views_expiring on eventlog.session_views (expires_at)
  where expires_at is not null and status in ('open', 'closed');
-- squawk-ignore require-concurrent-index-creation
create index session_views_search on eventlog.session_views using gin (search)
  where search is not null;

-- --- messages ----------------------------------------------------------------------------------------

-- What forks inherited is their parents'.
delete from eventlog.message_views m using eventlog.session_views s
where s.shard = m.shard and s.session_id = m.session_id and m.seq <= s.parent_seq;

-- Messages are asked for by seq: before one, after one, newest first. `ordinal` stays a plain column.
-- squawk-ignore ban-drop-constraint
alter table eventlog.message_views drop constraint message_views_pkey;
-- squawk-ignore constraint-missing-not-valid, disallowed-unique-constraint, adding-serial-primary-key-field
alter table eventlog.message_views add constraint message_views_pkey primary key (shard, session_id, seq);
alter table eventlog.message_views
  add column tool_call_key uuid,    -- of a tool's output: fixed-size name of the call it answers
  add column search tsvector;       -- null: not to be found (no text, a deleted session)
-- squawk-ignore require-concurrent-index-creation
create index message_views_of_role on eventlog.message_views (shard, session_id, role, seq);
-- squawk-ignore require-concurrent-index-creation
create index message_views_outputs on eventlog.message_views (shard, session_id, tool_call_key, seq)
  where tool_call_key is not null;
-- squawk-ignore require-concurrent-index-creation
create index message_views_search on eventlog.message_views using gin (search) where search is not null;

-- Calls of tools that assistants' messages ask for. Which message answers a call is found by its key.
create table eventlog.tool_call_views (
  session_id uuid not null,
  call_key uuid not null,           -- fixed-size name of call_id, for the indexes
  seq bigint not null,              -- of the message
  number int not null,              -- of the call within it, from 0
  shard smallint not null,
  call_id text not null,
  name text not null,
  constraint tool_call_views_pkey primary key (shard, session_id, seq, number)
);
create index tool_call_views_by_key on eventlog.tool_call_views (shard, session_id, call_key, seq);

-- --- agents ------------------------------------------------------------------------------------------

create table eventlog.agent_views (
  session_id uuid not null,
  ordinal int not null,             -- in order of their first appearance, from 0
  shard smallint not null,
  is_current boolean not null,
  agent text not null,
  constraint agent_views_pkey primary key (shard, session_id, ordinal)
);

create table eventlog.handoff_views (
  session_id uuid not null,
  seq bigint not null,
  shard smallint not null,
  from_agent text,
  to_agent text not null,
  context bytea not null,           -- JSON
  constraint handoff_views_pkey primary key (shard, session_id, seq)
);

-- --- runs --------------------------------------------------------------------------------------------

create table eventlog.run_views (
  session_id uuid not null,
  run_key uuid not null,            -- fixed-size name of run_id
  started_at timestamptz not null,
  ended_at timestamptz,
  started_seq bigint not null,
  ended_seq bigint not null,        -- 0: it is under way
  shard smallint not null,
  status text not null,             -- running, stopping, finished or failed
  run_id text not null,
  agent text,
  body bytea not null,              -- JSON of eventlog.Run
  constraint run_views_pkey primary key (shard, session_id, run_key)
);
create index run_views_newest on eventlog.run_views (shard, session_id, started_seq);
create index run_views_under_way on eventlog.run_views (started_at) where ended_seq = 0;

-- --- usage -------------------------------------------------------------------------------------------

-- One row for each day, agent and model that a session spent tokens on.
create table eventlog.usage_views (
  session_id uuid not null,
  part_key uuid not null,           -- fixed-size name of day, agent and model
  owner_id uuid,
  generations bigint not null,
  input_tokens bigint not null,
  output_tokens bigint not null,
  cached_tokens bigint not null,
  reasoning_tokens bigint not null,
  tenant_id int not null,
  day date not null,                -- UTC, of the event that reported it
  shard smallint not null,
  user_id text,
  agent text,
  model text,
  constraint usage_views_pkey primary key (shard, session_id, part_key)
);
create index usage_views_of_day on eventlog.usage_views (tenant_id, day);
create index usage_views_of_user on eventlog.usage_views (tenant_id, owner_id, day);

-- --- scratchpad --------------------------------------------------------------------------------------

create table eventlog.scratchpad_views (
  session_id uuid not null,
  name_key uuid not null,           -- fixed-size name of name
  shard smallint not null,
  name text not null,
  value bytea not null,             -- JSON
  constraint scratchpad_views_pkey primary key (shard, session_id, name_key)
);

-- --- versions ----------------------------------------------------------------------------------------

-- Which version of a view's code its rows were made by. 0: part of the log is missing in it. A rebuild
-- writes the number of the code that did it.
create table eventlog.view_versions (
  view text not null,
  version int not null,
  built_at timestamptz not null default now(),
  constraint view_versions_pkey primary key (view)
);
-- The version of the code at this migration, for logs that begin with it; 0 for others.
insert into eventlog.view_versions (view, version)
select v.view, case when exists (select from eventlog.events) then 0 else 1 end
from (values ('sessions'), ('messages'), ('agents'), ('runs'), ('usage'), ('scratchpad')) as v (view);

do $$
begin
  if exists (select from pg_roles where rolname = 'eventlog_app') then
    grant select, insert, update, delete
      on eventlog.tool_call_views, eventlog.agent_views, eventlog.handoff_views, eventlog.run_views,
         eventlog.usage_views, eventlog.scratchpad_views
      to eventlog_app;
    grant select, insert, update on eventlog.view_versions to eventlog_app;
  end if;
end
$$;
