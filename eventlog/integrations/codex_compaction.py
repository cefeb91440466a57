"""Compactions in a Codex rollout: `compacted` lines with a summary and what replaces the history.

`replacement_history` is the context after the compaction: instructions, the newest messages of the
user, the summary. Those of its messages that are found among the earlier ones are kept by
reference; the rest is in the event's metadata only, and the report says how many. Older lines have
no such list; Codex then kept the newest messages of the user, about `KEPT_CHARS_MAX` of them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from eventlog.events import CompactionCompleted, Content, MessageAdded
from eventlog.integrations.assembly import Assembly
from eventlog.integrations.jsonl import Line, count_of, dict_of, parts_of, text_in, text_of
from eventlog.integrations.transcripts import ImportedCompaction

KEPT_CHARS_MAX: Final = 80_000
"""20,000 tokens at four characters each: Codex's own limit and estimate."""
ENCRYPTED_SUMMARY: Final = (
    "(The provider made this summary and encrypted it: it can't be read here. "
    "The encrypted item is in the metadata of this compaction.)"
)


class CodexCompactions:
    """Turns `compacted` lines into compactions of the assembly."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self._messages: dict[int, tuple[str, str]] = {}  # index of event: role, text
        self._tokens: int | None = None

    def take_message(self, index: int, event: MessageAdded) -> None:
        """A message that later compactions may keep."""
        self._messages[index] = (event.role, _text(event.content))

    def take_usage(self, usage: dict[str, Any]) -> None:
        """Tokens of the last request: the size of the context."""
        self._tokens = count_of(usage.get("total_tokens")) or self._tokens

    def take(self, line: Line, record: dict[str, Any], payload: dict[str, Any]) -> bool:
        """Add the compaction that a line states; False when it says nothing."""
        replacement = payload.get("replacement_history")
        summary = text_of(payload.get("message")).strip()
        if not summary and not isinstance(replacement, list):
            self.assembly.note(line.number, "a compaction without its summary")
            return False
        summary = summary or ENCRYPTED_SUMMARY
        if isinstance(replacement, list):
            kept = self._found(replacement, summary, line.number)
        else:
            kept = self._newest()
        held = self.assembly.verbatim(line)
        index = len(self.assembly.entries)
        told = CompactionCompleted(
            summary=summary,
            from_seq=0,
            to_seq=0,
            tokens_before=self._tokens,
            metadata={"source": "codex", "records": [held]},
        )
        event = ImportedCompaction(event=told, covers_from=0, covers_to=index - 1, kept=kept)
        source_id = self.assembly.source_id(line)
        self.assembly.add(event, line, source_id, stated=record.get("timestamp"))
        return True

    def _found(self, replacement: list[Any], summary: str, line_number: int) -> list[int]:
        """Indexes of the earlier messages that the replacement repeats, newest first served."""
        known: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for index, message in self._messages.items():
            known[message].append(index)
        kept, missing = [], 0
        for item in map(dict_of, reversed(replacement)):
            text = _text(parts_of(item.get("content")))
            if item.get("type", "message") != "message" or text.strip().endswith(summary):
                continue
            if indexes := known[(text_of(item.get("role")), text)]:
                kept.append(indexes.pop())
            else:
                missing += 1
        if missing:
            self.assembly.note(
                line_number,
                f"{missing} messages of its replacement_history are not among the earlier ones",
            )
        return sorted(kept)

    def _newest(self) -> list[int]:
        kept: list[int] = []
        room = KEPT_CHARS_MAX
        for index, (role, text) in reversed(self._messages.items()):
            if role in ("system", "developer"):
                kept.append(index)
            elif role == "user" and room > 0:
                kept.append(index)
                room -= len(text)
        return sorted(kept)


def _text(content: Content) -> str:
    return content if isinstance(content, str) else text_in(content)
