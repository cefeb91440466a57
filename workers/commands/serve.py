"""`eventlog migrate`, `relay`, `project` and `parked`: running the service, piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from eventlog import EventLog, Settings
from eventlog.embedded import open_servers
from eventlog.schema import check_applied, inspect_server, migrations
from eventlog.schema import migrate as migrate_schema
from projections.parking import parked_sessions, retry_parked
from workers.commands.opening import open_log, prepare, waiting
from workers.projector import run_projector
from workers.reaper import run_reaper
from workers.relay import run_relay
from workers.runtime import stop_on_signals
from workers.terminal import make_console, safe_line

NO_REDIS: Final = "none"


async def migrate(
    *, check: Annotated[bool, Parameter(help="Change nothing; exit 1 if there is work.")] = False
) -> int:
    """Install the schema, or bring it up to date.

    Safe to repeat, and for several at once. Uses EVENTLOG_POSTGRES_ADMIN_URL,
    the login that shall own the objects, or else EVENTLOG_POSTGRES_URL, or
    else the embedded server.

        eventlog migrate --check
        EVENTLOG_POSTGRES_ADMIN_URL=postgresql://owner@db/eventlog eventlog migrate
    """
    settings = prepare()
    console = make_console()
    async with open_postgres(settings) as url:
        facts = await inspect_server(url)
        pending = check_applied(facts.applied, migrations())
        if check:
            for each in pending:
                console.print(f"pending: {each.number:04d}_{each.name}")
            if not pending:
                console.print(f"up to date at {len(facts.applied):04d}")
            return 1 if pending else 0
        ran = await migrate_schema(url, shards=settings.shards)
    for each in ran:
        console.print(f"applied: {each.number:04d}_{each.name}")
    if not ran:
        console.print("up to date; nothing was changed")
    return 0


@asynccontextmanager
async def open_postgres(settings: Settings) -> AsyncIterator[str]:
    """URL of the Postgres to migrate; an embedded one runs as long as the block does."""
    given = settings.postgres_admin_url or settings.postgres_url
    alone = msgspec.structs.replace(settings, postgres_url=given, redis_url=NO_REDIS)
    async with AsyncExitStack() as stack:
        with waiting("starting Postgres …"):
            servers = await stack.enter_async_context(open_servers(alone))
        yield servers.postgres_url


async def relay() -> int:
    """Run a relay: it copies what Redis lacks from Postgres.

    Runs until Ctrl-C or SIGTERM, through outages. Any number of relays may
    run: they repair the same feeds without harm.
    """
    return await _serve(run_relay)


async def project(
    *, name: Annotated[str | None, Parameter(help="What to call it; else host and pid.")] = None
) -> int:
    """Run a projector: it keeps the views of sessions and messages.

    Runs until Ctrl-C or SIGTERM, through outages. Several projectors share
    the shards, and take over from one that died.
    """
    return await _serve(lambda log, stop: run_projector(log, stop, name=name))


async def reap() -> int:
    """Run a reaper: it ends replies whose writers died.

    Runs until Ctrl-C or SIGTERM, through outages. A reply counts as abandoned
    after EVENTLOG_REPLY_IDLE_SECONDS (300) of silence.
    """
    return await _serve(run_reaper)


async def _serve(worker: Callable[[EventLog, asyncio.Event], Awaitable[None]]) -> int:
    """One worker in the foreground; a clean stop is exit code 0."""
    settings = prepare(quiet=None)
    with stop_on_signals() as stop:
        async with EventLog.open(settings=settings) as log:
            await worker(log, stop)
    return 0


async def parked(
    *,
    retry: Annotated[
        list[str] | None, Parameter(help="Sessions to take back in, by key or UUID.")
    ] = None,
) -> int:
    """List the sessions that a projector set aside.

    Their events could not be projected. The log is whole; only the views of
    these sessions stand still. Exit code 1 if there are any.

        eventlog parked
        eventlog parked --retry chat-42         once the cause is gone
    """
    console = make_console()
    async with open_log() as log:
        for name in retry or ():
            await retry_parked(log, log.session_id(name))
            console.print(f"✓ {safe_line(name)} is in the views again", soft_wrap=True)
        found = await parked_sessions(log)
    for each in found:
        console.print(
            f"{each.session_id} at seq {each.seq}, {each.parked_at:%Y-%m-%d %H:%M:%S} UTC: "
            f"{safe_line(each.error)}",
            soft_wrap=True,
        )
    if not found:
        console.print("no session is parked")
    return 1 if found else 0
