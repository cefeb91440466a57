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
from workers.commands.version import own_version
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
    version=own_version,
    default_parameter=Parameter(negative=(), show_default=False),
)
_COMMANDS: Final = {
    "Start": {
        "demo": "demo:demo",
        "up": "up:up",
        "doctor": "doctor:doctor",
        "top": "commands.top:top",
        "version": "commands.version:print_version",
    },
    "Read": {
        "sessions": "commands.sessions:list_sessions",
        "show": "commands.show:show",
        "messages": "commands.messages:messages",
        "context": "commands.context:context",
        "search": "commands.search:search",
        "usage": "commands.usage:usage",
        "tail": "commands.tail:tail",
        "export": "commands.transfer:export",
    },
    "Write": {
        "append": "commands.append:append",
        "import": "commands.transfer:import_files",
        "fork": "commands.change:fork",
        "close": "commands.change:close",
        "delete": "commands.change:delete",
        "expire": "commands.erasing:expire",
        "erase": "commands.erasing:erase",
        "erasures": "commands.erasing:erasures",
    },
    "Compact": {
        "compact": "commands.compacting:compact",
        "uncompact": "commands.compacting:uncompact",
        "compactions": "commands.compacting:compactions",
        "policy": "commands.policy:policy",
        "pin": "commands.pinning:pin",
        "fact": "commands.pinning:fact",
    },
    "Serve": {
        "migrate": "commands.serve:migrate",
        "relay": "commands.serve:relay",
        "project": "commands.serve:project",
        "reap": "commands.serve:reap",
        "expire-worker": "commands.serve:expire_worker",
        "compact-worker": "commands.serve:compact_worker",
        "parked": "commands.parked:parked",
        "retry": "commands.parked:retry",
        "rebuild": "commands.rebuild:rebuild",
    },
}
"""For each group the commands, and the function under `workers` that is imported when called."""


def _register() -> None:
    for place, (title, commands) in enumerate(_COMMANDS.items()):
        group = Group(title, sort_key=place)
        for number, (name, where) in enumerate(commands.items()):
            app.command(f"workers.{where}", name=name, group=group, sort_key=number)
    for flag in ("--help", "--version"):
        app[flag].show = False  # the text above says it


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
        if not arguments or arguments[0] in app.help_flags:
            for name in app:
                app[name]  # imports it: the list shows what it says of itself
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _complain(f"{error}\n{_hint(arguments)}", USAGE)
    try:
        return _call(command, bound) or 0
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # behind ^C, and whatever line was being written
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
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code: int | None = runner.run(command(*bound.args, **bound.kwargs))
        return code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # not everywhere
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _hint(arguments: Sequence[str]) -> str:
    known = [name for commands in _COMMANDS.values() for name in commands if name in arguments[:1]]
    return f"See: {' '.join(['eventlog', *known, '--help'])}"


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"eventlog: {safe(message)}\n")
    return code


def _leave_pipe() -> int:
    """Python flushes stdout at its end, and would complain about the pipe once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


if __name__ == "__main__":
    main()
