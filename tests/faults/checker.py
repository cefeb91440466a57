"""Compares what processes wrote down with what the log holds; each function returns complaints."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from tests.faults.actors import Delivery, Op

Stored = dict[str, list[tuple[int, UUID, str]]]
"""For each session its events in order: seq, event id, content (empty for what isn't a message)."""


def lost_or_doubled(ops: Iterable[Op], stored: Stored) -> list[str]:
    """Every acknowledged append is there once, where the answer said; nothing else is there."""
    latest: dict[UUID, Op] = {}
    for op in ops:
        latest[op.op] = op
    found: list[str] = []
    places = {
        (session, event_id): (seq, content)
        for session, events in stored.items()
        for seq, event_id, content in events
        if content
    }
    counts = Counter(
        event_id for events in stored.values() for _, event_id, content in events if content
    )
    found += [
        f"{event_id} is stored {count} times" for event_id, count in counts.items() if count > 1
    ]
    for op in latest.values():
        if not op.seq:
            found.append(f"{op.op}: its outcome was never settled")
        elif places.get((op.session, op.op)) != (op.seq, op.content):
            found.append(f"{op.op}: acknowledged at {op.seq} of {op.session}, and not there")
    found += [
        f"{event_id}: stored, and nobody sent it" for event_id in counts if event_id not in latest
    ]
    return found


def gaps(stored: Stored) -> list[str]:
    """Seqs are 1, 2, 3, …"""
    return [
        f"{session}: seqs are not contiguous"
        for session, events in stored.items()
        if [seq for seq, _, _ in events] != list(range(1, len(events) + 1))
    ]


def out_of_order(ops: Iterable[Op]) -> list[str]:
    """What was acknowledged before another append was sent has the lower seq."""
    by_session: defaultdict[str, list[Op]] = defaultdict(list)
    for op in ops:
        if op.seq and not op.duplicate:
            by_session[op.session].append(op)
    found: list[str] = []
    for session, done in by_session.items():
        acknowledged = sorted(done, key=lambda op: op.done)
        highest, place = 0, 0
        for op in sorted(done, key=lambda op: op.sent):
            while place < len(acknowledged) and acknowledged[place].done < op.sent:
                highest = max(highest, acknowledged[place].seq)
                place += 1
            if op.seq < highest:
                found.append(f"{session}: {op.seq} was sent after {highest} was acknowledged")
    return found


def badly_delivered(deliveries: Iterable[Delivery], stored: Stored) -> list[str]:
    """Over all its lives a subscriber got every event once, in order, as stored."""
    got: defaultdict[str, list[tuple[int, UUID]]] = defaultdict(list)
    for each in deliveries:
        got[each.session].append((each.seq, each.event_id))
    found: list[str] = []
    for session, events in stored.items():
        expected = [(seq, event_id) for seq, event_id, _ in events]
        if got[session] != expected:
            place = next(
                (i for i, (a, b) in enumerate(zip(got[session], expected, strict=False)) if a != b),
                min(len(got[session]), len(expected)),
            )
            found.append(
                f"{session}: got {len(got[session])} of {len(expected)} events, they differ"
                f" from {place} on: {_at(got[session], place)} instead of {_at(expected, place)}"
            )
    return found


def _at(items: list[Any], place: int) -> Any:
    return items[place] if place < len(items) else "nothing"
