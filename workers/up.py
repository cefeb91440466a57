"""`eventlog up`: everything in one process, for development.

    servers (embedded, or those of the settings) ──> migrations ──> workers, until Ctrl-C

In production each worker is a process of its own; nothing here is needed for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from eventlog import EventLog, Settings
from eventlog.embedded import Servers, open_servers
from eventlog.schema import migrate
from workers.commands.arguments import MetricsHost, MetricsPort, metrics_place
from workers.commands.opening import prepare, waiting
from workers.compactor import run_compactor
from workers.expirer import run_expirer
from workers.metrics import serving_metrics
from workers.projector import run_projector
from workers.reaper import run_reaper
from workers.relay import run_relay
from workers.runtime import stop_on_signals
from workers.terminal import make_console, safe

Worker = Callable[[EventLog, asyncio.Event], Awaitable[None]]

# The one place that says what `up` runs: the gateway gets its line here.
WORKERS: Final[dict[str, tuple[Worker, str]]] = {
    "relay": (run_relay, "copies to Redis what it lacks"),
    "projector": (run_projector, "keeps the views of sessions and messages"),
    "reaper": (run_reaper, "ends replies whose writers died"),
    "expirer": (run_expirer, "deletes sessions whose time is over, and erases"),
    "compactor": (run_compactor, "summarises what has grown too long for its model"),
}
NEEDS_REDIS: Final = {"relay"}


async def up(*, metrics_port: MetricsPort = None, metrics_host: MetricsHost = None) -> int:
    """Run everything in one process, for development.

    That is: servers, migrations, relay, projector, reaper, expirer and compactor.
    Without settings the servers are embedded, in a data folder that is kept, and
    summaries are made without a model. Ctrl-C stops all.

        eventlog up
        eventlog up --metrics-port 9100
        EVENTLOG_DATA=./data eventlog up
        EVENTLOG_POSTGRES_URL=postgresql://... EVENTLOG_REDIS_URL=redis://... eventlog up
    """
    settings = prepare(quiet=None)
    place = metrics_place(settings, metrics_host, metrics_port)
    console = make_console()
    with stop_on_signals() as stop:
        async with AsyncExitStack() as stack:
            with waiting("starting the servers …"):
                servers = await stack.enter_async_context(open_servers(settings))
                log = await stack.enter_async_context(_open_migrated(settings, servers))
            running = _workers_for(log)
            metrics_url = await stack.enter_async_context(serving_metrics(log, **place))
            _print_panel(console, log, servers, {**_told(running), "metrics": metrics_url})
            async with asyncio.TaskGroup() as group:
                for name in running:
                    work, _ = WORKERS[name]
                    group.create_task(_run(work, log, stop), name=name)
            console.print("stopping …")
    console.print("stopped")
    return 0


async def _run(work: Worker, log: EventLog, stop: asyncio.Event) -> None:
    try:
        await work(log, stop)
    finally:
        stop.set()  # one that ends by itself, by a bug, must not leave the others alone


@asynccontextmanager
async def _open_migrated(settings: Settings, servers: Servers) -> AsyncIterator[EventLog]:
    """The log, on a schema that was just brought up to date."""
    owner = settings.postgres_admin_url or servers.postgres_url
    await migrate(owner, shards=settings.shards)
    async with EventLog.open(settings=settings) as log:
        yield log


def _workers_for(log: EventLog) -> list[str]:
    return [name for name in WORKERS if log.fanout is not None or name not in NEEDS_REDIS]


def _told(running: list[str]) -> dict[str, str | None]:
    return {name: WORKERS[name][1] for name in running}


def _print_panel(
    console: Console, log: EventLog, servers: Servers, running: dict[str, str | None]
) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for title, origin in zip(("Postgres", "Redis"), servers.origin, strict=False):
        table.add_row(title, Text(safe(origin)))
    table.add_row("log", f"{log.store.shards} shards, tenant {log.store.tenant_id}")
    for name, told in running.items():
        if told is not None:
            table.add_row(name, told)
    console.print(Panel(table, title="eventlog up", title_align="left", expand=False))
    console.print(_next_steps(log.settings, servers), style="dim")


def _next_steps(settings: Settings, servers: Servers) -> str:
    embedded = servers.postgres_embedded or servers.redis_embedded
    share = f"EVENTLOG_DATA={settings.data}" if embedded else "the same settings"
    return (
        f"Other processes with {share} use the same log. In another terminal: eventlog demo, "
        "eventlog sessions. Ctrl-C stops all."
    )
