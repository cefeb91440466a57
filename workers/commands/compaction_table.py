"""The table of a session's compactions, which fits the width: what says least gives way first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, Literal

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventlog.state import Compaction
from workers.commands.sessions import ago
from workers.commands.top_text import duration
from workers.terminal import clip, safe_line

MODEL_COLUMNS_MAX: Final = 24
PROMPT_COLUMNS_MAX: Final = 16


class _Column(msgspec.Struct, frozen=True):
    title: str
    cell: Callable[[Compaction, datetime], str]
    is_number: bool = False
    gives_way: int = 0
    """The highest goes first where there is no room for all; 0: never."""


def print_compactions(console: Console, found: Sequence[Compaction], now: datetime) -> None:
    """All compactions, oldest first; columns that have nothing to show are left out."""
    columns = [each for each in _COLUMNS if any(each.cell(one, now) for one in found)]
    widths = {
        each.title: max(
            cell_len(text) for text in (each.title, *(each.cell(c, now) for c in found))
        )
        for each in columns
    }

    def needed() -> int:
        return sum(widths[each.title] + 2 for each in columns) - 2

    while needed() > console.width and any(each.gives_way for each in columns):
        columns.remove(max(columns, key=lambda each: each.gives_way))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        table.add_column(column.title, no_wrap=True, justify=justify)
    for each in found:
        style = "dim" if each.reverted_seq else ""
        table.add_row(*(Text(column.cell(each, now), style) for column in columns))
    console.print(table)


def _range(each: Compaction) -> str:
    if each.to_seq < each.from_seq:
        return "before"
    return f"{each.from_seq}-{each.to_seq}"


def _tokens(each: Compaction) -> str:
    if each.tokens_before is None or each.tokens_after is None:
        return ""
    about = "~" if each.estimated else ""
    return f"{about}{each.tokens_before:,} → {about}{each.tokens_after:,}"


def _by(each: Compaction) -> str:
    if each.method == "extractive":
        return "extractive"
    return clip(safe_line(each.model or each.method or ""), MODEL_COLUMNS_MAX)


_COLUMNS: Final = (
    _Column("seq", lambda each, _: f"#{each.seq}"),
    _Column("range", lambda each, _: _range(each)),
    _Column("kept", lambda each, _: f"{len(each.kept)}", is_number=True, gives_way=2),
    _Column("tokens", lambda each, _: _tokens(each)),
    _Column("by", lambda each, _: _by(each)),
    _Column(
        "prompt",
        lambda each, _: clip(safe_line(each.prompt_version or ""), PROMPT_COLUMNS_MAX),
        gives_way=4,
    ),
    _Column(
        "calls",
        lambda each, _: f"{each.calls}" if each.calls else "",
        is_number=True,
        gives_way=3,
    ),
    _Column(
        "took",
        lambda each, _: "" if each.duration_ms is None else duration(each.duration_ms / 1000),
        gives_way=1,
    ),
    _Column("when", lambda each, now: ago(each.recorded_at, now) if each.recorded_at else ""),
    _Column("undone", lambda each, _: f"at #{each.reverted_seq}" if each.reverted_seq else ""),
)
