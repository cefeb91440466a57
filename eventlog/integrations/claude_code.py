"""Reading a Claude Code transcript: one session, or one of its subagents, as JSON Lines.

Lines form a tree by `uuid` and `parentUuid`; they are imported in the order of the file.

- One reply of the model is spread over several `assistant` lines with the same `message.id`, one
  content block each, with progress and results of its first tools in between. It becomes one
  `message.added`, in the place of its first line.
- A `user` line holds what a person wrote, or results of tools: one message for each result.
- `system` with subtype `compact_boundary` and the `user` line with the summary behind it become one
  `compaction.completed`, in the place of the boundary, over everything before it.
- `custom-title`, `ai-title`, and a `summary` of this very session set the title.
- Everything else becomes `custom`, named `claude_code.<type>`.

`native` of a message is the list of its lines, verbatim. A second message made of the same line has
`[{"part_of": <message id of the first>}]` there. Lines of subagents (sidechains) are messages like
all others, marked in `metadata`. `usage` is what the last of its lines states; where that was
counted when the reply began, as a comparison with its text shows, there is no `token_count`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from eventlog.events import MessageAdded, ToolCall, Usage
from eventlog.integrations.assembly import Assembly, label_of
from eventlog.integrations.claude_compaction import ClaudeCompactions
from eventlog.integrations.claude_session import ClaudeSession, metadata_of, title_in
from eventlog.integrations.growing_reply import GrowingReply, usage_of
from eventlog.integrations.jsonl import (
    Line,
    Progress,
    count_of,
    dict_of,
    id_of,
    joined,
    json_text,
    parts_of,
    read_lines,
    text_in,
    text_of,
)
from eventlog.integrations.transcripts import Transcript

AGENT: Final = "claude-code"
SUBAGENT: Final = "subagent"
"""Agent of sidechain replies that don't name theirs."""
SYNTHETIC_MODEL: Final = "<synthetic>"
"""Stands for the model in messages that Claude Code wrote itself, errors for example."""


def read_claude_code(path: Path, progress: Progress | None = None) -> Transcript:
    """The file as a transcript; `transcripts.read_transcript` is the way to call it."""
    reader = _Reader(path)
    for line in read_lines(path, progress=progress):
        reader.read(line)
    return reader.finish()


