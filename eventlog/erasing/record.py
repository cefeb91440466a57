"""What the log keeps of an erasure: when it was, of how much, and what of it is left to do."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from uuid import UUID

import msgspec


class Erasure(msgspec.Struct, frozen=True):
    """The record of an erasure. Times are in µs since 1970; None: it hasn't come to that."""

    session_id: UUID
    begun_us: int
    erased_us: int | None
    """When the last byte was removed from Postgres' tables."""
    rows: int
    events: int
    bytes: int
    """Of content that was removed."""
    redis_us: int | None
    """When copies in Redis were dropped; None also where nobody has a Redis."""
    forks_us: int | None
    """When the views of the session's forks were made anew, without what they had inherited."""
    reason: str | None
    requested_by: str

    @property
    def erased_at(self) -> datetime | None:
        """When all content was removed from Postgres' tables; None: it is under way."""
        return _time_of(self.erased_us)

    @property
    def begun_at(self) -> datetime:
        """When it was asked for."""
        return datetime.fromtimestamp(self.begun_us / 1_000_000, UTC)


def _time_of(at_us: int | None) -> datetime | None:
    return None if at_us is None else datetime.fromtimestamp(at_us / 1_000_000, UTC)


class ErasureStatus(enum.IntEnum):
    """Answers of the SQL function `erase`."""

    DONE = 0
    UNDER_WAY = 1
    ABSENT = 2
    ALIVE = 3
    """It doesn't end with a tombstone."""
