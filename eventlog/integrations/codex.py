"""Reading a Codex rollout: `{"timestamp", "type", "payload"}`, or older lines without payload.

- `response_item` is the conversation as the model sees it. Consecutive reasoning, text and calls of
  the assistant are one reply and become one `message.added`; user, system and developer messages
  and results of tools (`…_output`) become one each. A call that the provider ran itself (web
  search, image generation) becomes a call and a result with its status.
- `compacted` becomes `compaction.completed` over everything before it; messages of its
  `replacement_history` that are found among the earlier ones stay in the context.
- `event_msg` is what the user interface showed. `user_message`, `agent_message` and
  `agent_reasoning` repeat items and stay `custom`, unless the file has no such items at all;
  `token_count` also gives the reply before it its usage; `thread_name_updated` sets the title.
- Everything else becomes `custom`, named `codex.<type>` or `codex.<type>.<payload type>`.

`native` of a message is the list of its items, verbatim; `envelopes` in its metadata is what stood
around each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from eventlog.events import Custom, MessageAdded, Role, SessionUpdated, ToolCall
from eventlog.integrations.assembly import Assembly, label_of, one_line
from eventlog.integrations.codex_compaction import CodexCompactions
from eventlog.integrations.codex_echoes import ECHOES, Echo, message_from
from eventlog.integrations.codex_items import (
    AGENT,
    CALLS,
    HOSTED,
    OUTPUTS,
    ROLES,
    call_in,
    envelope_of,
    metadata_of,
    opened,
    reasoning_in,
    result_in,
    usage_in,
)
from eventlog.integrations.codex_session import CodexSession
from eventlog.integrations.growing_reply import GrowingReply
from eventlog.integrations.jsonl import (
    Line,
    Progress,
    dict_of,
    joined,
    parts_of,
    read_lines,
    text_in,
    text_of,
)
from eventlog.integrations.transcripts import Transcript

TURN_ENDS: Final = {
    "task_started",
    "task_complete",
    "turn_aborted",
    "turn_started",
    "turn_complete",
}
"""Events at which a reply is whole."""


def read_codex(path: Path, progress: Progress | None = None) -> Transcript:
    """The file as a transcript; `transcripts.read_transcript` is the way to call it."""
    reader = _Reader(path)
    for line in read_lines(path, progress=progress):
        reader.read(line)
    return reader.finish()


class _Reader:
    def __init__(self, path: Path) -> None:
        self.assembly = Assembly("codex", "codex")
        self.session = CodexSession(path)
        self.compactions = CodexCompactions(self.assembly)
        self.reply: GrowingReply | None = None
        self.last_reply: GrowingReply | None = None
        self.echoes: list[Echo] = []
        self.repeated: set[str] = set()  # of user, assistant, reasoning: those with items
        self.spent: object = None  # total_token_usage of the last token_count

    def read(self, line: Line) -> None:
        if not self.assembly.begin(line):
            return
        kind, payload = opened(record := dict_of(line.record))
        detail = text_of(payload.get("type")) if kind in ("response_item", "event_msg") else ""
        label = label_of(kind, detail)
        if kind == "response_item":
            self._item(line, record, payload, label)
            return
        if kind == "event_msg":
            self._event(line, record, payload, label)
            return
        self.reply = None
        self.session.take(kind, payload)
        if kind == "compacted" and self.compactions.take(line, record, payload):
            self.assembly.count(label, "compaction.completed")
        else:
            self._keep(line, record, label)

    def _keep(self, line: Line, record: dict[str, Any], label: str) -> int:
        self.assembly.count(label, "custom")
        return self.assembly.keep(line, label, stated=record.get("timestamp"))

    # Items.

    def _item(self, line: Line, record: dict[str, Any], item: dict[str, Any], label: str) -> None:
        kind = text_of(item.get("type"))
        role = ROLES.get(text_of(item.get("role")))
        if kind == "message" and role is not None and role != "assistant":
            self._message(line, record, item, role)
        elif kind == "agent_message":  # from another agent: input to this one
            self._message(line, record, item, "user")
        elif kind == "reasoning" or (kind == "message" and role == "assistant") or kind in CALLS:
            self._part_of_reply(line, record, item)
        elif kind in OUTPUTS:
            self._output(line, record, item)
        elif kind in HOSTED:
            self._hosted(line, record, item)
        else:
            if kind == "message":
                self.assembly.note(line.number, f"a message with the role {item.get('role')!r}")
            self._keep(line, record, label)
            return
        self.assembly.count(label, "message.added")

    def _add(
        self, line: Line, record: dict[str, Any], item: dict[str, Any], event: MessageAdded
    ) -> None:
        """Add a message that is one item."""
        self.reply = None
        message_id = self.assembly.source_id(line)
        native = self.assembly.verbatim(line, item)
        metadata = metadata_of(record if native is item else {}) | event.metadata
        event = msgspec.structs.replace(
            event, message_id=message_id, metadata=metadata, native=[native]
        )
        index = self.assembly.add(event, line, message_id, stated=record.get("timestamp"))
        self.compactions.take_message(index, event)

    def _message(
        self, line: Line, record: dict[str, Any], item: dict[str, Any], role: Role
    ) -> None:
        content = joined(parts_of(item.get("content")), "\n\n")
        author = text_of(item.get("author")) or None
        self._add(line, record, item, MessageAdded(role=role, content=content, name=author))
        if role == "user" and item.get("type") == "message":
            self.repeated.add("user")
            self.session.take_prompt(text_in(parts_of(item.get("content"))))

    def _part_of_reply(self, line: Line, record: dict[str, Any], item: dict[str, Any]) -> None:
        reply = self._reply_for(line, record, item)
        match item.get("type"):
            case "message":
                reply.parts.extend(parts_of(item.get("content")))
                self.repeated.add("assistant")
            case "reasoning":
                if text := reasoning_in(item):
                    reply.reasoning.append(text)
                    self.repeated.add("reasoning")
            case _:
                self._call(reply, line, item)
        self._write(reply)

    def _reply_for(self, line: Line, record: dict[str, Any], item: dict[str, Any]) -> GrowingReply:
        """The reply that an item belongs to; it holds the item already."""
        reply = self.reply
        if reply is None or (item.get("type") == "message" and reply.parts):
            reply = self._open_reply(line, record)
        else:
            self.assembly.entries[reply.index].byte_count += len(line.raw)
            reply.metadata["envelopes"].append(envelope_of(record))
        reply.hold(self.assembly, line, item)
        if "raw_line" in reply.native[-1]:
            reply.metadata["envelopes"][-1] = {}  # the line is whole elsewhere
        return reply

    def _open_reply(self, line: Line, record: dict[str, Any]) -> GrowingReply:
        message_id, stated = self.assembly.source_id(line), record.get("timestamp")
        placeholder = MessageAdded(role="assistant")
        self.reply = self.last_reply = GrowingReply(
            index=self.assembly.add(placeholder, line, message_id, stated=stated),
            message_id=message_id,
            agent=AGENT,
            metadata=metadata_of(record),
            model=self.session.model,
        )
        return self.reply

    def _write(self, reply: GrowingReply) -> None:
        self.assembly.entries[reply.index].event = event = reply.message()
        self.compactions.take_message(reply.index, event)

    def _call(self, reply: GrowingReply, line: Line, item: dict[str, Any]) -> ToolCall:
        call = call_in(item, otherwise=f"call-{line.digest}")
        reply.tool_calls.append(call)
        self.assembly.called(line, call)
        return call

    def _output(self, line: Line, record: dict[str, Any], item: dict[str, Any]) -> None:
        call_id = text_of(item.get("call_id")) or None
        tool = self.assembly.answered(line, call_id)
        event = MessageAdded(
            role="tool",
            content=result_in(item),
            tool_call_id=call_id,
            metadata={"tool": tool} if tool else {},
        )
        self._add(line, record, item, event)

    def _hosted(self, line: Line, record: dict[str, Any], item: dict[str, Any]) -> None:
        reply = self._reply_for(line, record, item)
        call = self._call(reply, line, item)
        self._write(reply)
        self.assembly.answered(line, call.id)
        self.reply = None
        message_id = self.assembly.source_id(line)
        event = MessageAdded(
            role="tool",
            content=text_of(item.get("status")) or "completed",
            message_id=message_id,
            tool_call_id=call.id,
            metadata={"source": "codex", "tool": call.name, "is_hosted": True},
            native=[{"part_of": reply.message_id}],
        )
        self.assembly.add(event, line, message_id, stated=record.get("timestamp"))

    # Events of the user interface.

    def _event(self, line: Line, record: dict[str, Any], event: dict[str, Any], label: str) -> None:
        kind = text_of(event.get("type"))
        if kind in ECHOES:
            repeats, field = ECHOES[kind]
            text = text_of(event.get(field))
            index = self.assembly.keep(line, label, stated=record.get("timestamp"))
            self.echoes.append(Echo(index, label, repeats, text))
            if repeats == "user":
                self.session.take_prompt(text)
            return
        title = text_of(event.get("thread_name")).strip()
        if title and kind == "thread_name_updated":
            self.session.title = one_line(title)
            message_id, held = self.assembly.source_id(line), self.assembly.verbatim(line)
            update = SessionUpdated(title=one_line(title), metadata={"title_record": held})
            self.assembly.add(update, line, message_id, stated=record.get("timestamp"))
            self.assembly.count(label, "session.updated")
            return
        if kind == "token_count":
            self._spend(dict_of(event.get("info")))
        if kind in TURN_ENDS:
            self.reply = None
        self._keep(line, record, label)

    def _spend(self, info: dict[str, Any]) -> None:
        """Usage of the reply before. The event is repeated when only the rate limits changed."""
        total, last = info.get("total_token_usage"), dict_of(info.get("last_token_usage"))
        if not last or total == self.spent:
            return
        self.spent, self.reply = total, None
        self.compactions.take_usage(last)
        if self.last_reply is not None and self.last_reply.usage is None:
            self.last_reply.usage = usage_in(last)
            self._write(self.last_reply)

    def finish(self) -> Transcript:
        for echo in self.echoes:
            entry = self.assembly.entries[echo.index]
            repeated = echo.repeats in self.repeated or not echo.text
            if not repeated and isinstance(entry.event, Custom):
                entry.event = message_from(echo, entry.source_id, dict_of(entry.event.data))
            self.assembly.count(echo.label, "custom" if repeated else "message.added")
        return self.assembly.finish(
            key=self.session.key, title=self.session.title, metadata=self.session.metadata
        )
