"""When a session is compacted, and what of its context stays word for word.

A policy is set for the log, for a user, or for a session; the nearest counts, as a whole. It is
stored as it was resolved: a preset that changes with a later version changes no session.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from eventlog.errors import InvalidRequest

WINDOW_UNKNOWN_TOKENS: Final = 128_000
"""What counts as the window of a model that nothing is known of."""
FULL_SHARE: Final = 0.95
"""A context that takes more of the window than this is full: the next request may be refused."""
BUDGET_SHARE: Final = 0.25
"""Of the threshold: what stays word for word by a number of tokens takes no more, each."""
GAIN_SHARE: Final = 0.1
"""Of the threshold: how much a summary must replace at least to be worth its cost."""


class CompactionPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Due at whichever threshold comes first; then all is summarised but what is to be kept.

    System and developer messages, pinned messages, and tool calls that wait for their output stay
    always.
    """

    name: str = ""
    """Of the preset that it was, for people."""
    enabled: bool = True
    threshold_tokens: int | None = None
    """Tokens of a context that is due."""
    threshold_share: float | None = 0.9
    """The same as a share of the model's window, 0 to 1."""
    window_tokens: int | None = None
    """The window, where the model's own isn't known or doesn't count."""
    messages_min: int = 2
    """Messages of the context under which nothing is done."""
    keep_messages: int | None = 20
    """How many of the newest messages stay; None: as many as `keep_tokens` allows."""
    keep_tokens: int | None = 10_000
    """How many tokens of the newest messages stay; None: as many as `keep_messages` says."""
    keep_user_tokens: int = 20_000
    """How many tokens of what the user said before that stay, newest first."""
    summary_tokens_max: int = 4_000
    """How long a summary may be."""
    orphan_seconds: float = 600.0
    """When the conversation has gone on for so long without a tool's output, it is not waited for
    any more: the call is closed."""

    def threshold(self, window: int | None) -> int:
        """Tokens from which on a context is due, for a model with this window."""
        known = self.window_tokens or window or WINDOW_UNKNOWN_TOKENS
        limits = [] if self.threshold_tokens is None else [self.threshold_tokens]
        if self.threshold_share is not None:
            limits.append(int(known * self.threshold_share))
        return min(limits, default=known)

    def full_at(self, window: int | None) -> int:
        """Tokens from which on the next request may be refused."""
        known = self.window_tokens or window or WINDOW_UNKNOWN_TOKENS
        return max(self.threshold(window), int(known * FULL_SHARE))


CODEX: Final = CompactionPolicy(name="codex", threshold_tokens=220_000, keep_messages=2)
MODULE_9: Final = CompactionPolicy(
    name="module-9",
    threshold_tokens=100_000,
    threshold_share=None,
    messages_min=10,
    keep_messages=5,
    keep_tokens=None,
    keep_user_tokens=0,
)
OFF: Final = CompactionPolicy(name="off", enabled=False)
PRESETS: Final[dict[str, CompactionPolicy]] = {each.name: each for each in (CODEX, MODULE_9, OFF)}
"""`codex`: as the Codex CLI does. `module-9`: above 100,000 tokens all but the last 5 messages.
`off`: only when asked for."""

_LIMITS: Final[dict[str, tuple[float, float]]] = {
    "threshold_tokens": (1, 10**9),
    "threshold_share": (0.01, 1.0),
    "window_tokens": (1, 10**9),
    "messages_min": (0, 10**6),
    "keep_messages": (0, 10**6),
    "keep_tokens": (0, 10**9),
    "keep_user_tokens": (0, 10**9),
    "summary_tokens_max": (16, 10**6),
    "orphan_seconds": (0, 10**9),
}


def check_policy(policy: CompactionPolicy) -> CompactionPolicy:
    """The policy itself; `InvalidRequest` unless its numbers make sense."""
    for name, (least, most) in _LIMITS.items():
        value = getattr(policy, name)
        if value is not None and not (math.isfinite(value) and least <= value <= most):
            raise InvalidRequest(
                f"{name} of a compaction policy is {value}; it must be {least:g} to {most:,g}"
            )
    return policy


def policy_of(given: CompactionPolicy | str) -> CompactionPolicy:
    """A policy from itself, a preset's name, or JSON. Raises `InvalidRequest`."""
    if isinstance(given, CompactionPolicy):
        return check_policy(given)
    if given in PRESETS:
        return PRESETS[given]
    known = ", ".join(PRESETS)
    if not given.lstrip().startswith("{"):
        raise InvalidRequest(
            f"no compaction policy is called {given!r:.40}; there are {known}, or give one as "
            'JSON, such as {"threshold_tokens": 50000, "keep_messages": 10}'
        )
    try:
        fields = msgspec.json.decode(given, type=dict[str, Any])
        unknown = sorted(fields.keys() - set(CompactionPolicy.__struct_fields__))
        if unknown:
            known = ", ".join(CompactionPolicy.__struct_fields__)
            raise InvalidRequest(f"a compaction policy has no {unknown[0]!r:.40}; it has {known}")
        return check_policy(msgspec.convert(fields, CompactionPolicy))
    except msgspec.MsgspecError as error:
        raise InvalidRequest(
            f"the compaction policy {given!r:.80} can't be read: {error}"
        ) from None
