"""`eventlog messages`: some messages of a session, from the view that the projector keeps."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from eventlog import MessageView
from workers.commands import look
from workers.commands.arguments import AsJson, SessionName
from workers.commands.conversation import print_message
from workers.commands.opening import open_log
from workers.terminal import make_console, print_line, safe_json


async def messages(
    session: SessionName,
    /,
    *,
    role: list[str] | None = None,
    agent: str | None = None,
    limit: int = 20,
    before: int | None = None,
    after: int | None = None,
    full: Annotated[bool, Parameter(help="Cut nothing short.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show messages of a session: the newest, or those around a seq.

    Messages that were cleared or taken back are left out.
    The numbers behind a name are the seq and the time of the message.

        eventlog messages chat-42
        eventlog messages chat-42 --role assistant --agent planner --limit 5
        eventlog messages chat-42 --before 120          those before #120
        eventlog messages chat-42 --json | jq .messages[].outputs

    Parameters
    ----------
    role
        Only messages of this role: user, assistant, system, developer or tool. May be repeated.
    agent
        Only messages of this agent.
    limit
        At most so many; 20 unless said otherwise.
    before
        The newest before this seq.
    after
        The oldest behind this seq.
    """
    async with open_log() as log:
        handle = await log.session(session)
        found = await handle.messages(
            role=role or None,
            agent=agent,
            limit=limit,
            before=before,
            after=after,
            min_seq=await handle.head(),
        )
    if as_json:
        print_line(safe_json({"messages": found}))
    else:
        print_messages(make_console(), found, whole=len(found) < limit, after=after, full=full)
    return 0


def print_messages(
    console: Console, found: list[MessageView], *, whole: bool, after: int | None, full: bool
) -> None:
    """The messages one by one, and how to get at the next."""
    if not found:
        console.print("no messages there")
        return
    names: dict[str, str] = {}
    for message in found:
        print_message(console, message, names, full=full)
    if not whole:
        more = f"--before {found[0].seq}" if after is None else f"--after {found[-1].seq}"
        console.print(f"\nmore: {more}", style=look.QUIET, soft_wrap=True)
