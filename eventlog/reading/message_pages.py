"""Messages as a view shows them, page by page: with links between calls of tools and their outputs.

`page_of` takes a page from a state; the query `session_messages` takes the same from the view's
rows. Only visible messages are in a page, and only visible messages are linked: a tool's output
belongs to the last message before it that asked for a call of that id, and of several outputs that
follow, the first is the call's. Call ids may be used again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final, get_args

import msgspec

from eventlog.drafts import check_seq
from eventlog.entries import Message
from eventlog.errors import InvalidRequest
from eventlog.events import Role
from eventlog.state import SessionState

MESSAGES_MAX: Final = 1_000
"""Messages on one page."""
MESSAGES_USUAL: Final = 100
"""Messages on a page, if the caller doesn't say."""
LAST_SEQ: Final = 2**62
"""Behind every seq."""


class MessageView(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A message, and how it hangs together with others. While it streams it has no text."""

    outputs: dict[str, int] = msgspec.field(default_factory=dict)
    """Of calls of tools in it that were answered: the seq of the message with the output."""
    call_seq: int | None = None
    """Of a tool's output: the seq of the message that asked for the call."""


class MessageFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which of a session's visible messages a page shows."""

    roles: tuple[Role, ...] | None = None
    agent: str | None = None
    after: int = 0
    before: int = LAST_SEQ
    limit: int
    oldest: bool = False
    """The first behind `after`, instead of the last before `before`."""

    def shows(self, message: Message) -> bool:
        """Whether a visible message is one of these, whatever the limit."""
        return (
            self.after < message.seq < self.before
            and (self.roles is None or message.role in self.roles)
            and (self.agent is None or message.agent == self.agent)
        )


class MessagePage(msgspec.Struct, frozen=True, kw_only=True):
    """What the view's rows say: those of the session itself, without what a fork inherited."""

    seq: int
    """How far the view is."""
    parent_seq: int
    items: list[MessageView]


def message_filter(
    *,
    limit: int | None,
    role: str | Collection[str] | None,
    agent: str | None,
    before: int | None,
    after: int | None,
) -> MessageFilter:
    """What was asked for, checked. Raises `InvalidRequest`."""
    return MessageFilter(
        roles=check_roles(role),
        agent=agent,
        after=0 if after is None else check_seq(after, "after"),
        before=LAST_SEQ if before is None else check_seq(before, "before"),
        limit=MESSAGES_USUAL if limit is None else check_limit(limit, MESSAGES_MAX),
        oldest=after is not None,
    )


def check_limit(limit: int, most: int) -> int:
    """The limit, if it is a number of items on a page; else `InvalidRequest`."""
    if type(limit) is not int or not 1 <= limit <= most:
        raise InvalidRequest(f"limit is {limit!r:.40}; it must be 1 to {most:,}")
    return limit


def check_roles(role: str | Collection[str] | None) -> tuple[Role, ...] | None:
    """The roles, if they are roles; else `InvalidRequest`. None: all of them."""
    if role is None:
        return None
    chosen = {role} if isinstance(role, str) else set(role)
    roles: tuple[Role, ...] = tuple(each for each in get_args(Role) if each in chosen)
    if len(roles) < len(chosen) or not roles:
        known = ", ".join(get_args(Role))
        raise InvalidRequest(f"role is {role!r:.80}; it must be one or more of: {known}")
    return roles


def page_of(state: SessionState, wanted: MessageFilter) -> list[MessageView]:
    """The page, out of a whole state: inherited messages are in it as well."""
    chosen = [each for each in linked(state.messages) if wanted.shows(each)]
    return chosen[: wanted.limit] if wanted.oldest else chosen[-wanted.limit :]


def linked(messages: Iterable[Message]) -> list[MessageView]:
    """Visible messages in order, with their links."""
    asked: dict[str, int] = {}
    answered: dict[tuple[int, str], int] = {}
    callers: dict[int, int] = {}
    shown = list(messages)
    for each in shown:
        call_id = each.tool_call_id if each.role == "tool" else None
        if call_id is not None and call_id in asked:
            callers[each.seq] = asked[call_id]
            answered.setdefault((asked[call_id], call_id), each.seq)
        asked.update((call.id, each.seq) for call in each.tool_calls)
    return [
        _as_view(
            each,
            {
                call.id: answered[each.seq, call.id]
                for call in each.tool_calls
                if (each.seq, call.id) in answered
            },
            callers.get(each.seq),
        )
        for each in shown
    ]


def _as_view(message: Message, outputs: dict[str, int], call_seq: int | None) -> MessageView:
    fields: dict[str, Any] = {name: getattr(message, name) for name in Message.__struct_fields__}
    return MessageView(**fields, outputs=outputs, call_seq=call_seq)
