"""Reading the views on Postgres: named queries in, structs out.

Hot reads are plain statements that walk along an index; what needs a bitmap or an aggregate goes
through functions of its own (sql/migrations/0007_queries.sql). Every query says the tenant, or the
scopes that stand for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog.entries import Message
from eventlog.envelope import owner_id_of, shard_of
from eventlog.reading.found_messages import Found, SearchFilter
from eventlog.reading.message_pages import MessageFilter, MessagePage, MessageView
from eventlog.reading.spending import UsageFilter, UsageRow
from eventlog.reading.view_store import AgentsView, ViewPlace
from eventlog.runs import Run
from eventlog.search.scopes import owner_scope, session_scope, tenant_scope
from eventlog.state import Handoff
from eventlog.views import (
    SessionFilter,
    SessionView,
    escape_text,
    unescape_text,
    view_from_record,
)

Fetch = Callable[..., Awaitable[list[Sequence[Any]]]]
_decode_message: Final = msgspec.json.Decoder(Message).decode
_decode_message_view: Final = msgspec.json.Decoder(MessageView).decode
_decode_run: Final = msgspec.json.Decoder(Run).decode
_TEXTS: Final = ("user_id", "agent", "model")


class PostgresViews:
    """`ViewStore` on the tables that projectors keep. `fetch` runs a named query."""

    def __init__(self, fetch: Fetch, *, tenant_id: int, shards: int) -> None:
        self._fetch = fetch
        self._tenant_id = tenant_id
        self._shards = shards

    # --- many sessions ---

    async def places(self, session_ids: list[UUID], user_id: str | None) -> dict[UUID, ViewPlace]:
        shards = [shard_of(each, self._shards) for each in session_ids]
        records = await self._fetch("view_seqs", shards, session_ids, self._tenant_id)
        owner_id = self._owner(user_id)
        return {
            record[0]: ViewPlace(record[1], record[2] and owner_id in (None, record[3]))
            for record in records
        }

    async def sessions(self, wanted: SessionFilter) -> list[SessionView]:
        owner_id = self._owner(wanted.user_id)
        asked = (
            self._tenant_id,
            *wanted.before,
            wanted.status,
            _escaped(wanted.agent),
            wanted.limit,
            wanted.updated_after_us,
            wanted.top,
            list(wanted.listed),
            list(wanted.without - wanted.listed),
            self._shards,
            owner_id,
            list(wanted.without),
        )
        if wanted.text is not None:
            query = wanted.text.tsquery(self._scopes(owner_id))
            records = await self._fetch("find_sessions", *asked, query)
        else:
            name = "list_sessions" if owner_id is None else "list_sessions_of_user"
            records = await self._fetch(name, *asked)
        return [view_from_record(record) for record in records]

    async def forks(self, parents: list[UUID], wanted: SessionFilter) -> list[SessionView]:
        owner_id = self._owner(wanted.user_id)
        asked = (self._tenant_id, wanted.limit, owner_id, list(wanted.without))
        records = await self._fetch("forks_of", parents, *asked)
        return [view_from_record(record) for record in records]

    async def usage(self, wanted: UsageFilter) -> list[UsageRow]:
        session_id = wanted.session_id
        records = await self._fetch(
            "usage_totals",
            self._tenant_id,
            self._owner(wanted.user_id),
            None if session_id is None else shard_of(session_id, self._shards),
            session_id,
            wanted.since,
            wanted.until,
            list(wanted.without),
            list(wanted.by),
        )
        return [_usage_row(record) for record in records]

    async def search(self, wanted: SearchFilter) -> list[Found]:
        owner_id = self._owner(wanted.user_id)
        scopes = self._scopes(owner_id)
        shard = None
        if wanted.session_id is not None:
            shard = shard_of(wanted.session_id, self._shards)
            scopes.append(session_scope(wanted.session_id))
        records = await self._fetch(
            "search_messages",
            wanted.query.tsquery(scopes),
            shard,
            wanted.session_id,
            None if wanted.roles is None else list(wanted.roles),
            _escaped(wanted.agent),
            wanted.since_us,
            wanted.until_us,
            *wanted.before,
            wanted.limit,
            list(wanted.without),
            self._tenant_id,
            owner_id,
        )
        found = [
            Found(record[0], _decode_message(record[3]), _plain(record[4]), _plain(record[5]))
            for record in records
        ]
        return sorted(found, key=lambda each: each.place, reverse=True)

    # --- one session ---

    async def session_messages(self, session_id: UUID, wanted: MessageFilter) -> MessagePage | None:
        records = await self._fetch(
            "session_messages",
            *self._place(session_id),
            wanted.after,
            wanted.before,
            None if wanted.roles is None else list(wanted.roles),
            _escaped(wanted.agent),
            wanted.limit,
            wanted.oldest,
        )
        if not records:
            return None
        items = [_message_view(record) for record in records if record[2] is not None]
        return MessagePage(
            seq=records[0][0],
            parent_seq=records[0][1],
            items=sorted(items, key=lambda each: each.seq),
        )

    async def session_agents(self, session_id: UUID) -> tuple[int, AgentsView] | None:
        records = await self._fetch("session_agents", *self._place(session_id))
        if not records:
            return None
        seq, current, used = records[0][:3]
        handoffs = [
            Handoff(
                seq=record[3],
                from_agent=_plain(record[4]),
                to_agent=unescape_text(record[5]),
                context=msgspec.json.decode(record[6]),
            )
            for record in records
            if record[3] is not None
        ]
        agents = [unescape_text(each) for each in used]
        return seq, AgentsView(current=_plain(current), used=agents, handoffs=handoffs)

    async def session_runs(
        self, session_id: UUID, status: str | None, limit: int
    ) -> tuple[int, list[Run]] | None:
        records = await self._fetch("session_runs", *self._place(session_id), status, limit)
        if not records:
            return None
        runs = [_decode_run(record[1]) for record in records if record[1] is not None]
        return records[0][0], sorted(runs, key=lambda each: each.started_seq, reverse=True)

    async def session_usage(self, session_id: UUID) -> tuple[int, list[UsageRow]] | None:
        records = await self._fetch("session_usage", *self._place(session_id))
        if not records:
            return None
        return records[0][0], [_usage_row(each[1:]) for each in records if each[1] is not None]

    async def session_scratchpad(
        self, session_id: UUID
    ) -> tuple[SessionView, dict[str, Any]] | None:
        records = await self._fetch("session_scratchpad", *self._place(session_id))
        if not records:
            return None
        *view, names, values = records[0]
        scratchpad = {
            unescape_text(name): msgspec.json.decode(value)
            for name, value in zip(names, values, strict=True)
        }
        return view_from_record(view), scratchpad

    # --- parameters ---

    def _place(self, session_id: UUID) -> tuple[int, UUID]:
        return shard_of(session_id, self._shards), session_id

    def _owner(self, user_id: str | None) -> UUID | None:
        return None if user_id is None else owner_id_of(user_id, self._tenant_id)

    def _scopes(self, owner_id: UUID | None) -> list[str]:
        # A user's id stands for the tenant as well.
        return [tenant_scope(self._tenant_id) if owner_id is None else owner_scope(owner_id)]


def _escaped(text: str | None) -> str | None:
    return None if text is None else escape_text(text)


def _plain(text: str | None) -> str | None:
    return None if text is None else unescape_text(text)


def _usage_row(record: Sequence[Any]) -> UsageRow:
    fields = dict(zip(UsageRow.__struct_fields__, record, strict=True))
    for name in _TEXTS:
        fields[name] = _plain(fields[name])
    return UsageRow(**fields)


def _message_view(record: Sequence[Any]) -> MessageView:
    _, _, body, call_ids, seqs, call_seq = record
    view = _decode_message_view(body)
    if call_ids is None and call_seq is None:
        return view
    pairs = zip(call_ids or (), seqs or (), strict=True)
    outputs = {unescape_text(call_id): seq for call_id, seq in pairs}
    return msgspec.structs.replace(view, outputs=outputs, call_seq=call_seq)
