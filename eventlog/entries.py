"""The messages of a session as a chunked sequence that is cheap to copy, to extend and to load.

A session can hold tens of thousands of messages, and replay wants the state at any point of it. So
messages live in chunks of `CHUNK_LENGTH`. Copying a sequence copies references to chunks; a chunk
is copied itself only when it is written to. A chunk that came from a snapshot stays encoded until
someone looks inside. Full chunks are stored once, beside the snapshots that refer to them.

Entries are ordered by `seq`, the seq of the event that opened the message.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, Literal, overload

import msgspec

from eventlog.events import Content, Role, ToolCall, Usage

CHUNK_LENGTH: Final = 256
"""Messages in a chunk: small enough to copy and to decode in well under a millisecond."""
MESSAGE_OVERHEAD_BYTES: Final = 600
"""Memory of a decoded message beside its text, about; for estimates."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A chat message as the fold sees it, streamed or added whole."""

    message_id: str
    seq: int
    """Seq of the event that opened it."""
    role: Role
    content: Content = ""
    agent: str | None = None
    name: str | None = None
    model: str | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    token_count: int | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    interrupt_reason: str | None = None
    metadata: dict[str, Any] = {}
    native: Any = None
    opening_metadata: dict[str, Any] | None = None
    """`metadata` as it was before the message's end added to it; None: the end added nothing."""
    status: Literal["complete", "open", "interrupted"] = "complete"
    recorded_at: datetime
    closed_seq: int = 0
    """Seq of the event that completed or interrupted it; 0 while it is open."""
    retracted_seq: int = 0
    """Seq of the event that took it back; 0 if none did."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Message])


class NotLoaded(Exception):
    """Something is needed that was left where it is stored until now. Internal."""


class ChunkMissing(NotLoaded):
    """A chunk is needed whose messages were not loaded from the snapshot yet. Internal."""

    def __init__(self, key: int, *others: int) -> None:
        super().__init__(f"chunk {key} is not loaded")
        self.key = key
        self.keys = {key, *others}


class Chunk:
    """Up to `CHUNK_LENGTH` messages: decoded, still encoded, or only known by their key."""

    __slots__ = ("_encoded", "_items", "count", "first_seq", "stored_as")

    def __init__(
        self,
        items: list[Message] | None,
        *,
        encoded: bytes | None = None,
        first_seq: int = 0,
        count: int = 0,
        stored_as: int = 0,
    ) -> None:
        self._items = items
        self._encoded = encoded
        self.first_seq = first_seq if items is None else (items[0].seq if items else 0)
        self.count = count if items is None else len(items)
        self.stored_as = stored_as
        """Key under which exactly this chunk is stored beside the snapshots; 0: it isn't."""

    @property
    def items(self) -> list[Message]:
        """The messages. Whoever writes to the list owns the chunk and calls `changed` after."""
        if self._items is None:
            if self._encoded is None:
                raise ChunkMissing(self.stored_as)
            self._items = _decoder.decode(self._encoded)
        return self._items

    def encode(self) -> bytes:
        """The chunk's messages as bytes, for a snapshot."""
        if self._encoded is None:
            self._encoded = _encoder.encode(self.items)
        return self._encoded

    @property
    def memory_bytes(self) -> int:
        """What the chunk takes in memory, about; without the text of what was never encoded."""
        encoded = 0 if self._encoded is None else len(self._encoded)
        return 2 * encoded + MESSAGE_OVERHEAD_BYTES * self.count if self.loaded else 0

    @property
    def loaded(self) -> bool:
        """Whether the messages are here."""
        return self._items is not None or self._encoded is not None

    def load(self, encoded: bytes) -> None:
        """Give a chunk that was only known by its key its messages."""
        self._encoded = encoded

    def copy(self) -> Chunk:
        """A chunk of one's own with the same messages."""
        return Chunk(list(self.items))

    def changed(self) -> None:
        """The list was written to: the encoded form and its stored copy no longer match."""
        items = self.items
        self._encoded = None
        self.stored_as = 0
        self.count = len(items)
        self.first_seq = items[0].seq if items else 0


