"""The views of agents: who took part in a session and answers now, and how it was handed on.

eventlog.agent_views has a row for each agent, in order of first appearance;
eventlog.handoff_views one for each hand-off that stands, with its context. A rewind takes hand-offs
back, and changes who answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog.state import Handoff, SessionState
from eventlog.views import escape_text
from projections.folding import Change
from projections.tables import Tables

_encode: Final = msgspec.json.Encoder().encode
Place = tuple[int, UUID]


class AgentViews:
    """Writes what batches change of agents and hand-offs."""

    name = "agents"
    version = 1

    async def write(self, tables: Tables, changes: list[Change]) -> None:
        """Bring the agents of these sessions up to date, inside the caller's transaction."""
        changes = [each for each in changes if each.events or each.before is None]
        await tables.write("write_agent_views", [row for each in changes for row in _agents(each)])
        cuts = [cut for each in changes if (cut := _cut(each)) is not None]
        await tables.write("cut_handoff_views", cuts)
        added = [row for each in changes for row in _handoffs(each)]
        await tables.write("write_handoff_views", added)

    async def remove(self, tables: Tables, shard: int, session_id: UUID) -> None:
        """Remove what the view has of a session."""
        await tables.execute("remove_agent_views", shard, session_id)


def handoffs_of(state: SessionState | None) -> list[Handoff]:
    """The hand-offs that stand, oldest first."""
    if state is None or state.handoff is None:
        return []
    return [*state.earlier_handoffs, state.handoff]


def _agents(change: Change) -> Iterator[tuple[Any, ...]]:
    before = _named(change.before)
    for ordinal, row in enumerate(_named(change.after)):
        if ordinal >= len(before) or before[ordinal] != row:
            agent, is_current = row
            yield change.shard, change.session_id, ordinal, escape_text(agent), is_current


def _named(state: SessionState | None) -> list[tuple[str, bool]]:
    if state is None:
        return []
    return [(agent, agent == state.current_agent) for agent in state.agents]


def _cut(change: Change) -> tuple[int, UUID, int] | None:
    """Behind which seq hand-offs are to be dropped, if one of them stands no more."""
    before = handoffs_of(change.before)
    if not before:
        return None
    standing = {each.seq for each in handoffs_of(change.after)}
    if before[-1].seq in standing:
        return None
    last_seq = max((each.seq for each in before if each.seq in standing), default=0)
    return change.shard, change.session_id, last_seq


def _handoffs(change: Change) -> Iterator[tuple[Any, ...]]:
    known = {each.seq for each in handoffs_of(change.before)}
    for each in handoffs_of(change.after):
        if each.seq not in known:
            yield (
                change.shard,
                change.session_id,
                each.seq,
                None if each.from_agent is None else escape_text(each.from_agent),
                escape_text(each.to_agent),
                _encode(each.context),
            )
