"""The view of sessions: a row of eventlog.session_views for each, as `SessionView` shows it.

Most batches hold token increments, which move a session's seq and time and nothing else: those rows
are touched, not written.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from eventlog.envelope import owner_id_of
from eventlog.queries import query
from eventlog.views import SessionView, escape_text, micros, view_of
from projections.columns import write_rows
from projections.folding import Change

_TEXTS: Final = ("user_id", "key", "title", "current_agent")
_encode: Final = msgspec.json.Encoder().encode


class SessionViews:
    """Writes what batches change of sessions."""

    async def write(self, connection: asyncpg.Connection[Any], changes: list[Change]) -> None:
        """Bring the rows of these sessions up to date, inside the caller's transaction."""
        whole = [_columns(each) for each in changes if each.events or each.before is None]
        await write_rows(connection, "write_session_views", whole)
        touched = [_touch(each) for each in changes if not each.events and each.before is not None]
        await write_rows(connection, "touch_session_views", touched)

    async def remove(
        self, connection: asyncpg.Connection[Any], shard: int, session_id: UUID
    ) -> None:
        """Remove what the view has of a session."""
        await connection.execute(query("remove_session_view"), shard, session_id)


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
    values["created_at"] = micros(view.created_at)
    values["updated_at"] = micros(view.updated_at)
    owner_id = None if view.user_id is None else owner_id_of(view.user_id, change.tenant_id)
    return [*values.values(), change.position, change.shard, change.tenant_id, owner_id]


def _touch(change: Change) -> tuple[int, UUID, int, int, int]:
    after = change.after
    assert after.updated_at is not None
    return change.shard, change.session_id, after.seq, change.position, micros(after.updated_at)
