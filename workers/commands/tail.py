"""`eventlog tail`: a session live, increments as text while they arrive."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from eventlog import Session
from eventlog.errors import InvalidRequest
from eventlog.integrations.export import export_line
from workers.commands.arguments import SessionName
from workers.commands.live import LiveView
from workers.commands.opening import open_log
from workers.terminal import make_console


async def tail(
    session: SessionName,
    /,
    *,
    after: Annotated[
        int | None,
        Parameter(help="Begin after this seq; 0 is the whole session. Else: the newest question."),
    ] = None,
    raw: Annotated[
        bool, Parameter(help="Print events as JSON Lines, bytes as stored; never to a terminal.")
    ] = False,
) -> int:
    """Follow a session live, until it is closed or you press Ctrl-C.

    Begins with the newest message of the user. Replies appear as they are generated.

        eventlog tail chat-42
        eventlog tail chat-42 --after 0
        eventlog tail chat-42 --after 120 --raw | jq .event
    """
    if raw and sys.stdout.isatty():
        raise InvalidRequest(
            "--raw prints what is stored, byte by byte, and a terminal would obey what it finds "
            "there; send it to a file or a program: eventlog tail … --raw | cat -v"
        )
    async with open_log() as log:
        handle = await log.session(session)
        start = await _newest_question(handle) if after is None else after
        view = LiveView(make_console())
        async with handle.subscribe(after=start) as events:
            async for recorded in events:
                if raw:
                    sys.stdout.buffer.write(export_line(recorded))
                    sys.stdout.buffer.flush()
                else:
                    view.show(recorded)
    return 0


async def _newest_question(session: Session) -> int:
    """Seq just before the newest message of a user; the end of a session without one."""
    state = await session.replay()
    asked = [message.seq for message in state.messages if message.role == "user"]
    return asked[-1] - 1 if asked else state.seq
