"""What goes into eventlog.append(), a batch of commands as arrays, and what callers get of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

from eventlog.envelope import Appended, Row
from eventlog.store import Answer, Command

Value = TypeVar("Value")


def append_arguments(tenant_id: int, commands: list[Command]) -> list[object]:
    """Arguments of eventlog.append() for a batch, in the order of its parameters.

    A column that says nothing is left empty: each element costs both sides about 0.3 µs.
    """
    seen = {command.shard: command.seen for command in commands}
    shards = sorted(seen)
    drafts = [draft for command in commands for draft in command.drafts]
    single = len(drafts) == len(commands)
    row_command: list[int] = []
    row_number: list[int] = []
    row_end: list[int] = []
    if not single:
        for number, command in enumerate(commands, 1):
            end = 0
            for index, draft in enumerate(command.drafts, 1):
                end += draft.span
                row_command.append(number)
                row_number.append(index)
                row_end.append(end)
    spans = [draft.span for draft in drafts]
    plain_spans = len(drafts) == sum(spans)
    retried = [c.drafts[0].event_id if c.sent else None for c in commands]
    return [
        tenant_id,
        shards,
        [seen[shard].position for shard in shards],
        [seen[shard].recorded_us for shard in shards],
        [command.shard for command in commands],
        [command.session_id for command in commands],
        [command.seen_seq for command in commands],
        _sparse([command.expected for command in commands]),
        _sparse([command.base for command in commands]),
        _sparse([command.owner_id for command in commands]),
        _sparse([command.known for command in commands]),
        _sparse(retried),
        [command.retry_after for command in commands] if any(retried) else [],
        _sparse([command.unless for command in commands]),
        _sparse([command.tombstone or None for command in commands]),
        [] if single else [len(command.drafts) for command in commands],
        [] if single and plain_spans else [command.span for command in commands],
        [draft.event_id for draft in drafts],
        [draft.type for draft in drafts],
        [draft.data for draft in drafts],
        _sparse([draft.flags or None for draft in drafts]),
        [] if plain_spans else spans,
        row_command,
        row_number,
        row_end,
    ]


def _sparse(values: list[Value | None]) -> list[Value | None]:
    """The column, or an empty one if it holds nothing but nulls."""
    return values if values.count(None) < len(values) else []


def appended(session_id: UUID, command: Command, answer: Answer | Row) -> Appended:
    """The caller's answer: what was stored now, or (a row) what an earlier call had stored."""
    first = command.drafts[0]
    if isinstance(answer, Row):
        return Appended(
            session_id=session_id,
            first_seq=answer.first_seq,
            last_seq=answer.first_seq + command.span - 1,
            position=answer.position,
            event_id=first.event_id,
            recorded_at=answer.recorded_at,
            duplicate=True,
        )
    return Appended(
        session_id=session_id,
        first_seq=answer.before_seq + 1,
        last_seq=answer.before_seq + command.span,
        position=answer.first_position,
        event_id=first.event_id,
        recorded_at=datetime.fromtimestamp(answer.recorded_us / 1_000_000, UTC),
    )


async def wait_for_outcome(command: Command) -> None:
    """It is on its way: what becomes of it must be known before its caller goes on.

    However often that one is cancelled meanwhile: the wait has an end, the command's deadline.
    """
    while command.outcome is None:
        if command.future.done():
            command.future = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait([command.future])
        except asyncio.CancelledError:
            continue
    if command.future.done() and not command.future.cancelled():
        command.future.exception()  # seen: the cancellation is what the caller gets
