"""A reply of a model that a transcript spreads over several lines, until it is one message."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from eventlog.events import MessageAdded, ToolCall, Usage
from eventlog.integrations.assembly import LINE_BYTES_MAX, Assembly
from eventlog.integrations.jsonl import Line, count_of, joined, text_of

CHARS_PER_TOKEN_MAX: Final = 16
"""A reply with more characters for each token it states was counted before it was finished."""


class GrowingReply(msgspec.Struct, kw_only=True):
    """An assistant's message that may grow over several lines."""

    index: int
    message_id: str
    agent: str
    metadata: dict[str, Any]
    parts: list[dict[str, Any]] = []
    reasoning: list[str] = []
    tool_calls: list[ToolCall] = []
    native: list[Any] = []
    native_bytes: int = 0
    usage: Usage | None = None
    model: str | None = None
    finish_reason: str | None = None

    def hold(self, assembly: Assembly, line: Line, item: Any = None) -> None:
        """Take the line's record (or an item of it) into `native`, as long as there is room."""
        self.native.append(assembly.verbatim(line, item, room=LINE_BYTES_MAX - self.native_bytes))
        if self.native[-1] is item or self.native[-1] is line.record:
            self.native_bytes += len(line.raw)

    def message(self) -> MessageAdded:
        """The message as it is now."""
        return MessageAdded(
            role="assistant",
            content=joined(self.parts, "\n\n"),
            message_id=self.message_id,
            agent=self.agent,
            model=self.model,
            reasoning="\n\n".join(self.reasoning),
            tool_calls=self.tool_calls,
            token_count=self.token_count,
            usage=self.usage,
            finish_reason=self.finish_reason,
            metadata=self.metadata,
            native=self.native,
        )

    @property
    def token_count(self) -> int | None:
        """Tokens of the reply; None when what the file states was counted before its end."""
        if self.usage is None or self.undercounted:
            return None
        return self.usage.output_tokens or None

    @property
    def undercounted(self) -> bool:
        """More text than so few tokens can make: the count is from when the reply began."""
        chars = sum(len(text_of(each.get("text"))) for each in self.parts)
        chars += sum(map(len, self.reasoning)) + sum(
            len(each.arguments) for each in self.tool_calls
        )
        return self.usage is not None and chars > CHARS_PER_TOKEN_MAX * self.usage.output_tokens


def usage_of(**counts: object) -> Usage | None:
    """Usage from fields of any type; None when it states no token at all."""
    known = {name: count_of(value) or 0 for name, value in counts.items()}
    return Usage(**known) if any(known.values()) else None
