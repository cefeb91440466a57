"""`eventlog append`: one message into a session, from the command line or from stdin."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from eventlog import ANY, MessageAdded
from eventlog.errors import InvalidRequest
from workers.commands.arguments import AsJson, SessionName
from workers.commands.opening import open_log
from workers.terminal import make_console, print_line, safe_json, safe_line


async def append(
    session: SessionName,
    text: Annotated[
        str,
        Parameter(
            name="TEXT", help="The message; - reads it from stdin.", allow_leading_hyphen=True
        ),
    ],
    /,
    *,
    role: Literal["user", "assistant", "system", "developer"] = "user",
    agent: str | None = None,
    create: bool = False,
    user: str | None = None,
    title: str | None = None,
    expected_seq: int | None = None,
    event_id: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Append a message to a session.

    When this returns, it is committed and flushed, and subscribers have it or are about to.

        eventlog append chat-42 'What is the capital of France?'
        eventlog append chat-42 --create --user ada 'Hello'
        git diff | eventlog append review-7 --role user -
        eventlog append chat-42 --role assistant --expected-seq 12 Paris.

    With --event-id the same call may be repeated: it is stored once.

    Parameters
    ----------
    role
        user (unless said otherwise), assistant, system or developer.
    agent
        The agent that speaks.
    create
        Make the session if it does not exist.
    user
        With --create: whose session it becomes.
    title
        With --create: its title.
    expected_seq
        Refuse unless this is the session's last seq.
    event_id
        A UUID that names this append.
    """
    if not create and (user or title):
        raise InvalidRequest("--user and --title are for a new session; add --create")
    if text.startswith("--"):
        raise InvalidRequest(
            f"{text!r:.40} looks like an option; to append it as text, pipe it in: "
            f"echo TEXT | eventlog append {session} -"
        )
    content = _from_stdin() if text == "-" else text
    async with open_log() as log:
        if create:
            handle = await log.create_session(key=session, user_id=user, title=title)
        else:
            handle = await log.session(session)
        done = await handle.append(
            MessageAdded(role=role, content=content, agent=agent),
            expected_seq=ANY if expected_seq is None else expected_seq,
            event_id=event_id,
        )
    if as_json:
        print_line(safe_json(done))
        return 0
    said = "was stored before, as" if done.duplicate else "stored as"
    make_console().print(f"{said} seq {done.last_seq} of {safe_line(session)}", soft_wrap=True)
    return 0


def _from_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"stdin is not UTF-8: {error}") from None
