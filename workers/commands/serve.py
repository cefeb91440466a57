"""`eventlog migrate`, and the workers as commands: each piece of the service."""

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
from workers.commands.arguments import MetricsHost, MetricsPort, metrics_place
from workers.commands.opening import prepare, waiting
from workers.compactor import run_compactor
from workers.expirer import run_expirer
from workers.metrics import serving_metrics
from workers.projector import run_projector
from workers.reaper import run_reaper
from workers.relay import run_relay
from workers.runtime import stop_on_signals
from workers.terminal import make_console

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


async def relay(*, metrics_port: MetricsPort = None, metrics_host: MetricsHost = None) -> int:
    """Run a relay: it copies what Redis lacks from Postgres.

    Runs until Ctrl-C or SIGTERM, through outages. Any number of relays may
    run: they repair the same feeds without harm.

        eventlog relay --metrics-port 9101
    """
    return await _serve(run_relay, metrics_host, metrics_port)


async def project(
    *,
    name: Annotated[str | None, Parameter(help="What to call it; else host and pid.")] = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = None,
) -> int:
    """Run a projector: it keeps the views of sessions and messages.

    Runs until Ctrl-C or SIGTERM, through outages. Several projectors share
    the shards, and take over from one that died.

        eventlog project --name one --metrics-port 9102
    """
    return await _serve(
        lambda log, stop: run_projector(log, stop, name=name), metrics_host, metrics_port
    )


async def reap(*, metrics_port: MetricsPort = None, metrics_host: MetricsHost = None) -> int:
    """Run a reaper: it ends replies whose writers died.

    Runs until Ctrl-C or SIGTERM, through outages. A reply counts as abandoned
    after EVENTLOG_REPLY_IDLE_SECONDS (300) of silence.

        eventlog reap --metrics-port 9103
    """
    return await _serve(run_reaper, metrics_host, metrics_port)


async def expire_worker(
    *, metrics_port: MetricsPort = None, metrics_host: MetricsHost = None
) -> int:
    """Run an expirer: it deletes sessions whose time is over.

    Their time is set by `eventlog expire`, or EVENTLOG_SESSION_TTL_SECONDS of
    silence where that isn't. Deleted sessions are erased after
    EVENTLOG_ERASE_AFTER_SECONDS. Neither is set by default. Any number of
    expirers may run, until Ctrl-C or SIGTERM.

        EVENTLOG_SESSION_TTL_SECONDS=2592000 eventlog expire-worker
    """
    return await _serve(run_expirer, metrics_host, metrics_port)


async def compact_worker(
    *,
    name: Annotated[str | None, Parameter(help="What to call it; else host and pid.")] = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = None,
) -> int:
    """Run a compact-worker: it summarises what has grown too long.

    A session is due when its context is over the threshold of its policy
    (eventlog policy --help), or when somebody asked (eventlog compact --worker).
    A summary of the older part then stands in its context; the events stay.

    Summaries are written by EVENTLOG_COMPACTION_MODEL (gpt-5-mini) at
    EVENTLOG_COMPACTION_BASE_URL, with the key in EVENTLOG_COMPACTION_API_KEY or
    OPENAI_API_KEY. Without a key they are made of sentences of the conversation.
    EVENTLOG_COMPACTION_TOKENS_PER_HOUR_MAX limits what all workers spend,
    EVENTLOG_COMPACTION_AT_ONCE (4) how many sessions one of them works on.

    Runs until Ctrl-C or SIGTERM, through outages. Several workers share the
    sessions, and take over from one that died. After failures a session is
    tried again later and later: eventlog compactions SESSION shows why.

        eventlog compact-worker --metrics-port 9104
        EVENTLOG_COMPACTION_MODEL=none eventlog compact-worker
        EVENTLOG_COMPACTION_BASE_URL=http://gpu:8080/v1 eventlog compact-worker
    """
    return await _serve(
        lambda log, stop: run_compactor(log, stop, name=name), metrics_host, metrics_port
    )


async def _serve(
    worker: Callable[[EventLog, asyncio.Event], Awaitable[None]],
    metrics_host: str | None,
    metrics_port: int | None,
) -> int:
    """One worker in the foreground, and its metrics; a clean stop is exit code 0."""
    settings = prepare(quiet=None)
    place = metrics_place(settings, metrics_host, metrics_port)
    with stop_on_signals() as stop:
        async with EventLog.open(settings=settings) as log, serving_metrics(log, **place):
            await worker(log, stop)
    return 0
