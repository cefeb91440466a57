"""What `eventlog demo --compact` claims, looked at afterwards. Each check can fail.

A summary changes what a model is shown, and nothing else: the events stay, the past can be replayed
as it was, and whoever reads the context gets the old one or the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from eventlog import RecordedEvent
from workers.demo.checks import Check, Then

Context = list[dict[str, Any]]
_TOLD: Final = ("messages", "open_messages", "title", "status", "compactions")
"""What of a replayed state is compared, beside its context."""


class Reads(msgspec.Struct):
    """What somebody saw who kept reading the context while it was compacted."""

    count: int = 0
    seen: list[Context] = []
    """Each context that differs from the one read before."""

    def add(self, context: Context) -> None:
        """Take note of one read."""
        self.count += 1
        if not self.seen or self.seen[-1] != context:
            self.seen.append(context)


def check_untouched(before: Sequence[RecordedEvent], now: Sequence[RecordedEvent]) -> Check:
    """Whether the events of then are the first of now, each as it was."""
    claim = f"all {len(before):,} events are there, each as it was recorded"
    for number, event in enumerate(before):
        if number >= len(now):
            return Check(claim, f"{len(now):,} are left")
        if now[number] != event:
            return Check(claim, f"seq {event.seq:,} is not the event that it was")
    return Check(claim)


def check_past(past: Sequence[Then]) -> Check:
    """Whether replaying gives what it gave before."""
    claim = f"{len(past)} points of the past, replayed, are what they were before the compaction"
    for then in past:
        for name in _TOLD:
            if _plain(getattr(then.state, name)) != _plain(getattr(then.expected, name)):
                return Check(claim, f"{then.title}: {name} differs")
        if then.state.context() != then.expected.context():
            return Check(claim, f"{then.title}: the context differs")
    return Check(claim, "" if past else "there is no past")


def check_paired(context: Context) -> Check:
    """Whether each tool call is followed by its output, and each output follows its call."""
    claim = "in the new context every tool call has its output, and every output its call"
    waiting: set[str] = set()
    for number, message in enumerate(context, 1):
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                return Check(claim, f"message {number} is the output of no call before it")
            waiting.remove(message["tool_call_id"])
            continue
        if waiting:
            return Check(claim, f"message {number} comes before {len(waiting)} outputs")
        waiting = {call["id"] for call in message.get("tool_calls") or ()}
    return Check(claim, f"{len(waiting)} calls at the end have no output" if waiting else "")


def check_smaller(before: int, after: int) -> Check:
    """Whether the context has fewer tokens now."""
    claim = f"the context is smaller: {before:,} → {after:,} tokens"
    return Check(claim, "" if after < before else "it is not")


def check_whole(reads: Reads, old: Context, new: Context, said: Context) -> Check:
    """Whether every read saw the old context or the new one, with what was `said` since, or not."""
    claim = f"the context was read {reads.count:,} times meanwhile: old or new, never a half"
    since = len(new) - len(said)
    allowed = [old + said[:count] for count in range(len(said) + 1)]
    allowed += [new[: since + count] for count in range(len(said) + 1)]
    for context in reads.seen:
        if context not in allowed:
            return Check(claim, f"one read saw {len(context)} messages that are neither")
    return Check(claim, "" if reads.count else "nobody read it")


def check_said(context: Context, said: Context) -> Check:
    """Whether what was said during the compaction is where it belongs: at the end."""
    claim = "what was said while the summary was written is at the end of the new context"
    return Check(claim, "" if said and context[-len(said) :] == said else "it is not")


def check_restored(old: Context, said: Context, now: Context) -> Check:
    """Whether the context is again what it was, and what was said since."""
    claim = "taken back, the context is word for word the one from before"
    return Check(claim, "" if now == old + said else f"it has {len(now)} messages and differs")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