class _Reader:
    def __init__(self, path: Path) -> None:
        self.assembly = Assembly("claude-code", "claude_code")
        self.session = ClaudeSession(self.assembly, path)
        self.replies: dict[str, GrowingReply] = {}
        self.indexes: dict[str, int] = {}  # uuid of a line: index of its event
        self.parents: dict[str, tuple[int, str]] = {}  # uuid: line, parentUuid
        self.compactions = ClaudeCompactions(self.assembly, self.indexes, self.parents)
        self.digests: dict[str, int] = {}  # of message lines: line

    def read(self, line: Line) -> None:
        if not self.assembly.begin(line):
            return
        record = dict_of(line.record)
        index = self._take(line, record, dict_of(record.get("message")))
        if uuid := id_of(record.get("uuid")):
            self.indexes.setdefault(uuid, index)
            self.parents.setdefault(uuid, (line.number, id_of(record.get("parentUuid"))))
        self.session.take_facts(record)

    def _take(self, line: Line, record: dict[str, Any], message: dict[str, Any]) -> int:
        """Add what the record is; returns the index of its first event."""
        kind, subtype = text_of(record.get("type")), text_of(record.get("subtype"))
        if kind in ("user", "assistant") and message and self._is_new(line, record):
            summary = text_in(parts_of(message.get("content")))
            if kind == "assistant":
                return self._assistant(line, record, message)
            if summary and record.get("isCompactSummary") is True:
                return self.compactions.complete(line, record, summary)
            return self._user(line, record, message)
        if kind == "system" and subtype == "compact_boundary":
            self.compactions.close()
            index = self._keep(line, record, "system/compact_boundary")
            self.compactions.begin(index, line, record)
            return index
        if title := title_in(record):
            index = self._keep(line, record, kind)
            self.session.take_title(index, line, kind, title)
            return index
        if kind in ("user", "assistant") and not message:
            self.assembly.note(line.number, "a line of a message without the message")
        label = label_of(kind, subtype if kind == "system" else None)
        self.assembly.count(label, "custom")
        return self._keep(line, record, label)

    def _keep(self, line: Line, record: dict[str, Any], label: str) -> int:
        uuid, stated = record.get("uuid"), record.get("timestamp")
        return self.assembly.keep(line, label, source=uuid, stated=stated)

    def _is_new(self, line: Line, record: dict[str, Any]) -> bool:
        first = self.digests.setdefault(line.digest, line.number)
        if first != line.number and id_of(record.get("uuid")):
            self.assembly.note(line.number, f"the same message as line {first}")
            return False
        return True

    # Messages.

    def _assistant(self, line: Line, record: dict[str, Any], message: dict[str, Any]) -> int:
        name = id_of(message.get("id"))
        reply = self.replies.get(name)
        if reply is None:
            reply = self._open_reply(line, record, name)
        else:
            self.assembly.entries[reply.index].byte_count += len(line.raw)
        reply.hold(self.assembly, line)
        for number, block in enumerate(parts_of(message.get("content"))):
            self._take_block(reply, line, block, f"{record.get('uuid', line.number)}:{number}")
        self._take_envelope(reply, message)
        self.assembly.entries[reply.index].event = reply.message()
        self.assembly.count("assistant", "message.added")
        return reply.index

    def _open_reply(self, line: Line, record: dict[str, Any], name: str) -> GrowingReply:
        message_id = self.assembly.source_id(line, name or record.get("uuid"))
        placeholder = MessageAdded(role="assistant")
        agent = AGENT
        if record.get("isSidechain") is True:
            agent = id_of(record.get("attributionAgent")) or id_of(record.get("agentId"))
        reply = GrowingReply(
            index=self.assembly.add(placeholder, line, message_id, stated=record.get("timestamp")),
            message_id=message_id,
            agent=agent or SUBAGENT,
            metadata=metadata_of(record),
        )
        if name:
            self.replies[name] = reply
        return reply

    def _take_block(
        self, reply: GrowingReply, line: Line, block: dict[str, Any], place: str
    ) -> None:
        match block.get("type"):
            case "thinking":
                reply.reasoning.append(text_of(block.get("thinking")))
            case "redacted_thinking":
                pass  # `native` has it; there is no text
            case "tool_use":
                call = ToolCall(
                    id=text_of(block.get("id")) or place,
                    name=text_of(block.get("name")),
                    arguments=json_text(block.get("input") or {}),
                )
                if not block.get("id"):
                    self.assembly.note(line.number, f"a call of {call.name!r} has no id")
                reply.tool_calls.append(call)
                self.assembly.called(line, call)
            case _:
                reply.parts.append(block)

    def _take_envelope(self, reply: GrowingReply, message: dict[str, Any]) -> None:
        """The fields beside the content. Usage counts up from line to line of a reply."""
        model = text_of(message.get("model"))
        if model and model != SYNTHETIC_MODEL:
            reply.model = self.session.facts["model"] = model
        reply.finish_reason = text_of(message.get("stop_reason")) or reply.finish_reason
        usage = _usage(dict_of(message.get("usage")))
        if usage and (reply.usage is None or usage.output_tokens >= reply.usage.output_tokens):
            reply.usage = usage

    def _user(self, line: Line, record: dict[str, Any], message: dict[str, Any]) -> int:
        native: Any = self.assembly.verbatim(line)
        first = len(self.assembly.entries)
        for blocks in _runs(parts_of(message.get("content"))):
            message_id = self.assembly.source_id(line, record.get("uuid"))
            metadata = metadata_of(record)
            if blocks and blocks[0].get("type") == "tool_result":
                event = self._result(line, record, blocks[0], metadata)
            else:
                event = MessageAdded(role="user", content=joined(blocks, "\n\n"), metadata=metadata)
                self.session.take_prompt(event)
            event = msgspec.structs.replace(event, message_id=message_id, native=[native])
            self.assembly.add(event, line, message_id, stated=record.get("timestamp"))
            if len(self.assembly.entries) == first + 1:
                native = {"part_of": message_id}
        self.assembly.count("user", "message.added")
        return first

    def _result(
        self, line: Line, record: dict[str, Any], block: dict[str, Any], metadata: dict[str, Any]
    ) -> MessageAdded:
        call_id = text_of(block.get("tool_use_id")) or text_of(record.get("sourceToolUseID"))
        if tool := self.assembly.answered(line, call_id or None):
            metadata["tool"] = tool
        if block.get("is_error") is True:
            metadata["is_error"] = True
        return MessageAdded(
            role="tool",
            content=joined(parts_of(block.get("content")), "\n"),
            tool_call_id=call_id or None,
            metadata=metadata,
        )

    def finish(self) -> Transcript:
        self.compactions.close()
        self.session.settle_summaries(self.indexes)
        for line, parent in self.parents.values():
            if parent and parent not in self.indexes:
                self.assembly.note(line, f"its parentUuid {parent} is not in the file")
        return self.assembly.finish(
            key=self.session.key, title=self.session.title, metadata=self.session.metadata
        )


def _usage(stated: dict[str, Any]) -> Usage | None:
    """Claude counts tokens read from or written to its cache beside the input; here they are in."""
    cached = count_of(stated.get("cache_read_input_tokens")) or 0
    written = count_of(stated.get("cache_creation_input_tokens")) or 0
    return usage_of(
        input_tokens=(count_of(stated.get("input_tokens")) or 0) + written + cached,
        output_tokens=stated.get("output_tokens"),
        cached_tokens=cached,
        reasoning_tokens=dict_of(stated.get("output_tokens_details")).get("thinking_tokens"),
    )


def _runs(parts: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The parts of a `user` line as messages: each tool result alone, what is between together."""
    runs: list[list[dict[str, Any]]] = []
    for part in parts:
        alone = part.get("type") == "tool_result"
        if runs and not alone and runs[-1][0].get("type") != "tool_result":
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs or [[]]
