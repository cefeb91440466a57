"""The view of runs: one row of eventlog.run_views for each run that began in a session.

Unlike the other views it is made from events, not from the state: a state forgets runs that have
ended. Rewinding doesn't undo a run, it did happen.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog.runs import Run, evolve_run, run_id_of
from eventlog.search.scopes import key_of
from eventlog.views import escape_text, micros
from projections.folding import Change
from projections.tables import Tables

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Run).decode


class RunViews:
    """Writes what batches change of runs."""

    name = "runs"
    version = 1

    async def write(self, tables: Tables, changes: list[Change]) -> None:
        """Bring the runs of these sessions up to date, inside the caller's transaction."""
        wanted = {
            (change.shard, change.session_id, key_of(run_id)): None
            for change in changes
            for recorded in change.events
            if (run_id := run_id_of(recorded.event)) is not None
        }
        runs: dict[tuple[UUID, UUID], Run] = {
            (session_id, key): _decode(body)
            for session_id, key, body in await tables.read("runs_by_key", list(wanted))
        }
        for change in changes:
            for recorded in change.events:
                run_id = run_id_of(recorded.event)
                if run_id is not None:
                    place = (change.session_id, key_of(run_id))
                    run = evolve_run(runs.get(place), recorded)
                    if run is not None:
                        runs[place] = run
        rows = [
            (shard, session_id, key, *_columns(runs[session_id, key]))
            for shard, session_id, key in wanted
            if (session_id, key) in runs
        ]
        await tables.write("write_run_views", rows)

    async def remove(self, tables: Tables, shard: int, session_id: UUID) -> None:
        """Remove what the view has of a session."""
        await tables.execute("remove_run_views", shard, session_id)


def _columns(run: Run) -> tuple[Any, ...]:
    """The rest of a row, in the order of the query's parameters."""
    return (
        escape_text(run.run_id),
        None if run.agent is None else escape_text(run.agent),
        run.status,
        run.started_seq,
        micros(run.started_at),
        run.ended_seq,
        None if run.ended_at is None else micros(run.ended_at),
        _encode(run),
    )
