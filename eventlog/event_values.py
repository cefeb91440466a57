"""Values inside events: roles, contents, tool calls, usage."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Role = Literal["user", "assistant", "system", "developer", "tool"]
Channel = Literal["text", "reasoning", "tool-arguments"]
Content = str | list[dict[str, Any]]
"""Text, or a list of the provider's content parts (`{"type": "text", "text": …}`, images, …)."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call of a tool that an assistant message asks for; `arguments` is the model's own text."""

    id: str
    name: str
    arguments: str = ""


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens that the provider reported for one generation."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
