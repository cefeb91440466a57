"""How `eventlog rebuild` shows how far it is: a bar on terminals, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Final, Self

from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from projections.rebuild import Rebuild, RebuildProgress
from workers.commands import look
from workers.terminal import make_console

LINE_SECONDS: Final = 5.0
"""Where stderr is no terminal, a line says how far it is so often."""
RATE_SECONDS_MIN: Final = 1.0
"""No rate is stated before so much time has passed."""
_WORDS: Final = {
    "fold": "folding sessions",
    "index": "building indexes",
    "follow": "catching up",
}


class Watch:
    """What is shown of one rebuild, from its beginning (or resumption) to its end."""

    def __init__(self, rebuild: Rebuild, *, resumed: bool, jobs: int, quiet: bool) -> None:
        self._rebuild = rebuild
        self._resumed = resumed
        self._jobs = jobs
        self._quiet = quiet
        self._console = make_console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            console=self._console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("beginning", total=None, said="")
        self._began = time.monotonic()
        self._line_at = self._began
        self._first: RebuildProgress | None = None
        self._last: RebuildProgress | None = None
        self._phase: str | None = None
        self._phase_began = self._began
        self._phases: dict[str, float] = {}
        """Seconds that each phase has taken."""

    def __enter__(self) -> Self:
        self._bar.start()
        if self._resumed and not self._quiet:
            said = f"going on with the rebuild of {self._rebuild.what}"
            self._console.print(Text(said, look.QUIET))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._note_phase(None)
        self._bar.stop()

    def show(self, progress: RebuildProgress) -> None:
        """Show how far it is now."""
        self._first = self._first or progress
        self._last = progress
        self._note_phase(progress.phase)
        self._bar.update(
            self._task,
            description=_WORDS[progress.phase],
            completed=progress.events,
            total=progress.events_due,
            said=self._said(progress),
        )
        now = time.monotonic()
        if self._bar.disable and now - self._line_at >= LINE_SECONDS:
            self._line_at = now
            self._console.print(f"{_WORDS[progress.phase]}: {self._said(progress)}", soft_wrap=True)

    def _note_phase(self, phase: str | None) -> None:
        now = time.monotonic()
        if self._phase is not None:
            spent = self._phases.get(self._phase, 0.0)
            self._phases[self._phase] = spent + now - self._phase_began
        self._phase, self._phase_began = phase, now

    def _said(self, progress: RebuildProgress) -> str:
        match progress.phase:
            case "follow":
                return f"{progress.rows_behind:,} rows behind"
            case "index":
                return f"{progress.sessions:,} sessions are folded"
        if progress.events_due is None:
            return "counting events"
        parts = [
            f"{progress.events:,} of {progress.events_due:,} events",
            f"shards {progress.shards_done}/{progress.shards}",
        ]
        rate = self._rate()
        if rate:
            left = (progress.events_due - progress.events) / rate
            parts += [f"{rate:,.0f}/s", f"about {_time(left)} left"]
        return " · ".join(parts)

    def _rate(self) -> float:
        """Events folded in a second, by this call of the command."""
        if self._first is None or self._last is None:
            return 0.0
        seconds = self._phases.get("fold", 0.0)
        if self._phase == "fold":
            seconds += time.monotonic() - self._phase_began
        if seconds < RATE_SECONDS_MIN:
            return 0.0
        return (self._last.events - self._first.events) / seconds

    # --- the end ---

    def summary(self, *, done: bool, parked: int) -> dict[str, Any]:
        """All of it in numbers."""
        seconds = time.monotonic() - self._began
        events = self._last.events if self._last else 0
        before = self._first.events if self._first and self._resumed else 0
        return {
            "views": self._rebuild.views,
            "done": done,
            "resumed": self._resumed,
            "jobs": self._jobs,
            "sessions": self._last.sessions if self._last else 0,
            "events": events,
            "seconds": round(seconds, 3),
            "events_per_second": round((events - before) / seconds) if seconds else 0,
            "seconds_by_phase": {name: round(each, 3) for name, each in self._phases.items()},
            "parked": parked,
        }

    def print_end(self, *, done: bool, parked: int) -> None:
        """One or two lines of what has come of it."""
        what, found = self._rebuild.what, self.summary(done=done, parked=parked)
        if not done:
            said = f"stopped; what is done is kept. Go on: eventlog rebuild {what}"
            self._console.print(Text(said, look.UNDER_WAY), soft_wrap=True)
            return
        console = make_console()
        sessions = look.plural(found["sessions"], "session")
        said = (
            f"✓ rebuilt {what}: {sessions}, {found['events']:,} events in "
            f"{_time(found['seconds'])}, {found['events_per_second']:,}/s"
        )
        console.print(Text(said, look.RIGHT), soft_wrap=True)
        if parked:
            said = f"! {look.plural(parked, 'session')} parked; see eventlog parked"
            console.print(Text(said, look.UNDER_WAY), soft_wrap=True)


def _time(seconds: float) -> str:
    """`9.2 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 100:
        return f"{minutes} min {int(seconds % 60)} s"
    return f"{minutes // 60} h {minutes % 60} min"
