"""How many tokens a model reads: of a text, of content, of a message, of a whole context.

Counted offline, by the tokenizer that the model's maker publishes, in the published frame of a chat
message: three tokens around it, one more with a name. Everything else is an estimate and says so:
models with other tokenizers, texts too long to count at once, audio, files, parts of unknown kinds.
Where no tokenizer is installed, a token is taken for four bytes.

    message ─ rendering.message_dict ─ _read ─> texts, and what isn't text ─ _count ─> TokenCount

Texts are counted many at a time, and counts of longer ones are remembered under the hash of the
text, never the text: a context that grew by a message is measured anew in a fraction of the time.
Reasoning counts as nothing: it isn't given to the model again.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Final

from eventlog.compaction.counts import TokenCount
from eventlog.compaction.images import image_tokens
from eventlog.compaction.windows import Encoding, bare_name, encoding_of
from eventlog.entries import Message
from eventlog.event_values import Content
from eventlog.rendering import message_dict

try:
    from toktok import batch_count
except ImportError:  # a platform without a wheel of it
    batch_count = None

__all__ = [
    "TokenCount",
    "count_content",
    "count_dicts",
    "count_each",
    "count_message",
    "count_messages",
    "count_text",
]

MESSAGE_TOKENS: Final = 3
"""Tokens around each message in the chat format."""
NAME_TOKENS: Final = 1
"""What a message's name takes beside itself."""
REPLY_TOKENS: Final = 3
"""What a request has on top, once: the beginning of the reply. In none of the counts here."""
CALL_TOKENS: Final = 3
"""Tokens around a tool call: to the model it is a message of its own."""
BYTES_PER_TOKEN: Final = 4
"""The usual rule of thumb; of text other than English and of code it promises too much."""
TEXT_LENGTH_MAX: Final = 1_000_000
"""Characters of a text that is counted whole, in 0.03 s usually, 0.2 s at worst. Of a longer one
pieces are counted: no window is as large."""
PIECES: Final = 16
"""How many, evenly spread."""
PIECE_LENGTH: Final = 16_384
"""Characters of each."""
REMEMBERED_LENGTH_MIN: Final = 64
"""Characters. Shorter texts are counted faster than looked up."""
REMEMBERED_MAX: Final = 65_536
"""Counts that are remembered, some 200 bytes each; then the one unused longest is forgotten."""
OPAQUE_TOKENS: Final = 1_500
"""What data inside a part counts as that can't be looked into: about a page, or an image."""
AUDIO_BYTES_PER_SECOND: Final = 16_000
"""Of compressed audio at a common rate."""
AUDIO_TOKENS_PER_SECOND: Final = 10
AUDIO_TOKENS_PER_SECOND_GEMINI: Final = 32
DEPTH_MAX: Final = 8
"""Levels of parts within parts that are looked into."""

_IMAGE_TYPES: Final = ("image_url", "input_image", "image", "computer_screenshot")
_REASONING_TYPES: Final = ("thinking", "redacted_thinking", "reasoning")
_DATA: Final = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{1024,}={0,2}")
"""Base64 is this long without anything that separates words."""


class _Reading:
    """What a model reads of something: texts that are still to be counted, and all else."""

    __slots__ = ("exact", "texts", "tokens")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.tokens = 0
        self.exact = True

    def text(self, value: object) -> None:
        if isinstance(value, str) and value:
            self.texts.append(value)

    def estimate(self, tokens: int) -> None:
        self.tokens += tokens
        self.exact = False


def count_text(text: str, model: str | None = None) -> TokenCount:
    """Tokens of a text. Marks such as `<|endoftext|>` count as the text that they are."""
    return _count_texts([text], encoding_of(model))[0]


def count_content(content: Content | None, model: str | None = None) -> TokenCount:
    """Tokens of text or of a list of content parts, of whichever provider's form."""
    reading = _Reading()
    _read_content(content, reading, model, DEPTH_MAX)
    return _count([reading], model)[0]


def count_message(message: Message, model: str | None = None) -> TokenCount:
    """Tokens of a message as it stands in a context; those that it states, if it does."""
    return count_messages([message], model)[0]


