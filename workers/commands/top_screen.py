"""How a frame of `eventlog top` looks: lines of text that fit a terminal of any size.

    narrow   one section below the other; sessions get the lines that are left
    wide     rates and lag on the left, Redis and projectors on the right, sessions below

What comes from outside (names of sessions and of workers, errors) is made safe here. Lines are cut
to the width and sections to the height, and what was cut is counted.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from rich.console import Group
from rich.text import Text

from projections.watching import COUNTED_MAX
from workers.commands import look
from workers.commands.finding import size
from workers.commands.sessions import ago
from workers.commands.top_frame import BusySession, Frame, feeds_behind
from workers.commands.top_lag import UNKNOWN, lag_lines, projector_lines
from workers.commands.top_text import (
    Lines,
    duration,
    gauge,
    padded,
    push_right,
    rate,
    section,
    side_by_side,
    sparkline,
)
from workers.terminal import safe_line

WIDE_COLUMNS: Final = 130
"""From here on sections stand side by side, and sessions show whose they are."""
ROOMY_COLUMNS: Final = 90
"""From here on the header has room for everything."""
GUTTER: Final = 3
TALL_LINES: Final = 40
"""From here on lists of shards and projectors may be twice as long."""
FEEDS_LATE_ROWS: Final = 100
"""Feeds that lack fewer rows than this are being written just now."""
SESSION_LINES_MIN: Final = 3
SPARK_COLUMNS_MIN: Final = 8


def screen(frame: Frame, columns: int, lines: int, *, hint: str = "") -> Group:
    """The frame, for a terminal of that size. `hint`: what keys do."""
    found = _header(frame, columns, hint)
    taller = 2 if lines >= TALL_LINES else 1
    if columns >= WIDE_COLUMNS:
        left_columns = (columns - GUTTER) // 2
        right_columns = columns - GUTTER - left_columns
        left = [*_rates(frame, left_columns), *lag_lines(frame, left_columns, taller=taller)]
        right = [
            *_redis(frame, right_columns),
            *projector_lines(frame, right_columns, taller=taller),
        ]
        found += side_by_side(left, right, left_columns, GUTTER)
    else:
        found += _rates(frame, columns)
        found += lag_lines(frame, columns, taller=taller)
        found += projector_lines(frame, columns, taller=taller)
        found += _redis(frame, columns)
    found += _sessions(frame, columns, max(SESSION_LINES_MIN, lines - len(found)))
    for line in found:
        line.truncate(columns, overflow="ellipsis")
        line.no_wrap = True
    return Group(*found[:lines])


# --- which log, which servers --------------------------------------------------------------------


def _header(frame: Frame, columns: int, hint: str) -> Lines:
    identity, postgres, redis = frame.identity, frame.look.postgres, frame.look.redis
    title = Text().append("eventlog top", "bold")
    facts = [f"log {identity.log_id[:8]}"]
    if postgres is not None:
        facts.append(f"epoch {safe_line(postgres.epoch)}")
        facts.append(look.plural(sum(postgres.heads), "row"))
    if columns >= ROOMY_COLUMNS:
        facts.append(look.plural(identity.shards, "shard"))
    if identity.tenant_id:
        facts.append(f"tenant {identity.tenant_id}")
    title.append("  " + " · ".join(facts), look.QUIET)
    clock = frame.at.astimezone().strftime("%H:%M:%S")
    push_right(title, f"{hint}  {clock}".lstrip(), columns)
    up = postgres.uptime_seconds if postgres is not None else None
    lines = [title, _server("Postgres", identity.postgres_origin, up, frame.look.postgres_error)]
    if not frame.look.has_redis:
        line = Text().append(f"○ {'Redis':<8}  ", look.QUIET)
        return [*lines, line.append(safe_line(identity.redis_origin))]
    up = redis.uptime_seconds if redis is not None else None
    return [*lines, _server("Redis", identity.redis_origin, up, frame.look.redis_error)]


def _server(name: str, origin: str, uptime_seconds: float | None, error: str) -> Text:
    if uptime_seconds is None:
        why = safe_line(error).removeprefix(f"{name}: ")
        return Text(f"✗ {name:<8}  down: {why}", look.WRONG)
    line = Text().append(f"● {name:<8}  ", look.RIGHT)
    line.append(f"up {duration(uptime_seconds)}")
    return line.append(f" · {safe_line(origin).removeprefix(f'{name} ')}", look.QUIET)


# --- rates ---------------------------------------------------------------------------------------


def _rates(frame: Frame, columns: int) -> Lines:
    rows = [
        ("appended", frame.appended, frame.events, frame.appended_history),
        ("projected", frame.projected, None, frame.projected_history),
    ]
    lines = [section("rates", columns)]
    for name, per_second, events, history in rows:
        line = Text(f"{name:<10}")
        line.append(f"{rate(per_second):>9}", "bold")
        line.append(" rows/s  ", look.QUIET)
        line.append(
            f"≈ {rate(events):>7} events/s  " if events is not None else " " * 20, look.QUIET
        )
        left = max(SPARK_COLUMNS_MIN, columns - line.cell_len)
        line.append(sparkline(history, left), look.CALL)
        lines.append(line)
    return lines


# --- Redis ---------------------------------------------------------------------------------------


def _redis(frame: Frame, columns: int) -> Lines:
    lines = [section("Redis", columns)]
    redis = frame.look.redis
    if not frame.look.has_redis:
        return [*lines, Text("none, on purpose: live subscriptions poll Postgres", look.QUIET)]
    if redis is None:
        said = "down: appends go on, live subscriptions poll Postgres, a relay repairs the feeds"
        return [*lines, Text(said, look.WRONG)]
    memory = Text(f"{'memory':<10}")
    memory.append(size(redis.used_bytes), "bold")
    if redis.max_bytes:
        share = redis.used_bytes / redis.max_bytes
        memory.append(f" of {size(redis.max_bytes)} ", look.QUIET)
        memory.append_text(gauge(share))
    else:
        memory.append(", no limit", look.QUIET)
    memory.append(
        f" · {look.plural(redis.clients, 'client')} · {safe_line(redis.version)}", look.QUIET
    )
    feeds = Text(f"{'feeds':<10}")
    feeds.append(f"{sum(redis.feed_lengths):,}", "bold")
    most = max(redis.feed_lengths, default=0)
    feeds.append(
        f" rows, at most {most:,} of about {frame.identity.feed_rows_max:,} · ", look.QUIET
    )
    behind = feeds_behind(frame)
    if behind:
        style = look.UNDER_WAY if behind >= FEEDS_LATE_ROWS else look.QUIET
        feeds.append(f"{look.plural(behind, 'row')} behind the log", style)
    else:
        feeds.append("at the end of the log" if behind == 0 else "the log is not known", look.QUIET)
    return [*lines, memory, feeds]


# --- sessions ------------------------------------------------------------------------------------


def _sessions(frame: Frame, columns: int, room: int) -> Lines:
    postgres = frame.look.postgres
    if postgres is None:
        unknown = Text(UNKNOWN, look.QUIET)
        return [section("sessions", columns), unknown]
    replies = postgres.open_replies
    facts = [
        f"{_counted(postgres.active_soon)} active in 1 min",
        f"{_counted(postgres.active_recently)} in 5 min",
        f"{_counted(replies)} {'reply' if replies == 1 else 'replies'} open",
        f"{sum(postgres.parked.values()):,} parked",
    ]
    lines = [section("sessions", columns, " · ".join(facts))]
    if not frame.busiest:
        return [*lines, Text("the views know of none", look.QUIET)]
    wide = columns >= WIDE_COLUMNS
    name_columns = 36 if wide else 24
    heading = Text(
        f"{'events/s':>9}  {'seq':>10}  {'active':<10}  {'session':<{name_columns}}  ", "bold"
    )
    if wide:
        heading.append(f"{'user':<16}  {'agent':<16}  ")
    heading.append("title")
    lines.append(heading)
    for each in frame.busiest[: max(1, room - len(lines))]:
        lines.append(_session(each, frame.at, name_columns, wide=wide))
    return lines


def _session(each: BusySession, at: datetime, name_columns: int, *, wide: bool) -> Text:
    session = each.session
    busy = bool(each.events_per_second)
    style = f"bold {look.RIGHT}" if busy else look.QUIET
    line = Text().append(f"{rate(each.events_per_second):>9}  ", style)
    line.append(f"{session.seq:>10,}  ")
    line.append(f"{ago(session.updated_at, at):<10}  ", look.QUIET)
    name = safe_line(session.key or str(session.session_id), name_columns)
    line.append(padded(name, name_columns))
    if wide:
        line.append(padded(safe_line(session.user_id or "", 16), 16), look.QUIET)
        line.append(padded(safe_line(session.agent or "", 16), 16), look.QUIET)
    return line.append(safe_line(session.title or ""), look.QUIET)


def _counted(count: int) -> str:
    return f"{count:,}" if count < COUNTED_MAX else f"{COUNTED_MAX:,}+"
