"""`eventlog fork`, `close` and `delete`: all append, none changes what is stored."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated

from cyclopts import Parameter

from eventlog.errors import InvalidRequest
from workers.commands.arguments import At, SessionName, parse_at
from workers.commands.opening import open_log
from workers.terminal import make_console, safe_line

Reason = Annotated[str | None, Parameter(help="Why; kept in the log.")]


async def fork(
    session: SessionName,
    /,
    *,
    at: At = None,
    key: Annotated[str | None, Parameter(help="Your name for the new session.")] = None,
    title: Annotated[str | None, Parameter(help="Its title; else that of its parent.")] = None,
) -> int:
    """Continue a session in a new one, from any point.

    Nothing is copied, and the session itself goes on as it was.

        eventlog fork chat-42 --at 120 --key chat-42-again
    """
    point = parse_at(at)
    async with open_log() as log:
        parent = await log.session(session)
        if isinstance(point, datetime):
            point = await log.replayer.seq_at(parent.id, point)
        made = await parent.fork(at=point, key=key, title=title)
        state = await made.replay()
    name = safe_line(key) if key else str(made.id)
    make_console().print(f"{name} continues {safe_line(session)} after seq {state.parent_seq}")
    return 0


async def close(session: SessionName, /, *, reason: Reason = None) -> int:
    """Let a session take no more events.

    It can still be read, exported and forked. Whoever follows it comes to its end.

        eventlog close chat-42 --reason solved
    """
    async with open_log() as log:
        handle = await log.session(session)
        done = await handle.close(reason=reason)
    make_console().print(f"{safe_line(session)} is closed at seq {done.last_seq}")
    return 0


async def delete(
    session: SessionName,
    /,
    *,
    yes: Annotated[bool, Parameter(help="Don't ask.")] = False,
    reason: Reason = None,
) -> int:
    """Take a session out of every list, for ever.

    Its key can't be used again. The log keeps what was stored: this appends a tombstone.

        eventlog delete chat-42 --yes
    """
    if not yes and not _confirmed(session):
        raise InvalidRequest("nothing was deleted; say --yes to delete without being asked")
    async with open_log() as log:
        handle = await log.session(session)
        await handle.delete(reason=reason)
    make_console().print(f"{safe_line(session)} is deleted")
    return 0


def _confirmed(session: str) -> bool:
    if not sys.stdin.isatty():
        return False
    make_console(stderr=True).print(f"delete {safe_line(session)} for ever? [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
