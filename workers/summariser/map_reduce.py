"""Material larger than the model's window: summarised in parts, and the parts' summaries merged.

    messages ── cut ──> parts ── one question each, some at once ──> summaries ── merged ──> one
                                                     previous summary ──┘   (in groups, again and
                                                                             again, if need be)

A part ends between two messages, and not between a tool call and its output unless these alone are
larger than a part. A single message that is larger is clipped. Each round of merging leaves at most
half as many summaries, so that it comes to an end whatever models answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from eventlog.compaction.tokens import count_text
from eventlog.entries import Message
from workers.summariser.quoting import (
    CLIPPED_LENGTH_MIN,
    TEXT_LENGTH_MAX,
    Document,
    bare_document,
    clip,
    message_document,
    text_of,
    to_line,
)

ESTIMATE_MARGIN: Final = 1.25
"""What an estimate of tokens is multiplied with: of other tokenizers it may promise too much."""
EXACT_MARGIN: Final = 1.02
"""The same for exact counts: lines are counted one by one, and have an end."""


class Line(msgspec.Struct, frozen=True):
    """A document as it is given to the model, and what it takes."""

    text: str
    tokens: int


class Part(msgspec.Struct, frozen=True):
    """Lines that are summarised together, and the range of seqs that they are from."""

    lines: tuple[Line, ...]
    from_seq: int
    to_seq: int


class Piece(msgspec.Struct, frozen=True):
    """A summary on its way to be merged: of a part, of several, or of all that came before."""

    text: str
    from_seq: int = 0
    to_seq: int = 0
    """0: it is the previous summary."""

    def document(self, length_max: int) -> Document:
        """What the model is shown of it."""
        text = clip(self.text, length_max)
        if not self.to_seq:
            return {"kind": "previous_summary", "text": text}
        seqs = {"from_seq": max(1, self.from_seq), "to_seq": self.to_seq}
        return {"kind": "part_summary", **seqs, "text": text}


class Ruler:
    """Measures lines in tokens of a model, with a margin."""

    def __init__(self, model: str) -> None:
        self._model = model

    def tokens(self, text: str) -> int:
        """Tokens of a text: rather more than less."""
        count = count_text(text, self._model)
        return int(count.tokens * (EXACT_MARGIN if count.exact else ESTIMATE_MARGIN)) + 1

    def line(self, document: Document) -> Line:
        """A document as it is, however large."""
        text = to_line(document)
        return Line(text, self.tokens(text))

    def fit(
        self,
        make: Callable[[int], Document],
        tokens_max: int,
        *,
        length_max: int = TEXT_LENGTH_MAX,
    ) -> Line | None:
        """The document of `length_max`, halved again and again until it fits; None: it doesn't."""
        while (line := self.line(make(length_max))).tokens > tokens_max:
            if length_max <= CLIPPED_LENGTH_MIN:
                return None
            length_max = max(CLIPPED_LENGTH_MIN, length_max // 2)
        return line

    def messages(
        self, messages: Sequence[Message], unanswered: frozenset[str], tokens_max: int
    ) -> list[tuple[Message, Line]]:
        """The line of each message, none larger than `tokens_max`."""
        return [(each, self._message(each, unanswered, tokens_max)) for each in messages]

    def _message(self, message: Message, unanswered: frozenset[str], tokens_max: int) -> Line:
        text = text_of(message.content)
        line = self.fit(
            lambda length: message_document(
                message, text, unanswered=unanswered, length_max=length
            ),
            tokens_max,
        )
        return line or self.line(bare_document(message))


def cut(lines: Sequence[tuple[Message, Line]], tokens_max: int) -> Iterator[Part]:
    """Cut the material into parts of at most `tokens_max`, in order. No line may be larger."""
    gathered: list[tuple[Message, Line]] = []
    tokens = 0
    for unit in _units(lines):
        needed = sum(line.tokens for _, line in unit)
        for each in unit:
            # A unit begins a new part rather than being cut; a unit larger than a part is cut.
            if gathered and tokens + (needed or each[1].tokens) > tokens_max:
                yield _part(gathered)
                gathered, tokens = [], 0
            needed = 0
            gathered.append(each)
            tokens += each[1].tokens
    if gathered:
        yield _part(gathered)


def _units(lines: Sequence[tuple[Message, Line]]) -> Iterator[list[tuple[Message, Line]]]:
    """What belongs together: a message with tool calls and all up to the last of their outputs."""
    unit: list[tuple[Message, Line]] = []
    waiting: set[str] = set()
    for message, line in lines:
        if unit and not (message.role == "tool" and message.tool_call_id in waiting):
            yield unit
            unit, waiting = [], set()
        unit.append((message, line))
        waiting.update(call.id for call in message.tool_calls)
    if unit:
        yield unit


def _part(lines: Sequence[tuple[Message, Line]]) -> Part:
    return Part(tuple(line for _, line in lines), lines[0][0].seq, lines[-1][0].seq)


def group(pieces: Sequence[Piece], ruler: Ruler, tokens_max: int) -> list[list[tuple[Piece, Line]]]:
    """Neighbouring pieces that are merged together: two or more, but for the last group."""
    groups: list[list[tuple[Piece, Line]]] = []
    free = 0
    for piece in pieces:
        line = ruler.fit(piece.document, tokens_max // 2, length_max=len(piece.text)) or ruler.line(
            piece.document(0)
        )
        if not groups or line.tokens > free:
            groups.append([])
            free = tokens_max
        groups[-1].append((piece, line))
        free -= line.tokens
    return groups
