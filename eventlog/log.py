"""EventLog: where everything is put together. Open one per process and event loop.

    append ──> batcher ──> Postgres ──> ack
                              └──> fan-out ──> Redis feeds ──> hub ──> subscriptions

It reads and writes without any worker running. Views, caches and automatic compaction need them
(`eventlog up`, or one process of each).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from eventlog.batcher import Batcher
from eventlog.cache.session_cache import SessionCache
from eventlog.codec import encode_event
from eventlog.compaction.policies import Policies
from eventlog.embedded import Servers, open_servers
from eventlog.envelope import (
    BY_ID,
    Draft,
    closing_id_of,
    new_id,
    owner_id_of,
    session_id_of,
    shard_of,
)
from eventlog.erasing.erasure import erased_at
from eventlog.errors import (
    InvalidRequest,
    SessionDeleted,
    SessionErased,
    SessionExists,
    SessionNotFound,
)
from eventlog.events import MessageInterrupted, SessionCreated, type_code
from eventlog.fanout import FanOut
from eventlog.hub import Hub
from eventlog.memory import MemoryStore
from eventlog.postgres import PostgresStore
from eventlog.reading.catching_up import CatchingUp
from eventlog.reading.found_messages import HITS_USUAL, SearchPage
from eventlog.reading.listing import Listing, is_nested, session_filter
from eventlog.reading.log_queries import LogQueries
from eventlog.reading.session_queries import SessionQueries
from eventlog.reading.session_reader import SessionReader
from eventlog.reading.spending import By, UsageRow
from eventlog.replay import Replayer
from eventlog.reply import Reply
from eventlog.schema import APP_ROLE, check_server, inspect_server, migrate
from eventlog.session import Session
from eventlog.settings import Settings, read_settings
from eventlog.store import Answer, Command, Store
from eventlog.subscription import FeedSubscription, UserSubscription
from eventlog.views import SessionPage, ViewReader


class EventLog:
    """An event-sourced conversation log. Open it with `EventLog.open()`, not by its constructor."""

    def __init__(
        self, store: Store, *, settings: Settings, redis_url: str | None, servers: Servers | None
    ) -> None:
        self.settings = settings
        self.store = store
        self.servers = servers
        self.replayer = Replayer(store)
        self.fanout: FanOut | None = None
        if redis_url:
            self.fanout = FanOut(
                store,
                redis_url,
                feed_rows_max=settings.feed_rows_max,
                on_new_epoch=self._forget,
            )
        self.batcher = Batcher(
            store,
            lanes=settings.lanes,
            timeout_seconds=settings.append_timeout_seconds,
            on_commit=self.committed,
        )
        self.hub = Hub(store, self.fanout, redis_url)
        cache = None
        if self.fanout is not None and redis_url is not None:
            seconds = settings.cache_ttl_seconds
            cache = SessionCache(self.fanout, redis_url, shards=store.shards, ttl_seconds=seconds)
        self.views = ViewReader(store, self.replayer, cache)
        self.parts = SessionReader(store, self.replayer, self.views)
        self.asking = SessionQueries(store, self.replayer, self.views)
        late = CatchingUp(store, self.views, self.session_id)
        self._listing = Listing(store.tables, late)
        self._queries = LogQueries(store.tables, self.replayer, self.views, late)
        self.compaction = Policies(self)
        self.open_replies: dict[UUID, set[Reply]] = {}
        """Replies that this process streams now, by session."""
        self._kept: set[asyncio.Future[None]] = set()

    # --- opening ---

    @staticmethod
    @asynccontextmanager
    async def open(
        postgres: str | None = None,
        redis: str | None = None,
        *,
        settings: Settings | None = None,
    ) -> AsyncIterator[EventLog]:
        """Connect to the servers given by URL, else by the settings, else to embedded ones.

        `redis="none"` runs without Redis. On embedded servers the schema is installed or upgraded;
        on yours that is done by `eventlog migrate`. Raises `SetupError`s and `Unavailable`.
        """
        chosen = settings or read_settings()
        chosen = msgspec.structs.replace(
            chosen,
            postgres_url=postgres or chosen.postgres_url,
            redis_url=redis or chosen.redis_url,
        )
        async with AsyncExitStack() as stack:
            servers = await stack.enter_async_context(open_servers(chosen))
            if servers.postgres_embedded:
                await migrate(servers.postgres_url, shards=chosen.shards)
            facts = await inspect_server(servers.postgres_url)
            check_server(facts, unsafe_durability=chosen.unsafe_durability)
            assert facts.shards is not None
            store = PostgresStore(
                servers.postgres_url,
                tenant_id=chosen.tenant_id,
                shards=facts.shards,
                role=APP_ROLE if facts.has_app_role else None,
                append_seconds_max=chosen.append_timeout_seconds,
            )
            await store.open()
            log = EventLog(store, settings=chosen, redis_url=servers.redis_url, servers=servers)
            await stack.enter_async_context(log.running())
            yield log

    @staticmethod
    @asynccontextmanager
    async def in_memory(
        *, settings: Settings | None = None, store: MemoryStore | None = None
    ) -> AsyncIterator[EventLog]:
        """A log that lives as long as this block, for tests and examples; promises the same."""
        chosen = settings or Settings()
        log = EventLog(
            store or MemoryStore(shards=chosen.shards, tenant_id=chosen.tenant_id),
            settings=chosen,
            redis_url=None,
            servers=None,
        )
        async with log.running():
            yield log

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the tasks behind this log; at the end commit what is queued and close everything."""
        self.batcher.start()
        if self.fanout is not None:
            self.fanout.start()
        try:
            yield
        finally:
            if self._kept:
                await asyncio.gather(*self._kept, return_exceptions=True)
            await self.batcher.aclose()
            await self.hub.aclose()
            await self.views.aclose()
            if self.fanout is not None:
                await self.fanout.aclose()
            await self.replayer.aclose()
            await self.store.aclose()

    def keep(self, task: asyncio.Future[None]) -> None:
        """Let a task finish before the log closes."""
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    # --- sessions ---

    def session_id(self, key: object) -> UUID:
        """The id of the session with this key, whether it exists or not."""
        if not isinstance(key, str | UUID) or key == "":
            raise InvalidRequest(
                f"a session's key is a UUID or a text that isn't empty, not {key!a}"
            )
        return session_id_of(key, self.settings.tenant_id)

    def handle(self, session_id: UUID) -> Session:
        """A handle without asking whether the session exists, or whose it is.

        Internal: it reads and writes whatever has that id, another tenant's session too. Handles
        for others come from `session`, `create_session` and `fork`, which ask.
        """
        return Session(self, session_id, shard_of(session_id, self.store.shards))

    async def session(self, key: str | UUID) -> Session:
        """The session with this key or id. Raises `SessionNotFound`, `SessionDeleted`."""
        session_id = self.session_id(key)
        head = await self.replayer.head(session_id)
        if head is None:
            raise SessionNotFound(key)
        # Ids made of text belong to the tenant they were made for; any UUID may be guessed.
        by_id = key in (session_id, str(session_id))
        if by_id and await self.store.tenant_of(session_id) != self.settings.tenant_id:
            raise SessionNotFound(key)
        if head.erased:
            raise SessionErased(session_id, await erased_at(self.store, session_id))
        if head.deleted:
            raise SessionDeleted(session_id)
        return self.handle(session_id)

    async def create_session(
        self,
        key: str | UUID | None = None,
        *,
        user_id: str | None = None,
        title: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Session:
        """A new session; with a key that exists already, that session, as it is.

        `key` is your own name for it (any text; a UUID stands for itself), found again by
        `session(key)`. Raises `SessionDeleted` when a session of that key was deleted.
        """
        session_id = None if key is None else self.session_id(key)
        created = SessionCreated(
            key=None if key is None or isinstance(key, UUID) else key,
            user_id=user_id,
            title=title,
            metadata=metadata or {},
        )
        try:
            return await self.create(created, session_id=session_id)
        except SessionExists:
            assert key is not None
            return await self.session(key)

    async def create(
        self,
        created: SessionCreated,
        also: list[MessageInterrupted] | None = None,
        *,
        session_id: UUID | None = None,
    ) -> Session:
        """Append a session's first event, and others with it.

        Raises `SessionExists`; `SessionNotFound` for a parent that isn't there for this tenant.
        """
        parent_id = created.parent_session_id
        if parent_id and await self.store.tenant_of(parent_id) != self.settings.tenant_id:
            raise SessionNotFound(parent_id)
        if session_id is None:
            session_id = new_id() if created.key is None else self.session_id(created.key)
        session = self.handle(session_id)
        bytes_max = self.settings.event_bytes_max
        data = encode_event(created, bytes_max=bytes_max)
        drafts = [Draft(new_id(), type_code(created), 0, 1, data)]
        for event in also or ():
            closing = closing_id_of(session_id, event.message_id)
            data = encode_event(event, bytes_max=bytes_max)
            drafts.append(Draft(closing, type_code(event), BY_ID, 1, data))
        owner_id = None
        if created.user_id is not None:
            owner_id = owner_id_of(created.user_id, self.settings.tenant_id)
        await session.settle(
            Command(session_id, session.shard, drafts, base=created.parent_seq, owner_id=owner_id)
        )
        return session

    # --- asking the views ---

    async def sessions(
        self,
        *,
        user_id: str | None = None,
        status: str | None = None,
        agent: str | None = None,
        updated_after: datetime | None = None,
        text: str | None = None,
        forks: Literal["flat", "nested"] = "flat",
        limit: int = 50,
        cursor: str | None = None,
        min_seq: Mapping[Session | UUID | str, int] | None = None,
    ) -> SessionPage:
        """A page of sessions, newest activity first; deleted ones are left out.

        Of one user, with a status (`open` or `closed`), with an agent that took part, active after
        a time, with words in title or key (as in `search`); at most `limit` (1 to 1,000). `cursor`:
        that of the page before. A session that becomes active while you page moves to the front, so
        later pages may lack it, but never show one twice. With `forks="nested"` forks are not in
        the list but in the page's `forks`, under their parents.

        Lists come from the views, a moment behind the log; without a projector running they stay
        as they are, and are empty if none ever ran. `min_seq` names sessions that must be shown as
        they are at a seq, or later: your last appends' `last_seq`.
        """
        asked = session_filter(
            user_id=user_id,
            status=status,
            agent=agent,
            text=text,
            updated_after=updated_after,
            limit=limit,
        )
        nested = is_nested(forks)
        return await self._listing.page(asked, cursor=cursor, nested=nested, min_seq=min_seq)

    async def search(
        self,
        text: str,
        *,
        user_id: str | None = None,
        session: Session | UUID | str | None = None,
        role: str | Collection[str] | None = None,
        agent: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = HITS_USUAL,
        cursor: str | None = None,
        min_seq: Mapping[Session | UUID | str, int] | None = None,
    ) -> SearchPage:
        """Visible messages with these words, newest first, each with a highlighted snippet.

        Words match as beginnings; `"in quotes"` exactly and in order; `-not` excludes. Of one user,
        in one session (with what it inherited, if it is a fork), of one role or some, of one agent,
        opened at or after `since` and before `until`; at most `limit` (1 to 200). `cursor`: that of
        the page before. As new as lists are; `min_seq` as there.
        """
        return await self._queries.search(
            text,
            user_id=user_id,
            session=session,
            role=role,
            agent=agent,
            since=since,
            until=until,
            limit=limit,
            cursor=cursor,
            min_seq=min_seq,
        )

    async def usage(
        self,
        *,
        by: By | Collection[By] = "day",
        user_id: str | None = None,
        session: Session | UUID | str | None = None,
        since: date | None = None,
        until: date | None = None,
        min_seq: Mapping[Session | UUID | str, int] | None = None,
    ) -> list[UsageRow]:
        """Tokens spent, added up by day (UTC), user, agent, model, session, or several of these.

        Of one user, of one session, of the days from `since` to `until`, both included. Sorted;
        deleted sessions count, a fork counts what it spent itself. As new as lists are.
        """
        return await self._queries.usage(
            by, user_id=user_id, session=session, since=since, until=until, min_seq=min_seq
        )

    # --- subscribing ---

    def subscribe(
        self, *, user_id: str, after: str | None = None, from_start: bool = False
    ) -> UserSubscription:
        """Events of all sessions of a user, from now on; sessions created later are included.

        `after`: a cursor that an earlier subscription gave, to go on exactly there. `from_start`:
        what the user's sessions hold comes first.
        """
        return UserSubscription(
            self.store,
            self.hub,
            owner_id_of(user_id, self.settings.tenant_id),
            after=after,
            from_start=from_start,
        )

    def feed(self, positions: dict[int, int]) -> FeedSubscription:
        """Rows of shards, after a position for each: for workers. `close()` it when done."""
        return FeedSubscription(self.store, self.hub, positions)

    def _forget(self) -> None:
        """The log was found to have lost its end: nothing that is remembered counts."""
        self.replayer.forget()
        self.hub.forget()

    # --- after a commit ---

    def committed(self, commands: list[Command], answers: list[Answer]) -> None:
        """Hand what was just committed to the fan-out."""
        if self.fanout is not None:
            self.fanout.offer(commands, answers)
