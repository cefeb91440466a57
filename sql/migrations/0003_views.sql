-- The views: what the log adds up to, in tables that can be listed, filtered and joined.
--
-- They are made from the log by projectors, and can be made again from nothing but the log. A
-- projector owns a shard through a lease, takes the rows of the shard's feed in order, and in one
-- transaction
--
--   1. moves the shard's checkpoint from the position it knows to the position of its last row, on
--      condition that the checkpoint still is where it believes and nobody with a newer lease began;
--   2. writes what those rows changed in the views.
--
-- So the views always equal the fold of the log at the checkpoint, neither less nor more. A projector
-- that lost its lease without noticing finds step 1 changing no row, and rolls back.
--
-- Text that users gave (ids, names, titles) is kept readable. Postgres' text refuses NUL, so U+0000
-- is stored as U+241B U+2400 and U+241B itself as U+241B U+241B (eventlog/views.py, escape_text);
-- everything else is stored as it is. JSON is stored as bytes: json and jsonb refuse or change some.
--
-- Every key holds the shard: the views can be distributed as the events table can.

-- One row for each session: what eventlog.SessionView shows.
create table eventlog.session_views (
  session_id uuid not null,
  owner_id uuid,                    -- fixed-size name of the user, for the index; null: nobody's
  parent_session_id uuid,
  created_at timestamptz not null,
  updated_at timestamptz not null,  -- when the event at seq was recorded
  seq bigint not null,              -- last seq that the row takes account of
  position bigint not null,         -- and that row's position in the feed
  parent_seq bigint not null,
  message_count bigint not null,
  token_count bigint not null,
  context_token_count bigint not null,
  input_tokens bigint not null,
  output_tokens bigint not null,
  cached_tokens bigint not null,
  reasoning_tokens bigint not null,
  compaction_count bigint not null,
  run_count bigint not null,
  tenant_id int not null,
  shard smallint not null,
  status text not null,             -- open, closed or deleted
  user_id text,
  key text,
  title text,
  current_agent text,
  agents text[] not null,
  metadata bytea not null,          -- JSON object
  handoff bytea,                    -- JSON of the newest hand-off
  constraint session_views_pkey primary key (shard, session_id)
) with (autovacuum_vacuum_scale_factor = 0.05);
-- Lists, newest activity first. By owner_id, as a user's id may be longer than an index takes.
create index session_views_of_user on eventlog.session_views (tenant_id, owner_id, updated_at, session_id)
  where status <> 'deleted';
create index session_views_newest on eventlog.session_views (tenant_id, updated_at, session_id)
  where status <> 'deleted';

-- One row for each message of a session's fold, those that were retracted or cleared away included.
-- A message that still streams is there without its text.
create table eventlog.message_views (
  session_id uuid not null,
  recorded_at timestamptz not null,
  seq bigint not null,              -- of the event that opened it
  closed_seq bigint not null,       -- of the event that ended it; 0: it is open
  retracted_seq bigint not null,    -- of the event that took it back; 0: none did
  token_count bigint,
  ordinal int not null,             -- its place among the session's messages, from 0
  shard smallint not null,
  hidden boolean not null,          -- retracted, or cleared away
  status text not null,             -- complete, open or interrupted
  role text not null,
  message_id text not null,
  agent text,
  name text,
  body bytea not null,              -- JSON of eventlog.Message
  constraint message_views_pkey primary key (shard, session_id, ordinal)
);
-- By the beginning of the id: a caller's message id may be longer than an index takes.
create index message_views_by_id on eventlog.message_views (shard, session_id, left(message_id, 128));
-- Replies that nobody may be writing any more; the reaper looks here.
create index message_views_open on eventlog.message_views (recorded_at, session_id, ordinal)
  where status = 'open' and not hidden;

-- How far each projection has come in each shard, and the newest lease under which someone began.
create table eventlog.checkpoints (
  projection text not null,
  shard smallint not null,
  position bigint not null,
  epoch bigint not null,
  constraint checkpoints_pkey primary key (projection, shard)
) with (fillfactor = 50);

-- Who works on which shard. Time is the database's; epoch grows with every change of owner.
create table eventlog.leases (
  name text not null,               -- of the work: for projectors, the projection's
  shard smallint not null,
  owner text not null,              -- '': nobody
  epoch bigint not null,
  expires_at timestamptz not null,
  constraint leases_pkey primary key (name, shard)
) with (fillfactor = 50);

-- Who is there to share a work, also without a shard yet: from this each knows its fair share.
create table eventlog.workers (
  name text not null,
  owner text not null,
  expires_at timestamptz not null,
  constraint workers_pkey primary key (name, owner)
) with (fillfactor = 50);

-- Sessions that a projection could not project, from the row at `position` on. Their rows are passed
-- over until someone retries them; their views stay as they were before that row.
create table eventlog.parked_sessions (
  projection text not null,
  shard smallint not null,
  session_id uuid not null,
  position bigint not null,
  seq bigint not null,
  error text not null,
  parked_at timestamptz not null default now(),
  constraint parked_sessions_pkey primary key (projection, shard, session_id)
);

do $$
begin
  if exists (select from pg_roles where rolname = 'eventlog_app') then
    grant select, insert, update, delete
      on eventlog.session_views, eventlog.message_views, eventlog.checkpoints, eventlog.leases,
         eventlog.workers, eventlog.parked_sessions
      to eventlog_app;
  end if;
end
$$;
