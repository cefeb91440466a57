"""A compact-worker as a process that stops at a step, for others to kill it there.

    python -m tests.compactor.actor STEP POSTGRES_URL REDIS_URL

Steps: `claimed` (before the model is asked), `answered` (before anything is appended), `appended`
(before the claim is given up), `none`. It says `at STEP` and waits there for ever; the log goes to
stderr, as JSON. The model is that of the environment.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, NoReturn

from eventlog import EventLog
from eventlog.compaction import compaction
from eventlog.settings import read_settings
from eventlog.telemetry import configure_logging
from tests.compactor.conftest import CLAIM_SECONDS, LEASE_SECONDS
from workers.compactor import asking, run_compactor
from workers.compactor.claims import Claims
from workers.runtime import stop_on_signals


async def stand_still(step: str) -> NoReturn:
    """Say where, and wait to be killed."""
    sys.stdout.write(f"at {step}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def stop_at(step: str) -> None:
    """Put the stop where it belongs."""
    if step == "none":
        return

    async def stop(*_: Any, **__: Any) -> NoReturn:
        await stand_still(step)

    match step:
        case "claimed":
            asking.Asking.summarize = stop  # type: ignore[method-assign]
        case "answered":
            compaction.append_summary = stop  # type: ignore[attr-defined]
        case "appended":
            Claims.done = stop  # type: ignore[method-assign]
        case _:
            raise SystemExit(f"no such step: {step}")


async def run(postgres: str, redis: str) -> None:
    """Work as `eventlog compact-worker` does, with claims that run out sooner."""
    with stop_on_signals() as stop:
        async with EventLog.open(postgres, redis, settings=read_settings()) as log:
            await run_compactor(log, stop, claim_seconds=CLAIM_SECONDS, lease_seconds=LEASE_SECONDS)


if __name__ == "__main__":
    configure_logging("info", json=True)
    stop_at(sys.argv[1])
    asyncio.run(run(*sys.argv[2:]))
