"""What the tables of views must hold of a session, said once more and plainly, and what they do.

`rows_of` owes nothing to the views' own code: it goes from a whole state to all rows, where that
goes from differences between states to statements.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from eventlog import events as ev
from eventlog.entries import Message
from eventlog.envelope import RecordedEvent, owner_id_of
from eventlog.runs import Run, fold_runs
from eventlog.search.scopes import key_of, owner_scope, session_scope, tenant_scope
from eventlog.search.terms import tsvector_text
from eventlog.search.text import searchable_text
from eventlog.state import SessionState
from eventlog.views import unescape_text

Rows = list[tuple[Any, ...]]

_COLUMNS = {
    "message_views": (
        "seq, ordinal, body, closed_seq, retracted_seq, recorded_at, token_count, hidden, status,"
        " role, message_id, agent, name, tool_call_key, search::text"
    ),
    "tool_call_views": "seq, number, call_key, call_id, name",
    "agent_views": "ordinal, agent, is_current",
    "handoff_views": "seq, from_agent, to_agent, context",
    "run_views": (
        "started_seq, run_id, run_key, agent, status, started_at, ended_seq, ended_at, body"
    ),
    "usage_views": (
        "part_key, tenant_id, owner_id, user_id, day, agent, model, generations, input_tokens,"
        " output_tokens, cached_tokens, reasoning_tokens"
    ),
    "scratchpad_views": "name_key, name, value",
}
"""Of each table the columns that are compared, those first that say the order."""
_TEXTS = {
    *("message_id", "agent", "name", "call_id", "from_agent", "to_agent", "run_id", "user_id"),
    "model",
}
_TIMES = {"recorded_at", "started_at", "ended_at"}


async def stored_rows(connection: asyncpg.Connection[Any], table: str, session_id: UUID) -> Rows:
    """What a table holds of a session, in order."""
    columns = [each.strip() for each in _COLUMNS[table].split(",")]
    records = await connection.fetch(
        f"select {_COLUMNS[table]} from eventlog.{table} where session_id = $1 order by 1, 2",
        session_id,
    )
    return [
        tuple(_read(table, name, value) for name, value in zip(columns, record, strict=True))
        for record in records
    ]


def _read(table: str, column: str, value: Any) -> Any:
    if value is None:
        return None
    if column in _TEXTS:
        return unescape_text(value)
    if column in _TIMES:
        return datetime.fromtimestamp(value / 1_000_000, UTC)
    if column == "body":
        return msgspec.json.decode(value, type=Message if table == "message_views" else Run)
    if column in ("context", "value"):
        return msgspec.json.decode(value)
    if column == "search::text":
        return lexemes(value)
    return value


def lexemes(text: str) -> frozenset[str]:
    """The entries of a tsvector, whatever their order and quotes."""
    return frozenset(each.replace("'", "") for each in text.split())


def rows_of(state: SessionState, events: list[RecordedEvent], tenant_id: int) -> dict[str, Rows]:
    """All rows of a session but that of its session view, table by table."""
    handoffs = [*state.earlier_handoffs, *([state.handoff] if state.handoff else [])]
    own = [each for each in enumerate(state.entries) if each[1].seq > state.parent_seq]
    return {
        "message_views": [_message(state, place, each, tenant_id) for place, each in own],
        "tool_call_views": [
            (each.seq, number, key_of(call.id), call.id, call.name)
            for _, each in own
            for number, call in enumerate(each.tool_calls)
        ],
        "agent_views": [
            (place, agent, agent == state.current_agent) for place, agent in enumerate(state.agents)
        ],
        "handoff_views": [
            (each.seq, each.from_agent, each.to_agent, each.context) for each in handoffs
        ],
        "run_views": _runs(state, events),
        "usage_views": _usage(state, tenant_id),
        "scratchpad_views": sorted(
            (key_of(name), name, value) for name, value in state.scratchpad.items()
        ),
    }


def _message(state: SessionState, place: int, message: Message, tenant_id: int) -> tuple[Any, ...]:
    visible = any(each.seq == message.seq for each in state.messages)
    text = "" if state.status == "deleted" else searchable_text(message)
    scopes = [session_scope(state.session_id), tenant_scope(tenant_id)]
    if state.user_id is not None:
        scopes.append(owner_scope(owner_id_of(state.user_id, tenant_id)))
    call_id = message.tool_call_id if message.role == "tool" else None
    return (
        message.seq,
        place,
        message,
        message.closed_seq,
        message.retracted_seq,
        message.recorded_at,
        message.token_count,
        not visible,
        message.status,
        message.role,
        message.message_id,
        message.agent,
        message.name,
        None if call_id is None else key_of(call_id),
        lexemes(tsvector_text(text, scopes)) if text else None,
    )


def _runs(state: SessionState, events: list[RecordedEvent]) -> Rows:
    runs = fold_runs(events)
    going_on = {each.run_id: each.status for each in runs.values() if not each.ended_seq}
    assert going_on == state.runs, "what the state says of runs under way"
    began = sum(isinstance(each.event, ev.RunStarted) for each in events)
    assert began == state.run_count
    return sorted(
        (
            run.started_seq,
            run.run_id,
            key_of(run.run_id),
            run.agent,
            run.status,
            run.started_at,
            run.ended_seq,
            run.ended_at,
            run,
        )
        for run in runs.values()
    )


def _usage(state: SessionState, tenant_id: int) -> Rows:
    owner_id = None if state.user_id is None else owner_id_of(state.user_id, tenant_id)
    return sorted(
        (
            key_of(*key),
            tenant_id,
            owner_id,
            state.user_id,
            date(1970, 1, 1) + timedelta(days=key[0]),
            *key[1:],
            *msgspec.structs.astuple(spent),
        )
        for key, spent in state.usage.items()
    )
