"""`python -m benchmarks`: measure the machine's limits, the yardstick, then the project.

Cases run one after the other, each on a fresh database; a case that fails is reported and the
others go on. The exit status is 0 when everything ran, whether or not targets were reached: a
missed target is a finding, not an error.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from cyclopts import App
from rich.console import Console

from benchmarks import (
    append,
    compacting,
    context,
    fanout,
    limits,
    machine,
    queries,
    rebuild,
    report,
    storage,
    sustained,
    timetravel,
    tokens,
    yardstick,
)
from benchmarks.measure import Bench, Case, Result, shown
from benchmarks.servers import open_place

CASES: list[Case] = [
    case
    for module in (
        limits,
        yardstick,
        append,
        tokens,
        sustained,
        context,
        timetravel,
        compacting,
        queries,
        fanout,
        storage,
        rebuild,
    )
    for case in module.CASES
]
HELP = f"""Measure the event log, beside what the same servers can do at all.

Without arguments every case runs, about eight minutes; `--quick` takes about two and is good for
seeing that everything works, not for figures to quote. Without URLs, the servers are those of
EVENTLOG_POSTGRES_URL and EVENTLOG_REDIS_URL, else embedded ones. Each case uses a new database
and an empty numbered Redis database, and removes both.

Cases:

{chr(10).join(f"- `{case.name}`: {case.summary}" for case in CASES)}

Examples:

- `python -m benchmarks`: all cases; results in benchmarks/results/latest.json
- `python -m benchmarks limits yardstick`: what the machine can do; needs no library
- `python -m benchmarks append --quick`: one case, short
- `python -m benchmarks --postgres postgresql://postgres@localhost/postgres --redis
  redis://localhost`: on servers of your own (Postgres as a superuser)

Close other programs first: two cores are shared by the client, Postgres and Redis alike.
"""

app = App(name="python -m benchmarks", help=HELP, help_format="markdown", version_flags=[])


@app.default
def main(
    *cases: str,
    quick: bool = False,
    json: Path | None = None,
    postgres: str | None = None,
    redis: str | None = None,
) -> None:
    """Run the cases.

    Parameters
    ----------
    cases
        Names of cases to run; all when none is given.
    quick
        Short rounds and few of them.
    json
        File for the results. By default results/latest.json for all cases in full, and
        results/partial.json for anything less.
    postgres
        URL of a Postgres superuser, e.g. postgresql://postgres@localhost/postgres.
    redis
        URL of a Redis or Valkey, e.g. redis://localhost.
    """
    chosen = _choose(cases)
    complete = len(chosen) == len(CASES) and not quick
    path = json or report.RESULTS / ("latest.json" if complete else "partial.json")
    failed = _run(_run_cases(chosen, quick=quick, path=path, postgres=postgres, redis=redis))
    sys.exit(1 if failed else 0)


async def _run_cases(
    chosen: list[Case], *, quick: bool, path: Path, postgres: str | None, redis: str | None
) -> bool:
    """Run each case, print the table, write the file; True when a case could not run."""
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    failed = False
    results: list[Result] = []
    async with open_place(postgres, redis) as place:
        known = await machine.facts(place)
        progress.print(machine.describe(known))
        known["other_work_cores"] = busy = {}
        for number, case in enumerate(chosen, start=1):
            progress.print(f"[bold]{number}/{len(chosen)} {case.name}[/]: {case.summary}")
            busy[case.name] = other = await machine.other_work_cores()
            if other is not None and other > machine.BUSY_CORES:
                progress.print(f"  [yellow]other work uses {other} cores: figures will drift[/]")
            started = time.monotonic()

            def say(text: str, started: float = started) -> None:
                progress.print(f"  [dim]{time.monotonic() - started:5.1f} s[/] {text}")

            try:
                results += await case.run(Bench(place=place, quick=quick, say=say))
            except Exception as error:
                failed = True
                progress.print_exception(max_frames=8)
                note = f"{type(error).__name__}: {error}"[:200]
                results.append(shown(case.name, "could not run", None, "", note=note))
        known["load_after"] = machine.load()
    report.write_json(path, known, results, quick=quick)
    report.print_table(results)
    progress.print(f"written to {path}")
    return failed


def _choose(names: tuple[str, ...]) -> list[Case]:
    known = {case.name: case for case in CASES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"no case {', '.join(unknown)}; cases are: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] or CASES


def _run(work: Coroutine[Any, Any, bool]) -> bool:
    """Run under uvloop, where there is one; SIGTERM ends it like Ctrl-C, databases dropped."""

    async def until_terminated() -> bool:
        task = asyncio.ensure_future(work)
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        import uvloop
    except ImportError:
        return asyncio.run(until_terminated())
    return bool(uvloop.run(until_terminated()))


if __name__ == "__main__":
    app()
