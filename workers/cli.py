"""The command line, `eventlog <command>`: which commands there are, and how they end.

Commands live in `workers/commands`, one module for each subject, imported when called. Each returns
its exit code, or raises an error of the library, which becomes one line on stderr and one of these:

    0 done     1 refused, or a check failed     2 wrong usage or settings
    3 a server is not available     130 Ctrl-C     141 whoever read the output went away
"""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import uvloop
from cyclopts import App, CycloptsError, Group, Parameter

from eventlog.errors import (
    EventLogError,
    InvalidRequest,
    OutcomeUnknown,
    ServerStartFailed,
    SetupError,
    Unavailable,
)
from eventlog.redis_link import RedisDown
from workers.terminal import safe

FAILED: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3
CTRL_C: Final = 130
BROKEN_PIPE: Final = 141

app = App(
    name="eventlog",
    help="""An event-sourced conversation log for LLM agents.

    Without settings everything runs on embedded servers, in a data folder of yours:

        eventlog demo               see it work, in half a minute
        eventlog up                 servers and workers, until Ctrl-C

    EVENTLOG_POSTGRES_URL and EVENTLOG_REDIS_URL name servers to use instead,
    EVENTLOG_DATA another data folder. Every command tells more with --help.""",
    help_format="plaintext",
    help_flags=("--help", "-h"),
    version_flags=(),
    default_parameter=Parameter(negative=(), show_default=False),
)
_GROUPS: Final = {
    "Start": {
        "demo": ("demo:demo", "A recorded conversation, live, with Redis flushed and stopped."),
        "up": ("up:up", "Everything in one process, for development."),
        "doctor": ("doctor:doctor", "Look whether all is as it should be."),
        "version": ("commands.version:print_version", "Print versions."),
    },
    "Read": {
        "sessions": ("commands.sessions:list_sessions", "List sessions, newest activity first."),
        "show": ("commands.show:show", "Show a conversation, now or as it was."),
        "tail": ("commands.tail:tail", "Follow a session live."),
        "export": ("commands.transfer:export", "Write a session as JSON Lines."),
    },
    "Write": {
        "append": ("commands.append:append", "Append a message."),
        "import": ("commands.transfer:import_files", "Import transcripts of coding agents."),
        "fork": ("commands.change:fork", "Continue a session in a new one, from any point."),
        "close": ("commands.change:close", "Let a session take no more events."),
        "delete": ("commands.change:delete", "Take a session out of every list, for ever."),
    },
    "Serve": {
        "migrate": ("commands.serve:migrate", "Install or upgrade the schema."),
        "relay": ("commands.serve:relay", "Run a relay: Postgres to Redis."),
        "project": ("commands.serve:project", "Run a projector: the views."),
    },
}


def _register() -> None:
    for place, (title, commands) in enumerate(_GROUPS.items()):
        group = Group(title, sort_key=place)
        for number, (name, (where, help_text)) in enumerate(commands.items()):
            app.command(
                f"workers.{where}", name=name, help=help_text, group=group, sort_key=number
            )


_register()


def main() -> None:
    """Entry point of the command `eventlog`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that isn't UTF-8 shows less
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _leave_pipe()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Nothing but a bug of ours raises."""
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _complain(f"{error}\n{_hint(arguments)}", USAGE)
    try:
        return _call(command, bound) or 0
    except KeyboardInterrupt:
        return CTRL_C
    except BrokenPipeError:
        return _leave_pipe()
    except (EventLogError, OSError) as error:
        return _complain(str(error), exit_code_of(error))
    except BaseExceptionGroup as group:
        known = [error for error in _leaves(group) if isinstance(error, EventLogError | OSError)]
        if not known:
            raise
        return _complain(str(known[0]), exit_code_of(known[0]))


def exit_code_of(error: Exception) -> int:
    """What the command ends with when this error ended it."""
    match error:
        case Unavailable() | ServerStartFailed() | OutcomeUnknown() | RedisDown():
            return UNAVAILABLE
        case SetupError() | InvalidRequest():
            return USAGE
        case _:
            return FAILED


def _call(command: Callable[..., Any], bound: inspect.BoundArguments) -> int | None:
    if not inspect.iscoroutinefunction(command):
        result: int | None = command(*bound.args, **bound.kwargs)
        return result
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(command(*bound.args, **bound.kwargs))


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _hint(arguments: Sequence[str]) -> str:
    known = [name for commands in _GROUPS.values() for name in commands if name in arguments[:1]]
    return f"See: {' '.join(['eventlog', *known, '--help'])}"


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"eventlog: {safe(message)}\n")
    return code


def _leave_pipe() -> int:
    """Python flushes stdout at its end, and would complain about the pipe once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE
