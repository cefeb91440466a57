"""Reading single items of a Codex rollout: which kinds there are, and what each of them says.

Items are those of the provider's Responses interface, as Codex wrote them over the years.
"""

from __future__ import annotations

from typing import Any, Final

from eventlog.events import Content, Role, ToolCall, Usage
from eventlog.integrations.assembly import label_of
from eventlog.integrations.growing_reply import usage_of
from eventlog.integrations.jsonl import ID_CHARS_MAX, joined, json_text, parts_of, text_in, text_of

AGENT: Final = "codex"
HOSTED: Final = {"web_search_call": "web_search", "image_generation_call": "image_generation"}
"""Calls that the provider ran itself: no output item follows."""
CALLS: Final = {
    "function_call": "arguments",
    "custom_tool_call": "input",
    "local_shell_call": "action",
    "tool_search_call": "arguments",
}
"""Items that call a tool, and where they say with what."""
OUTPUTS: Final = {
    "function_call_output": "output",
    "custom_tool_call_output": "output",
    "local_shell_call_output": "output",
    "tool_search_output": "tools",
}
"""Items that answer a call, and where they say what."""
ITEMS: Final = CALLS.keys() | OUTPUTS.keys() | HOSTED.keys() | {"message", "reasoning"}
ROLES: Final[dict[str, Role]] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "developer",
}


def opened(record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Type and payload of a line; older lines are the payload themselves."""
    kind, payload = text_of(record.get("type")), record.get("payload")
    if kind and isinstance(payload, dict):
        return kind, payload
    if kind in ITEMS:
        return "response_item", record
    if not kind and "record_type" in record:
        return label_of("record_type", record.get("record_type")), record
    if not kind and "id" in record:
        return "session_meta", record
    return kind, record


def call_in(item: dict[str, Any], *, otherwise: str) -> ToolCall:
    """The call that an item makes; `otherwise` is its id when it has none."""
    kind = text_of(item.get("type"))
    arguments = item.get(CALLS.get(kind, "action"))
    return ToolCall(
        id=text_of(item.get("call_id")) or text_of(item.get("id")) or otherwise,
        name=text_of(item.get("name")) or HOSTED.get(kind) or kind.removesuffix("_call"),
        arguments="" if arguments is None else json_text(arguments),
    )


def result_in(item: dict[str, Any]) -> Content:
    """What a tool answered."""
    field = OUTPUTS[text_of(item.get("type"))]
    output = item.get(field)
    if field == "tools":
        return json_text(output)
    if isinstance(output, dict) and "content" in output:
        output = output["content"]
    return joined(parts_of(output), "\n")


def reasoning_in(item: dict[str, Any]) -> str:
    """What can be read of a reasoning item; most of it is encrypted."""
    return text_in([*parts_of(item.get("summary")), *parts_of(item.get("content"))])


def usage_in(stated: dict[str, Any]) -> Usage | None:
    """Usage from a `token_count`."""
    return usage_of(
        input_tokens=stated.get("input_tokens"),
        output_tokens=stated.get("output_tokens"),
        cached_tokens=stated.get("cached_input_tokens"),
        reasoning_tokens=stated.get("reasoning_output_tokens"),
    )


def metadata_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a message's metadata says about its first line.

    `envelopes` holds what stands around each item of `native`, so that both give the lines again.
    """
    metadata: dict[str, Any] = {"source": "codex", "envelopes": [envelope_of(record)]}
    if time := text_of(record.get("timestamp"))[:ID_CHARS_MAX]:
        metadata["timestamp"] = time
    return metadata


def envelope_of(record: dict[str, Any]) -> dict[str, Any]:
    """A line without its payload; an older line is all payload."""
    if "payload" not in record:
        return {}
    return {key: value for key, value in record.items() if key != "payload"}
