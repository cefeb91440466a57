"""Pieces of which the screen of `eventlog top` is made: titles, bars, numbers that stay short."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from rich.text import Text

from workers.commands import look
from workers.terminal import clip

BARS: Final = "▁▂▃▄▅▆▇█"
GAUGE_COLUMNS: Final = 10
LATE_SHARE: Final = 0.7
WRONG_SHARE: Final = 0.9

Lines = list[Text]


def section(name: str, columns: int, facts: str = "") -> Text:
    """`── sessions ── 12 active ─────`."""
    line = Text().append("── ", look.QUIET)
    line.append(name, "bold")
    line.append(" ")
    if facts:
        line.append("── ", look.QUIET)
        line.append(clip(facts, columns - line.cell_len - 1) + " ")
    return line.append("─" * max(0, columns - line.cell_len), look.QUIET)


def side_by_side(left: Lines, right: Lines, left_columns: int, gutter: int) -> Lines:
    """Two columns of lines as one."""
    lines = []
    for number in range(max(len(left), len(right))):
        line = left[number] if number < len(left) else Text()
        line.truncate(left_columns, overflow="ellipsis")
        line.pad_right(left_columns - line.cell_len + gutter)
        lines.append(line.append_text(right[number]) if number < len(right) else line)
    return lines


def push_right(line: Text, said: str, columns: int) -> None:
    """Put something at the end of a line that is `columns` wide."""
    line.truncate(columns - len(said) - 1, overflow="ellipsis")
    line.append(" " * (columns - line.cell_len - len(said)) + said, look.QUIET)


def sparkline(history: Sequence[float | None], columns: int) -> str:
    """The newest values as bars, the highest of them at full height; gaps stay empty."""
    shown = list(history)[-columns:]
    most = max((value for value in shown if value is not None), default=0.0)
    return "".join(" " if value is None else _bar(value, most) for value in shown).rjust(columns)


def _bar(value: float, most: float) -> str:
    return BARS[min(7, math.ceil(value / most * 7))] if most else BARS[0]


def gauge(share: float) -> Text:
    """How full something is."""
    filled = min(GAUGE_COLUMNS, round(share * GAUGE_COLUMNS))
    style = look.RIGHT
    if share > LATE_SHARE:
        style = look.WRONG if share > WRONG_SHARE else look.UNDER_WAY
    return Text().append("█" * filled, style).append("░" * (GAUGE_COLUMNS - filled), look.QUIET)


def padded(text: str, columns: int) -> str:
    """Text in a column, two spaces before the next."""
    return text + " " * (columns - Text(text).cell_len + 2)


def rate(per_second: float | None) -> str:
    """`1,234`, `5.6`; a dash where it isn't known."""
    if per_second is None:
        return "–"
    whole = per_second >= 10 or per_second == 0
    return f"{per_second:,.0f}" if whole else f"{per_second:.1f}"


def short(count: int) -> str:
    """`940`, `12.3k`, `4.5M`."""
    for unit, amount in (("M", 1_000_000), ("k", 1_000)):
        if count >= 10 * amount:
            return f"{count / amount:.1f}{unit}"
    return f"{count:,}"


def duration(seconds: float) -> str:
    """`40 ms`, `1.2 s`, `3 min`, `5 h`, `8 d`."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
