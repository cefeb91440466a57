-- Contexts: how much of a session a model reads next, and which sessions are due for compaction.
--
-- The rows are kept by a projection of its own, `contexts`, which compact-workers run. They find work and
-- decide nothing: whoever works on a session looks at its newest state first. So a row may be late, and
-- its number of tokens may be behind by a twentieth of the threshold; due_at is not.
--
-- A session has a row when its context is half as large as it may become, or when a compaction was asked
-- for. Most have none.

create table eventlog.context_views (
  session_id uuid not null,
  due_at timestamptz,               -- from when on it is due; null: not before something happens in it
  seq bigint not null,              -- what the row takes account of, at least
  tokens bigint not null,
  threshold bigint not null,        -- tokens from which on it is due, by its policy
  tenant_id int not null,
  shard smallint not null,
  is_full boolean not null,         -- the next request may be refused
  why text not null,                -- see eventlog.compaction.due; or nothing_to_do, postponed
  constraint context_views_pkey primary key (shard, session_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
-- Sessions that are due, or will be at a time, those that wait longest first.
create index context_views_due on eventlog.context_views (tenant_id, due_at, session_id)
  where due_at is not null;

do $$
begin
  if exists (select from pg_roles where rolname = 'eventlog_app') then
    grant select, insert, update, delete on eventlog.context_views to eventlog_app;
  end if;
end
$$;
