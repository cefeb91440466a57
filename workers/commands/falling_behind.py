"""What `eventlog doctor` says of projections: how far they are, who keeps them, what is set aside.

A projection that is a moment behind is as it should be. On embedded servers nobody need be there to
keep it: `eventlog up` and `eventlog sessions` bring the views up to date. A rebuild is behind until
it is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from projections.lag import (
    ShardLag,
    held_by,
    rows_behind,
    seconds_behind,
    shard_ranges,
    worst_first,
)
from workers.commands.finding import Finding, State
from workers.commands.look import plural

LAG_SECONDS_WARN: Final = 5.0
"""A projection that is longer behind than this is worth a warning, and so is one that is"""
LAG_ROWS_WARN: Final = 1_000
"""behind by more rows than this."""
LAG_SECONDS_FAIL: Final = 300.0
"""After this, what people see is so old that something has failed."""
SHARDS_SHOWN_MAX: Final = 8
REBUILD: Final = "rebuild:"
"""What the name of a projection begins with that makes views anew."""


def lag_findings(name: str, lags: list[ShardLag], *, embedded: bool) -> list[Finding]:
    """How far a projection is, and whether somebody keeps it."""
    behind = worst_first(lags)
    free = held_by(lags).get(None, [])
    if not behind:
        found = "caught up"
        if len(free) == len(lags):
            found += "; no projector runs now"
        return [Finding(what=name, state="ok", found=found), *_free(name, lags, embedded=embedded)]
    seconds = seconds_behind(behind)
    where = _named([each.shard for each in behind])
    found = f"{plural(rows_behind(behind), 'row')} and {_seconds(seconds)} behind in {where}"
    state = _state(name, lags, embedded=embedded)
    advice = ""
    if state != "ok":
        advice = (
            "does a projector run? Start one: eventlog project"
            if free
            else "the projectors don't keep up, or stand still: see their logs, and eventlog top"
        )
    first = Finding(what=name, state=state, found=found, advice=advice)
    return [first, *_free(name, lags, embedded=embedded)]


def parked_findings(counts: Mapping[str, int]) -> list[Finding]:
    """What projections set aside; nothing is said of those that did not."""
    return [
        Finding(
            what="parked",
            state="warn",
            found=f"{plural(count, 'session')} set aside by the projection {name}",
            advice="see: eventlog parked; once the cause is gone: eventlog retry --all",
        )
        for name, count in counts.items()
    ]


def version_findings(due: list[str]) -> list[Finding]:
    """Views that lack part of the log, or show it as older code saw it."""
    if not due:
        return []
    found = f"{', '.join(due)} made by an older version, or begun behind the log's first event"
    return [Finding(what="rebuild", state="warn", found=found, advice="eventlog rebuild all")]


def _state(name: str, lags: list[ShardLag], *, embedded: bool) -> State:
    if name.startswith(REBUILD):
        return "ok"
    rows, seconds = rows_behind(lags), seconds_behind(lags)
    nobody = set(held_by(lags)) == {None}
    if embedded and nobody:  # nothing is served from here now
        return "warn" if rows > LAG_ROWS_WARN else "ok"
    if seconds >= LAG_SECONDS_FAIL:
        return "fail"
    return "warn" if seconds >= LAG_SECONDS_WARN or rows > LAG_ROWS_WARN else "ok"


def _free(name: str, lags: list[ShardLag], *, embedded: bool) -> list[Finding]:
    """A complaint about shards that nobody holds."""
    free = held_by(lags).get(None, [])
    if not free or name.startswith(REBUILD) or (embedded and len(free) == len(lags)):
        return []
    which = f"the {plural(len(lags), 'shard')}" if len(free) == len(lags) else _named(free)
    found = f"nobody holds {which} of {name}"
    advice = "does a projector run? Start one: eventlog project"
    return [Finding(what="projectors", state="warn", found=found, advice=advice)]


def _named(shards: list[int]) -> str:
    title = "shard" if len(shards) == 1 else "shards"
    more = len(shards) - SHARDS_SHOWN_MAX
    shown = shard_ranges(shards[:SHARDS_SHOWN_MAX])
    return f"{title} {shown}" + (f" and {more:,} more" if more > 0 else "")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"
