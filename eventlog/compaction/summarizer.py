"""What a summariser is given, what it gives back, and how it fails.

A summariser may be anything: a model behind an HTTP API, a rule, a person. What it gives back is
checked before anything is appended (`committing`), so it cannot put a false summary into a log.
"""

from __future__ import annotations

from typing import Final, Literal, Protocol, get_args
from uuid import UUID

import msgspec

from eventlog.entries import Message
from eventlog.errors import EventLogError
from eventlog.events import Usage

FailureKind = Literal[
    "rate_limited",  # 429
    "server_error",  # 5xx
    "timeout",  # no whole answer in time: it hung, or dripped
    "connection_lost",  # refused, reset, or dropped in the middle
    "rejected",  # 400, 401, 403, 404: the request, the key or the model is wrong
    "bad_answer",  # not what the API promises: a web page, broken JSON, no choices, too large
    "empty",  # null, or nothing but white space
    "truncated",  # it stopped at its limit
    "filtered",  # a content filter stopped it
    "refused",  # the model refused
    "not_smaller",  # as long as what it would replace, or longer
    "no_budget",  # the hour's tokens are spent
    "circuit_open",  # the endpoint failed too often, and is left alone for a while
    "worker_died",  # whoever worked on it died, again and again
    "nothing_to_do",  # somebody asked, and there is nothing that a summary could stand for
    "superseded",  # the context was changed while it was summarised, again and again
]
FAILURE_KINDS: Final[tuple[FailureKind, ...]] = get_args(FailureKind)


def failure_kind(stored: str) -> FailureKind:
    """The kind that an event states; of one that isn't known here, the most general."""
    return next((each for each in FAILURE_KINDS if each == stored), "bad_answer")


Method = Literal["model", "extractive", "custom"]
"""Who wrote it: a model; a rule that picked sentences; a function of the caller's."""


class Material(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be summarised: the messages that a summary will stand for, and no others."""

    session_id: UUID
    from_seq: int
    to_seq: int
    messages: list[Message]
    """In order of seq; those of the range that stay word for word are not among them."""
    previous_summary: str | None = None
    """Stands for what came before `from_seq`. The new summary stands for that, too."""
    unanswered: frozenset[str] = frozenset()
    """Ids of tool calls in `messages` that never got an output."""
    facts: dict[str, str] = {}
    """Pinned facts: they stay in the context beside the summary, which need not repeat them."""
    instructions: str | None = None
    """What whoever asked for it wants to have kept in mind."""
    tokens: int
    """Of all that the summary replaces, the previous one included. It must be smaller."""
    tokens_max: int
    """How long it should be at most."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a summariser gives back."""

    text: str
    method: Method = "custom"
    model: str | None = None
    prompt_version: str | None = None
    usage: Usage | None = None
    """Of all calls that it took."""
    calls: int = 0


class Summarizer(Protocol):
    """Writes summaries. Any number of calls may be under way at once."""

    async def summarize(self, material: Material) -> Summary:
        """Summarise. Raises `SummaryFailed`, and nothing else on purpose."""
        ...


class SummaryFailed(EventLogError):
    """No summary came about, and the context is as it was. `kind` and `reason` say why."""

    def __init__(
        self,
        kind: FailureKind,
        reason: str,
        *,
        retry_after_seconds: float | None = None,
        usage: Usage | None = None,
        calls: int = 0,
    ) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind: FailureKind = kind
        self.reason = reason
        """A sentence for people. It carries no content of the conversation, and no key."""
        self.retry_after_seconds = retry_after_seconds
        """What the endpoint asked for."""
        self.usage = usage
        """Tokens that were spent all the same."""
        self.calls = calls
