"""The events of compaction. They are part of the catalogue in `eventlog.events`."""

from __future__ import annotations

from typing import Any

import msgspec

from eventlog.compaction.policy import CompactionPolicy
from eventlog.event_values import Usage


class CompactionRequested(
    msgspec.Struct, frozen=True, kw_only=True, tag="compaction.requested", omit_defaults=True
):
    """Somebody asked for a summary of the older part of the context."""

    reason: str | None = None
    instructions: str | None = None
    """What the summary should keep in mind."""


class CompactionCompleted(
    msgspec.Struct, frozen=True, kw_only=True, tag="compaction.completed", omit_defaults=True
):
    """A summary now stands in the context for events `from_seq` to `to_seq`, both included.

    It stands for what earlier summaries stood for, too. `kept` are the seqs of messages up to
    `to_seq` that stay in the context beside it. The events themselves are untouched.
    """

    summary: str
    from_seq: int
    to_seq: int
    kept: list[int] = []
    model: str | None = None
    prompt_version: str | None = None
    tokens_before: int | None = None
    """Of what the summary replaces."""
    tokens_after: int | None = None
    """Of the summary."""
    context_tokens: int | None = None
    """Of the whole context before."""
    estimated: bool = False
    """Whether the counts of tokens are estimates."""
    method: str = ""
    """`model`, `extractive` (sentences picked by rule), `custom`; empty: not known."""
    usage: Usage | None = None
    calls: int = 0
    """Calls of the model that it took."""
    duration_ms: int | None = None
    metadata: dict[str, Any] = {}


class CompactionReverted(
    msgspec.Struct, frozen=True, kw_only=True, tag="compaction.reverted", omit_defaults=True
):
    """A compaction is undone: the context is again made of what it stood for."""

    compaction_seq: int


class CompactionFailed(
    msgspec.Struct, frozen=True, kw_only=True, tag="compaction.failed", omit_defaults=True
):
    """An attempt to summarise failed; the context is as it was."""

    reason: str
    kind: str = ""
    """One of `eventlog.compaction.summarizer.FAILURE_KINDS`; empty: not known."""
    from_seq: int = 0
    to_seq: int = 0
    attempts: int = 1
    """Attempts since the context was compacted last, this one included."""
    retry_after_ms: int | None = None
    """How long the endpoint asked to be left alone."""
    model: str | None = None
    usage: Usage | None = None
    """What was spent all the same."""


class CompactionPolicySet(
    msgspec.Struct, frozen=True, kw_only=True, tag="compaction.policy_set", omit_defaults=True
):
    """From now on this says when the session is compacted, and what stays word for word.

    Null: again what its user's policy says, or the log's.
    """

    policy: CompactionPolicy | None = None
