"""Runs of agents: what the events of a session add up to for each of them.

A run begins with `run.started` and ends once, with `run.finished` or `run.failed`; in between
somebody may ask it to stop. Events about a run that did not begin in this session (a fork's parent
began it) change nothing. A run id that begins again is a new run under the old name.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from eventlog import events as ev
from eventlog.envelope import RecordedEvent
from eventlog.events import Usage

RunStatus = Literal["running", "stopping", "finished", "failed"]


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run of an agent in a session."""

    run_id: str
    agent: str | None = None
    status: RunStatus = "running"
    metadata: dict[str, Any] = {}
    usage: Usage | None = None
    """What `run.finished` reported; not part of the session's usage, which messages report."""
    error: str = ""
    stop_reason: str | None = None
    started_seq: int
    started_at: datetime
    ended_seq: int = 0
    """Seq of the event that ended it; 0: it is under way."""
    ended_at: datetime | None = None


RUN_EVENTS: Final = (ev.RunStarted, ev.RunFinished, ev.RunFailed, ev.RunStopRequested)


def run_id_of(event: ev.Event) -> str | None:
    """The run that an event is about; None: about none."""
    return event.run_id if isinstance(event, RUN_EVENTS) else None


def evolve_run(run: Run | None, recorded: RecordedEvent) -> Run | None:
    """The run after one more event; None: there is no such run in this session."""
    event = recorded.event
    if isinstance(event, ev.RunStarted):
        return Run(
            run_id=event.run_id,
            agent=event.agent,
            metadata=event.metadata,
            started_seq=recorded.seq,
            started_at=recorded.recorded_at,
        )
    if run is None or run.ended_seq:
        return run
    match event:
        case ev.RunStopRequested():
            return msgspec.structs.replace(run, status="stopping", stop_reason=event.reason)
        case ev.RunFinished():
            ended = msgspec.structs.replace(run, status="finished", usage=event.usage)
        case ev.RunFailed():
            ended = msgspec.structs.replace(run, status="failed", error=event.error)
        case _:
            return run
    return msgspec.structs.replace(ended, ended_seq=recorded.seq, ended_at=recorded.recorded_at)


def fold_runs(recorded: Iterable[RecordedEvent]) -> dict[str, Run]:
    """All runs of a session by id, from its own events."""
    runs: dict[str, Run] = {}
    for each in recorded:
        run_id = run_id_of(each.event)
        if run_id is not None:
            run = evolve_run(runs.get(run_id), each)
            if run is not None:
                runs[run_id] = run
    return runs
