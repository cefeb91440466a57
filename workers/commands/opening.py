"""How commands get at the log: settings, logging, and a word while servers start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final, Literal

from eventlog import EventLog, Settings
from eventlog.settings import read_settings
from eventlog.telemetry import configure_logging
from workers.terminal import make_console

QUIET: Final = "warning"
"""What commands that people look at log at most, unless they ask for `debug`."""


def prepare(quiet: Literal["warning", "error"] | None = QUIET) -> Settings:
    """Settings from the environment, and logging set up by them; `quiet` keeps the output clean."""
    settings = read_settings()
    level = settings.log_level
    if quiet is not None and level != "debug":
        level = "error" if "error" in (quiet, level) else quiet
    configure_logging(level)
    return settings


@asynccontextmanager
async def open_log(settings: Settings | None = None) -> AsyncIterator[EventLog]:
    """The log of the settings, for a command that people look at."""
    async with AsyncExitStack() as stack:
        with waiting("starting the servers …"):
            log = await stack.enter_async_context(EventLog.open(settings=settings or prepare()))
        yield log


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on a terminal what is being waited for, and wipe it when that is over."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
