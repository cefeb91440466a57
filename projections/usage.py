"""The view of usage: what each session spent, by day, agent and model.

The rows of a session are the entries of its state's `usage`; sums over users, agents, models and
days are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import msgspec

from eventlog.envelope import owner_id_of
from eventlog.search.scopes import key_of
from eventlog.views import escape_text
from projections.folding import Change
from projections.tables import Tables


class UsageViews:
    """Writes what batches change of usage."""

    name = "usage"
    version = 1

    async def write(self, tables: Tables, changes: list[Change]) -> None:
        """Bring the usage of these sessions up to date, inside the caller's transaction."""
        await tables.write("write_usage_views", [row for each in changes for row in _rows(each)])

    async def remove(self, tables: Tables, shard: int, session_id: UUID) -> None:
        """Remove what the view has of a session."""
        await tables.execute("remove_usage_views", shard, session_id)


def _rows(change: Change) -> Iterator[tuple[Any, ...]]:
    # A fork's state before its first event is its parent's, and so is what that spent.
    before = {} if change.before is None else change.before.usage
    user_id = change.after.user_id
    owner_id = None if user_id is None else owner_id_of(user_id, change.tenant_id)
    for key, spent in change.after.usage.items():
        if before.get(key) == spent:
            continue
        day, agent, model = key
        yield (
            change.shard,
            change.session_id,
            key_of(*key),
            change.tenant_id,
            owner_id,
            None if user_id is None else escape_text(user_id),
            day,
            None if agent is None else escape_text(agent),
            None if model is None else escape_text(model),
            *msgspec.structs.astuple(spent),
        )
