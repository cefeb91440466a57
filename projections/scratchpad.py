"""The view of scratchpads: one row of eventlog.scratchpad_views for each entry."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

from eventlog.search.scopes import key_of
from eventlog.views import escape_text
from projections.folding import Change
from projections.tables import Tables

_encode: Final = msgspec.json.Encoder().encode
_NOTHING: Final = object()


class ScratchpadViews:
    """Writes what batches change of scratchpads."""

    name = "scratchpad"
    version = 1

    async def write(self, tables: Tables, changes: list[Change]) -> None:
        """Bring the scratchpads of these sessions up to date, inside the caller's transaction."""
        removed: list[tuple[int, UUID, UUID]] = []
        written: list[tuple[int, UUID, UUID, str, bytes]] = []
        for change in changes:
            before = {} if change.before is None else change.before.scratchpad
            after = change.after.scratchpad
            place = (change.shard, change.session_id)
            removed += [(*place, key_of(name)) for name in before if name not in after]
            written += [
                (*place, key_of(name), escape_text(name), _encode(value))
                for name, value in after.items()
                if before.get(name, _NOTHING) is not value
            ]
        await tables.write("drop_scratchpad_views", removed)
        await tables.write("write_scratchpad_views", written)

    async def remove(self, tables: Tables, shard: int, session_id: UUID) -> None:
        """Remove what the view has of a session."""
        await tables.execute("remove_scratchpad_views", shard, session_id)
