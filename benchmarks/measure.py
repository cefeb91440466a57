"""Figures: percentiles, results with targets, alternating rounds, memory.

A case yields `Result`s. A result has one figure; with a target it also says whether the figure
reaches it. What can't be measured here (CPU of a server on another machine) has the figure None and
a note that says why; it counts as neither reached nor missed.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from benchmarks.servers import Place

T = TypeVar("T")
Comparison = Literal["≥", "≤"]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a case, and the target it is held against, if it has one."""

    case: str
    name: str
    figure: float | None
    unit: str
    comparison: Comparison | None = None
    target: float | None = None
    passed: bool | None = None
    note: str = ""


def shown(case: str, name: str, figure: float | None, unit: str, *, note: str = "") -> Result:
    """A figure to know, without a target."""
    return Result(case=case, name=name, figure=figure, unit=unit, note=note)


def at_least(
    case: str, name: str, figure: float | None, unit: str, *, target: float, note: str = ""
) -> Result:
    """A figure that should be `target` or more."""
    return _judged(case, name, figure, unit, comparison="≥", target=target, note=note)


def at_most(
    case: str, name: str, figure: float | None, unit: str, *, target: float, note: str = ""
) -> Result:
    """A figure that should be `target` or less."""
    return _judged(case, name, figure, unit, comparison="≤", target=target, note=note)


def _judged(
    case: str,
    name: str,
    figure: float | None,
    unit: str,
    *,
    comparison: Comparison,
    target: float,
    note: str,
) -> Result:
    passed = None
    if figure is not None:
        passed = figure >= target if comparison == "≥" else figure <= target
    return Result(
        case=case,
        name=name,
        figure=figure,
        unit=unit,
        comparison=comparison,
        target=target,
        passed=passed,
        note=note,
    )


@dataclass(frozen=True, slots=True)
class Bench:
    """What every case gets: the servers, how thorough to be, whom to tell of progress."""

    place: Place
    quick: bool
    say: Callable[[str], None]

    def pick(self, full: float, quick: float) -> float:
        """A duration or a size: the first in a full run, the second with --quick."""
        return quick if self.quick else full

    def count(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Case:
    """An entry of the command line: what it is called, what it shows, what runs it."""

    name: str
    summary: str
    run: Callable[[Bench], Awaitable[list[Result]]]


# --- numbers -------------------------------------------------------------------------------------


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values that are sorted already; NaN when there are none."""
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


@dataclass(frozen=True, slots=True)
class Spread:
    """p50, p99 and the largest of a set of times, in the unit they came in."""

    count: int
    p50: float
    p99: float
    max: float

    def __str__(self) -> str:
        return f"p50 {self.p50:.2f}, p99 {self.p99:.2f}, max {self.max:.1f}"


def spread(values: Iterable[float], *, scale: float = 1.0) -> Spread:
    """Percentiles of `values`, each multiplied by `scale` (1e-6 turns nanoseconds into ms)."""
    ordered = sorted(values)
    return Spread(
        len(ordered),
        percentile(ordered, 0.50) * scale,
        percentile(ordered, 0.99) * scale,
        (ordered[-1] if ordered else math.nan) * scale,
    )


def median(values: Iterable[float | None]) -> float | None:
    """The median of what was measured; None when something was not."""
    known = list(values)
    if not known or any(value is None for value in known):
        return None
    return statistics.median(value for value in known if value is not None)


def median_ratio(pairs: Sequence[tuple[T, T]], figure: Callable[[T], float | None]) -> float | None:
    """The median over the rounds of project ÷ yardstick, each pair measured side by side."""
    ratios: list[float | None] = []
    for project, yardstick in pairs:
        above, below = figure(project), figure(yardstick)
        ratios.append(None if above is None or not below else above / below)
    return median(ratios)


def slope(values: Sequence[float]) -> float:
    """Growth per step of a series, by least squares; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope


# --- rounds --------------------------------------------------------------------------------------


async def alternate(
    project: Callable[[], Awaitable[T]], yardstick: Callable[[], Awaitable[T]], *, rounds: int
) -> list[tuple[T, T]]:
    """Measure both, round by round, after one unmeasured round of each.

    The order turns over every round (A B, B A, …), so that drift of a shared machine, and whatever
    one leaves behind for the next (dirty pages, a checkpoint), meets both alike.
    """
    await yardstick()
    await project()
    pairs: list[tuple[T, T]] = []
    for number in range(rounds):
        gc.collect()
        if number % 2 == 0:
            first = await project()
            gc.collect()
            pairs.append((first, await yardstick()))
        else:
            second = await yardstick()
            gc.collect()
            pairs.append((await project(), second))
    return pairs


# --- memory --------------------------------------------------------------------------------------


def resident_bytes(pid: int | None = None) -> int | None:
    """Resident memory of a process (this one by default); None where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()
    except OSError:
        return None
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
