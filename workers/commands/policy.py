"""`eventlog policy`: when sessions are compacted and what stays, and who said so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from eventlog import EventLog, Session
from eventlog.compaction.measure import ContextTokens
from eventlog.compaction.policy import WINDOW_UNKNOWN_TOKENS, CompactionPolicy, policy_of
from eventlog.errors import InvalidRequest
from workers.commands import look
from workers.commands.arguments import AsJson
from workers.commands.compaction_text import print_pairs
from workers.commands.opening import open_log
from workers.commands.top_text import duration
from workers.terminal import make_console, print_line, safe_json, safe_line

Origin = Literal["session", "user", "log", "settings", "default"]
_ORIGIN_WORDS: Final[dict[Origin, str]] = {
    "session": "set for the session",
    "user": "set for the user",
    "log": "set for the log",
    "settings": "from EVENTLOG_COMPACTION",
    "default": "nothing was set",
}


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The policy that counts, and where it was set."""

    policy: CompactionPolicy
    origin: Origin
    context: ContextTokens | None = None
    """Of the session that was asked for: what a share of the window is for its model."""


async def policy(
    *,
    user: str | None = None,
    session: str | None = None,
    set_: Annotated[str | None, Parameter(name="--set")] = None,
    unset: bool = False,
    as_json: AsJson = False,
) -> int:
    """Show or set when sessions are compacted, and what stays word for word.

    The nearest counts, as a whole: the session's own policy, its user's, the log's, then
    EVENTLOG_COMPACTION, then the default, which is 90 % of the model's window.

        eventlog policy                                 the log's
        eventlog policy --session chat-42               the one that counts for a session
        eventlog policy --set codex
        eventlog policy --user ada --set off
        eventlog policy --session chat-42 --set '{"threshold_tokens": 50000, "keep_messages": 10}'
        eventlog policy --session chat-42 --unset

    There are these presets:

        codex      from 220,000 tokens, or 90 % of the window; keeps 2 messages and what the
                   user said, up to 20,000 tokens
        module-9   from 100,000 tokens, and at least 10 messages; keeps the last 5
        off        only when somebody asks for it

    Processes that run notice a change within seconds.

    Parameters
    ----------
    user
        The policy of this user's sessions.
    session
        The policy of this session: its key or UUID.
    set_
        A preset's name, or a policy as JSON; what it doesn't state is as in the default.
    unset
        Go by the next that counts.
    """
    if user is not None and session is not None:
        raise InvalidRequest("say one of --user and --session")
    if set_ is not None and unset:
        raise InvalidRequest("say one of --set and --unset")
    chosen = None if set_ is None else policy_of(set_)
    async with open_log() as log:
        handle = None if session is None else await log.session(session)
        if chosen is not None or unset:
            if handle is not None:
                await handle.set_compaction_policy(chosen)
            else:
                await log.compaction.set(chosen, user_id=user)
        found = await find(log, user, handle)
    if as_json:
        fields = {"policy": msgspec.structs.asdict(found.policy), "origin": found.origin}
        print_line(safe_json(fields))
    else:
        print_policy(make_console(), found)
    return 0


async def find(log: EventLog, user_id: str | None, session: Session | None) -> Found:
    """The policy that counts for a session, a user, or the log, and where it comes from."""
    context = None
    if session is not None:
        state = await session.context_state()
        context = await session.context_tokens()
        user_id = state.user_id
        if state.compaction_policy is not None:
            return Found(policy=state.compaction_policy, origin="session", context=context)
    if user_id is not None:
        of_user = await log.compaction.get(user_id=user_id)
        if of_user is not None:
            return Found(policy=of_user, origin="user", context=context)
    of_log = await log.compaction.get()
    if of_log is not None:
        return Found(policy=of_log, origin="log", context=context)
    origin: Origin = "default" if log.settings.compaction is None else "settings"
    return Found(policy=log.compaction.default, origin=origin, context=context)


def print_policy(console: Console, found: Found) -> None:
    """What it says, in sentences."""
    unnamed = "default" if found.origin == "default" else "custom"
    title = Text(safe_line(found.policy.name, 40) or unnamed, "bold")
    title.append(f"  {_ORIGIN_WORDS[found.origin]}", look.QUIET)
    console.print(title)
    print_pairs(console, _sentences(found.policy, found.context))


def _sentences(
    policy: CompactionPolicy, context: ContextTokens | None
) -> Iterator[tuple[str, str]]:
    if not policy.enabled:
        yield "due", "never by itself: only when somebody asks for it"
    else:
        yield "due", _due(policy)
        if context is not None or policy.window_tokens:
            threshold = policy.threshold(None if context is None else context.window)
            yield "", f"here from {threshold:,} tokens on ({_window(policy, context)})"
        yield "", f"with at least {look.plural(policy.messages_min, 'message')}"
    yield "newest", f"{_newest(policy)} stay word for word"
    if policy.keep_user_tokens:
        tokens = f"{policy.keep_user_tokens:,} tokens"
        yield "user", f"what was said before that stays, newest first, up to {tokens}"
    yield "always", "instructions, pinned messages and tool calls that wait for their output stay"
    yield "summary", f"at most {policy.summary_tokens_max:,} tokens"
    orphans = duration(policy.orphan_seconds)
    yield "calls", f"closed when there is no output {orphans} after the conversation went on"


def _due(policy: CompactionPolicy) -> str:
    limits = []
    if policy.threshold_tokens is not None:
        limits.append(f"from {policy.threshold_tokens:,} tokens")
    if policy.threshold_share is not None:
        limits.append(f"from {policy.threshold_share:.0%} of the model's window")
    return ", or ".join(limits) or "when the model's window is full"


def _window(policy: CompactionPolicy, context: ContextTokens | None) -> str:
    if policy.window_tokens:
        return f"the policy says that the window is {policy.window_tokens:,}"
    if context is not None and context.window:
        return f"the window of {safe_line(context.model or 'the model', 40)} is {context.window:,}"
    return f"the window isn't known: {WINDOW_UNKNOWN_TOKENS:,} are assumed"


def _newest(policy: CompactionPolicy) -> str:
    messages, tokens = policy.keep_messages, policy.keep_tokens
    if messages is None and tokens is None:
        return "none"
    parts = [] if messages is None else [look.plural(messages, "message")]
    if tokens is not None:
        parts.append(f"at most {tokens:,} tokens")
    return ", ".join(parts)
