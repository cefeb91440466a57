"""What was spent on models: tokens by day, user, agent, model and session, and sums of them.

A session's own spending is `SessionState.usage`; a fork's begins with nothing. Deleted sessions
count: what they spent is spent. `totals` adds up states, the query `usage_totals` the view's rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import date, timedelta
from typing import Final, Literal, get_args
from uuid import UUID

import msgspec

from eventlog.errors import InvalidRequest
from eventlog.state import SessionState, Spent

By = Literal["day", "user", "agent", "model", "session"]
DAY_ZERO: Final = date(1970, 1, 1)
_FIELDS: Final[dict[By, str]] = {
    "day": "day",
    "user": "user_id",
    "agent": "agent",
    "model": "model",
    "session": "session_id",
}


class UsageRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens that providers reported. Fields that were not asked for by name are None."""

    day: date | None = None
    """UTC, of the event that reported it."""
    user_id: str | None = None
    agent: str | None = None
    model: str | None = None
    session_id: UUID | None = None
    generations: int
    """Replies of models."""
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    """Those of `input_tokens` that were read from a provider's cache."""
    reasoning_tokens: int
    """Those of `output_tokens` that were spent on reasoning."""


class UsageFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Whose spending is added up, of which days, and by what."""

    by: tuple[By, ...]
    user_id: str | None = None
    session_id: UUID | None = None
    since: date | None = None
    until: date | None = None
    without: frozenset[UUID] = frozenset()
    """Sessions of which the asker knows better."""

    def shows(self, row: UsageRow) -> bool:
        """Whether a session's row is part of the sums."""
        assert row.day is not None
        return (
            (self.user_id is None or row.user_id == self.user_id)
            and (self.session_id is None or row.session_id == self.session_id)
            and (self.since is None or row.day >= self.since)
            and (self.until is None or row.day <= self.until)
        )


def check_by(by: str | Collection[str]) -> tuple[By, ...]:
    """What to add up by, checked, in the order of `UsageRow`. Raises `InvalidRequest`."""
    chosen = {by} if isinstance(by, str) else set(by)
    known: tuple[By, ...] = get_args(By)
    if not chosen <= set(known):
        raise InvalidRequest(f"by is {by!r:.80}; it must be some of: {', '.join(known)}")
    return tuple(each for each in known if each in chosen)


def check_day(day: date | None, name: str) -> date | None:
    """A day of the calendar; a time of the day would be ignored, so it is refused."""
    if day is None or type(day) is date:
        return day
    raise InvalidRequest(f"{name} is {day!r:.60}; it must be a date (a day in UTC)")


def rows_of(state: SessionState) -> Iterator[UsageRow]:
    """A session's own spending."""
    for (day, agent, model), spent in state.usage.items():
        yield UsageRow(
            day=DAY_ZERO + timedelta(days=day),
            user_id=state.user_id,
            agent=agent,
            model=model,
            session_id=state.session_id,
            **{name: getattr(spent, name) for name in Spent.__struct_fields__},
        )


def totals(rows: Iterable[UsageRow], by: tuple[By, ...]) -> list[UsageRow]:
    """Sums of rows, which may be sums already, in order."""
    sums: dict[tuple[object, ...], list[int]] = {}
    numbers = Spent.__struct_fields__
    for row in rows:
        key = tuple(getattr(row, _FIELDS[each]) for each in by)
        so_far = sums.setdefault(key, [0] * len(numbers))
        for place, name in enumerate(numbers):
            so_far[place] += getattr(row, name)
    found = [
        msgspec.convert(
            {
                **{_FIELDS[each]: value for each, value in zip(by, key, strict=True)},
                **dict(zip(numbers, so_far, strict=True)),
            },
            UsageRow,
        )
        for key, so_far in sums.items()
    ]
    return sorted(found, key=_order)


def _order(row: UsageRow) -> tuple[tuple[bool, object], ...]:
    """Nobody's and unnamed ones first."""
    values = (getattr(row, name) for name in _FIELDS.values())
    return tuple((value is not None, value) for value in values)
