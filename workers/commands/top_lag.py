"""Two sections of `eventlog top`: how far projections are behind, and which worker keeps what."""

from __future__ import annotations

import math
from typing import Final

from rich.text import Text

from projections.checkpoint import PROJECTION
from projections.lag import (
    ShardLag,
    held_by,
    rows_behind,
    seconds_behind,
    shard_ranges,
    worker_name,
    worst_first,
)
from workers.commands import look
from workers.commands.top_frame import Frame
from workers.commands.top_text import BARS, Lines, duration, section, short
from workers.terminal import clip, safe_line

WORST_LINES_MAX: Final = 3
"""Lines with the shards of a projection that are furthest behind, on a small screen."""
PROJECTOR_LINES_MAX: Final = 4
LATE_SECONDS: Final = 1.0
"""From here on lag is yellow,"""
WRONG_SECONDS: Final = 5.0
"""and from here on red."""
CELL_COLUMNS: Final = 24
BAR_COLUMNS_MAX: Final = 4
NAME_COLUMNS: Final = 22
UNKNOWN: Final = "not known while Postgres is down"
_HEAT_SECONDS: Final = (0.05, 0.2, 1.0, 5.0, 30.0, 300.0)


def lag_lines(frame: Frame, columns: int, *, taller: int = 1) -> Lines:
    """Each projection: how far behind, its shards as bars, the worst of them by number."""
    lines = [section("lag", columns)]
    if frame.look.postgres is None:
        return [*lines, Text(UNKNOWN, look.QUIET)]
    for name, lags in frame.look.postgres.lags.items():
        lines.append(_summary(name, lags, frame.look.postgres.parked.get(name, 0)))
        lines.append(Text("  ").append_text(heat(lags, max(1, columns - 2))))
        late = seconds_behind(lags) >= LATE_SECONDS
        lines += _worst(lags, columns, WORST_LINES_MAX * taller if late else 1)
    return lines


def _summary(name: str, lags: list[ShardLag], parked: int) -> Text:
    seconds = seconds_behind(lags)
    line = Text(f"{safe_line(name, 24):<10}")
    if rows := rows_behind(lags):
        line.append(look.plural(rows, "row"), f"bold {lag_style(seconds)}")
        line.append(" and ", look.QUIET)
        line.append(duration(seconds), f"bold {lag_style(seconds)}")
        line.append(" behind", look.QUIET)
    else:
        line.append("caught up", look.RIGHT)
    free = held_by(lags).get(None, [])
    if len(free) == len(lags):
        line.append(" · no projector runs", look.WRONG if rows else look.UNDER_WAY)
    elif free:
        line.append(f" · nobody holds {shard_ranges(free)}", look.WRONG)
    if parked:
        line.append(f" · {look.plural(parked, 'session')} parked", look.WRONG)
    return line


def heat(lags: list[ShardLag], columns: int) -> Text:
    """All shards as a line of bars; where there are more than columns, the worst of neighbours."""
    per_bar = math.ceil(len(lags) / columns)
    bars = math.ceil(len(lags) / per_bar)
    bar_columns = min(BAR_COLUMNS_MAX, columns // bars)
    text = Text()
    for first in range(0, len(lags), per_bar):
        some = lags[first : first + per_bar]
        bar, style = _bar(some)
        text.append(bar * max(1, bar_columns - 1), style)
        text.append(" " if bar_columns > 1 else "")
    return text


def _bar(some: list[ShardLag]) -> tuple[str, str]:
    if not rows_behind(some):
        return BARS[0], look.QUIET if all(each.owner for each in some) else look.UNDER_WAY
    seconds = seconds_behind(some)
    height = 1 + sum(1 for least in _HEAT_SECONDS if seconds >= least)
    return BARS[height], lag_style(seconds)


def _worst(lags: list[ShardLag], columns: int, lines_max: int) -> Lines:
    """The shards that are behind, worst first, as many as fit; one line at least."""
    behind = worst_first(lags)
    per_line = max(1, (columns - 2) // CELL_COLUMNS)
    room = per_line * lines_max
    shown = behind if len(behind) <= room else behind[: room - 1]
    cells = [(_cell(each), lag_style(each.seconds_behind)) for each in shown]
    if len(behind) > len(shown):
        cells.append((f"… {look.plural(len(behind) - len(shown), 'more shard')}", look.QUIET))
    lines = []
    for first in range(0, max(1, len(cells)), per_line):
        line = Text("  ")
        for said, style in cells[first : first + per_line]:
            line.append(f"{clip(said, CELL_COLUMNS - 2):<{CELL_COLUMNS}}", style)
        lines.append(line)
    return lines


def _cell(each: ShardLag) -> str:
    rows = "1 row" if each.rows_behind == 1 else f"{short(each.rows_behind)} rows"
    return f"#{each.shard} {rows} {duration(each.seconds_behind)}"


def lag_style(seconds: float) -> str:
    """Green, yellow or red."""
    if seconds >= WRONG_SECONDS:
        return look.WRONG
    return look.UNDER_WAY if seconds >= LATE_SECONDS else look.RIGHT


def projector_lines(frame: Frame, columns: int, *, taller: int = 1) -> Lines:
    """Each worker that holds shards, and which."""
    lines = [section("projectors", columns)]
    if frame.look.postgres is None:
        return [*lines, Text(UNKNOWN, look.QUIET)]
    workers = [
        (name, owner, shards)
        for name, lags in frame.look.postgres.lags.items()
        for owner, shards in held_by(lags).items()
        if owner is not None
    ]
    workers.sort(key=lambda each: (each[0] != PROJECTION, -len(each[2]), each[1]))
    room = PROJECTOR_LINES_MAX * taller
    shown = workers if len(workers) <= room else workers[: room - 1]
    lines += [_worker(*each, columns) for each in shown]
    if len(workers) > len(shown):
        lines.append(Text(f"… {look.plural(len(workers) - len(shown), 'more worker')}", look.QUIET))
    if not workers:
        lines.append(Text("none; start one with: eventlog project", look.UNDER_WAY))
    return lines


def _worker(projection: str, owner: str, shards: list[int], columns: int) -> Text:
    line = Text(f"{safe_line(worker_name(owner), NAME_COLUMNS):<{NAME_COLUMNS}} ")
    if projection != PROJECTION:
        line.append(f"{safe_line(projection, 20)} ", look.UNDER_WAY)
    line.append(f"{len(shards):>4,} ", "bold")
    line.append("shards  " if len(shards) != 1 else "shard   ", look.QUIET)
    return line.append(clip(shard_ranges(shards), max(8, columns - line.cell_len)), look.QUIET)