def count_messages(messages: Sequence[Message], model: str | None = None) -> list[TokenCount]:
    """The same for each of many messages, in far less time than one after the other."""
    unstated = [message_dict(each) for each in messages if each.token_count is None]
    counted = iter(count_each(unstated, model))
    return [
        next(counted) if each.token_count is None else TokenCount(max(0, each.token_count))
        for each in messages
    ]


def count_dicts(context: Sequence[Mapping[str, Any]], model: str | None = None) -> TokenCount:
    """Tokens of a whole context in the form of the chat completions API."""
    return sum(count_each(context, model), TokenCount(0))


def count_each(context: Sequence[Mapping[str, Any]], model: str | None = None) -> list[TokenCount]:
    """Tokens of each message of a context in the form of the chat completions API."""
    readings = []
    for each in context:
        reading = _Reading()
        _read(each, reading, model)
        readings.append(reading)
    return _count(readings, model)


# --- what is read --------------------------------------------------------------------------------


def _read(message: Mapping[str, Any], reading: _Reading, model: str | None) -> None:
    reading.tokens += MESSAGE_TOKENS
    reading.text(message.get("role"))
    if message.get("name"):
        reading.tokens += NAME_TOKENS
        reading.text(message["name"])
    reading.text(message.get("tool_call_id"))
    _read_content(message.get("content"), reading, model, DEPTH_MAX)
    for call in message.get("tool_calls") or ():
        reading.tokens += CALL_TOKENS
        match call:
            case {"function": {"name": name, "arguments": arguments}}:
                reading.text(name)
                reading.text(arguments)
            case _:
                _read_unknown(call, reading)


def _read_content(content: Any, reading: _Reading, model: str | None, depth: int) -> None:
    if isinstance(content, str):
        reading.text(content)
    elif isinstance(content, list):
        for part in content:
            _read_part(part, reading, model, depth - 1)
    elif content is not None:
        _read_unknown(content, reading)


def _read_part(part: Any, reading: _Reading, model: str | None, depth: int) -> None:
    fields: dict[str, Any] = part if isinstance(part, dict) else {}
    match part:
        case str():
            reading.text(part)
        case {"type": "text" | "input_text" | "output_text", "text": str() as text}:
            reading.text(text)
        case {"type": "refusal", "refusal": str() as text}:
            reading.text(text)
        case {"type": kind} if kind in _REASONING_TYPES:
            pass
        case {"type": kind} if kind in _IMAGE_TYPES:
            image = image_tokens(fields, model)
            reading.tokens += image.tokens
            reading.exact = reading.exact and image.exact
        case {"type": "input_audio" | "audio"}:
            reading.estimate(_audio_tokens(fields, model))
        case {"type": "file" | "input_file" | "document"}:
            reading.estimate(_file_tokens(fields, reading))
        case {"type": "tool_result", "content": str() | list() as content} if depth > 0:
            reading.text(fields.get("tool_use_id"))
            _read_content(content, reading, model, depth)
        case _:
            _read_unknown(part, reading)


