"""The size of a session's context: by what the provider said of it, or by counting.

    usage of the newest reply:  what it read ─ what it wrote, but its reasoning
    + our count:                messages that came after it

What a provider reports covers what isn't in the log: tool definitions, its own framing, a tokenizer
that nobody publishes. So it wins, with three limits:

- Only the newest reply's counts, and only once. What earlier requests read is in what it read; to
  add them up makes a context look several times its size, and compacts it on every call.
- Reasoning is written but not read again, and what is written is one message of the next context:
  `output_tokens` counts once, without it.
- It says nothing of a context that has changed since: summarised, cleared, rewound, retracted from.
  And a figure that is less than half of our own count of the same messages is that of another
  context, such as a sub-agent's, whose reply is in the log. Then our count is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from eventlog.compaction.counts import TokenCount
from eventlog.compaction.tokens import count_each, count_messages
from eventlog.compaction.windows import window_of
from eventlog.entries import Message
from eventlog.rendering import provider_dicts, summary_dict
from eventlog.state import SessionState

OWN_SHARE_MIN: Final = 0.5
"""Of our own count: what reports less isn't about the same messages. Tokenizers differ by less."""


class ContextTokens(msgspec.Struct, frozen=True, kw_only=True):
    """How large a session's context is, and where the figure comes from."""

    tokens: int
    """The figure to act on."""
    source: Literal["reported", "counted", "estimated"]
    """`reported`: by the provider, with an exact count of what came after. `counted`: exactly.
    `estimated`: some part of it is neither."""
    counted: int
    """Our own count of all that is in the context; what a message states of itself counts."""
    reported: int | None = None
    """What the provider said of the context up to its newest reply; None if that can't be used."""
    window: int | None = None
    """How many tokens the model can read; None: not known."""
    model: str | None = None
    """The model that it was counted for."""
    by_role: dict[str, int] = {}
    """`counted` by role, as the model sees it: summary and pinned facts are said by the user."""
    summary: int = 0
    """Tokens of the summary; part of the user's."""

    @property
    def share(self) -> float | None:
        """What of the window the context takes, 1 for all of it; None: the window isn't known."""
        return self.tokens / self.window if self.window else None


def context_tokens(state: SessionState, model: str | None = None) -> ContextTokens:
    """Measure the context of this state, for a model, or for the one that answered last.

    Reads no more than `state.context()` does; the second time, counts of long texts are at hand.
    """
    messages = state.context_messages()
    model = model or next((each.model for each in reversed(messages) if each.model), None)
    standing = state.compaction
    summary = [] if standing is None else count_each([summary_dict(standing.summary)], model)
    counted, by_role = _own_count(state, messages, model)
    total, reported = _with_report(state, messages, counted, model)
    return ContextTokens(
        tokens=total.tokens,
        source="estimated" if not total.exact else "counted" if reported is None else "reported",
        counted=counted.tokens,
        reported=reported,
        window=window_of(model),
        model=model,
        by_role=by_role,
        summary=sum(each.tokens for each in summary),
    )


def _own_count(
    state: SessionState, messages: Sequence[Message], model: str | None
) -> tuple[TokenCount, dict[str, int]]:
    """Our count of all that is in the context, and the same by role.

    What is rendered is counted, for nothing else is read. A message that states its tokens is told
    from the others there by a name that no other can have; told otherwise, it is counted as it is.
    """
    context = provider_dicts(
        [_named(each) for each in messages],
        compaction=state.compaction,
        facts=state.facts,
        closed_calls=state.closed_calls,
    )
    unstated = [each for each in context if not isinstance(each.get("name"), _Stating)]
    ours = iter(count_each(unstated, model))
    total, by_role = TokenCount(0), dict.fromkeys((each["role"] for each in context), 0)
    for each in context:
        name = each.get("name")
        count = TokenCount(name.tokens) if isinstance(name, _Stating) else next(ours)
        by_role[each["role"]] += count.tokens
        total += count
    return total, by_role


class _Stating(str):
    """Stands in the place of the name of a message that states how many tokens it takes."""

    tokens: int


def _named(message: Message) -> Message:
    if message.token_count is None:
        return message
    name = _Stating("states its tokens")
    name.tokens = max(0, message.token_count)
    return msgspec.structs.replace(message, name=name)


def _with_report(
    state: SessionState, messages: Sequence[Message], counted: TokenCount, model: str | None
) -> tuple[TokenCount, int | None]:
    """The figure to act on, and what of it the provider reported, if that can be used."""
    reply = _newest_report(messages, after=_changed_seq(state))
    if reply is None or reply.usage is None:
        return counted, None
    usage = reply.usage
    reported = usage.input_tokens + max(0, usage.output_tokens - max(0, usage.reasoning_tokens))
    since = [
        each
        for each in messages
        # One that was still open when this reply was asked for wasn't read for it.
        if max(each.seq, each.closed_seq) > reply.seq and each is not reply and _is_shown(each)
    ]
    added = sum(count_messages(since, model), TokenCount(0))
    if reported < OWN_SHARE_MIN * (counted.tokens - added.tokens):
        return counted, None
    return TokenCount(reported, exact=True) + added, reported


def _newest_report(messages: Sequence[Message], *, after: int) -> Message | None:
    for each in reversed(messages):
        if each.seq <= after:
            return None
        if each.role == "assistant" and each.usage is not None and each.usage.input_tokens > 0:
            return each
    return None


def _changed_seq(state: SessionState) -> int:
    """Seq of the last event that made the context another one than a reply before it was given."""
    compactions = (max(each.seq, each.reverted_seq) for each in state.compactions)
    retractions = (at for at, _ in state.retractions)
    rewinds = (at for at, _ in state.rewinds)
    return max((*state.clears, *compactions, *retractions, *rewinds), default=0)


def _is_shown(message: Message) -> bool:
    """Whether the message is in a context: an assistant's without anything isn't."""
    return bool(message.content or message.tool_calls) or message.role != "assistant"
