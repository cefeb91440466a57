-- Snapshots: saved folds, for speed only. Any of them may be deleted at any time.
--
-- A snapshot is the state's header, the last few messages, and the keys of the full chunks of messages
-- before those. A chunk is stored once and referred to by every later snapshot, so all snapshots
-- together stay as large as the messages they hold; a fork's snapshots refer to its parent's. Each part carries a checksum; a reader that finds
-- a damaged or missing part, or another fold_version, reads the log instead.

create table eventlog.snapshots (
  session_id uuid not null,
  seq bigint not null,
  fold_version int not null,
  chunks bigint[] not null,       -- keys
  first_seqs bigint[] not null,   -- seq of the first message in each
  header bytea not null,
  tail bytea not null,
  checksum int not null,
  constraint snapshots_pkey primary key (session_id, seq)
);
alter table eventlog.snapshots alter column header set storage external;
alter table eventlog.snapshots alter column tail set storage external;

create table eventlog.snapshot_chunks (
  session_id uuid not null,   -- whose messages they are
  key bigint not null,
  checksum int not null,
  messages bytea not null,
  constraint snapshot_chunks_pkey primary key (key)
);
alter table eventlog.snapshot_chunks alter column messages set storage external;

do $$
begin
  if exists (select from pg_roles where rolname = 'eventlog_app') then
    grant select, insert, update, delete on eventlog.snapshots, eventlog.snapshot_chunks to eventlog_app;
  end if;
end
$$;
