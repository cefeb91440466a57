"""Events of a Codex rollout that repeat items, and what they become where there are none."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from eventlog.events import MessageAdded
from eventlog.integrations.codex_items import AGENT, metadata_of

ECHOES: Final[dict[str, tuple[str, str]]] = {
    "user_message": ("user", "message"),
    "agent_message": ("assistant", "message"),
    "agent_reasoning": ("reasoning", "text"),
}
"""Types of such events: what each repeats, and the field with the text."""


class Echo(msgspec.Struct):
    """An event that repeats an item, if the file has such items; kept as custom until the end."""

    index: int
    label: str
    repeats: str
    text: str


def message_from(echo: Echo, message_id: str, record: dict[str, Any]) -> MessageAdded:
    """The message, for a file that has no items of its kind."""
    user = echo.repeats == "user"
    reasoning = echo.repeats == "reasoning"
    return MessageAdded(
        role="user" if user else "assistant",
        content="" if reasoning else echo.text,
        reasoning=echo.text if reasoning else "",
        message_id=message_id,
        agent=None if user else AGENT,
        metadata=metadata_of(record),
        native=[record.get("payload", record)],
    )
