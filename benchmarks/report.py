"""Results for people (a table) and for programs (JSON)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Result

RESULTS: Final = Path(__file__).parent / "results"


WIDTH: Final = 150
"""Columns of the table where there is no terminal to fit it to."""


def print_table(results: list[Result]) -> None:
    """One row per figure; a figure that misses its target is red and says so."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    table = Table(title="eventlog benchmarks", title_justify="left", expand=False)
    table.add_column("case")
    table.add_column("what", min_width=36)
    table.add_column("figure", justify="right")
    table.add_column("unit")
    table.add_column("target", justify="right")
    table.add_column("reached")
    table.add_column("note", style="dim", overflow="fold")
    previous = ""
    for result in results:
        if previous and result.case != previous:
            table.add_section()
        table.add_row(
            result.case if result.case != previous else "",
            result.name,
            _number(result.figure),
            result.unit,
            f"{result.comparison} {_number(result.target)}" if result.comparison else "",
            _verdict(result),
            result.note,
        )
        previous = result.case
    console.print(table)
    judged = [result for result in results if result.passed is not None]
    missed = [result for result in judged if not result.passed]
    if judged:
        console.print(f"{len(judged) - len(missed)} of {len(judged)} targets reached")
    for result in missed:
        console.print(
            f"[red]missed[/] {result.case}: {result.name} is {_number(result.figure)} "
            f"{result.unit}, target {result.comparison} {_number(result.target)}",
            highlight=False,
            soft_wrap=True,
        )


def write_json(path: Path, facts: dict[str, Any], results: list[Result], *, quick: bool) -> None:
    """The run as one JSON document, replaced whole."""
    document = {**facts, "quick": quick, "results": results}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    partial.replace(path)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _verdict(result: Result) -> str:
    if result.comparison is None:
        return ""
    if result.passed is None:
        return "[yellow]not measured[/]"
    return "[green]yes[/]" if result.passed else "[red]no[/]"
