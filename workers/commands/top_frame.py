"""What `eventlog top` shows at one moment: a look at the servers, and what changed since the last.

Rates are differences of positions, so they are exact, and count what every process appended or
projected. A look at which Postgres did not answer leaves a gap.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from projections.checkpoint import PROJECTION
from projections.lag import held_by, rows_behind, seconds_behind, worker_name
from projections.watching import ActiveSession, Look, PostgresFacts, RedisFacts

HISTORY_MAX: Final = 240
"""Rates that are remembered for the small graphs, one for each look."""
BUSY_SESSIONS_MAX: Final = 20
"""Sessions in one JSON object."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What stays as it is while one watches."""

    log_id: str
    shards: int
    tenant_id: int
    postgres_origin: str
    redis_origin: str
    feed_rows_max: int


class BusySession(msgspec.Struct, frozen=True):
    """A session, and how fast it grows."""

    session: ActiveSession
    events_per_second: float | None
    """None: it was not seen before."""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is shown at one moment. A rate is None where it isn't known."""

    identity: Identity
    at: datetime
    look: Look
    appended: float | None
    """Rows per second, like the next."""
    projected: float | None
    events: float | None
    """Per second, estimated."""
    appended_history: list[float | None]
    """Oldest first, this one included."""
    projected_history: list[float | None]
    busiest: list[BusySession]


class History:
    """Remembers the looks before, as far as the next frame needs them."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._appended: deque[float | None] = deque(maxlen=HISTORY_MAX)
        self._projected: deque[float | None] = deque(maxlen=HISTORY_MAX)
        self._before: tuple[float, PostgresFacts] | None = None

    @property
    def before(self) -> PostgresFacts | None:
        """What Postgres said the last time that it answered."""
        return self._before[1] if self._before is not None else None

    def frame(self, look: Look, events_per_row: float | None = None) -> Frame:
        """The next frame. `events_per_row`: of the rows since the look before."""
        now = look.postgres
        appended = projected = None
        busiest: list[BusySession] = []
        if now is not None:
            seconds = 0.0
            if self._before is not None:
                before_seconds, before = self._before
                seconds = max(look.at_seconds - before_seconds, 1e-3)
                appended = max(0, sum(now.heads) - sum(before.heads)) / seconds
                projected = max(0, _done(now) - _done(before)) / seconds
            busiest = _busiest(self.before, now, seconds)
            self._before = look.at_seconds, now
        self._appended.append(appended)
        self._projected.append(projected)
        per_row = events_per_row if appended else 0.0
        return Frame(
            identity=self._identity,
            at=datetime.now(UTC),
            look=look,
            appended=appended,
            projected=projected,
            events=appended * per_row if appended is not None and per_row is not None else None,
            appended_history=list(self._appended),
            projected_history=list(self._projected),
            busiest=busiest,
        )


def as_dict(frame: Frame) -> dict[str, Any]:
    """A frame for programs."""
    postgres, redis = frame.look.postgres, frame.look.redis
    return {
        "at": frame.at,
        "log_id": frame.identity.log_id,
        "postgres": {
            "up": postgres is not None,
            "error": frame.look.postgres_error or None,
            "uptime_seconds": postgres and postgres.uptime_seconds,
        },
        "redis": _redis_as_dict(frame, redis) if frame.look.has_redis else None,
        "rows_per_second": frame.appended,
        "events_per_second": frame.events,
        "projected_rows_per_second": frame.projected,
        **(_log_as_dict(frame, postgres) if postgres is not None else {}),
    }


def feeds_behind(frame: Frame) -> int | None:
    """Rows that the feeds in Redis lack of the log; None: not known now."""
    postgres, redis = frame.look.postgres, frame.look.redis
    if postgres is None or redis is None or len(postgres.heads) != len(redis.feed_ends):
        return None
    pairs = zip(postgres.heads, redis.feed_ends, strict=True)
    return sum(max(0, head - end) for head, end in pairs)


def _log_as_dict(frame: Frame, postgres: PostgresFacts) -> dict[str, Any]:
    return {
        "epoch": postgres.epoch,
        "rows": sum(postgres.heads),
        "projections": {
            name: {
                "rows_behind": rows_behind(lags),
                "seconds_behind": seconds_behind(lags),
                "parked": postgres.parked.get(name, 0),
                "held_by": {
                    worker_name(owner) if owner else "": shards
                    for owner, shards in held_by(lags).items()
                },
                "shards": [
                    {
                        "shard": each.shard,
                        "rows_behind": each.rows_behind,
                        "seconds_behind": each.seconds_behind,
                    }
                    for each in lags
                    if each.rows_behind
                ],
            }
            for name, lags in postgres.lags.items()
        },
        "sessions_active": {"1m": postgres.active_soon, "5m": postgres.active_recently},
        "replies_open": postgres.open_replies,
        "busiest": [
            {
                "session_id": each.session.session_id,
                "key": each.session.key,
                "title": each.session.title,
                "seq": each.session.seq,
                "events_per_second": each.events_per_second,
            }
            for each in frame.busiest[:BUSY_SESSIONS_MAX]
        ],
    }


def _redis_as_dict(frame: Frame, redis: RedisFacts | None) -> dict[str, Any]:
    if redis is None:
        return {"up": False, "error": frame.look.redis_error}
    return {
        "up": True,
        "error": None,
        "uptime_seconds": redis.uptime_seconds,
        "used_bytes": redis.used_bytes,
        "max_bytes": redis.max_bytes,
        "clients": redis.clients,
        "feed_rows": sum(redis.feed_lengths),
        "feed_rows_longest": max(redis.feed_lengths, default=0),
        "feeds_behind_rows": feeds_behind(frame),
    }


def _done(facts: PostgresFacts) -> int:
    return sum(each.done_position for each in facts.lags[PROJECTION])


def _busiest(before: PostgresFacts | None, now: PostgresFacts, seconds: float) -> list[BusySession]:
    """The newest sessions, those that grow fastest first."""
    seqs: dict[UUID, int] = {each.session_id: each.seq for each in before.newest} if before else {}
    busy = [
        BusySession(each, max(0, each.seq - seqs[each.session_id]) / seconds)
        if each.session_id in seqs
        else BusySession(each, None)
        for each in now.newest
    ]
    # Those that came into the list just now grew by something; sorting is stable: newest first.
    return sorted(busy, key=lambda each: -(each.events_per_second or 0.0))
