"""The view of sessions: a row of eventlog.session_views for each, as `SessionView` shows it.

Most batches hold token increments, which move a session's seq and time and nothing else: those rows
are touched, not written.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog.envelope import owner_id_of
from eventlog.search.scopes import owner_scope, session_scope, tenant_scope
from eventlog.search.terms import tsvector_text
from eventlog.views import SessionView, escape_text, micros, title_text, view_of
from projections.folding import Change
from projections.tables import Tables

_TEXTS: Final = ("user_id", "key", "title", "current_agent")
_TIMES: Final = ("created_at", "updated_at", "expires_at")
_encode: Final = msgspec.json.Encoder().encode


class SessionViews:
    """Writes what batches change of sessions."""

    name = "sessions"
    version = 1

    async def write(self, tables: Tables, changes: list[Change]) -> None:
        """Bring the rows of these sessions up to date, inside the caller's transaction."""
        whole = [_columns(each) for each in changes if each.events or each.before is None]
        await tables.write("write_session_views", whole)
        touched = [_touch(each) for each in changes if not each.events and each.before is not None]
        await tables.write("touch_session_views", touched)

    async def remove(self, tables: Tables, shard: int, session_id: UUID) -> None:
        """Remove what the view has of a session."""
        await tables.execute("remove_session_view", shard, session_id)


def _columns(change: Change) -> list[Any]:
    """One row, in the order of the query's parameters."""
    view = view_of(change.after)
    values: dict[str, Any] = {name: getattr(view, name) for name in SessionView.__struct_fields__}
    for name in _TEXTS:
        if values[name] is not None:
            values[name] = escape_text(values[name])
    values["metadata"] = _encode(view.metadata)
    values["agents"] = _encode([escape_text(each) for each in view.agents]).decode()
    values["handoff"] = None if view.handoff is None else _encode(view.handoff)
    for name in _TIMES:
        values[name] = None if values[name] is None else micros(values[name])
    owner_id = None if view.user_id is None else owner_id_of(view.user_id, change.tenant_id)
    return [
        *values.values(),
        change.position,
        change.shard,
        change.tenant_id,
        owner_id,
        change.after.expiry is not None,
        _search(view, change.tenant_id, owner_id),
    ]


def _search(view: SessionView, tenant_id: int, owner_id: UUID | None) -> str | None:
    if view.status in ("deleted", "erased") or not (view.title or view.key):
        return None
    scopes = [session_scope(view.session_id), tenant_scope(tenant_id)]
    if owner_id is not None:
        scopes.append(owner_scope(owner_id))
    return tsvector_text(title_text(view), scopes)


def _touch(change: Change) -> tuple[int, UUID, int, int, int]:
    after = change.after
    assert after.updated_at is not None
    return change.shard, change.session_id, after.seq, change.position, micros(after.updated_at)