def _read_unknown(value: object, reading: _Reading) -> None:
    """Its JSON, in which data that nobody reads as text counts as one thing."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (RecursionError, ValueError):  # deeper than anyone can read, or holding itself
        reading.estimate(OPAQUE_TOKENS)
        return
    text, found = _DATA.subn("", text)
    reading.text(text)
    reading.estimate(OPAQUE_TOKENS * found)


def _audio_tokens(part: Mapping[str, Any], model: str | None) -> int:
    each = AUDIO_TOKENS_PER_SECOND
    if model and bare_name(model).startswith("gemini"):
        each = AUDIO_TOKENS_PER_SECOND_GEMINI
    match part:
        case {"input_audio": {"data": str() as data}} | {"audio": {"data": str() as data}}:
            return -(-_decoded_bytes(data) * each // AUDIO_BYTES_PER_SECOND)
    return OPAQUE_TOKENS


def _file_tokens(part: Mapping[str, Any], reading: _Reading) -> int:
    """By its length: providers read a PDF as text and as pictures of its pages."""
    inner = part.get("file")
    fields: Mapping[str, Any] = inner if isinstance(inner, dict) else part
    for name in ("filename", "title"):
        reading.text(fields.get(name))
    match fields:
        case {"source": {"type": "text", "data": str() as text}}:
            reading.text(text)
            return 0
        case {"file_data": str() as data} | {"source": {"data": str() as data}}:
            return -(-_decoded_bytes(data) // BYTES_PER_TOKEN)
    return OPAQUE_TOKENS


def _decoded_bytes(data: str) -> int:
    return len(data) * 3 // 4


# --- counting ------------------------------------------------------------------------------------


def _count(readings: Sequence[_Reading], model: str | None) -> list[TokenCount]:
    """One count for each reading, by one call of the tokenizer for the texts of all of them."""
    texts = [text for each in readings for text in each.texts]
    counted = iter(_count_texts(texts, encoding_of(model)))
    totals = []
    for each in readings:
        total = TokenCount(each.tokens, each.exact)
        for _ in each.texts:
            total += next(counted)
        totals.append(total)
    return totals


def _count_texts(texts: Sequence[str], encoding: Encoding) -> list[TokenCount]:
    known = _memory.get(encoding.name, texts)
    missing = [place for place, tokens in enumerate(known) if tokens is None]
    fresh = _tokenize([texts[place] for place in missing], encoding)
    for place, count in zip(missing, fresh, strict=True):
        known[place] = count
    _memory.put(encoding.name, [(texts[place], known[place]) for place in missing])
    return [
        TokenCount(each.tokens, each.exact and encoding.exact) for each in known if each is not None
    ]


def _tokenize(texts: Sequence[str], encoding: Encoding) -> list[TokenCount]:
    """By the tokenizer, whatever model it is of; exact when the whole text was counted by it."""
    if not texts:
        return []
    if batch_count is None:
        return [TokenCount(_byte_estimate(text), exact=False) for text in texts]
    pieces: list[str] = []
    cuts: list[int] = []
    clean: list[bool] = []
    for text in texts:
        parts = [text] if len(text) <= TEXT_LENGTH_MAX else _spread_pieces(text)
        encodable = [_encodable(part) for part in parts]
        pieces += encodable
        cuts.append(len(parts))
        clean.append(encodable == [text])
    # One thread: with more, small batches take longer, and other work gets no processor.
    counts = iter(batch_count(pieces, encoding.name, threads=1))
    results = []
    for text, cut, exact in zip(texts, cuts, clean, strict=True):
        tokens = sum(next(counts) for _ in range(cut))
        if len(text) > TEXT_LENGTH_MAX:
            tokens = -(-tokens * len(text) // (PIECES * PIECE_LENGTH))
        results.append(TokenCount(tokens, exact))
    return results


def _spread_pieces(text: str) -> list[str]:
    step = (len(text) - PIECE_LENGTH) // (PIECES - 1)
    return [text[place * step : place * step + PIECE_LENGTH] for place in range(PIECES)]


def _encodable(text: str) -> str:
    """The text with a replacement character for each half of a character that stands alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _byte_estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


class _Memory:
    """Counts of longer texts, by tokenizer, length and hash; forgets the one unused longest.

    Python's hash of a text is keyed anew in each process, and kept with the text.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, int, int], TokenCount] = OrderedDict()
        self._lock = Lock()

    def get(self, encoding: str, texts: Sequence[str]) -> list[TokenCount | None]:
        """The count of each text, None where it isn't remembered."""
        found: list[TokenCount | None] = []
        with self._lock:
            for text in texts:
                count = None
                if len(text) >= REMEMBERED_LENGTH_MIN:
                    key = (encoding, len(text), hash(text))
                    count = self._counts.get(key)
                    if count is not None:
                        self._counts.move_to_end(key)
                found.append(count)
        return found

    def put(self, encoding: str, counted: Sequence[tuple[str, TokenCount | None]]) -> None:
        """Remember what was counted."""
        with self._lock:
            for text, count in counted:
                if count is not None and len(text) >= REMEMBERED_LENGTH_MIN:
                    self._counts[encoding, len(text), hash(text)] = count
            while len(self._counts) > REMEMBERED_MAX:
                self._counts.popitem(last=False)


_memory: Final = _Memory()
