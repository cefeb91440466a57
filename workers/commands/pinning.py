"""`eventlog pin` and `fact`: what stays in a context, whatever is summarised."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from eventlog import Message, SessionState
from eventlog.errors import InvalidRequest
from workers.commands import look
from workers.commands.arguments import AsJson, SessionName
from workers.commands.opening import open_log
from workers.terminal import make_console, print_line, safe_json, safe_line


async def pin(
    session: SessionName,
    message_id: Annotated[
        str, Parameter(name="MESSAGE_ID", help="Its id, or its seq as `show` has it: 12 or #12.")
    ],
    /,
    *,
    remove: Annotated[bool, Parameter(help="Let it be summarised like any other.")] = False,
    as_json: AsJson = False,
) -> int:
    """Keep a message in the context word for word, whatever is summarised.

    It counts for compactions from now on.

        eventlog pin chat-42 12
        eventlog pin chat-42 7e57d004-2b97-4e7a-b45f-5387367791cd --remove
    """
    async with open_log() as log:
        handle = await log.session(session)
        state = await handle.replay()
        message = _message(state, message_id, session)
        done = await handle.pin(message.message_id, pinned=not remove)
    if as_json:
        facts = {"message_id": message.message_id, "message_seq": message.seq}
        print_line(safe_json({**facts, "pinned": not remove, "seq": done.last_seq}))
        return 0
    console = make_console()
    what = "is summarised like any other again" if remove else "stays in the context word for word"
    console.print(f"#{message.seq} of {safe_line(session)} {what}", soft_wrap=True)
    if not remove and _is_summarised(state, message):
        console.print(
            "but a summary stands for it already; to have it back: "
            f"eventlog uncompact {safe_line(session)}",
            style=look.UNDER_WAY,
            soft_wrap=True,
        )
    return 0


def _message(state: SessionState, name: str, session: str) -> Message:
    """The message with this id, or at this seq."""
    for each in state.messages:
        if each.message_id == name:
            return each
    digits = name.removeprefix("#")
    for each in state.messages:
        if digits == str(each.seq):
            return each
    raise InvalidRequest(
        f"{session!r:.60} has no message {name!r:.60}; their seqs are in: eventlog show SESSION"
    )


def _is_summarised(state: SessionState, message: Message) -> bool:
    standing = state.compaction
    return (
        standing is not None
        and message.seq <= standing.to_seq
        and (message.seq not in standing.kept)
    )


async def fact(
    session: SessionName,
    name: Annotated[str | None, Parameter(name="NAME", help="What to call it.")] = None,
    text: Annotated[
        str | None,
        Parameter(name="TEXT", help="What is to be kept in mind.", allow_leading_hyphen=True),
    ] = None,
    /,
    *,
    remove: Annotated[bool, Parameter(help="Let it no longer stand there.")] = False,
    as_json: AsJson = False,
) -> int:
    """Let a sentence stand in every context of a session from now on.

    Every request carries it, whatever is summarised. Without TEXT, what there is is shown.

        eventlog fact chat-42 budget 'At most 500 EUR.'
        eventlog fact chat-42                           all of them
        eventlog fact chat-42 budget --remove
    """
    if remove and (name is None or text is not None):
        raise InvalidRequest("--remove takes the NAME of a fact, and no TEXT")
    if text is not None and text.startswith("--"):
        raise InvalidRequest(f"{text!r:.40} looks like an option; a fact is a sentence")
    async with open_log() as log:
        handle = await log.session(session)
        state = await handle.context_state()
        if name is not None and text is None and name not in state.facts:
            known = ", ".join(state.facts) or "none"
            raise InvalidRequest(f"no fact is called {name!r:.60}; there are: {known:.200}")
        if name is not None and (remove or text is not None):
            done = await handle.pin_fact(name, text)
            facts = {key: told for key, told in state.facts.items() if key != name}
            facts |= {} if text is None else {name: text}
            _tell_change(session, name, facts, done.last_seq, as_json=as_json)
            return 0
    shown = state.facts if name is None else {name: state.facts[name]}
    if as_json:
        print_line(safe_json({"facts": shown}))
    else:
        print_facts(make_console(), shown)
    return 0


def _tell_change(
    session: str, name: str, facts: dict[str, str], seq: int, *, as_json: bool
) -> None:
    if as_json:
        print_line(safe_json({"facts": facts, "seq": seq}))
        return
    what = "stands in every context of" if name in facts else "is removed from"
    make_console().print(f"fact {safe_line(name)} {what} {safe_line(session)}", soft_wrap=True)


def print_facts(console: Console, facts: dict[str, str]) -> None:
    """Names and sentences, in full."""
    if not facts:
        console.print("no facts; to add one: eventlog fact SESSION NAME TEXT")
    for name, text in facts.items():
        console.print(Text(safe_line(name), "bold"))
        look.print_prose(console, text)
