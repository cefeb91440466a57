"""What the demo prints before and after the conversation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventlog import EventLog, RecordedEvent, TokenAppended
from eventlog.integrations.transcripts import Transcript
from workers.commands import look
from workers.demo.checks import Check, Then
from workers.demo.watcher import Latency
from workers.terminal import safe, safe_line

LAST_WORDS: Final = 70
"""Characters shown at most of the last message at a point of the past."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured."""

    events: int
    increments: int
    rows: int
    seconds: float
    latencies: list[Latency]


def print_beginning(
    console: Console,
    log: EventLog,
    transcript: Transcript,
    *,
    name: str,
    key: str,
    explanation: str,
    seconds: float,
) -> None:
    """What is going to happen, and on which servers."""
    pace = f"in about {seconds:.0f} s" if seconds else "as fast as it goes"
    console.print(Text("eventlog demo", "bold"))
    console.print(
        Text(
            f"A recorded conversation ({safe_line(name)}, "
            f"{look.plural(transcript.report.lines, 'line')}) is played {pace}, as an agent would "
            f"live it. You see what a subscriber gets, as it gets it. {explanation}"
        )
    )
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    origin = log.servers.origin if log.servers is not None else ()
    for title, where in zip(("Postgres", "Redis"), origin, strict=False):
        table.add_row(title, Text(safe(where), look.QUIET))
    table.add_row("workers", Text("relay and projector, in this process", look.QUIET))
    table.add_row("session", Text(key, look.QUIET))
    console.print(table)


def print_past(console: Console, past: Sequence[Then]) -> None:
    """The conversation as it was at some points."""
    print_rule(console, "the conversation as it was")
    width = max((len(then.title) for then in past), default=0)
    for then in past:
        line = Text(f"{then.title:<{width}}  ", "bold")
        line.append(f"{look.plural(len(then.state.messages), 'message'):>12}", "default")
        if then.state.messages:
            last = then.state.messages[-1]
            still = "streaming" if last.status == "open" else "the last"
            line.append(f"  {still}: ", "default")
            words = look.plain_text(last.content) or last.reasoning or "(calls a tool)"
            left = max(10, min(LAST_WORDS, console.width - line.cell_len - 4))
            line.append(f"“…{safe_line(words[-4 * left :])[-left:].strip()}”", look.QUIET)
        console.print(line, soft_wrap=True)


def print_figures(console: Console, figures: Figures) -> None:
    """What was measured, as a small table."""
    print_rule(console, "figures")
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style=look.QUIET)
    table.add_row("events", f"{figures.events:,}", "each with a seq of its own")
    table.add_row("increments", f"{figures.increments:,}", "events that are pieces of a reply")
    share = figures.increments / max(1, figures.rows - (figures.events - figures.increments))
    table.add_row("rows stored", f"{figures.rows:,}", f"{share:.1f} increments to a frame")
    rate = figures.events / max(figures.seconds, 0.001)
    table.add_row("events a second", f"{rate:,.0f}", f"over {figures.seconds:.1f} s")
    for title, with_redis in (("live, Redis up", True), ("live, Redis down", False)):
        taken = [each.seconds for each in figures.latencies if each.with_redis is with_redis]
        if taken:
            p50, p99 = _quantiles(taken)
            what = f"median from write() to subscriber; p99 {p99 * 1000:,.0f} ms"
            table.add_row(title, f"{p50 * 1000:,.0f} ms", what)
    console.print(table)


def print_checks(console: Console, checks: Sequence[Check]) -> bool:
    """Each check, and the verdict; whether all passed."""
    print_rule(console, "checks")
    for check in checks:
        if check.wrong:
            line = Text(f"✗ {safe_line(check.claim)}: {safe_line(check.wrong)}", look.WRONG)
        else:
            line = Text("✓ ", look.RIGHT).append(safe_line(check.claim), "default")
        console.print(line)
    failed = sum(1 for check in checks if check.wrong)
    console.print()
    if failed:
        verdict = f"{failed} of {len(checks)} checks failed"
        console.print(Text(verdict, f"bold {look.WRONG}"))
    else:
        console.print(Text("all checks passed", f"bold {look.RIGHT}"))
    return not failed


def print_next_steps(console: Console, key: str, seq: int) -> None:
    """What to try with what is in the log now."""
    console.print()
    console.print(Text("The session stays. Try:", look.QUIET))
    for command in (
        "eventlog sessions",
        f"eventlog show {key} --at {seq}",
        f"eventlog tail {key} --after 0",
    ):
        console.print(Text(f"  {command}", look.QUIET), soft_wrap=True)


def print_rule(console: Console, title: str) -> None:
    """A line of its own before the next part of the report."""
    console.print()
    console.rule(Text(title, "bold"), align="left", characters="─", style=look.QUIET)


def count_increments(events: Sequence[RecordedEvent]) -> int:
    """How many of the events are token increments."""
    return sum(1 for each in events if isinstance(each.event, TokenAppended))


def _quantiles(values: list[float]) -> tuple[float, float]:
    """The 50th and the 99th percentile."""
    if len(values) < 2:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]