class Entries(Sequence[Message]):
    """All messages of a session's fold, hidden ones included, ordered by seq."""

    __slots__ = ("_owned", "chunks", "event_bytes", "unsaved_rows")

    def __init__(self, chunks: list[Chunk] | None = None, *, event_bytes: int = 0) -> None:
        self.chunks: list[Chunk] = chunks or []
        self._owned: set[int] = set()
        self.event_bytes = event_bytes
        """Bytes of the events folded into the state since it was restored, and of the header then.
        This and `unsaved_rows` are counted by who knows the rows: `Replayer.take`."""
        self.unsaved_rows = 0
        """Rows folded into the state since the last snapshot of it or of a state before it."""

    def copy(self) -> Entries:
        """The same messages; writing to either does not show in the other."""
        self._owned.clear()
        copied = Entries(list(self.chunks), event_bytes=self.event_bytes)
        copied.unsaved_rows = self.unsaved_rows
        return copied

    @property
    def memory_bytes(self) -> int:
        """What the state with these messages takes in memory, about: rather more than less."""
        return self.event_bytes + sum(chunk.memory_bytes for chunk in self.chunks)

    def __len__(self) -> int:
        if not self.chunks:
            return 0
        return (len(self.chunks) - 1) * CHUNK_LENGTH + self.chunks[-1].count

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        length = len(self)
        if index < 0:
            index += length
        if not 0 <= index < length:
            raise IndexError("message index out of range")
        return self.chunks[index // CHUNK_LENGTH].items[index % CHUNK_LENGTH]

    def __iter__(self) -> Iterator[Message]:
        for chunk in self.chunks:
            yield from chunk.items

    def iterate_from(self, index: int) -> Iterator[Message]:
        """Messages from `index` on, without decoding those before."""
        for number in range(index // CHUNK_LENGTH, len(self.chunks)):
            items = self.chunks[number].items
            yield from items[index - number * CHUNK_LENGTH :] if index else items
            index = 0

    def append(self, message: Message) -> int:
        """Add a message at the end; returns its index."""
        if not self.chunks or self.chunks[-1].count == CHUNK_LENGTH:
            self.chunks.append(Chunk([message]))
            self._owned.add(len(self.chunks) - 1)
        else:
            chunk = self._writable(len(self.chunks) - 1)
            chunk.items.append(message)
            chunk.changed()
        return len(self) - 1

    def replace(self, index: int, message: Message) -> None:
        """Put another message in the place of the one at `index`."""
        chunk = self._writable(index // CHUNK_LENGTH)
        chunk.items[index % CHUNK_LENGTH] = message
        chunk.changed()

    def truncate(self, length: int) -> None:
        """Drop all messages from index `length` on."""
        keep, rest = divmod(length, CHUNK_LENGTH)
        if rest:
            chunk = self._writable(keep)
            del chunk.items[rest:]
            chunk.changed()
            keep += 1
        del self.chunks[keep:]
        self._owned = {number for number in self._owned if number < keep}

    def index_after(self, seq: int) -> int:
        """Index of the first message with a seq greater than `seq`."""
        number = self._chunk_of(seq)
        if number < 0:
            return 0
        items = self.chunks[number].items
        return number * CHUNK_LENGTH + bisect_right(items, seq, key=lambda each: each.seq)

    def at_seq(self, seq: int) -> Message | None:
        """The message opened by the event with this seq, if there is one."""
        number = self._chunk_of(seq)
        if number < 0:
            return None
        items = self.chunks[number].items
        place = bisect_left(items, seq, key=lambda each: each.seq)
        return items[place] if place < len(items) and items[place].seq == seq else None

    def missing(self, seqs: list[int], after: int) -> list[Chunk]:
        """Chunks to be loaded before messages of these seqs, or behind `after`, can be read."""
        numbers = {max(0, self._chunk_of(seq)) for seq in seqs}
        numbers.update(range(max(0, self._chunk_of(after)), len(self.chunks)))
        return [
            self.chunks[number]
            for number in sorted(numbers)
            if number < len(self.chunks) and not self.chunks[number].loaded
        ]

    def _chunk_of(self, seq: int) -> int:
        return bisect_right(self.chunks, seq, key=lambda chunk: chunk.first_seq) - 1

    def _writable(self, number: int) -> Chunk:
        if number not in self._owned:
            self.chunks[number] = self.chunks[number].copy()
            self._owned.add(number)
        return self.chunks[number]
